"""What a newcomer types wrong is one error that names the way out, told before a network is loaded; nothing is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from unproject.cli import main
from unproject.cli.common import MOST_THREADS
from unproject.cli.maps import MAP_COMMANDS
from unproject.cli.points import Pointcloud
from unproject.cli.text import TextToImage
from unproject.tasks.codecs import DepthOutput
from unproject.utils.errors import InputError
from unproject.utils.pictures import save_image

Run = Callable[..., tuple[int, str, str]]
DRAW = ("text-to-image", "a cup")


@pytest.fixture(autouse=True)
def desk(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of every wrong kind, and commands that must not come as far as their networks."""

    def load(self: Any) -> None:
        raise AssertionError("a network is loaded")

    for command in (*MAP_COMMANDS.values(), Pointcloud, TextToImage):
        monkeypatch.setattr(command, "load", load)
    save_image("ok.png", np.random.default_rng(0).random((48, 64, 3)))
    Path("empty.png").write_bytes(b"")
    for name in ("text.png", "text.npz", "file"):
        Path(name).write_text("a text\n")
    Path("empty.npy").write_bytes(b"")
    trimesh.creation.box().export("box.glb")
    Path("torn.npz").write_bytes(b"PK\x03\x04 and no more")
    for name in ("dir", "dir.json", "dir.txt"):
        Path(name).mkdir()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("depth", "empty.png"), "empty.png is not an image in a known format"),
        (("normals", "text.png", "-o", "new/folder"), "text.png is not an image in a known format"),
        (("pointcloud", "text.png", "empty.png"), "text.png is not an image in a known format"),
        (("depth", "ok.png", "--threads", "100000000"), f"--threads must be at most {MOST_THREADS}, got 100000000"),
        (("pointcloud", "ok.png", "--far", "1e308"), "--far must lie between 1e-06 and 1e+09, got 1e+308"),
        (("pointcloud", "ok.png", "--near", "1e-320"), "--near must lie between 1e-06 and 1e+09"),
        (("pointcloud", "ok.png", "--K", "dir.json"), "--K dir.json is a folder; give a JSON file"),
        (("calibrate", "ok.png", "--focal", "1e308"), "--focal '1e308': each number has to lie between 1e-06 and"),
        (("calibrate", "ok.png", "--principal", "3,1e-9"), "--principal '3,1e-9': each number has to lie between"),
        ((*DRAW, "--size", "100000"), "--size must lie between 4 and 4096, got 100000"),
        ((*DRAW, "--size", "-64"), "--size must lie between 4 and 4096, got -64"),
        ((*DRAW, "--solver", "nope"), "--solver nope: is unknown; have ddim, dpm++"),
        ((*DRAW, "--solver", "ghvb:x"), "--solver ghvb:x: 'x' is not a number"),
        (
            (*DRAW, "--boundary", "dir"),
            "--boundary dir is a folder; make it: unproject calibrate-solver --what boundary",
        ),
        (("text-to-image", "--prompts", "dir.txt"), "--prompts dir.txt is a folder; give a text file"),
        (("edit", "ok.png", "--source", "a", "--target", "b", "--size", "-3"), "--size must lie between 4 and 4096"),
        (("restore", "ok.png", "--task", "deblur:2", "--curve", "dir"), "--curve dir is a folder; make it: unproject"),
        (("transfer", "ok.png", "ok.png", "--points", "dir"), "--points dir is a folder; give a JSON file of points"),
        (("calibrate-solver", "--what", "gaussian", "--size", "1"), "--size must lie between 4 and 4096, got 1"),
        (
            ("convert", "dir", "x.json"),
            "dir holds no COLMAP model (cameras.txt or cameras.bin); give the folder of one",
        ),
        (("inspect", "text.npz"), "text.npz is no array file; NPZ or NPY is what numpy saves"),
        (("inspect", "empty.npy"), "empty.npy is empty; NPZ or NPY is what numpy saves"),
        (("inspect", "torn.npz"), "torn.npz cannot be read: "),
        (("render", "box.glb", "--cameras", "dir"), "dir holds no COLMAP model (cameras.txt or cameras.bin)"),
        (("render", "box.glb", "--cameras", "no"), "--cameras no does not exist; give a transforms.json or a COLMAP"),
        (("fit", "ok.png"), "ok.png has no cameras; give .json, .glb, "),
        (("text-to-mesh", "a cup", "--work", "file"), "--work file is a file; give a folder"),
        (("text-to-splats", "a cup", "--diagnostics", "ok.png"), "--diagnostics ok.png is a file; give a folder"),
        (("text-to-mesh", "a cup", "--rule", "sdss"), "no packaged config 'rules/sdss'; have rules/asd, rules/csd, "),
        (("completion", "bash", "-o", "x"), "--out x: completion writes to standard output alone"),
        (("distill", "lcm", "--set", "x=1", "--dry-run"), "unknown key 'x' in"),
    ],
)
def test_one_error_and_nothing_left(run: Run, words: tuple[str, ...], message: str) -> None:
    before = sorted(map(str, Path().rglob("*")))
    code, _, err = run(*words)
    assert (code, err.count("\n")) == (2, 1) and message in err
    assert sorted(map(str, Path().rglob("*"))) == before


