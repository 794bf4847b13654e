"""The README keeps its word: every command and every line of Python in it runs, every picture and page is there."""

from __future__ import annotations

import inspect
import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unproject.pipelines.direct25_mesh import Direct25Output, Direct25TextToMesh
from unproject.pipelines.text_to_image import TextToImage
from unproject.utils.pictures import save_image

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python)?\n(.*?)```", TEXT, re.DOTALL)


def commands() -> list[str]:
    """Every command line: in blocks, and in a sentence or a table between backticks; NAME stands for any name."""
    lines = [line.partition("  #")[0] for kind, block in BLOCKS if not kind for line in block.splitlines()]
    found = [line for line in lines if line.startswith("unproject ")]
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    found += list(re.findall(r"`(unproject [a-z-][^`]*)`", prose))
    return list(dict.fromkeys(line.strip() for line in found))


@pytest.fixture
def desk(in_tmp: Path) -> None:
    """The files that the README speaks of."""
    picture = np.random.default_rng(0).random((64, 64, 3))
    for name in ("photo.jpg", "photo.png", "more.jpg", "photos/a.jpg"):
        save_image(name, picture)
    mask = np.zeros((64, 64))
    mask[20:30] = 1
    save_image("mask.png", mask)
    save_image("duck.png", np.dstack([picture, mask]))
    import trimesh

    trimesh.creation.box().export("chair.glb")
    Path("NAME.run.json").write_text(json.dumps({"command": "depth", "config": {"image": ["photo.jpg"]}}))


@pytest.mark.parametrize("line", commands())
def test_every_command_runs(run: Run, desk: None, line: str) -> None:
    """As far as a dry run goes, on the processor; benches by a name that there is."""
    words = shlex.split(line)[1:]
    words = ["cpu" if before == "--device" else word for before, word in zip(["", *words], words)]
    if words[:2] == ["bench", "NAME"]:
        words[1] = "deepcache"
    dry = ["--dry-run"] + (["--overwrite"] if "chair.glb" in words and words[0] == "text-to-mesh" else [])
    code, out, err = run(*words, *(word for word in dry if word not in words))
    assert code == 0, (line, out, err)


def test_there_are_commands_to_run() -> None:
    lines = commands()
    assert len(lines) > 15 and "unproject restore photo.png --task inpaint --mask mask.png" in lines
    targets = re.findall(r"^make (\w+)", TEXT, re.MULTILINE)
    rules = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test"} <= set(targets) <= set(rules)


def test_the_python_runs(desk: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pipelines that take what the real ones take and make nothing."""

    def pretend(real: Any, **made: Any) -> Any:
        def call(*words: Any, **options: Any) -> SimpleNamespace:
            inspect.signature(real.__call__).bind(None, *words, **options)
            return SimpleNamespace(**made)

        return SimpleNamespace(from_pretrained=lambda name: call)

    saved: list[str] = []
    mesh = SimpleNamespace(save=saved.append)
    assert {"mesh", "report"} <= {one.name for one in fields(Direct25Output)}
    fake = ModuleType("unproject")
    make = pretend(Direct25TextToMesh, mesh=mesh, report="fine").from_pretrained("toybox")
    fake.text_to_mesh = make  # type: ignore[attr-defined]
    fake.text_to_image = pretend(TextToImage, images=[]).from_pretrained("toybox")  # type: ignore[attr-defined]
    fake.depth = lambda path: Path(path).stat()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "unproject", fake)
    blocks = [block for kind, block in BLOCKS if kind and "import unproject\n" in block]
    assert len(blocks) == 1
    Path("readme.py").write_text(blocks[0])
    runpy.run_path("readme.py")
    assert saved == ["chair.glb"]


def test_the_lines_for_plain_diffusers_run_on_a_plain_pipeline(tiny_prior_folder: Path, in_tmp: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_prior_folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    (block,) = [block for kind, block in BLOCKS if kind and "pipe.scheduler" in block]
    assert len([line for line in block.splitlines() if line.strip()]) <= 5
    Path("lines.py").write_text(block)
    runpy.run_path("lines.py", {"pipe": pipe})
    images = pipe("a red chair", num_inference_steps=6, output_type="np", height=32, width=32).images
    assert type(pipe.scheduler).__name__ == "SolverScheduler" and np.isfinite(images).all()


@pytest.mark.parametrize("page", ["README.md", "docs/measured.md", "docs/commands.md"])
def test_pictures_and_pages_are_there(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    gone = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert links and not gone


def test_the_first_screen_is_short() -> None:
    """A sentence, a turntable, two commands, verbs with their pictures, five lines: then the rest."""
    first = TEXT.partition("\n## ")[0]
    order = [first.index(text) for text in ("turntable.gif", "make demo", "| `unproject", "pipe.scheduler")]
    assert len(first.splitlines()) < 50 and order == sorted(order)
    assert first.count("docs/images/verb-") >= 6 and "<!-- table" not in first
    tables = re.findall(r"<!-- table.*?<!-- /table -->", TEXT, re.DOTALL)
    assert len(tables) == 1 and tables[0].count("\n|") < 8  # what it rests on may be said below the rows
