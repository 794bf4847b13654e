from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from unproject.utils.errors import InputError
from unproject.utils.more_formats import HEIC, register
from unproject.utils.pictures import (
    colourise,
    grid,
    load_image,
    normals_to_rgb,
    save_gif,
    save_image,
    save_mp4,
    to_rgb8,
    to_uint8,
)


def _ramp(height: int = 6, width: int = 8) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 30, y * 40, x + y], -1).astype(np.uint8)


def _png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds almost no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def test_png_round_trip_is_exact(tmp_path: Path) -> None:
    picture = _ramp()
    back = load_image(save_image(tmp_path / "a.png", picture))
    assert back.dtype == np.float32 and back.shape == (6, 8, 3)
    assert np.array_equal(to_uint8(back), picture)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_mode_gives_rgb_in_range(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(_ramp())
    image = image.convert("L").convert("LA") if mode == "LA" else image.convert("P" if mode == "P" else "RGB")
    image = image if mode in ("P", "LA") else image.convert("L").convert(mode) if mode in ("1",) else image
    if image.mode != mode and mode != "LAB":
        image = image.convert(mode)
    file = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr", "HSV", "LAB") else "a.png")
    if mode == "HSV":
        image = image.convert("RGB")
    image.save(file)
    back = load_image(file)
    assert back.shape == (6, 8, 3) and back.min() >= 0 and back.max() <= 1


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[0, 0] = (255, 0, 0, 255)
    rgba[1, 1] = (0, 0, 0, 51)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    back = load_image(tmp_path / "a.png")
    assert back[0, 0] == pytest.approx([1, 0, 0])
    assert back[2, 2] == pytest.approx([1, 1, 1])
    assert back[1, 1] == pytest.approx([0.8, 0.8, 0.8])


def test_palette_transparency_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    back = load_image(tmp_path / "a.png")
    assert back[0, 0] == pytest.approx([1, 1, 1])
    assert back[0, 1] == pytest.approx(np.array([200, 100, 50]) / 255)


def test_cmyk_jpeg_keeps_its_colour(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert load_image(tmp_path / "a.jpg")[4, 4] == pytest.approx([1, 0, 0], abs=0.05)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 16384], [32768, 65535]], np.uint16)
    save_image(tmp_path / "a.png", values)
    assert load_image(tmp_path / "a.png")[..., 0] == pytest.approx(values / 65535, abs=1e-6)


def test_float_picture_outside_the_unit_range_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a.tif")
    assert load_image(tmp_path / "a.tif") == pytest.approx(0.5)
    Image.fromarray(np.full((4, 4), 7.0, np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(InputError, match=r"outside \[0, 1\]"):
        load_image(tmp_path / "b.tif")


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(_ramp(6, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    image.save(tmp_path / "a.png", exif=exif)
    back = to_uint8(load_image(tmp_path / "a.png"))
    assert np.array_equal(back, np.rot90(_ramp(6, 8), 3))


def test_animation_gives_its_first_frame_with_a_warning(tmp_path: Path) -> None:
    frames = [np.full((8, 8, 3), value, np.uint8) for value in (255, 0, 128)]
    save_gif(tmp_path / "a.gif", frames)
    with pytest.warns(UserWarning, match=r"a\.gif is animated; using its first frame"):
        back = load_image(tmp_path / "a.gif")
    assert back == pytest.approx(1.0)
    with Image.open(tmp_path / "a.gif") as written:
        assert written.n_frames == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.tif", "has 2 pages; using its first page"), ("a.mpo", "holds 2 pictures; using its first picture")],
)
def test_pages_and_several_pictures_are_no_animation(tmp_path: Path, name: str, message: str) -> None:
    pages = [Image.new("RGB", (8, 8), color) for color in ("white", "red")]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match=message):
        assert load_image(tmp_path / name).min() > 0.99


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.png", b"", "not an image in a known format"),
        ("text.jpg", b"hello, this is no picture", "not an image in a known format"),
        ("huge.png", _png_header(20000, 20000), "20000|too large"),
        ("big.png", _png_header(11000, 11000), "11000 x 11000 pixels, more than"),
        ("one.png", _png_header(1, 1), "1 x 1 pixels; each side needs at least 2"),
        ("cut.png", _png_header(64, 64)[:60], "cannot be decoded|not an image"),
        ("short.png", _png_header(64, 64), "cannot be decoded"),
    ],
)
def test_hostile_files_are_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_image(file)
    assert name in str(caught.value)


