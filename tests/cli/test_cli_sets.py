"""Several sets of formats in one folder: each has a record of its own, goes on by it, and contradicts no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unproject.cli.folders import find
from unproject.cli.image import MAPS
from unproject.cli.maps import MAP_COMMANDS
from unproject.cli.points import Pointcloud
from unproject.cli.sim2real import Sim2real
from unproject.tasks.codecs import DepthOutput
from unproject.tasks.codecs.residual import ResidualDepthCodec, SensorOutput
from unproject.utils.pictures import save_image

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def ramps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Depth that is a ramp; the ensemble sizes it was asked for, one for each picture."""
    asked: list[int] = []

    def depth(picture: np.ndarray, ensemble_size: int = 1, **_: Any) -> DepthOutput:
        asked.append(ensemble_size)
        height, width, _ = picture.shape
        ramp = np.linspace(0, 1, height * width, dtype=np.float32).reshape(1, height, width, 1)
        return DepthOutput(ramp / ensemble_size, nfe=1)

    monkeypatch.setattr(MAP_COMMANDS["depth"], "load", lambda self: depth)
    monkeypatch.setattr(Pointcloud, "load", lambda self: depth)
    return asked


def photos(*names: str) -> None:
    for i, name in enumerate(names):
        save_image(name, np.random.default_rng(i).random((4, 6, 3)))


def told(name: str) -> dict[str, Any]:
    return json.loads(Path("out", name).read_text())


def sources(name: str) -> list[str]:
    return sorted(told(name)["notes"]["sources"])


def test_every_set_has_its_record_and_goes_on_by_it(run: Run, in_tmp: Path, ramps: list[int]) -> None:
    photos("p/a.png", "p/b.png")
    assert run("depth", "p", "-o", "out")[0] == 0
    first = Path("out/depth.run.json").read_bytes()
    assert run("depth", "p", "-o", "out", "--format", "tiff,npy")[0] == 0
    assert Path("out/depth.run.json").read_bytes() == first and len(ramps) == 4
    assert told("depth.run.json")["notes"]["formats"] == ["npz", "png"]
    assert told("depth.npy-tiff.run.json")["notes"]["formats"] == ["npy", "tiff"]
    photos("p/a.png", "p/b.png", "p/c.png")
    Path("out/b-depth.png").unlink()  # as if the first had been killed between two files of b
    for words in ((), ("--format", "npy,tiff"), ("--format", "png, npz")):
        assert run("depth", "p", "-o", "out", *words)[0] == 0
    assert len(ramps) == 4 + 2 + 1  # b and c of the first, c of the second
    assert sorted(path.name for path in Path("out").glob("*.run.json")) == ["depth.npy-tiff.run.json", "depth.run.json"]
    assert sources("depth.run.json") == sources("depth.npy-tiff.run.json") == ["a-depth", "b-depth", "c-depth"]
    code, _, err = run("depth", "p", "-o", "out", "--format", "tiff,npy", "--ensemble", "2")
    assert code == 2 and "out/a-depth.tiff was made with --ensemble 1; --overwrite" in err


def test_sets_that_share_a_format_agree_or_are_refused(run: Run, in_tmp: Path, ramps: list[int]) -> None:
    photos("p/a.png", "p/b.png")
    assert run("depth", "p", "-o", "out")[0] == 0
    code, out, _ = run("depth", "p", "-o", "out", "--format", "npz")
    assert code == 0 and "p/a.png (already there: out/a-depth.npz" in out and len(ramps) == 2
    code, _, err = run("depth", "p", "-o", "out", "--format", "npz", "--ensemble", "3")
    assert code == 2 and "out/a-depth.npz was made with --ensemble 1; --overwrite" in err
    photos("q/a.png")
    code, _, err = run("depth", "q", "-o", "out", "--format", "npz")
    assert code == 2 and "out/a-depth.npz was made from p/a.png" in err
    code, _, err = run("depth", "p", "-o", "out", "--format", "npz,tiff")
    assert code == 2 and "out/a-depth.npz is already there" in err


def test_overwriting_leaves_nothing_of_the_run_before(
    run: Run, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, ramps: list[int]
) -> None:
    photos("p/a.png", "p/b.png")

    def depth(picture: np.ndarray, ensemble_size: int = 1, **_: Any) -> DepthOutput:
        ramp = np.linspace(0, 1, picture[..., 0].size, dtype=np.float32).reshape(1, *picture.shape[:2], 1)
        return DepthOutput(ramp, 0.1 * ramp if ensemble_size > 1 else None, nfe=1)

    monkeypatch.setattr(MAP_COMMANDS["depth"], "load", lambda self: depth)
    assert run("depth", "p", "-o", "out", "--ensemble", "3")[0] == 0
    assert run("depth", "p/a.png", "-o", "out", "--format", "tiff")[0] == 0
    Path("out/a-depth-notes.txt").write_text("mine")
    assert Path("out/a-depth-uncertainty.png").is_file()
    assert run("depth", "p", "-o", "out", "--overwrite")[0] == 0
    left = sorted(path.name for path in Path("out").glob("a-*") if not path.name.endswith("run.json"))
    assert left == ["a-depth-16bit.png", "a-depth-notes.txt", "a-depth.npz", "a-depth.png", "a-depth.tiff"]
    assert not [name for name in told("depth.run.json")["outputs"] if not Path(name).is_file()]


