"""A command that is typed again: its record goes on telling what is there, who made it and what that took."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unproject.cli import demo, jobs
from unproject.cli.image import ImageCommand
from unproject.cli.maps import MAP_COMMANDS
from unproject.cli.points import Pointcloud
from unproject.cli.shapes import TextToMesh
from unproject.cli.text import TextToImage
from unproject.tasks.codecs import DepthOutput
from unproject.utils.errors import InputError
from unproject.utils.pictures import save_image
from unproject.utils.runs import RunRecord
from unproject.utils.shares import Share

Run = Callable[..., tuple[int, str, str]]
CALLS = {"a.png": 2, "b.png": 3, "c.png": 5}
MAPS = ("-depth.npz", "-depth-16bit.png", "-depth.png")


@pytest.fixture(autouse=True)
def ramps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Depth that is a ramp and takes as many network calls as the picture is pixels wide; those it took."""
    taken: list[int] = []

    def depth(picture: np.ndarray, **_: Any) -> DepthOutput:
        height, width, _ = picture.shape
        taken.append(width)
        ramp = np.linspace(0, 1, height * width, dtype=np.float32).reshape(1, height, width, 1)
        return DepthOutput(ramp, nfe=width)

    monkeypatch.setattr(MAP_COMMANDS["depth"], "load", lambda self: depth)
    monkeypatch.setattr(Pointcloud, "load", lambda self: depth)
    return taken


def photos(*names: str) -> None:
    for name in names:
        save_image(f"p/{name}", np.random.default_rng(0).random((4, CALLS[name], 3)))


def told(name: str = "depth") -> dict[str, Any]:
    return json.loads(Path(f"out/{name}.run.json").read_text())


def outputs(record: dict[str, Any]) -> set[str]:
    return {Path(path).name for path in record["outputs"]}


def maps(*stems: str) -> set[str]:
    return {f"{stem}{end}" for stem in stems for end in MAPS}


def depth(run: Run, *words: str) -> str:
    code, out, _ = run("depth", "p", "-o", "out", *words)
    assert code == 0
    return out


def test_a_finished_command_leaves_its_record_as_it_is(run: Run, ramps: list[int]) -> None:
    photos("a.png", "b.png")
    depth(run)
    before = Path("out/depth.run.json").read_bytes()
    out = depth(run)
    assert Path("out/depth.run.json").read_bytes() == before and sum(ramps) == 5
    assert out.count("skipped: ") == 2 and "a-depth-16bit.png" not in out and "out/depth.run.json" in out
    again = json.loads(depth(run, "--json"))
    assert {**again, "skipped": None} == {**told(), "skipped": None} and len(again["skipped"]) == 2
    assert outputs(again) == maps("a", "b") and again["nfe"] == {"denoiser": 5}


def test_what_comes_later_is_added_to_the_record(run: Run, ramps: list[int]) -> None:
    photos("a.png", "b.png")
    depth(run)
    first = told()
    photos("c.png")
    out = depth(run)
    assert "out/c-depth.npz" in out and "out/a-depth-16bit.png" not in out, "what it made is listed, no more"
    both = told()
    assert outputs(both) == maps("a", "b", "c") and both["nfe"] == {"denoiser": 10}
    assert {name: cost["nfe"] for name, cost in both["notes"]["costs"].items()} == {
        f"{name[0]}-depth": {"denoiser": calls} for name, calls in CALLS.items()
    }
    kept = sum(first["notes"]["costs"][name]["seconds"] for name in ("a-depth", "b-depth"))
    assert both["seconds"] >= kept + both["notes"]["costs"]["c-depth"]["seconds"] - 0.01
    assert both["stages"]["write"] > both["notes"]["costs"]["c-depth"]["stages"]["write"]
    Path("out/b-depth.png").unlink()
    depth(run)
    assert outputs(told()) == maps("a", "b", "c") and told()["nfe"] == {"denoiser": 10}, "made again, counted once"
    depth(run, "--overwrite")
    assert outputs(told()) == maps("a", "b", "c") and told()["nfe"] == {"denoiser": 10}


