"""Every option of every command acts: the command's own code asks for it, and where it is cheap, something changes."""

from __future__ import annotations

import ast
import inspect
import json
import os
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unproject.cli import priors
from unproject.cli.commands import COMMANDS
from unproject.cli.common import Command, pick_device
from unproject.cli.maps import MAP_COMMANDS
from unproject.cli.points import Pointcloud
from unproject.cli.sampling import PLANNED
from unproject.cli.text import TextToImage
from unproject.tasks.codecs import DepthOutput, NormalsOutput
from unproject.utils.pictures import save_image

Run = Callable[..., tuple[int, str, str]]
OF_ALL = {"out", "json", "print_config", "dry_run", "threads"}  # cli/common.py acts on them for every command


def in_force(command: type[Command]) -> Iterator[Any]:
    """Functions that run for a command: for each name the one of the first class that has it, and those it calls by
    super()."""
    for name in {name for base in command.__mro__ for name in vars(base) if not name.startswith("__")}:
        for base in command.__mro__:
            member = vars(base).get(name)
            found = member.fget if isinstance(member, property) else member
            if inspect.isfunction(found) and found.__module__.startswith("unproject."):
                yield found
                if "super()" not in inspect.getsource(found):
                    break


def asked_for(function: Any) -> set[str]:
    """Names of attributes that a function reads from its first argument."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    found = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    if "getattr(self, name)" in ast.unparse(tree):  # of names that stand in the function
        found |= {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    return found | (set(PLANNED) if "PLANNED" in ast.unparse(tree) else set())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_no_option_is_there_for_nothing(command: type[Command]) -> None:
    asked = {name for function in in_force(command) for name in asked_for(function)}
    names = {field.name for field in fields(command) if "Suppress" not in str(field.type)}
    assert names - asked - OF_ALL == set()


def test_an_option_that_nobody_asks_for_would_be_seen() -> None:
    class Idle(Command):
        name = "idle"
        idle: int = 0

        def check(self) -> None:
            super().check()

    assert "idle" not in {name for function in in_force(Idle) for name in asked_for(function)}
    asked = {name for function in in_force(Pointcloud) for name in asked_for(function)}
    assert {"mesh", "near", "seed", "recursive"} <= asked  # its own, and those of the classes above it


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Heads that see a corner and remember how they were loaded and asked."""
    asked: list[dict[str, Any]] = []

    def maps(kind: type, picture: np.ndarray, options: dict[str, Any]) -> Any:
        asked.append({k: v for k, v in options.items() if k != "valid"})
        height, width, _ = picture.shape
        ramp = np.abs(np.linspace(-0.9, 1, width, dtype=np.float32))
        values = np.broadcast_to(ramp[None, None, :, None], (1, height, width, 1)).copy()
        values[:, 2:6, 3:9] = 0.05
        if kind is NormalsOutput:
            values = np.concatenate([values, values[:, ::-1], 1 - values], axis=-1)
        return kind(values, 0.1 * values[..., :1] if options["ensemble_size"] > 1 else None, nfe=1)

    def load(kind: type) -> Callable[[Any], Any]:
        def loaded(self: Any) -> Any:
            asked.append({"prior": self.prior, **{k: str(v) for k, v in self.placement().items()}})
            return lambda picture, **options: maps(kind, picture, options)

        return loaded

    monkeypatch.setattr(MAP_COMMANDS["depth"], "load", load(DepthOutput))
    monkeypatch.setattr(MAP_COMMANDS["normals"], "load", load(NormalsOutput))
    monkeypatch.setattr(Pointcloud, "load", load(DepthOutput))
    return asked


PICTURES = {
    "--ensemble": ("3",),
    "--steps": ("1",),
    "--seed": ("5",),
    "--prior": ("marigold-depth",),
    "--dtype": ("float16",),
    "--variant": ("fp16",),
    "--json": (),
    "--dry-run": (),
    "--print-config": (),
    "--overwrite": (),
}
MAPS = {**PICTURES, "--format": ("npy",), "--compression": ("none",), "--legend": (), "--preview": ()}
POINTS = {
    **PICTURES,
    "--format": ("xyz",),
    "--mesh": (),
    "--mesh --faces": ("30",),
    "--max-slant": ("40",),
    "--fov": ("80",),
    "--K": ("K.json",),
    "--K lens.json --undistort": (),
    "--near": ("0.5",),
    "--far": ("9",),
    "--preview": (),
}
CASES = [
    *(("depth", option) for option in (*MAPS, "--colormap")),
    *(("normals", option) for option in MAPS),
    *(("pointcloud", option) for option in POINTS),
]


