"""Picture files to numbers: colour profiles turned to sRGB, greys of 16 bits, transparency kept apart."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from .errors import InputError, UnprojectError, damage, out_of_memory

Floats = npt.NDArray[np.float32]
PROFILED = {"RGB", "RGBA", "L", "LA", "CMYK", "LAB"}  # modes that a colour profile can be applied to
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # EXIF, and its values for a quarter turn
INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
SRGB_GAMMA = 1 / 2.2  # what PNG's gAMA holds for sRGB
OPENING, DECODING = 64 << 20, 8  # bytes that opening a picture may take, and decoding it for each pixel
SEVERAL = {  # formats whose several pictures are no animation: (what is said of a file, of one of its pictures)
    "TIFF": ("has {} pages", "page"),
    "MPO": ("holds {} pictures", "picture"),  # of phones and stereo cameras
    "HEIF": ("holds {} pictures", "picture"),
}
PART = 1 << 20  # bytes of a file that are looked at together
PNG = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by its kind of colour
ADAM7 = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))


@dataclass(frozen=True)
class Layers:
    """A picture and how far each pixel covers what lies behind it."""

    rgb: Floats  # (H, W, 3) sRGB in [0, 1], as stored where nothing is covered
    alpha: Floats | None  # (H, W) in [0, 1]; None: everything covers

    def over_white(self) -> Floats:
        """(H, W, 3) laid over white."""
        if self.alpha is None:
            return self.rgb
        alpha = self.alpha[..., None]
        return self.rgb * alpha + (1 - alpha)


def read_layers(path: str | Path, max_pixels: int = 100_000_000, min_side: int = 2) -> Layers:
    """An image file, upright by its EXIF orientation; of an animation the first frame, with a warning.

    The header is checked before any pixel is decoded. Raises InputError for missing, unreadable, truncated, too small
    or too large files.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected an image file")
    if not path.exists():
        raise InputError(f"image {path} does not exist")
    return _decoded(path, str(path), max_pixels, min_side, profile=True)


def decode_layers(data: bytes, name: str) -> Layers:
    """An image in memory, whose colour profile is ignored as glTF says of textures. Raises InputError as above."""
    return _decoded(io.BytesIO(data), name, 1 << 28, 1, profile=False)


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of an image file, upright, from its header. Raises InputError for what is no picture."""
    with _decoding(str(path)), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            turned = image.getexif().get(ORIENTATION) in TURNED
            return (image.height, image.width) if turned else image.size


def has_transparency(path: str | Path) -> bool:
    """Whether an image file says that it has any, from its header. Raises InputError for what is no picture."""
    with _decoding(str(path)), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            return "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info


def layers_of(image: Image.Image, name: str, profile: bool = True) -> Layers:
    """An opened picture, as it stands.

    A colour profile is applied where `profile` is true; one that cannot be is named in a warning. A grey of 16 bits
    spans [0, 1]. Raises InputError for values outside the range of their type.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image, name, profile)
    hidden = image.info.get("transparency")
    if isinstance(hidden, tuple) and max(hidden) > 255:  # 16 bits a channel, of which the upper eight are decoded
        image.info["transparency"] = tuple(value >> 8 for value in hidden)
    alpha = None
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"), dtype=np.float32) / np.float32(255)
    if profile:
        image = _profiled(image, name)
    rgb = np.asarray(image.convert("RGB"), dtype=np.float32) / np.float32(255)
    return Layers(_gamma(rgb, image.info) if profile else rgb, alpha)


def _decoded(source: Any, name: str, max_pixels: int, min_side: int, profile: bool) -> Layers:
    with _decoding(name), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image: Image.Image = Image.open(source)
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise InputError(f"{name} has {width} x {height} pixels, more than {max_pixels}; scale it down first")
        if min(width, height) < min_side:
            raise InputError(f"{name} has {width} x {height} pixels; each side needs at least {min_side}")
        with _decoding(name, DECODING * width * height):
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                many, one = SEVERAL.get(image.format or "", ("is animated", "frame"))
                warnings.warn(f"{name} {many.format(frames)}; using its first {one}", UserWarning, stacklevel=3)
            if image.format == "PNG":
                _check_rows(source)
            image.load()
        with _decoding(name, None):
            return layers_of(image, name, profile)


