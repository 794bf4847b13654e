"""Files of maps: formats, masks, colours, legends, previews, and the memory that writing takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from unproject.pipelines.picture_inputs import photo_camera
from unproject.tasks import map_files
from unproject.tasks.codecs import CODECS, DepthOutput, NormalsOutput
from unproject.tasks.formats import MAP_FORMATS, map_formats
from unproject.tasks.map_files import Saving, check_colormap
from unproject.tasks.outputs import GeometryOutput
from unproject.tasks.table import task_table
from unproject.utils.errors import InputError
from unproject.utils.pictures import scale_bar, usual_range

HEIGHT, WIDTH = 30, 44


def depth(spread: bool = False, holes: bool = True) -> DepthOutput:
    rng = np.random.default_rng(0)
    valid = np.ones((1, HEIGHT, WIDTH, 1), bool)
    valid[0, 3:5, 7:9] = not holes
    maps = rng.random((1, HEIGHT, WIDTH, 1), np.float32)
    return DepthOutput(maps, 0.1 * maps[:, ::-1] if spread else None, valid)


def normals() -> NormalsOutput:
    values = np.random.default_rng(1).normal(size=(1, HEIGHT, WIDTH, 3)).astype(np.float32)
    return NormalsOutput(values / np.linalg.norm(values, axis=-1, keepdims=True))


def test_float_formats_hold_the_map_and_nan_where_nothing_is_seen(tmp_path: Path) -> None:
    made = depth(spread=True)
    written = made.save(tmp_path / "a", ("npy", "tiff"), "small")
    assert [path.name for path in written] == ["a-uncertainty.npy", "a.npy", "a-uncertainty.tiff", "a.tiff"]
    expected = np.where(made.seen()[0], made.depth[0], np.nan)
    np.testing.assert_array_equal(np.load(written[1]), expected)
    np.testing.assert_array_equal(tifffile.imread(written[3]), expected)
    np.testing.assert_array_equal(np.isnan(np.load(written[0])), ~made.seen()[0])
    with tifffile.TiffFile(written[3]) as file:
        assert '"space": "linear"' in file.pages[0].description
    (path,) = normals().save(tmp_path / "n", ["tiff"])
    np.testing.assert_array_equal(tifffile.imread(path), normals().normals[0])


def test_a_confidence_is_written_in_every_format(tmp_path: Path) -> None:
    made = depth(spread=True)
    made.confidence, made.tolerance = 1 - made.uncertainty, 0.1
    names = [path.name for path in made.save(tmp_path / "a", ("npy", "tiff", "png", "npz"))]
    assert names[:3] == ["a-uncertainty.npy", "a-confidence.npy", "a.npy"]
    assert {f"a-confidence.{kind}" for kind in ("npy", "tiff", "png")} <= set(names)
    assert set(names) <= {f"a{ending}" for kind in ("npy", "tiff", "png", "npz") for ending in MAP_FORMATS[kind]}
    expected = np.where(made.seen()[0], made.confidence[0, ..., 0], np.nan)
    np.testing.assert_array_equal(np.load(tmp_path / "a-confidence.npy"), expected)
    shown, spread = (np.asarray(Image.open(tmp_path / f"a-{name}.png")) for name in ("confidence", "uncertainty"))
    assert shown.shape == spread.shape and (shown != spread).any()


def test_exr_is_the_same_map(tmp_path: Path) -> None:
    pytest.importorskip("OpenEXR")
    from unproject.utils.bands import read_exr

    made = normals()
    (path,) = made.save(tmp_path / "n", ["exr"])
    np.testing.assert_array_equal(read_exr(path)["RGB"], made.normals[0])


def test_compression_changes_sizes_and_nothing_else(tmp_path: Path) -> None:
    waves = np.sin(np.linspace(0, 9, 200))[:, None] * np.cos(np.linspace(0, 7, 300))
    smooth = (0.5 + 0.5 * waves).astype(np.float32)[None, ..., None]
    sizes = []
    for how in ("none", "fast", "small"):
        npz, levels, picture = DepthOutput(smooth).save(tmp_path / how, compression=how)
        np.testing.assert_array_equal(np.load(npz)["depth"], smooth[0, ..., 0])
        sizes.append((npz.stat().st_size, levels.stat().st_size, picture.stat().st_size))
    assert all(a > b > c for a, b, c in zip(*sizes)), sizes


def test_colours_and_the_legend_beside_them(tmp_path: Path) -> None:
    made = depth(holes=False)
    plain, grey, told = (
        np.asarray(Image.open(made.save(tmp_path / name, ["png"], colormap=colors, legend=legend)[1]))
        for name, colors, legend in (("a", "", False), ("b", "gray", False), ("c", "gray", True))
    )
    np.testing.assert_allclose(grey[..., 0] / 255, made.depth[0], atol=0.01)
    assert (grey[..., 0] == grey[..., 1]).all() and (plain != grey).any()
    np.testing.assert_array_equal(told[:, :WIDTH], grey)
    assert told.shape[1] > WIDTH
    ball = np.asarray(Image.open(normals().save(tmp_path / "n", ["png"], legend=True)[1]))[:, WIDTH:]
    right, up, ahead = ball[15, -3], ball[3, 15], ball[15, 15]
    assert right[0] > 220 and up[1] > 220 and ahead[2] > 250


def test_the_scale_has_large_values_on_top() -> None:
    bar = scale_bar(120, "gray", "0 near", "1 far")
    column = bar[:, bar.shape[1] // 8, 0].astype(int)
    inner = column[8:-8]
    assert inner[0] > 240 and inner[-1] < 15 and (np.diff(inner) <= 0).all()
    assert bar.shape[0] == 120 and (bar[-1] == 255).all()
    assert (scale_bar(120, "gray", "a", "b")[:20, 20:] < 128).any()  # words


def test_what_would_change_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the colours of normals have a meaning"):
        normals().save(tmp_path / "n", colormap="gray")
    with pytest.raises(InputError, match="'virids' is unknown; there are viridis"):
        depth().save(tmp_path / "n", colormap="virids")
    with pytest.raises(InputError, match="jpeg: maps are written as npz, npy"):
        depth().save(tmp_path / "n", ["npz", "jpeg"])
    with pytest.raises(InputError, match="is empty"):
        Saving(())
    check_colormap("")
    assert map_formats([" PNG", ".npz", "png"]) == ("png", "npz") and list(tmp_path.iterdir()) == []


def test_tasks_and_codecs_agree_about_colours() -> None:
    for task in task_table().values():
        assert task.colormap == CODECS[task.codec].colormap


def test_a_preview_is_the_picture_beside_its_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = depth()
    image = np.random.default_rng(2).random((HEIGHT, WIDTH, 3)).astype(np.float32)
    sheet = np.asarray(Image.open(made.one(0).preview(image, tmp_path / "a", Saving())))
    np.testing.assert_allclose(sheet[:, :WIDTH], image * 255, atol=1)
    assert sheet.shape[:2] == (HEIGHT, 2 * WIDTH + 4) and (sheet[3, WIDTH + 4 + 7] == 255).all()
    monkeypatch.setattr(map_files, "PREVIEW_SIDE", 20)
    large = DepthOutput(np.zeros((1, 90, 300, 1), np.float32))
    path = large.one(0).preview(np.zeros((90, 300, 3), np.float32), tmp_path / "b", Saving())
    assert path.name == "b-preview.png" and Image.open(path).size == (2 * 20 + 4, 6)


def test_all_targets_take_the_same_words(tmp_path: Path) -> None:
    both = GeometryOutput({"depth": depth(), "normals": normals()})
    assert [path.name for path in both.save(tmp_path / "a", formats=["npy"])] == ["a-depth.npy", "a-normals.npy"]
    assert all(endings[0].endswith(f".{name}") for name, endings in MAP_FORMATS.items())


def test_ranges_of_large_maps_are_those_of_every_so_many_values(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.linspace(0, 1, 250_000).reshape(500, 500)
    whole = usual_range(values)
    monkeypatch.setattr("unproject.utils.pictures.RANGE_SAMPLES", 2000)
    assert whole == pytest.approx((0.02, 0.98), abs=1e-3) and usual_range(values) == pytest.approx(whole, abs=0.02)
    assert usual_range(np.full((4, 4), np.nan)) == (0.0, 1.0)


def peak_over_now(work: Callable[[], int]) -> float:
    """The largest resident memory while `work` runs, over that before it, as a ratio of the bytes that it returns."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")

    def bytes_of(key: str) -> int:
        return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith(key)).split()[1])

    try:
        reset.write_text("5")  # the largest so far begins anew
    except OSError:
        pytest.skip("this system does not tell the largest resident memory of a part of a process")
    before = bytes_of("VmRSS")
    size = work()
    return (bytes_of("VmHWM") - before) / size


