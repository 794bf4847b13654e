"""Pictures of any kind and size as network inputs, and the camera a picture was probably taken with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..geometry.cameras import Camera
from ..geometry.intrinsics import read_intrinsics
from ..utils.decoding import Layers, layers_of, read_layers
from ..utils.errors import InputError
from ..utils.pictures import load_image
from .photo_exif import read_exif

PictureLike = str | Path | Image.Image | np.ndarray | Tensor
DEFAULT_FOV_DEG = 55.0  # of the longer side, an ordinary phone or kit lens
NEARLY_BLACK = 0.1  # below this a mask of many greys is an empty one with noise
SAME_PICTURE = 0.05  # mean difference of colours in [0, 1] that saving a copy may cause
# camera right, down, forward as world axes: z up, looking along -x, as one who faces the front of an object
UPRIGHT = ((0.0, 0.0, -1.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0))


def pictures(image: PictureLike | Sequence[PictureLike]) -> Tensor:
    """(N, 3, H, W) float32 in [0, 1]. Raises InputError for other kinds, ranges and mixed sizes."""
    if isinstance(image, (list, tuple)):
        if not image:
            raise InputError("image is an empty list; give at least one picture")
        parts = [_batch(one) for one in image]
        if len({tuple(part.shape[1:]) for part in parts}) > 1:
            raise InputError("the pictures differ in size; give them one by one")
        return torch.cat(parts)
    return _batch(image)


def _batch(image: object) -> Tensor:
    """(N, 3, H, W) of a picture, or of a batch array (N, H, W, 3) or tensor (N, 3, H, W); refuses anything else."""
    if isinstance(image, (str, Path)):
        return _from_array(load_image(image))
    if isinstance(image, Image.Image):
        return _from_array(layers_of(image, "the PIL image").over_white())
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if not isinstance(image, Tensor):
        raise InputError(f"image is a {type(image).__name__}; give a path, PIL image, array or tensor")
    tensor = image[None] if image.ndim == 3 else image
    if tensor.ndim != 4 or tensor.shape[1] not in (1, 3):
        raise InputError(f"image has shape {tuple(image.shape)}, expected (3, H, W) or (N, 3, H, W)")
    scaled = tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()
    return _checked(scaled.expand(-1, 3, -1, -1))


def _from_array(array: np.ndarray) -> Tensor:
    if array.ndim == 2:
        array = array[..., None]
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise InputError(f"image has shape {array.shape}, expected (H, W, 3) or (N, H, W, 3)")
    if array.dtype == np.uint8:
        array = array.astype(np.float32) / 255
    elif not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"image has dtype {array.dtype}, expected uint8 or floats in [0, 1]")
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).permute(0, 3, 1, 2)
    return _checked(tensor.expand(-1, 3, -1, -1))


def _checked(images: Tensor) -> Tensor:
    if images.numel() == 0 or not bool(torch.isfinite(images).all()):
        raise InputError("image is empty or holds values that are not finite")
    low, high = float(images.min()), float(images.max())
    if low < -1e-4 or high > 1 + 1e-4:
        raise InputError(f"image has values in [{low:.3g}, {high:.3g}], expected [0, 1]")
    return images.clamp(0, 1)


def hidden_pixels(mask: PictureLike, given: Tensor, means: str = "what is filled in") -> Tensor:
    """(N, 1, H, W) in {0, 1} of what a mask marks, for pictures (N, 3, H, W) of the same size; `means`: in messages.

    One rule: a mask with transparency marks what is drawn on it (alpha of at least a half), unless most of it is
    covered by the picture itself: then parts were erased, and those are marked. Any other mask marks what is at least
    half as bright as its brightest pixel: white on black, 0 and 1, red on black. Raises InputError when nothing or
    everything is marked.
    """
    layers = layers_given(mask)
    if layers is None:
        marked = _bright(pictures(mask).mean(1, keepdim=True))
    elif layers.alpha is None or bool((layers.alpha >= 1).all()):
        marked = _bright(torch.from_numpy(np.ascontiguousarray(layers.rgb.mean(axis=-1)))[None, None])
    else:
        drawn = torch.from_numpy(np.ascontiguousarray(layers.alpha))[None, None] >= 0.5
        rgb = torch.from_numpy(np.ascontiguousarray(layers.rgb)).permute(2, 0, 1)[None]
        marked = (~drawn if _is_picture(rgb, drawn, given) else drawn).float()
    if marked.shape[2:] != given.shape[2:]:
        sides = [f"{part.shape[3]} x {part.shape[2]}" for part in (marked, given)]
        raise InputError(f"the mask has {sides[0]} px, the picture {sides[1]}; they must agree")
    if not bool(marked.any()):
        raise InputError(f"the mask marks nothing: white, or drawn on transparency, is {means}")
    if bool(marked.all()):
        raise InputError(f"the mask covers the whole picture: white is {means}")
    return marked


def layers_given(mask: PictureLike) -> Layers | None:
    """Colours and transparency of a picture or mask that may have some."""
    if isinstance(mask, (str, Path)):
        return read_layers(mask)
    if isinstance(mask, Image.Image):
        return layers_of(mask, "the PIL mask")
    if isinstance(mask, np.ndarray) and mask.ndim == 3 and mask.shape[-1] == 4:
        rgba = mask.astype(np.float32) / np.float32(255 if mask.dtype == np.uint8 else 1)
        return Layers(rgba[..., :3], rgba[..., 3])
    return None


def _bright(grey: Tensor) -> Tensor:
    """1 where a grey (N, 1, H, W) is at least half its largest value; nothing where all is as good as black."""
    top = float(grey.max())
    two_valued = len(torch.unique(grey)) == 2
    if top == 0 or (top < NEARLY_BLACK and not two_valued):
        return torch.zeros_like(grey)
    return (grey >= 0.5 * top).float()


def _is_picture(rgb: Tensor, drawn: Tensor, given: Tensor) -> bool:
    """Whether most of a mask is covered, by the picture: it is a copy with parts erased."""
    if rgb.shape[2:] != given.shape[2:] or float(drawn.float().mean()) <= 0.5:
        return False
    apart = (rgb - given[:1]).abs().mean(dim=1, keepdim=True)[drawn]
    return float(apart.mean()) < SAME_PICTURE


def resized(images: Tensor, longest: int) -> Tensor:
    """The longest edge at `longest` px (0: as it is), antialiased; the other edge rounds down, to 1 px at least."""
    if longest == 0:
        return images
    height, width = images.shape[2:]
    edge = max(height, width)
    size = (max(height * longest // edge, 1), max(width * longest // edge, 1))
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def fitted(images: Tensor, longest: int, multiple: int) -> tuple[Tensor, tuple[int, int]]:
    """Images at the processing size, edges repeated to multiples of `multiple`; and the size (H, W) without those."""
    small = resized(images, longest)
    height, width = small.shape[2:]
    return F.pad(small, (0, -width % multiple, 0, -height % multiple), mode="replicate"), (height, width)


def squared(images: Tensor) -> tuple[Tensor, int, int]:
    """Images in the middle of black squares, and the row and column at which they begin."""
    height, width = images.shape[2:]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(images, (left, side - width - left, top, side - height - top)), top, left


def photo_camera(
    width: int,
    height: int,
    *,
    fov_deg: float | None = None,
    K: str | Path | np.ndarray | None = None,
    photo: str | Path | None = None,
    undistorted: bool = False,
) -> Camera:
    """A camera for a picture: K if given, else fov_deg, else the EXIF focal length of `photo`, else 55 degrees.

    Args:
        width: px. Likewise `height`.
        fov_deg: field of view of the longer side.
        K: intrinsics in px with pixel centres at +0.5, (3, 3), or a JSON file as `intrinsics.read_lens` takes it.
        photo: the picture's file.
        undistorted: the distortion in K was taken out of the picture (intrinsics.undistorted); else K may have none.

    The camera stands upright at the origin of our world (z up) and looks along -x.
    """
    if K is not None:
        matrix = torch.from_numpy(read_intrinsics(K, (width, height), photo, undistorted)).float()
    else:
        focal_px = None if fov_deg is not None or photo is None else exif_focal_px(photo, width, height)
        if focal_px is None:
            angle = DEFAULT_FOV_DEG if fov_deg is None else fov_deg
            if not 1 <= angle <= 170:
                raise InputError(f"fov_deg={angle} must lie between 1 and 170")
            focal_px = 0.5 * max(width, height) / math.tan(math.radians(angle) / 2)
        matrix = torch.tensor([[focal_px, 0, width / 2], [0, focal_px, height / 2], [0, 0, 1.0]])
    return Camera(torch.tensor(UPRIGHT)[None], matrix[None], width, height)


def is_panorama(path: str | Path) -> bool:
    """Whether a picture says in its XMP that it shows all directions (Google's GPano, as phones and 360-degree cameras
    write it)."""
    try:
        with Image.open(path) as image:
            told = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    except (OSError, ValueError, SyntaxError):
        return False
    text = told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)
    return "ProjectionType" in text and "equirectangular" in text


def exif_focal_px(path: str | Path, width: int, height: int) -> float | None:
    """Focal length in px of a photo of this size by its EXIF (`photo_exif.read_exif`), None without one."""
    return read_exif(path).focal_px(width, height)
