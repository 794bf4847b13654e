"""Commands that were stopped between their files, records that make no sense, and folders that are no model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from unproject.geometry import inspection
from unproject.geometry.meshes import Mesh
from unproject.utils.pictures import save_image

Run = Callable[..., tuple[int, str, str]]


def body() -> None:
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    Mesh(corners, torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])).save("m.glb")


def test_what_a_command_left_unfinished_it_may_write_again(run: Run) -> None:
    body()
    assert run("convert", "m.glb", "out/m.obj")[0] == 0
    record = json.loads(Path("out/m.run.json").read_text())
    assert record["status"] == "done" and run("convert", "m.glb", "out/m.obj")[0] == 2
    record |= {"status": "running", "process": {"pid": 2**22 + 1, "host": record["process"]["host"]}}
    Path("out/m.run.json").write_text(json.dumps(record))  # as of a process that was killed
    Path("out/m.report.json").unlink()
    code, _, err = run("convert", "m.glb", "out/m.obj", "--faces", "4")
    assert code == 2 and "out/m.obj is already there" in err  # another command
    assert run("convert", "m.glb", "out/m.obj", "--json")[0] == 0 and Path("out/m.report.json").is_file()
    assert json.loads(Path("out/m.run.json").read_text())["status"] == "done"


def test_a_command_that_is_stopped_between_its_files_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    body()

    def stop(mesh: object, path: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(inspection, "write_report", stop)
        assert run("convert", "m.glb", "out/m.obj")[0] == 130
    assert json.loads(Path("out/m.run.json").read_text())["status"] == "failed"
    assert run("convert", "m.glb", "out/m.obj")[0] == 0 and Path("out/m.report.json").is_file()


def test_a_command_that_is_refused_leaves_no_record(run: Run) -> None:
    Path("m.glb").write_bytes(b"glTF" + bytes(40))
    code, _, err = run("convert", "m.glb", "out/m.obj")
    assert code == 2 and "not a complete glTF" in err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"command": {"a": 1}}, "is none of text-to-mesh"),
        ({"command": "depth", "config": ["a"]}, "'config' holds no keys and values"),
        ({"command": "depth", "config": {}, "notes": 3}, "'notes' holds no keys and values"),
        ({"command": "depth", "config": {}, "notes": {"plan": "x"}}, "'plan' holds no keys and values"),
        ({"command": "depth", "config": {"image": "a" * 3000}}, "run.json: 'image' in"),
        ({"command": "depth", "config": {"imag": 1}}, "run.json: unknown key 'imag'"),
    ],
)
def test_records_that_make_no_sense_are_refused_by_name(run: Run, told: dict[str, object], message: str) -> None:
    Path("run.json").write_text(json.dumps(told))
    code, _, err = run("--config", "run.json")
    assert code == 2 and message in err and len(err) < 900


@pytest.mark.parametrize("text", ["[" * 5000, "a: " + "9" * 5000, "{a: [}"])
def test_configs_that_are_no_yaml_are_refused_by_name(run: Run, text: str) -> None:
    Path("run.yaml").write_text(text)
    code, _, err = run("--config", "run.yaml")
    assert code == 2 and "config run.yaml is not valid YAML" in err and len(err) < 900


def test_a_value_that_holds_itself_many_times_over_is_told_in_a_line(run: Run) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 30))]
    Path("run.yaml").write_text("\n".join(["command: depth", *lines, "ensemble: *a29"]))
    code, _, err = run("--config", "run.yaml")
    assert code == 2 and len(err) < 900


def test_names_that_no_file_can_have_are_bad_input(run: Run) -> None:
    code, _, err = run("inspect", "n" * 5000)
    assert code == 2 and "File name too long" in err and len(err) < 400


def test_inspect_says_what_a_folder_holds_instead(run: Run) -> None:
    Path("photos").mkdir()
    for name in ("a.png", "b.png", "c.jpg"):
        save_image(Path("photos", name), np.zeros((4, 4, 3), np.uint8))
    code, _, err = run("inspect", "photos")
    assert code == 2 and "it holds pictures (2 .png, 1 .jpg)" in err and "depth, normals or pointcloud" in err
    Path("empty").mkdir()
    assert "it holds no files" in run("inspect", "empty")[2]
    Path("model").mkdir()
    Path("model/cameras.txt").write_text("")
    assert "unproject convert turns it into transforms.json" in run("inspect", "model")[2]
    body()
    Path("meshes").mkdir()
    Path("m.glb").rename("meshes/m.glb")
    assert "it holds 1 .glb: inspect one of the files" in run("inspect", "meshes")[2]


def test_a_repaired_mesh_overwrites_nothing_unasked(run: Run) -> None:
    body()
    Path("n.ply").write_bytes(b"mine")
    code, _, err = run("inspect", "m.glb", "--repair", "n.ply")
    assert code == 2 and "n.ply is already there" in err and Path("n.ply").read_bytes() == b"mine"
    assert run("inspect", "m.glb", "--repair", "n.ply", "--overwrite")[0] == 0
    assert Path("n.report.json").is_file() and Path("n.ply").read_bytes() != b"mine"