def test_what_is_made_anew_is_no_longer_anothers(run: Run, in_tmp: Path, ramps: list[int]) -> None:
    """The first record loses what --overwrite replaced, and the first set says so instead of keeping it."""
    photos("p/a.png", "p/b.png")
    assert run("depth", "p", "-o", "out")[0] == 0
    assert run("depth", "p", "-o", "out", "--format", "tiff")[0] == 0
    again = ("depth", "p/a.png", "p/x.png", "-o", "out", "--format", "npz", "--ensemble", "3", "--overwrite")
    photos("p/x.png")
    assert run(*again)[0] == 0
    assert sources("depth.run.json") == ["b-depth"] and sources("depth.npz.run.json") == ["a-depth", "x-depth"]
    assert sources("depth.tiff.run.json") == ["a-depth", "b-depth"]
    code, _, err = run("depth", "p", "-o", "out")
    assert code == 2 and "out/a-depth.npz was made with --ensemble 3; --overwrite" in err


def test_a_record_of_something_else_stays(run: Run, in_tmp: Path) -> None:
    photos("p/a.png", "p/b.png")
    Path("out").mkdir()
    Path("out/depth.run.json").write_text('{"outputs": ["out/depth.glb"]}')
    for _ in range(2):
        assert run("depth", "p", "-o", "out")[0] == 0
    assert told("depth.run.json") == {"outputs": ["out/depth.glb"]}
    assert sources("depth.npz-png.run.json") == ["a-depth", "b-depth"]


def test_one_picture_in_two_sets(run: Run, in_tmp: Path) -> None:
    photos("a.png")
    assert run("depth", "a.png", "-o", "out")[0] == 0
    first = Path("out/a-depth.run.json").read_bytes()
    assert run("depth", "a.png", "-o", "out", "--format", "tiff", "--preview")[0] == 0
    assert Path("out/a-depth.run.json").read_bytes() == first
    assert Path("out/a-depth.tiff.run.json").is_file() and Path("out/a-depth.tiff-preview.png").is_file()
    photos("b.png")
    assert run("depth", "b.png", "-o", "n.npz")[0] == 0
    code, _, err = run("depth", "b.png", "-o", "n.npz", "--format", "npz,tiff")  # one record, of the named file
    assert code == 2 and "n.npz was made with --format npz; --overwrite" in err


def test_cameras_and_previews_of_a_set_are_its_own_and_no_pictures(run: Run, in_tmp: Path) -> None:
    photos("p/a.png", "p/b.png")
    everything = (
        ("--fov", "40"),
        ("--fov", "60", "--format", "xyz", "--preview"),
        ("--mesh",),
        ("--mesh", "--format", "stl"),
    )
    for words in everything:
        assert run("pointcloud", "p", "-o", "p", *words)[0] == 0
    names = {path.name for path in Path("p").iterdir()}
    assert {"pointcloud.run.json", "pointcloud.xyz.run.json", "mesh.run.json", "mesh.stl.run.json"} <= names
    kept, own = (json.loads(Path(f"p/a-pointcloud{mark}-camera.json").read_text()) for mark in ("", ".xyz"))
    focal_px = [one["frames"][0]["fl_x"] for one in (kept, own)]
    assert focal_px == pytest.approx([3 / np.tan(np.deg2rad(20)), 3 / np.tan(np.deg2rad(30))])
    assert {"a-pointcloud.xyz-preview.png", "b-mesh.stl-camera.json", "b-mesh.stl.report.json"} <= names
    found = find(Path("p"), False, (*MAPS, "pointcloud", "mesh"), Path("p"))
    assert [path.name for path, _ in found.pictures] == ["a.png", "b.png"] and found.skipped == []


def test_measurements_in_two_sets(run: Run, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(depth_m: np.ndarray, **_: Any) -> SensorOutput:
        made = depth_m[None, ..., None]
        return SensorOutput(prediction=made, valid=made > 0, nfe=1, coded_by=ResidualDepthCodec())

    monkeypatch.setattr(Sim2real, "load", lambda self: measured)
    Path("d").mkdir()
    for name in ("a", "b"):
        np.save(f"d/{name}.npy", np.linspace(1, 2, 30, dtype=np.float32).reshape(5, 6))
    assert run("sim2real", "d", "-o", "out", "--format", "npz")[0] == 0
    first = Path("out/sim2real.run.json").read_bytes()
    assert run("sim2real", "d", "-o", "out", "--format", "tiff")[0] == 0
    assert Path("out/sim2real.run.json").read_bytes() == first
    assert sources("sim2real.tiff.run.json") == ["a-sim2real", "b-sim2real"]