def ramp(picture: np.ndarray, **_: Any) -> DepthOutput:
    height, width, _ = picture.shape
    return DepthOutput(np.linspace(0, 1, height * width, dtype=np.float32).reshape(1, height, width, 1), nfe=1)


def test_what_only_the_work_finds_wrong_leaves_nothing_either(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, pipe: Any, path: Path, *rest: Any) -> None:
        raise InputError(f"{path} is a panorama")

    depth = MAP_COMMANDS["depth"]
    monkeypatch.setattr(depth, "load", lambda self: ramp)
    one = depth.one
    monkeypatch.setattr(depth, "one", refuse)
    assert run("depth", "ok.png", "-o", "new/folder")[0] == 2 and not Path("new").exists()
    assert run("depth", "ok.png", "-o", "dir")[0] == 2 and not list(Path("dir").iterdir())
    monkeypatch.setattr(depth, "one", one)
    assert run("depth", "ok.png", "-o", "dir")[0] == 0
    before = Path("dir/ok-depth.run.json").read_bytes()
    monkeypatch.setattr(depth, "one", refuse)
    assert run("depth", "ok.png", "-o", "dir", "--overwrite")[0] == 2
    assert Path("dir/ok-depth.run.json").read_bytes() == before, "the maps are there, and so is what tells of them"


def test_a_picture_that_shows_nothing_is_refused_before_a_network_is_loaded(run: Run) -> None:
    nothing = np.zeros((9, 9, 4))
    for name in ("nothing.png", "dir/one.png", "dir/two.png"):
        save_image(name, nothing)
    save_image("dir/small.png", np.zeros((1, 1, 3)))
    for command in ("depth", "normals", "geometry", "pointcloud"):
        for how in ((), ("--dry-run",)):
            code, _, err = run(command, "nothing.png", *how)
            assert code == 2 and "nothing.png: the picture shows nothing: it is transparent everywhere" in err
    code, _, err = run("depth", "dir", "--dry-run")
    assert code == 2 and "none of the 3 pictures could be used: dir/one.png: " in err
    code, out, _ = run("depth", "dir", "ok.png", "--dry-run")
    assert code == 0 and "would read ok.png (64 x 48 px)" in out
    assert "would skip dir/one.png: the picture shows nothing" in out
    assert "would skip dir/small.png: has 1 x 1 pixels" in out


def test_arrays_are_told_by_what_the_file_holds(run: Run) -> None:
    np.savez("a.npz", depth=np.zeros((2, 3)))
    Path("a.npz").rename("a.npy")
    np.save("b.npy", np.ones((4, 5), np.float32))
    Path("b.npy").rename("b.npz")
    assert "float64 (2, 3)" in run("inspect", "a.npy")[1] and "float32 (4, 5)" in run("inspect", "b.npz")[1]


def test_nothing_is_printed_twice_where_an_option_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["depth", "ok.png", "--nonsense"]) == 2
    out, err = capsys.readouterr()
    assert "Unrecognized options: --nonsense" in out + err and "Traceback" not in out + err
