"""`unproject materials`: words or a photograph in, maps, ball and MaterialX out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from unproject.tasks.codecs.pbr import MaterialMaps
from unproject.tasks.materials import MaterialOutput


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """What the network, which is none, was asked."""
    told: list[dict] = []

    class Flat:
        def __call__(self, prompt, image, **how):
            told.append({"prompt": prompt, "image": image, **how})
            unit = torch.full((1, 1, 16, 16), 0.5)
            up = torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1).expand(1, 3, 16, 16)
            maps = MaterialMaps(unit.expand(1, 3, 16, 16), up, unit, unit, unit)
            return MaterialOutput(maps, how["tileable"], 8, how["seed"])

    monkeypatch.setattr("unproject.tasks.materials.load_materials", lambda *args, **how: Flat())
    return told


def test_words_become_a_material(run, asked, tmp_path: Path) -> None:
    code, out, err = run(
        "materials", "red bricks", "-o", str(tmp_path / "wall"), "--seed", "3", "--steps", "4", "--json"
    )
    assert code == 0, err
    told = json.loads(out)
    assert told["seam_energy"] == 1.0
    names = {path.name for path in (tmp_path / "wall").iterdir()}
    stem = "red-bricks-seed3"
    assert {f"{stem}{e}" for e in ("-albedo.png", "-sheet.png", ".glb", ".mtlx", ".run.json")} <= names
    assert f"{stem}.npz" not in names
    assert (asked[0]["prompt"], asked[0]["seed"], asked[0]["num_inference_steps"], asked[0]["tileable"]) == (
        "red bricks", 3, 4, True,
    )  # fmt: skip
    code, _, err = run("materials", "red bricks", "-o", str(tmp_path / "wall"), "--seed", "3")
    assert code == 2
    assert "already there" in err


def test_a_photograph_becomes_a_material(run, asked, tmp_path: Path) -> None:
    from unproject.utils.pictures import save_image

    save_image(tmp_path / "wall.png", np.full((20, 30, 3), 0.2, np.float32))
    code, _, err = run("materials", str(tmp_path / "wall.png"), "-o", str(tmp_path / "m.npz"), "--seams")
    assert code == 0, err
    assert asked[0]["image"].shape == (20, 30, 3)
    assert (asked[0]["prompt"], asked[0]["tileable"]) == ("", False)
    with np.load(tmp_path / "m.npz") as made:
        assert made["normal"].shape == (16, 16, 3)
    assert not (tmp_path / "m.glb").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nothere.jpg",), "does not exist"),
        (("",), "prompt"),
        (("bricks", "--prompt", "red"), "goes with a photograph"),
        (("bricks", "--format", "obj"), "materials are written as"),
        (("bricks", "--size", "4"), "--size must lie between"),
    ],
)
def test_what_is_refused(run, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    code, _, err = run("materials", *words, "-o", str(tmp_path / "new"))
    assert code == 2
    assert message in err


def test_without_weights_it_names_the_training(run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    code, _, err = run("materials", "bricks", "-o", str(tmp_path / "new"))
    assert code == 2
    assert "unproject train materials" in err