@pytest.mark.parametrize("side", [1000, 2600])
def test_writing_a_map_takes_half_of_it_more_at_most(tmp_path: Path, side: int) -> None:
    def work() -> int:
        maps = np.full((1, side, side * 4 // 3, 1), 0.5, np.float32)
        maps[0, : side // 2] = 0.25
        DepthOutput(maps).save(tmp_path / "a", ("npz", "png", "npy", "tiff"), "none")
        return maps.nbytes

    DepthOutput(np.zeros((1, 300, 300, 1), np.float32)).save(tmp_path / "b", ("npz", "png", "npy", "tiff"))
    slack = 6 << 20  # a band, whatever the size of the map
    assert peak_over_now(work) <= 1.5 + slack / (side * side * 4 // 3 * 4)


@pytest.mark.parametrize(
    ("suffix", "side"), [(".ply", 700), (".ply", 1400), (".glb", 700), (".obj", 400), (".xyz", 400)]
)
def test_lifting_and_writing_points_takes_half_of_the_arrays_more_at_most(
    tmp_path: Path, suffix: str, side: int
) -> None:
    """The arrays: the map, the picture, points with colours and normals."""

    def work(side: int = side) -> int:
        maps, picture = np.full((1, side, side, 1), 0.5, np.float32), np.full((side, side, 3), 0.5, np.float32)
        cloud = DepthOutput(maps).point_cloud(picture, photo_camera(side, side))
        cloud.save(tmp_path / f"a{suffix}")
        arrays = [cloud.points, cloud.colors, cloud.normals]
        return maps.nbytes + picture.nbytes + sum(array.nbytes for array in arrays if array is not None)

    work(300)
    assert peak_over_now(work) <= 1.5