def test_other_inputs_into_the_same_folder_join_the_record(run: Run, ramps: list[int]) -> None:
    photos("a.png", "b.png", "c.png")
    depth(run)
    code, _, _ = run("depth", "p/a.png", "p/c.png", "-o", "out", "--overwrite")
    assert code == 0 and sum(ramps) == 10 + 7
    assert outputs(told()) == maps("a", "b", "c") and told()["nfe"] == {"denoiser": 10}
    for end in MAPS:
        Path(f"out/b{end}").unlink()
    assert run("depth", "p/a.png", "p/c.png", "-o", "out", "--overwrite")[0] == 0
    assert outputs(told()) == maps("a", "c"), "what is gone is not told of"


def test_what_a_killed_command_made_is_told(run: Run, ramps: list[int]) -> None:
    """Killed behind its last file: the record on the disk says nothing of it yet."""
    photos("a.png", "b.png")
    depth(run)
    record = told()
    record.update(status="running", outputs=record["outputs"][:3], nfe={"denoiser": 2}, warnings=["a is dark"])
    record["process"]["pid"] = 2**22 + 1
    record["notes"]["costs"].pop("b-depth")
    Path("out/depth.run.json").write_text(json.dumps(record))
    depth(run)
    assert sum(ramps) == 5 and told()["status"] == "done"
    assert outputs(told()) == {*maps("a"), "b-depth.npz", "b-depth.png"}, "those by which b counts as done"
    assert told()["nfe"] == {"denoiser": 2} and told()["warnings"] == ["a is dark"]


def test_one_that_fails_every_time_empties_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    photos("a.png", "b.png")
    depth(run)
    photos("c.png")
    one = MAP_COMMANDS["depth"].one

    def refused(self: Any, pipe: Any, path: Path, *rest: Any) -> None:
        raise InputError(f"{path} is of one colour")

    monkeypatch.setattr(MAP_COMMANDS["depth"], "one", refused)
    for _ in range(2):
        assert run("depth", "p", "-o", "out")[0] == jobs.SOME_FAILED
        assert outputs(told()) == maps("a", "b") and told()["nfe"] == {"denoiser": 5}
    monkeypatch.setattr(MAP_COMMANDS["depth"], "one", one)
    depth(run)
    assert outputs(told()) == maps("a", "b", "c") and told()["nfe"] == {"denoiser": 10}