def test_missing_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="is a folder, expected an image file"):
        load_image(tmp_path)


def test_truncated_jpeg_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(InputError, match=r"a\.jpg cannot be decoded"):
        load_image(tmp_path / "a.jpg")


def test_formats_of_other_packages_are_read_where_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    stand_in = SimpleNamespace(register_heif_opener=lambda: asked.append("heif"))
    monkeypatch.setitem(sys.modules, "pillow_heif", stand_in)
    assert set(HEIC) <= set(register()) and asked == ["heif"]
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert not set(HEIC) & set(register())


def test_uint8_conversion_rounds_clips_and_survives_nan() -> None:
    values = np.array([[-1.0, 0.0, 0.5, 1.0, 2.0, np.nan]])
    assert to_uint8(values).tolist() == [[0, 0, 128, 255, 255, 0]]
    assert to_uint8(torch.ones(3, 5, 7)).shape == (5, 7, 3)
    assert to_uint8(np.array([[True, False]])).tolist() == [[255, 0]]
    with pytest.raises(ValueError, match="shape"):
        to_uint8(np.zeros((2, 3, 4, 5)))
    with pytest.raises(ValueError, match="uint8, bool or float"):
        to_uint8(np.zeros((4, 4), np.int32))


def test_alpha_over_white() -> None:
    assert to_rgb8(np.array([[[0.0, 0.0, 0.0, 0.0]]])).tolist() == [[[255, 255, 255]]]


def test_unknown_suffix_and_wrong_16_bit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown image suffix '\.xyz'"):
        save_image(tmp_path / "a.xyz", _ramp())
    with pytest.raises(InputError, match="16-bit"):
        save_image(tmp_path / "a.jpg", np.zeros((4, 4), np.uint16))
    assert not list(tmp_path.iterdir())


def test_colours_ignore_scale_and_offset_and_mask_is_white() -> None:
    values = np.random.default_rng(0).normal(size=(16, 16))
    assert np.array_equal(colourise(values), colourise(3 * values + 7))
    assert np.array_equal(colourise(torch.from_numpy(values)[None]), colourise(values))
    mask = values > 0
    assert (colourise(values, mask=mask)[~mask] == 255).all()
    assert (colourise(np.full((4, 4), np.nan)) == 255).all()


def test_normals_axes_have_their_colours() -> None:
    normals = np.array([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]])
    assert normals_to_rgb(normals)[0].tolist() == [[255, 128, 128], [128, 255, 128], [128, 128, 255], [255, 255, 255]]


def test_grid_places_pictures_and_labels() -> None:
    tiles = [np.full((10, 20, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = grid(tiles, 2, pad=1)
    assert sheet.shape == (2 * 11 + 1, 2 * 21 + 1, 3)
    assert (sheet[1:11, 1:21] == 10).all() and (sheet[1:11, 22:42] == 20).all() and (sheet[12:22, 1:21] == 30).all()
    assert (sheet[12:22, 22:42] == 255).all()
    assert np.array_equal(grid(tiles, 2, pad=2, scale=2)[::2, ::2], sheet)
    labelled = grid(tiles, 2, labels=["a", "b", "a very long label"])
    assert labelled.shape[0] > sheet.shape[0] and labelled.min() < 10
    with pytest.raises(ValueError, match="one size"):
        grid([tiles[0], np.zeros((3, 3, 3), np.uint8)], 2)
    with pytest.raises(ValueError, match="needs pictures"):
        grid([], 2)


def test_mp4_has_even_sides_and_all_frames(tmp_path: Path) -> None:
    import imageio_ffmpeg

    frames = [np.full((17, 15, 3), value, np.uint8) for value in (0, 128, 255)]
    file = save_mp4(tmp_path / "a.mp4", frames, fps=10)
    count, _ = imageio_ffmpeg.count_frames_and_secs(str(file))
    reader = imageio_ffmpeg.read_frames(str(file))
    assert next(reader)["source_size"] == (16, 18)
    reader.close()
    assert count == 3
    with pytest.raises(ValueError, match="at least one frame"):
        save_mp4(tmp_path / "b.mp4", [])
