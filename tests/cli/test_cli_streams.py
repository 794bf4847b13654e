"""Pipes, runs that are replayed, names of outputs, and options where they act."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from unproject.cli import main, out_of_memory
from unproject.cli.commands import COMMANDS, parse
from unproject.cli.common import Command
from unproject.cli.outputs import distinct_slug, slugify
from unproject.utils.pictures import load_image, save_image

Run = Callable[..., tuple[int, str, str]]


class Pipe(io.TextIOWrapper):
    """A standard stream of bytes."""

    def __init__(self, content: bytes = b"") -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8", write_through=True)

    def content(self) -> bytes:
        return self.buffer.getvalue()  # type: ignore[attr-defined]


def test_one_file_goes_to_standard_output(
    in_tmp: Path,
    fake_images: list[dict[str, object]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = Pipe()
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["text-to-image", "a cup", "-o", "-"]) == 0
    with Image.open(io.BytesIO(out.content())) as image:
        assert (image.format, image.size) == ("PNG", (8, 8))
    assert list(in_tmp.iterdir()) == []
    told = capsys.readouterr().err
    assert "standard output " in told and "stdout" not in told  # the folder that it was made in is gone


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("text-to-image", "a cup", "--count", "2"), "--count 2 makes several files"),
        (("depth", "a.png"), "it writes several files"),
        (("pointcloud", "."), "it was given several pictures"),
        (("text-to-mesh", "a cup"), "it writes pictures beside the mesh"),
        (("train", "toybox-vae"), "it writes no single file"),
        (("text-to-image", "a cup", "--json"), "--json prints there too"),
    ],
)
def test_what_is_no_single_file_does_not(run: Run, words: tuple[str, ...], why: str) -> None:
    save_image("a.png", np.zeros((4, 4, 3)))
    code, _, err = run(*words, "-o", "-")
    assert (code, why in err) == (2, True)


def test_a_picture_comes_from_standard_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from unproject.pipelines import edit_image

    seen: list[tuple[int, ...]] = []

    class Fake:
        @classmethod
        def from_pretrained(cls, *_: object, **__: object) -> Fake:
            return cls()

        def __call__(self, image: Path, *_: object, **__: object) -> SimpleNamespace:
            seen.append(load_image(image).shape)
            return SimpleNamespace(nfe=1, images=[np.zeros((8, 8, 3), np.float32)])

    monkeypatch.setattr(edit_image, "EditImage", Fake)
    save_image("a.png", np.zeros((5, 7, 3)))
    words = ("edit", "-", "--source", "a cup", "--target", "a jug", "-o", "b.png")
    monkeypatch.setattr(sys, "stdin", Pipe(Path("a.png").read_bytes()))
    assert run(*words)[0] == 0
    assert seen == [(5, 7, 3)] and Path("b.png").is_file()
    monkeypatch.setattr(sys, "stdin", Pipe())
    code, _, err = run(*words, "--overwrite")
    assert (code, "image - is empty" in err) == (2, True)


def test_a_run_is_replayed_from_its_record(run: Run, fake_images: list[dict[str, object]]) -> None:
    words = ("text-to-image", "a red cup", "--seed", "7", "--steps", "9", "--solver", "heun", "--batch", "2")
    assert run(*words, "-o", "first")[0] == 0
    path = next(Path("first").glob("*.run.json"))
    record = json.loads(path.read_text())
    record["notes"]["plan"] = {"solver": "heun", "steps": 9, "guidance": 4.5}
    path.write_text(json.dumps(record))
    for replay in (("--config", str(path)), ("text-to-image", f"--config={path}")):
        fake_images.clear()
        assert run(*replay, "-o", "again", "--overwrite", "--batch", "3")[0] == 0
        asked = fake_images[1]
        assert (asked["prompt"], asked["seed"], asked["steps"], asked["solver"]) == ("a red cup", 7, 9, "heun")
        assert (asked["guidance"], asked["batch_size"]) == (4.5, 3)  # left open in the options; replaced on the line
    assert len(list(Path("again").glob("*.png"))) == 1


def test_printed_options_are_read_back(run: Run, fake_images: list[dict[str, object]]) -> None:
    _, out, _ = run("text-to-image", "a red cup", "--seed", "3", "--print-config")
    Path("c.yaml").write_text(out)
    command = parse(["--config", "c.yaml"])
    assert yaml.safe_load(out)["seed"] == 3 and command == parse(["text-to-image", "a red cup", "--seed", "3"])


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("{}", (), "names no command"),
        ('{"command": "fly", "config": {}}', (), "command 'fly' is none of text-to-mesh"),
        ('{"command": "depth", "config": {}}', ("edit",), "is of depth, not of edit"),
        ('{"command": "depth", "config": {"ensembel": 3}}', (), "did you mean 'ensemble'"),
        ('{"command": "depth", "config": {"ensemble": "three"}}', (), "'ensemble' in the given mapping is 'three'"),
        ('{"command"', (), "is not valid YAML"),
    ],
)
def test_records_that_cannot_be_replayed(run: Run, text: str, words: tuple[str, ...], message: str) -> None:
    Path("c.json").write_text(text)
    code, _, err = run(*words, "--config", "c.json")
    assert (code, message in err) == (2, True)


@pytest.mark.parametrize(
    ("text", "slug"),
    [("Ein Stuhl aus Größe", "ein-stuhl-aus-größe"), ("日本 の椅子", "日本-の椅子"), ("красный стул", "красный-стул")],
)
def test_slugs_keep_letters_of_any_script(text: str, slug: str) -> None:
    assert slugify(text) == slug


def test_different_prompts_have_different_names() -> None:
    texts = [
        "a red chair",
        "A red chair",
        "a red chair!",
        "a red, chair",
        "a-red chair",
        "日本",
        "!",
        "?",
        "x" * 60,
        "x" * 61,
    ]
    assert len({distinct_slug(text) for text in texts}) == len(texts)
    assert distinct_slug("a red chair") == "a-red-chair"


def test_another_seed_is_another_file_and_nothing_is_replaced(run: Run, fake_images: list[dict[str, object]]) -> None:
    for seed in ("0", "1"):
        assert run("text-to-image", "a red cup", "--seed", seed)[0] == 0
    folder = Path("outputs/text-to-image/a-red-cup")
    made = {"a-red-cup-seed0.png", "a-red-cup-seed1.png", "a-red-cup-seed0.run.json", "a-red-cup-seed1.run.json"}
    assert {path.name for path in folder.iterdir()} == made
    before = len(fake_images)
    code, _, err = run("text-to-image", "a red cup")
    assert (code, len(fake_images)) == (2, before)
    assert "a-red-cup-seed0.png is already there; choose another --out, or --overwrite it" in err
    assert run("text-to-image", "a red cup", "--overwrite")[0] == 0


ACTS: dict[str, set[str]] = {
    "--seed": {
        *("convert", "inspect", "priors", "methods", "doctor", "edit", "toybox", "completion", "render", "distill"),
        *("match", "transfer", "relight"),
    },
    "--device": {"convert", "inspect", "priors", "methods", "doctor", "toybox", "completion", "render", "relight"},
    "--threads": {"convert", "inspect", "priors", "methods", "doctor", "completion"},
    "--overwrite": {"bench", "completion"},
}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_options_are_where_they_act(command: type[Command]) -> None:
    fields = command.__dataclass_fields__
    for option, without in ACTS.items():
        assert (option[2:] in fields) == (command.name not in without), option


def test_shells_get_their_completion(run: Run) -> None:
    code, out, _ = run("completion", "bash")
    assert code == 0 and "text-to-mesh" in out and "complete" in out


@pytest.mark.parametrize("words", [("--guidance", "nan"), ("--eta", "inf"), ("--teleport", "-inf")])
def test_numbers_are_finite(run: Run, fake_images: list[dict[str, object]], words: tuple[str, str]) -> None:
    code, out, err = run("text-to-image", "a cup", *words)
    assert (code, fake_images) == (2, [])
    assert f"{words[1]} is no finite number" in " ".join((out + err).replace("│", " ").split())


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PermissionError(13, "Permission denied", "photo.png"), 1, "error: photo.png: Permission denied\n"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device\n"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "error: out of memory CUDA out of memory."),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 1, "error: out of memory"),
    ],
)
def test_errors_of_the_machine_are_told_as_such(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, message: str
) -> None:
    from unproject.cli.info import Methods

    def broken(*_: object) -> None:
        raise error

    monkeypatch.delenv("UNPROJECT_DEBUG", raising=False)
    monkeypatch.setattr(Methods, "run", broken)
    found, _, err = run("methods")
    assert (found, err.startswith(message), err.count("\n")) == (code, True, 1)
    assert out_of_memory(error) == ("out of memory" in message)


def test_sigterm_unwinds_like_an_interrupt(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from unproject.cli.info import Methods
    from unproject.utils.files import atomic_path

    before = signal.getsignal(signal.SIGTERM)

    def ended(self: Methods, *_: object) -> None:
        with atomic_path("half.bin") as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Methods, "run", ended)
    assert run("methods") == (143, "", "terminated\n")
    assert list(Path().iterdir()) == [] and signal.getsignal(signal.SIGTERM) is before


def test_outputs_are_tried_before_a_network_is_loaded(
    run: Run, fake_images: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("")
    save_image("photo.png", np.zeros((8, 8, 3)))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    for words in (("text-to-image", "a cup"), ("text-to-mesh", "a cup"), ("depth", "photo.png"), ("toybox",)):
        code, _, err = run(*words, "-o", "file/out", "--dry-run")
        assert (code, "cannot write file/out" in err, fake_images) == (2, True, [])
        code, _, err = run(*words, "-o", "full", "--dry-run")
        assert (code, "1.0 kB are free" in err, fake_images) == (1, True, [])


def test_a_result_that_cannot_be_written_is_kept_elsewhere(
    run: Run, fake_images: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def full(source: str, target: str) -> None:
        if Path(target).parent.name == "out":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    code, _, err = run("text-to-image", "a cup", "-o", "out/cup.png")
    (kept,) = Path().glob("unproject-rescued-*/cup.png")
    assert code == 1 and load_image(kept).shape == (8, 8, 3)
    assert f"the result is in {Path.cwd() / kept} instead" in err
