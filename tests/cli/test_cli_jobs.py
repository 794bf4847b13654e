"""Several pictures or prompts in one command: what is there is kept, what fails is told, the rest goes on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unproject.cli.folders import find
from unproject.cli.image import MapCommand
from unproject.cli.jobs import SOME_FAILED
from unproject.cli.maps import MAP_COMMANDS
from unproject.tasks.codecs import DepthOutput
from unproject.utils.errors import InputError, MissingExtraError, UnprojectError
from unproject.utils.pictures import save_image

Run = Callable[..., tuple[int, str, str]]
BLACK = np.zeros((4, 4, 3))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Depth that takes every picture for a wall; the names of the pictures it was asked for."""
    done: list[str] = []
    one = MAP_COMMANDS["depth"].one

    def wall(picture: np.ndarray, **_: Any) -> DepthOutput:
        return DepthOutput(np.zeros((1, *picture.shape[:2], 1), np.float32), nfe=1)

    def noted(self: MapCommand, pipe: Any, path: Path, *rest: Any) -> None:
        done.append(path.name)
        one(self, pipe, path, *rest)

    monkeypatch.setattr(MAP_COMMANDS["depth"], "load", lambda self: wall)
    monkeypatch.setattr(MAP_COMMANDS["depth"], "one", noted)
    return done


def photos(*names: str) -> None:
    for name in names:
        save_image(name, BLACK)


def record(path: str = "out/depth.run.json") -> dict[str, Any]:
    return json.loads(Path(path).read_text())


def names(folder: str = "out") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_the_same_command_does_what_is_left(run: Run, drawn: list[str]) -> None:
    photos("photos/a.png", "photos/b.png")
    assert run("depth", "photos", "-o", "out")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("*.npz")}
    photos("photos/c.png")
    Path("out/b-depth.png").unlink()  # as if killed between two files of b
    code, out, _ = run("depth", "photos", "-o", "out")
    assert (code, drawn) == (0, ["a.png", "b.png", "b.png", "c.png"])
    assert "skipped: photos/a.png (already there: out/a-depth.npz; --overwrite makes it again)" in out
    assert before[Path("out/a-depth.npz")] == Path("out/a-depth.npz").stat().st_mtime_ns
    assert sorted(record()["notes"]["sources"].values()) == ["photos/a.png", "photos/b.png", "photos/c.png"]
    drawn.clear()
    assert run("depth", "photos", "-o", "out", "--overwrite")[0] == 0
    assert drawn == ["a.png", "b.png", "c.png"]


def test_maps_of_other_settings_are_neither_kept_nor_replaced_unasked(run: Run, drawn: list[str]) -> None:
    photos("photos/a.png", "photos/b.png")
    assert run("depth", "photos", "-o", "out")[0] == 0
    code, _, err = run("depth", "photos", "-o", "out", "--ensemble", "3")
    assert (code, len(drawn)) == (2, 2)
    assert "out/a-depth.npz was made with --ensemble 1; --overwrite makes it again" in err
    assert run("depth", "photos", "-o", "out", "--ensemble", "3", "--overwrite")[0] == 0
    assert len(drawn) == 4


