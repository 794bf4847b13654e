"""Pictures in and out: hostile files in, sRGB arrays out; arrays, maps and frames in, PNG, GIF and MP4 out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from .decoding import read_layers
from .errors import InputError
from .files import atomic_path
from .more_formats import register

Picture: TypeAlias = npt.NDArray[np.uint8]
RANGE_SAMPLES = 1 << 22  # of a map, that its usual range is taken from
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
READ_SUFFIXES = (*IMAGE_SUFFIXES, *register())


def load_image(path: str | Path, max_pixels: int = 100_000_000, min_side: int = 2) -> npt.NDArray[np.float32]:
    """An image file as sRGB float32 (H, W, 3) in [0, 1].

    Upright by its EXIF orientation, its colour profile turned to sRGB, transparency over white, CMYK and palettes
    converted, 16-bit greys scaled; of an animation the first frame, with a warning. The header is checked before any
    pixel is decoded. Raises InputError for missing, unreadable, truncated, too small or too large files.
    """
    return read_layers(path, max_pixels, min_side).over_white()


def to_uint8(image: Any) -> Picture:
    """A picture (H, W, C) or (H, W) uint8 from a tensor, array or PIL image.

    Floats are sRGB in [0, 1], clipped, not-a-number becomes 0; booleans become 0 and 255. A tensor (C, H, W) with
    C in {1, 3, 4} whose last axis is no channel count is moved to channels last.
    """
    if isinstance(image, torch.Tensor):
        image = image.detach().float().cpu().numpy() if image.is_floating_point() else image.detach().cpu().numpy()
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)):
        raise ValueError(f"a picture has shape (H, W) or (H, W, 1 | 3 | 4), got {array.shape}")
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"a picture is uint8, bool or float in [0, 1], got {array.dtype}")
    return np.rint(np.clip(np.nan_to_num(array, nan=0.0), 0.0, 1.0) * 255).astype(np.uint8)


def to_rgb8(image: Any) -> Picture:
    """`to_uint8` with exactly three channels: greys are repeated, alpha is laid over white."""
    array = to_uint8(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[-1] == 1:
        return np.repeat(array, 3, axis=-1)
    if array.shape[-1] == 4:
        alpha = array[..., 3:].astype(np.float32) / 255
        return np.rint(array[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return array


def save_image(path: str | Path, image: Any) -> Path:
    """Writes a picture atomically; the suffix chooses the format. uint16 arrays (H, W) become 16-bit PNG."""
    path = Path(path)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"cannot write {path}: unknown image suffix {path.suffix!r}; use {', '.join(IMAGE_SUFFIXES)}")
    if isinstance(image, np.ndarray) and image.dtype == np.uint16:
        if image.ndim != 2 or path.suffix.lower() not in (".png", ".tif", ".tiff"):
            raise InputError(f"16-bit pictures are (H, W) PNG or TIFF, got {image.shape} for {path}")
        picture = Image.fromarray(image)
    else:
        lossy = path.suffix.lower() in (".jpg", ".jpeg", ".bmp")
        array = to_rgb8(image) if lossy else to_uint8(image)
        picture = Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)
    options: dict[str, Any] = {"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg", ".webp") else {}
    with atomic_path(path) as temporary:
        picture.save(temporary, **options)
    return path


def colourise(
    values: Any, cmap: str = "Spectral", mask: Any = None, low: float | None = None, high: float | None = None
) -> Picture:
    """A scalar map (H, W) in false colours (H, W, 3) uint8; white outside `mask` and where it is not finite.

    `low` and `high` default to the 2nd and 98th percentile of the valid values.
    """
    import matplotlib

    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float64)
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2:
        raise ValueError(f"a scalar map has shape (H, W), got {array.shape}")
    valid = np.isfinite(array)
    if mask is not None:
        keep = np.asarray(mask.detach().cpu() if isinstance(mask, torch.Tensor) else mask).astype(bool)
        valid &= keep.reshape(array.shape)
    if not valid.any():
        return np.full((*array.shape, 3), 255, np.uint8)
    usual = usual_range(array, valid) if low is None or high is None else (0.0, 1.0)
    near, far = usual[0] if low is None else low, usual[1] if high is None else high
    unit = np.clip((np.where(valid, array, near) - near) / max(far - near, 1e-12), 0, 1)
    rgb = matplotlib.colormaps[cmap](unit)[..., :3]
    return to_uint8(np.where(valid[..., None], rgb, 1.0))


def usual_range(values: npt.NDArray[Any], valid: npt.NDArray[Any] | None = None) -> tuple[float, float]:
    """The 2nd and 98th percentile of the finite values (H, W) where `valid`, of every so many of large maps; (0, 1)
    where there are none."""
    step = math.ceil(math.sqrt(values.size / RANGE_SAMPLES)) if values.size > RANGE_SAMPLES else 1
    seen = values[::step, ::step]
    keep = np.isfinite(seen) if valid is None else np.isfinite(seen) & valid[::step, ::step]
    low, high = np.percentile(seen[keep], (2, 98)) if keep.any() else (0.0, 1.0)
    return float(low), float(high)


def scale_bar(height: int, cmap: str, low: str, high: str) -> Picture:
    """A legend (height, w, 3): a bar of the colour map, large values on top, with words for its ends."""
    import matplotlib

    text = min(max(height // 24, 11), 96)
    font = ImageFont.load_default(size=text)
    bar, gap = text, text // 2
    width = 3 * gap + bar + math.ceil(max(font.getlength(word) for word in (low, high)))
    unit = np.linspace(1, 0, max(height - 2 * gap, 1))
    sheet = np.full((height, width, 3), 255, np.uint8)
    sheet[gap : gap + len(unit), gap : gap + bar] = to_uint8(matplotlib.colormaps[cmap](unit)[:, None, :3])[:height]
    canvas = Image.fromarray(sheet)
    draw = ImageDraw.Draw(canvas)
    for y, word, anchor in ((gap, high, "lt"), (height - gap, low, "lb")):
        draw.text((2 * gap + bar, y), word, fill="black", font=font, anchor=anchor)
    return np.asarray(canvas)


def normals_to_rgb(normals: Any) -> Picture:
    """Unit normals (H, W, 3) or (3, H, W) as (n + 1) / 2 in uint8; zero and non-finite normals are white."""
    array = np.asarray(normals.detach().cpu() if isinstance(normals, torch.Tensor) else normals, dtype=np.float32)
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[-1] != 3:
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.shape[-1] != 3:
        raise ValueError(f"normals have shape (H, W, 3), got {array.shape}")
    known = np.isfinite(array).all(-1, keepdims=True) & (np.abs(array).sum(-1, keepdims=True) > 0)
    return to_uint8(np.where(known, (np.nan_to_num(array) + 1) / 2, 1.0))


def grid(
    images: Sequence[Any], columns: int, pad: int = 2, labels: Sequence[str] | None = None, scale: int = 1
) -> Picture:
    """Pictures of one size on a white sheet (H, W, 3), row by row, each with an optional label below it.

    Each pixel becomes `scale` x `scale` of them.
    """
    tiles = [to_rgb8(image).repeat(scale, axis=0).repeat(scale, axis=1) for image in images]
    if not tiles or columns < 1:
        raise ValueError(f"a grid needs pictures and columns >= 1, got {len(tiles)} pictures and columns={columns}")
    if len({tile.shape for tile in tiles}) > 1:
        raise ValueError(f"the pictures of a grid need one size, got {sorted({t.shape for t in tiles})}")
    if labels is not None and len(labels) != len(tiles):
        raise ValueError(f"got {len(labels)} labels for {len(tiles)} pictures")
    height, width, _ = tiles[0].shape
    columns = min(columns, len(tiles))
    text = max(12, height // 10) + 4 if labels else 0
    rows = math.ceil(len(tiles) / columns)
    sheet = np.full((rows * (height + text + pad) + pad, columns * (width + pad) + pad, 3), 255, np.uint8)
    corners = [
        (pad + i // columns * (height + text + pad), pad + i % columns * (width + pad)) for i in range(len(tiles))
    ]
    for (y, x), tile in zip(corners, tiles, strict=True):
        sheet[y : y + height, x : x + width] = tile
    if labels is None:
        return sheet
    canvas = Image.fromarray(sheet)
    for (y, x), label in zip(corners, labels, strict=True):
        canvas.paste(_label(label, width, text), (x, y + height))
    return np.asarray(canvas)


def save_gif(path: str | Path, frames: Sequence[Any], fps: float = 20) -> Path:
    """An endless animation; the palette is chosen per frame."""
    pictures = [Image.fromarray(to_rgb8(frame)) for frame in _some(frames)]
    with atomic_path(path) as temporary:
        pictures[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=max(20, round(1000 / fps)),
            loop=0,
        )
    return Path(path)


def save_mp4(path: str | Path, frames: Sequence[Any], fps: float = 20) -> Path:
    """H.264 in yuv420p, which browsers play; odd sizes get one more row or column."""
    import imageio_ffmpeg

    pictures = [to_rgb8(frame) for frame in _some(frames)]
    odd = [(0, side % 2) for side in pictures[0].shape[:2]]
    pictures = [np.ascontiguousarray(np.pad(picture, (*odd, (0, 0)), mode="edge")) for picture in pictures]
    height, width, _ = pictures[0].shape
    with atomic_path(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary),
            (width, height),
            fps=fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            macro_block_size=2,
            output_params=["-crf", "18", "-movflags", "+faststart"],
        )
        writer.send(None)
        for picture in pictures:
            writer.send(picture)
        writer.close()
    return Path(path)


def _some(frames: Sequence[Any]) -> Sequence[Any]:
    if len(frames) == 0:
        raise ValueError("an animation needs at least one frame, got none")
    return frames


def _label(label: str, width: int, height: int) -> Image.Image:
    strip = Image.new("RGB", (width, height), "white")
    font = ImageFont.load_default(size=height - 4)
    while len(label) > 1 and font.getlength(label) > width:
        label = label[:-2] + "…"
    ImageDraw.Draw(strip).text((width / 2, height / 2), label, fill="black", font=font, anchor="mm")
    return strip
