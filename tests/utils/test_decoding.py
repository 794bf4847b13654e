"""Colour profiles, gammas and transparency of picture files."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from unproject.utils import decoding
from unproject.utils.decoding import decode_layers, image_size, read_layers
from unproject.utils.errors import InputError
from unproject.utils.pictures import load_image, save_image


def swapped_profile() -> bytes:
    """sRGB with red and green changed over: an image in it shows its colours changed over."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", data, 128)[0]
    for i in range(count):
        at = 132 + 12 * i
        if data[at : at + 4] in (b"rXYZ", b"gXYZ"):
            data[at : at + 1] = b"g" if data[at : at + 1] == b"r" else b"r"
    return bytes(data).replace("sRGB built-in".encode("utf-16-be"), "mine built-in".encode("utf-16-be"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_profiles_are_turned_to_srgb(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (4, 3), (250, 20, 10))
    image = image.convert(mode, palette=Image.Palette.ADAPTIVE) if mode == "P" else image.convert(mode)
    if mode == "RGBA":
        image.putpixel((0, 0), (250, 20, 10, 0))
    image.save(tmp_path / "a.png", icc_profile=swapped_profile())
    found = load_image(tmp_path / "a.png") * 255
    np.testing.assert_allclose(found[1, 1], [20, 250, 10], atol=2)
    assert mode != "RGBA" or found[0, 0] == pytest.approx([255, 255, 255])


def test_a_grey_profile_of_another_gamma_is_applied(tmp_path: Path) -> None:
    """A grey profile made by hand: a linear curve, so that 128 is half of the light."""
    curve = b"curv\0\0\0\0\0\0\0\0"
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"mine\0" + b"\0" * 78 + b"\0"
    tags, body, at = b"", b"", 132 + 12 * 3
    for name, data in ((b"desc", text), (b"wtpt", white), (b"kTRC", curve)):
        tags += name + struct.pack(">II", at + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    size = at + len(body)
    head = struct.pack(">I4sI4s4s4s12s4s", size, b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ ", b"\0" * 12, b"acsp")
    head += b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    profile = head.ljust(128, b"\0") + struct.pack(">I", 3) + tags + body
    Image.new("L", (3, 3), 128).save(tmp_path / "a.png", icc_profile=profile)
    np.testing.assert_allclose(load_image(tmp_path / "a.png") * 255, 188, atol=2)


def test_srgb_profiles_change_nothing_and_broken_ones_are_named(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(np.rint(load_image(tmp_path / "a.png") * 255), pixels)
    for name, image, profile in (("b", Image.fromarray(pixels), b"nothing"), ("c", Image.new("CMYK", (4, 4)), plain)):
        image.save(tmp_path / f"{name}.tif", icc_profile=profile)
        with pytest.warns(UserWarning, match=f"{name}.tif: its colour profile cannot be used"):
            load_image(tmp_path / f"{name}.tif")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(kind: int, depth: int, rows: list[bytes], width: int, *chunks: tuple[bytes, bytes]) -> bytes:
    head = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    body = b"".join(chunk(name, data) for name, data in chunks)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_linear_png_is_encoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0, 8, [b"\x80\x00", b"\xff\x80"], 2, (b"gAMA", struct.pack(">I", 100_000))))
    found = load_image(tmp_path / "a.png")[..., 0] * 255
    np.testing.assert_allclose(found, [[188, 0], [255, 188]], atol=1)
    (tmp_path / "b.png").write_bytes(png(0, 8, [b"\x80\x00", b"\xff\x80"], 2, (b"gAMA", struct.pack(">I", 45_455))))
    assert load_image(tmp_path / "b.png")[0, 0, 0] == pytest.approx(128 / 255)


def test_a_transparent_value_of_16_bits_is_honoured(tmp_path: Path) -> None:
    rows = [struct.pack(">2H", 1000, 1001), struct.pack(">2H", 65535, 1000)]
    (tmp_path / "grey.png").write_bytes(png(0, 16, rows, 2, (b"tRNS", struct.pack(">H", 1000))))
    layers = read_layers(tmp_path / "grey.png")
    assert layers.alpha is not None and layers.alpha.tolist() == [[0, 1], [1, 0]]
    assert layers.over_white()[..., 0] == pytest.approx(np.array([[1, 1001 / 65535], [1, 1]]), abs=1e-6)
    rows = [struct.pack(">6H", 1000, 2000, 3000, 40000, 2000, 3000)] * 2
    (tmp_path / "rgb.png").write_bytes(png(2, 16, rows, 2, (b"tRNS", struct.pack(">3H", 1000, 2000, 3000))))
    alpha = read_layers(tmp_path / "rgb.png").alpha
    assert alpha is not None and alpha.tolist() == [[0, 1], [0, 1]]


def test_textures_ignore_profiles_and_keep_covered_colours() -> None:
    stream = io.BytesIO()
    Image.new("RGBA", (2, 2), (250, 20, 10, 0)).save(stream, "PNG", icc_profile=swapped_profile())
    layers = decode_layers(stream.getvalue(), "a texture")
    np.testing.assert_allclose(layers.rgb[0, 0] * 255, [250, 20, 10], atol=0.01)
    with pytest.raises(InputError, match="a texture is not an image"):
        decode_layers(b"nothing", "a texture")


def test_sizes_are_told_from_headers(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", np.zeros((3, 5, 3), np.uint8))
    assert image_size(tmp_path / "a.png") == (5, 3)
    (tmp_path / "b.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"b\.png is not an image"):
        image_size(tmp_path / "b.png")


def interlaced(pixels: np.ndarray, cut: int = 0) -> bytes:
    """A grey PNG of Adam7's seven passes, each row unfiltered, without its last bytes."""
    body = b""
    for x, dx, y, dy in decoding.ADAM7:
        body += b"".join(b"\0" + row.tobytes() for row in pixels[y::dy, x::dx] if len(row))
    packed = zlib.compress(body[: len(body) - cut])
    head = struct.pack(">IIBBBBB", *pixels.shape[::-1], 8, 0, 0, 0, 1)
    parts = ((b"IHDR", head), (b"IDAT", packed[:9]), (b"IDAT", packed[9:]), (b"IEND", b""))
    return decoding.PNG + b"".join(chunk(name, data) for name, data in parts)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (9, 2), (16, 11)])
def test_interlaced_pictures_of_any_size_are_whole(shape: tuple[int, int]) -> None:
    pixels = np.arange(math.prod(shape), dtype=np.uint8).reshape(shape)
    found = decode_layers(interlaced(pixels), "a.png").rgb
    np.testing.assert_array_equal(np.rint(found[..., 1] * 255), pixels)
    with pytest.raises(InputError, match="its header asks for"):
        decode_layers(interlaced(pixels, cut=1), "a.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_png_with_fewer_pixels_than_its_header_says_is_refused(mode: str, tmp_path: Path) -> None:
    """Before its pixels take any memory: 80 million of them are promised in the second file."""
    out, path = io.BytesIO(), tmp_path / "short.png"
    Image.new(mode, (9, 7), 1 if mode != "RGB" else (1, 2, 3)).save(out, "PNG")
    for height, told in ((8, "its header asks for"), (8_388_615, "its header asks for")):
        data = bytearray(out.getvalue())
        data[20:24] = height.to_bytes(4, "big")
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"short.png cannot be decoded: {told}"):
            read_layers(path)
    assert decode_layers(out.getvalue(), "whole").rgb.shape == (7, 9, 3)


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory error when reading image file")])
def test_want_of_memory_is_the_files_fault_only_where_the_machine_has_enough(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "a.bmp")
    monkeypatch.setattr(Image.Image, "load", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(InputError, match=r"a\.bmp cannot be decoded: it asks for more memory than its picture takes"):
        read_layers(tmp_path / "a.bmp")
    asked = list[int]()
    monkeypatch.setattr(decoding, "_machine_ran_out", lambda needed: not asked.append(needed))
    with pytest.raises(MemoryError, match=r"a\.bmp"):
        read_layers(tmp_path / "a.bmp")
    assert asked == [decoding.DECODING * 20]


def test_arrays_that_do_not_fit_are_no_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(decoding, "layers_of", lambda *_: (_ for _ in ()).throw(MemoryError("20 GB")))
    with pytest.raises(MemoryError, match=r"a\.png: 20 GB"):
        read_layers(tmp_path / "a.png")