def _deep_grey(image: Image.Image, name: str, profile: bool) -> Layers:
    """Greys of 16 bits or floats, with PNG's one transparent value."""
    values = np.asarray(image, dtype=np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > top:
        raise InputError(f"{name} holds values outside [0, {top:g}]; save it as an 8- or 16-bit picture")
    if profile and image.info.get("icc_profile"):
        warnings.warn(f"{name}: the colour profile of a 16-bit grey is not applied; taken as sRGB", stacklevel=4)
    hidden = image.info.get("transparency")
    alpha = None if not isinstance(hidden, int) else (values != hidden).astype(np.float32)
    grey = np.repeat((values / top).astype(np.float32)[..., None], 3, axis=-1)
    return Layers(_gamma(grey, image.info) if profile else grey, alpha)


def _profiled(image: Image.Image, name: str) -> Image.Image:
    """The picture in sRGB by its colour profile (relative colorimetric); its alpha stays."""
    data = image.info.get("icc_profile")
    if not data:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = source.profile.xcolor_space.strip()
        if (source.profile.profile_description or "").startswith("sRGB") and image.mode not in ("CMYK", "LAB"):
            return image
        wanted = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}.get(space, "")
        alpha = image.getchannel("A") if "A" in image.getbands() and image.mode != "LAB" else None
        base = image.convert(wanted) if wanted and (alpha is not None or image.mode in ("P", "1", "L")) else image
        if base.mode not in PROFILED or base.mode != wanted:
            raise ImageCms.PyCMSError(f"it is for {space}, the picture is {image.mode}")
        made = ImageCms.profileToProfile(base, source, ImageCms.createProfile("sRGB"), INTENT, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        warnings.warn(f"{name}: its colour profile cannot be used ({error}); taken as sRGB", stacklevel=5)
        return image
    assert made is not None
    if alpha is not None:
        made.putalpha(alpha)
    made.info.pop("gamma", None)
    made.info["srgb"] = 0  # the profile has the last word
    return made


def _gamma(rgb: Floats, info: Mapping[Any, Any]) -> Floats:
    """sRGB of PNG samples = light^gamma, where the file says a gamma and neither a profile nor sRGB."""
    gamma = info.get("gamma")
    if not isinstance(gamma, float) or "srgb" in info or "icc_profile" in info or not 0.05 < gamma < 5:
        return rgb
    if abs(gamma - SRGB_GAMMA) < 0.02:
        return rgb
    light = rgb ** np.float32(1 / gamma)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055).astype(np.float32)


def _check_rows(source: Path | io.BytesIO) -> None:
    """Raises ValueError for a PNG with fewer pixels than its header says; Pillow would fill them up with zeros."""
    with contextlib.nullcontext(source) if isinstance(source, io.BytesIO) else open(source, "rb") as file:
        file.seek(len(PNG))
        unpacker, wanted, found = zlib.decompressobj(), 0, 0
        for kind, part in _png_parts(file):
            if kind == b"IHDR":
                wanted = _png_bytes(part)
            while kind == b"IDAT" and part and found < wanted and not unpacker.eof:
                found += len(unpacker.decompress(part, PART))
                part = unpacker.unconsumed_tail
            if unpacker.eof or (wanted and found >= wanted):
                break
        file.seek(0)
    if found < wanted:
        raise ValueError(f"its header asks for {wanted} bytes of pixels, there are {found}")


def _png_parts(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """(name, up to PART bytes) of the chunks that say what pixels there are."""
    while len(head := file.read(8)) == 8:
        left, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind not in (b"IHDR", b"IDAT"):
            file.seek(left, 1)
            left = 0
        while left and (part := file.read(min(left, PART))):
            left -= len(part)
            yield kind, part
        file.seek(4, 1)  # its checksum


def _png_bytes(header: bytes) -> int:
    """Bytes of the unpacked pixels: rows begin with a byte for their filter; interlaced there are seven pictures."""
    width, height, depth, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", header)
    sizes = [(width, height)]
    if interlaced:
        sizes = [(-((x - width) // dx), -((y - height) // dy)) for x, dx, y, dy in ADAM7]
    return sum(high * (1 + -(-wide * depth * PNG_CHANNELS[color] // 8)) for wide, high in sizes if wide and high)


def _machine_ran_out(needed: int) -> bool:
    """Whether `needed` bytes cannot be had: decoders fail for want of memory as well where a damaged file asks for
    more than a picture of its size can take."""
    try:
        np.empty(needed, np.uint8)
    except MemoryError:
        return True
    return False


@contextlib.contextmanager
def _decoding(name: str, needed: int | None = OPENING) -> Iterator[None]:
    """Failures in terms of the file. Want of memory is the file's fault where a decoder that takes at most `needed`
    bytes, which can be had, fails of it; with None it is the machine's."""
    try:
        yield
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large to decode safely ({error}); scale it down first") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image in a known format") from error
    except PermissionError as error:
        raise InputError(f"{name} cannot be opened: {error.strerror}") from error
    except UnprojectError:
        raise
    except Exception as error:  # decoders fail in many ways on damaged files
        if out_of_memory(error):
            if needed is None or _machine_ran_out(needed):
                raise MemoryError(f"{name}: {error}") from error
            raise InputError(f"{name} cannot be decoded: it asks for more memory than its picture takes") from error
        raise InputError(f"{name} cannot be decoded: {damage(error)}") from error