def test_a_network_that_does_not_load_harms_no_record(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    photos("a.png", "b.png")
    depth(run)
    before = Path("out/depth.run.json").read_bytes()
    photos("c.png")

    def broken(self: Any) -> None:
        raise InputError("the weights are broken")

    monkeypatch.setattr(MAP_COMMANDS["depth"], "load", broken)
    assert run("depth", "p", "-o", "out")[0] == 2
    assert Path("out/depth.run.json").read_bytes() == before


def test_notes_of_each_picture_stay(run: Run) -> None:
    photos("a.png", "b.png")
    words = ("pointcloud", "p", "-o", "out", "--fov", "50", "--format", "ply")
    assert run(*words)[0] == 0
    first = told("pointcloud")
    assert run(*words)[0] == 0 and told("pointcloud") == first
    photos("c.png")
    assert run(*words)[0] == 0
    focal = told("pointcloud")["notes"]["focal"]
    assert list(focal) == ["p/a.png", "p/b.png", "p/c.png"] and focal["p/a.png"] == first["notes"]["focal"]["p/a.png"]
    assert "a-pointcloud-camera.json" in outputs(told("pointcloud"))


def test_nothing_made_is_no_record(run: Run) -> None:
    """All was made with another set of formats, whose record tells of it."""
    photos("a.png", "b.png")
    depth(run)
    out = depth(run, "--format", "npz")
    assert out.count("skipped: ") == 2 and ".run.json" not in out
    assert [path.name for path in Path("out").glob("*.run.json")] == ["depth.run.json"]


def test_what_another_set_took_over_is_no_longer_counted(run: Run) -> None:
    photos("a.png", "b.png")
    depth(run)
    assert run("depth", "p/a.png", "p/b.png", "-o", "out", "--format", "npz", "--overwrite")[0] == 0
    assert told()["notes"]["costs"] == {} and len(told("depth.npz")["notes"]["costs"]) == 2


def test_prompts_again(run: Run, fake_images: list[dict[str, object]]) -> None:
    Path("list.txt").write_text("a red chair\na blue dog\n")
    words = ("text-to-image", "--prompts", "list.txt", "-o", "out")
    assert run(*words)[0] == 0
    before = Path("out/text-to-image.run.json").read_bytes()
    assert run(*words)[0] == 0 and Path("out/text-to-image.run.json").read_bytes() == before
    Path("list.txt").write_text("a red chair\na blue dog\na cup\n")
    assert run(*words)[0] == 0
    found = told("text-to-image")
    assert len(found["outputs"]) == 3 and found["nfe"] == {"denoiser": 120} and found["notes"]["seeds"] == [0]


def test_the_demo_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(self: Any, record: RunRecord, target: Any) -> Any:
        place = target.file(target.suffix)
        place.write_bytes(b"x")
        record.output(place)
        record.count("denoiser", 4)
        return SimpleNamespace()

    monkeypatch.setattr(demo, "room_photo", lambda path: save_image(path, np.zeros((4, 4, 3))))
    monkeypatch.setattr(demo.Demo, "left", lambda self, part: not part.target().record.exists())
    for command in (TextToImage, TextToMesh, ImageCommand):
        monkeypatch.setattr(command, "run", made)
    monkeypatch.setattr(demo.Demo, "check_places", lambda self, target: None)
    code, _, err = run("demo", "-o", "out")
    assert code == 0, err
    first, before = told("demo"), Path("out/demo.run.json").read_bytes()
    assert len(first["outputs"]) == 6 and first["nfe"] == {"denoiser": 20}
    assert run("demo", "-o", "out")[0] == 0 and Path("out/demo.run.json").read_bytes() == before
    Path("out/depth.run.json").unlink()
    assert run("demo", "-o", "out")[0] == 0
    assert set(told("demo")["outputs"]) == set(first["outputs"]) and told("demo")["nfe"] == {"denoiser": 20}


def test_processes_tell_all_that_they_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of pictures that fell to others, and what earlier runs made of each share."""
    others = {
        "failed": [], "kept": ["b"], "files": ["b.npz"], "made": 1, "outputs": ["d.npz"], "nfe": {"denoiser": 3},
        "notes": {"sources": {"d": "d.png"}, "costs": {"d": {}}, "cameras": {"d.png": 2}, "formats": ["npz"]},
        "warnings": [], "seconds": 1.0,
    }  # fmt: skip
    monkeypatch.setattr(Share, "gathered", lambda self, facts: [dict(facts), others])
    record = RunRecord("calibrate")
    record.kept, record.outputs = ["a.npz"], ["c.npz"]
    record.notes = {"sources": {"c": "c.png"}, "costs": {"c": {}}, "cameras": {"c.png": 1}, "formats": ["npz"]}
    found = jobs.Sorted(kept=["a"])
    assert jobs._together(Share(0, 2), found, record, [], 1) == ([], 2)
    assert record.notes["cameras"] == {"c.png": 1, "d.png": 2} and record.notes["sources"].keys() == {"c", "d"}
    assert record.notes["formats"] == ["npz"] and found.kept == ["a", "b"]
    assert record.to_dict()["outputs"] == ["a.npz", "b.npz", "c.npz", "d.npz"]