@pytest.mark.parametrize(
    "words",
    [
        ("depth", "--format", "npz,png,npy", "--ensemble", "2"),
        ("depth", "--format", "npy,png", "--ensemble", "2"),
        ("normals", "--format", "png"),
        ("pointcloud",),
        ("pointcloud", "--mesh"),
    ],
)
def test_what_tells_that_a_picture_is_done_is_written_last(
    run: Run, heads: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """Killed at any moment, the same command makes what is missing: the file it writes last is one it asks for."""
    save_image("a.png", np.random.default_rng(0).random((20, 24, 3)))
    written, replace = list[str](), os.replace

    def remember(source: Any, target: Any) -> None:
        written.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", remember)
    assert run(words[0], "a.png", "-o", "out", "--preview", *words[1:])[0] == 0
    made = [name for name in written if not name.endswith("run.json")]
    marks = {"depth": (".npz", ".npy", "depth.png"), "normals": ("normals.png",), "pointcloud": (".ply", ".glb")}
    assert made[-1].endswith(marks[words[0]]) and len(made) > 2
    assert not made[-1].endswith("-uncertainty.npy") and not made[-1].endswith("-preview.png")


@pytest.mark.parametrize(("command", "option"), CASES)
def test_options_of_pictures_change_something(run: Run, heads: list[dict[str, Any]], command: str, option: str) -> None:
    """Files, what is printed, the way the head is loaded or asked: one of these has to differ."""
    save_image("a.png", np.random.default_rng(0).random((20, 24, 3)))
    matrix = {"camera_matrix": [[30, 0, 12], [0, 30, 10], [0, 0, 1]]}
    Path("K.json").write_text(json.dumps(matrix))
    Path("lens.json").write_text(json.dumps({**matrix, "dist_coeffs": [-0.1, 0, 0, 0]}))
    value = {**MAPS, **POINTS, "--colormap": ("gray",)}[option]
    if command != "pointcloud" and option == "--format":
        value = MAPS[option]
    again = ["--overwrite"] if option == "--overwrite" else []
    if again:
        run(command, "a.png", "-o", "two")
    sampled = ["--prior", "marigold-depth"] if option == "--steps" else []  # a one-step head refuses steps
    plain = outcome(run, heads, "one", command, "a.png", *sampled)
    changed = outcome(run, heads, "two", command, "a.png", *sampled, *option.split(), *value)
    assert plain["code"] == 0 == changed["code"], changed["told"]
    if again:
        assert run(command, "a.png", "-o", "two")[0] == 2
    else:
        assert plain != changed


def outcome(run: Run, heads: list[dict[str, Any]], folder: str, *words: str) -> dict[str, Any]:
    """All that a run does, without times."""
    heads.clear()
    code, out, err = run(*words, "--device", "cpu", "-o", folder)
    files = {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*")) if "run.json" not in path.name}
    shown = [line.split("  ")[0].replace(folder, "") for line in out.splitlines() if "run.json" not in line]
    return {"code": code, "files": files, "asked": list(heads), "told": [*shown, err]}


def test_recorded_calls_need_cuda_and_weights_that_stay(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, error = run("text-to-image", "a dog", "--graphs", "--device", "cpu")
    assert code == 2 and "--graphs serves CUDA, not --device cpu; leave it out" in error
    monkeypatch.setattr(priors, "pick_device", lambda name: "cuda:1")
    for words in (("--weights", "float8"), ("--offload", "model")):
        code, _, error = run("text-to-image", "a dog", "--graphs", *words)
        assert code == 2 and f"weights that stay where they are, not {' '.join(words)}; leave one" in error
    how = TextToImage(prompt="a dog", graphs=True, weights="bnb-nf4").placement()["placement"]
    assert how.graphs and how.weights == "bnb-nf4"


def test_of_several_processes_each_has_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == pick_device("cuda") == "cuda"
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "3")):
        monkeypatch.setenv(name, value)
    assert pick_device("auto") == pick_device("cuda") == "cuda:1"
    assert pick_device("cuda:0") == "cuda:0" and pick_device("cpu") == "cpu"
