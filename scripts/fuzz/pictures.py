"""Valid pictures of every kind that is read."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from .cases import Sample
from .mutations import png_chunk

SIDE = (7, 9)  # height, width


def pictures() -> list[Sample]:
    """One of each mode and container."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (*SIDE, 3), np.uint8))
    rgba = Image.fromarray(rng.integers(0, 256, (*SIDE, 4), np.uint8))
    grey, deep = rgb.convert("L"), Image.fromarray(rng.integers(0, 65536, SIDE, np.uint16))
    palette = rgb.quantize(8)
    floats = Image.fromarray(rng.random(SIDE).astype(np.float32))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    turned = Image.Exif()
    turned[0x0112] = 6
    found = [
        _saved("rgb.png", rgb),
        _saved("rgba.png", rgba, icc_profile=profile),
        _saved("grey.png", grey, transparency=7),
        _saved("greya.png", rgba.convert("LA")),
        _saved("deep.png", deep),
        _saved("palette.png", palette, transparency=bytes([0, 128, 255])),
        _saved("bits.png", grey.convert("1")),
        _saved("rgb.jpg", rgb, exif=turned.tobytes(), icc_profile=profile),
        _saved("grey.jpeg", grey),
        _saved("cmyk.jpg", rgb.convert("CMYK")),
        _saved("progressive.jpg", rgb, progressive=True),
        _saved("rgb.webp", rgb, lossless=True),
        _saved("rgba.webp", rgba),
        _saved("rgb.bmp", rgb),
        _saved("palette.bmp", palette),
        _saved("rgb.tif", rgb),
        _saved("deep.tiff", deep),
        _saved("float.tif", floats),
        _saved("packed.tif", rgba, compression="tiff_lzw"),
        _saved("cmyk.tif", rgb.convert("CMYK")),
        _saved("lab.tif", rgb.convert("LAB")),
        _saved("palette.gif", palette, transparency=1),
        _saved("film.gif", palette, save_all=True, append_images=[palette.rotate(180)], duration=50),
        _saved("film.webp", rgb, save_all=True, append_images=[rgb.rotate(180)]),
        Sample("gamma.png", _with_chunk(rgb, b"gAMA", (100_000).to_bytes(4, "big"))),
        Sample("text.png", _with_chunk(rgb, b"zTXt", b"a\0\0" + zlib.compress(b"text" * 20))),
    ]
    return found


def texture(color: tuple[int, int, int] = (200, 60, 20)) -> bytes:
    """A PNG of four by four pixels with one of another colour."""
    pixels = np.tile(np.array(color, np.uint8), (4, 4, 1))
    pixels[0, 0] = 255 - pixels[0, 0]
    return _saved("a.png", Image.fromarray(pixels)).data


def _saved(name: str, image: Image.Image, **options: Any) -> Sample:
    out = io.BytesIO()
    kind = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF"}.get(name.rsplit(".", 1)[1], name.rsplit(".", 1)[1].upper())
    image.save(out, format=kind, **options)
    return Sample(name, out.getvalue())


def _with_chunk(image: Image.Image, name: bytes, body: bytes) -> bytes:
    """A PNG with a chunk behind its header."""
    data = _saved("a.png", image).data
    return data[:33] + png_chunk(name, body) + data[33:]