def test_what_fails_among_several_is_named(run: Run, drawn: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the message of a network's own speaks of no file."""
    photos("photos/a.png", "photos/b.png")
    one = MAP_COMMANDS["depth"].one

    def refused(self: MapCommand, pipe: Any, path: Path, *rest: Any) -> None:
        if path.name == "a.png":
            raise InputError("the picture is of one colour")
        one(self, pipe, path, *rest)

    monkeypatch.setattr(MAP_COMMANDS["depth"], "one", refused)
    code, out, _ = run("depth", "photos", "-o", "out", "--json")
    assert (code, json.loads(out)["skipped"]) == (SOME_FAILED, ["photos/a.png: the picture is of one colour"])


def test_different_inputs_never_share_a_name(run: Run, drawn: list[str]) -> None:
    photos("x/a.png", "x/b.png", "y/a.png", "y/b.png")
    assert run("depth", "x", "-o", "out")[0] == 0
    code, _, err = run("depth", "y", "-o", "out")
    assert (code, "out/a-depth.npz was made from x/a.png; choose another --out" in err) == (2, True)
    assert run("depth", "x/a.png", "y/a.png", "-o", "both")[0] == 0
    assert {"a-png-depth.npz", "a-png-2-depth.npz"} <= set(names("both"))
    assert run("depth", "x", "y", "-o", "folders")[0] == 0
    assert {"a-depth.npz"} <= set(names("folders/x")) & set(names("folders/y"))


def test_one_picture_is_not_replaced_unasked(run: Run, drawn: list[str]) -> None:
    photos("a.png", "depth.png")
    assert run("depth", "a.png", "-o", "depth.png")[0] == 2  # a picture of somebody else
    assert run("depth", "a.png", "-o", "d.png")[0] == 0
    code, _, err = run("depth", "a.png", "-o", "d.png")
    assert (code, "is already there; choose another --out, or --overwrite it" in err) == (2, True)
    assert run("depth", "a.png", "-o", "d.png", "--overwrite")[0] == 0


def test_several_pictures_on_one_line(run: Run, drawn: list[str]) -> None:
    photos("a.png", "more/b.png", "more/c.png")
    assert run("depth", "a.png", "more")[0] == 0
    (folder,) = Path("outputs/depth").iterdir()
    assert folder.name.startswith("a-and-1-more-") and (folder / "more" / "b-depth.npz").is_file()
    assert run("depth", "a.png", "more/b.png")[0] == 0
    assert len(list(Path("outputs/depth").iterdir())) == 2
    code, _, err = run("depth", "a.png", "more/b.png", "-o", "d.png")
    assert (code, "--out d.png is one file but there are 2 pictures" in err) == (2, True)


def test_folders_in_folders_on_request(run: Run, drawn: list[str]) -> None:
    photos("p/a.png", "p/q/a.png", "p/q/r/b.png")
    code, out, _ = run("depth", "p", "-o", "out")
    assert (code, drawn) == (0, ["a.png"]) and "skipped: p/q is a folder; --recursive enters it" in out
    drawn.clear()
    assert run("depth", "p", "-o", "p/maps", "--recursive")[0] == 0
    assert run("depth", "p", "-o", "p/maps", "--recursive")[0] == 0  # its own outputs are no pictures
    assert drawn == ["a.png", "a.png", "b.png"]
    assert {path.relative_to("p/maps").as_posix() for path in Path("p/maps").rglob("*.npz")} == {
        "a-depth.npz",
        "q/a-depth.npz",
        "q/r/b-depth.npz",
    }


def test_every_file_that_is_left_out_is_told(run: Run, drawn: list[str]) -> None:
    photos("p/a.png")
    for name in ("b.heic", "c.CR2", "d.psd", "notes.txt"):
        Path("p", name).write_bytes(b"x")
    code, out, _ = run("depth", "p", "-o", "out")
    assert code == 0
    for text in ("p/b.heic: HEIC is not read", "p/c.CR2: CR2 is not read", "p/d.psd: PSD", "p/notes.txt is no picture"):
        assert f"skipped: {text}" in out
    photos("q/b.png", "q/a.png", "q/.hidden.png")
    save_image("q/c.jpg", BLACK).rename("q/c.JPG")
    assert [path.name for path, _ in find(Path("q"), False, (), Path("out")).pictures] == ["a.png", "b.png", "c.JPG"]
    with pytest.raises(InputError, match=r"holds no images .*HEIC is not read"):
        Path("p/a.png").unlink()
        find(Path("p"), False, (), Path("out"))


def test_some_failures_are_told_by_the_exit_code(run: Run, drawn: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    photos("p/a.png", "p/b.png", "p/d.png")
    Path("p/c.jpg").write_text("no picture")
    one = MAP_COMMANDS["depth"].one

    def large(self: MapCommand, pipe: Any, path: Path, *rest: Any) -> None:
        if path.stem == "b":
            raise failure
        one(self, pipe, path, *rest)

    failure: Exception = MemoryError()
    monkeypatch.setattr(MAP_COMMANDS["depth"], "one", large)
    code, out, _ = run("depth", "p", "-o", "out")
    assert (code, drawn) == (SOME_FAILED, ["a.png", "d.png"])
    assert "skipped: p/c.jpg is not an image" in out and "skipped: p/b.png: out of memory" in out
    found = record()
    assert found["status"] == "done" and len(found["notes"]["skipped"]) == 2
    assert sorted(found["notes"]["sources"].values()) == ["p/a.png", "p/d.png"]
    drawn.clear()
    failure = UnprojectError("nothing was drawn; try another seed")  # what diverged, say
    code, out, _ = run("depth", "p", "-o", "out", "--overwrite")
    assert (code, drawn) == (SOME_FAILED, ["a.png", "d.png"])
    assert "skipped: p/b.png: nothing was drawn; try another seed" in out
    drawn.clear()
    failure = MissingExtraError("this needs a package")  # for the others too
    code, _, err = run("depth", "p", "-o", "out", "--overwrite")
    assert (code, drawn) == (1, ["a.png"]) and "this needs a package" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_picture_and_names_the_way_on(
    run: Run, drawn: list[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    photos("p/a b.png", "p/c.png", "p/d.png")
    one = MAP_COMMANDS["depth"].one

    def stopped(self: MapCommand, pipe: Any, path: Path, *rest: Any) -> None:
        if path.stem == "c":
            os.kill(os.getpid(), number)
        one(self, pipe, path, *rest)

    monkeypatch.setattr(MAP_COMMANDS["depth"], "one", stopped)
    code, _, err = run("depth", "p", "-o", "out 1")
    assert (code, drawn) == (128 + number, ["a b.png", "c.png"])
    assert "stopped after step 2 of 3" in err and "this goes on: unproject depth p -o 'out 1'" in err
    assert Path("out 1/c-depth.png").is_file() and record("out 1/depth.run.json")["status"] == "failed"
    monkeypatch.setattr(MAP_COMMANDS["depth"], "one", one)
    assert run("depth", "p", "-o", "out 1")[0] == 0
    assert drawn == ["a b.png", "c.png", "d.png"]


def test_the_record_is_written_as_it_goes(run: Run, drawn: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    photos("p/a.png", "p/b.png")
    seen: list[dict[str, Any]] = []
    one = MAP_COMMANDS["depth"].one

    def looking(self: MapCommand, *rest: Any) -> None:
        seen.append(record())
        one(self, *rest)

    monkeypatch.setattr(MAP_COMMANDS["depth"], "one", looking)
    assert run("depth", "p", "-o", "out")[0] == 0
    assert [(found["status"], len(found["outputs"])) for found in seen] == [("running", 0), ("running", 3)]
    assert record()["status"] == "done" and len(record()["outputs"]) == 6


def test_names_that_are_no_text(run: Run, drawn: list[str]) -> None:
    photos("p/a.png")
    os.rename(b"p/a.png", b"p/caf\xe9.png")
    for _ in range(2):
        assert run("depth", "p", "-o", "out")[0] == 0
    assert len(drawn) == 1 and len(names()) == 4


def test_prompts_come_from_a_file(run: Run, fake_images: list[dict[str, object]]) -> None:
    Path("p.txt").write_text("a red chair\n\na blue dog\na red chair\n", encoding="utf-8-sig")
    assert run("text-to-image", "--prompts", "p.txt", "-o", "out", "--seed", "4")[0] == 0
    assert names() == ["a-blue-dog-seed4.png", "a-red-chair-seed4.png", "text-to-image.run.json"]
    Path("out/a-blue-dog-seed4.png").unlink()
    fake_images.clear()
    code, out, _ = run("text-to-image", "--prompts", "p.txt", "-o", "out", "--seed", "4")
    assert [asked["prompt"] for asked in fake_images if "prompt" in asked] == ["a blue dog"]
    assert "skipped: a red chair (already there" in out
    for words, message in (
        (("a cup", "--prompts", "p.txt"), "give a prompt, or --prompts FILE with one on each line, not both"),
        ((), "give a prompt, or --prompts FILE"),
        (("--prompts", "p.txt", "-o", "a.png"), "--out a.png is one file but --prompts p.txt holds several"),
        (("--prompts", "no.txt"), "--prompts no.txt does not exist"),
    ):
        code, _, err = run("text-to-image", *words)
        assert (code, message in err) == (2, True)


@pytest.mark.parametrize(
    "words", [("depth", ""), ("fit", ""), ("relight", ""), ("depth", "a.png", "-o", ""), ("depth",), ("inspect", "")]
)
def test_an_empty_name_is_not_the_working_folder(run: Run, drawn: list[str], words: tuple[str, ...]) -> None:
    photos("a.png")
    code, out, err = run(*words)
    assert (code, drawn) == (2, [])
    told = " ".join((out + err).replace("│", " ").split())
    assert "an empty name of a file" in told or "needs a picture" in told


@pytest.mark.parametrize("words", [("--prior", ""), ("--prior=",), ("--encoder", ""), ("--work", "")])
def test_an_empty_word_behind_an_option_is_no_folder(run: Run, drawn: list[str], words: tuple[str, ...]) -> None:
    photos("a.png")
    verb = ("match", "a.png", "a.png") if "--encoder" in words else ("text-to-image", "a red cup", "--negative", "")
    code, _, err = run(*verb, *words)
    assert (code, drawn) == (2, [])
    assert f"the word behind {words[0].rstrip('=')} is empty; give it a value" in " ".join(err.split())
