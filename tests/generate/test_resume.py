"""Going on where a mesh was left: only with the same prompts, prior, recipe and seed; what is recorded about a mesh."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch

from unproject.core.priors import GaussianMixturePrior
from unproject.core.training.checkpoints import latest_checkpoint
from unproject.generate.guides import make_guide
from unproject.generate.optimise import Optimisation
from unproject.pipelines.text_to_mesh import MeshRecipe, TextToMesh, TextToMeshOutput
from unproject.utils.configs import load_config
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

SIDE = 8
RECIPE = {
    "score": {"guidance": 1.0},
    "optimise": {
        "steps": 5,
        "sizes": [[0, SIDE]],
        "guided_px": SIDE,
        "checkpoint_every": 2,
        "shape": {
            "volume": {
                "occupancy_from": 1.0,
                "field": {"grid": {"sides": [5, 9], "starts": [0, 0]}},
                "rays": {"step": 0.1, "cells": 8},
            }
        },
    },
    "mesh": {"resolution": 16, "faces": 200, "texture": 16, "depth_samples": 2, "visibility_views": 0},
    "preview_every": 0,
}


def mixture(mean: float = 0.2) -> GaussianMixturePrior:
    return GaussianMixturePrior(torch.full((1, 3, SIDE, SIDE), mean), torch.tensor([0.5]))


def make(folder: Path | None, prompt: str = "a box", prior: Any = None, **options: Any) -> TextToMeshOutput:
    changes = options.pop("recipe", {})
    pipe = TextToMesh(prior or mixture(), load_config(MeshRecipe, RECIPE, **changes))
    return pipe(prompt, **{"seed": 1, **options}, out=folder)


def test_steps_add_in_one_order() -> None:
    seen: list[bool] = []
    make(None, callback_on_step_end=lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()))
    assert seen == [True] * 5 and not torch.are_deterministic_algorithms_enabled()


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("ckpt-*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "a ball"}, r"ckpt-5 was made with another prompt \('a box'\); choose another folder"),
        ({"negative_prompt": "fog"}, r"another negative_prompt \(None\)"),
        ({"prior": mixture(0.3)}, r"another prior\.network \('"),
        ({"guidance_scale": 2.0}, r"another score\.guidance \(1\.0\)"),
        ({"recipe": {"optimise.fit.rays": 8}}, r"another fit\.rays \(4096\)"),
        ({"seed": 2, "prompt": "a ball"}, r"another prompt \('a box'\), seed \(1\)"),
    ],
)
def test_what_was_made_otherwise_does_not_go_on(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    make(tmp_path)
    assert steps(tmp_path) == ["ckpt-4", "ckpt-5"]
    with pytest.raises(InputError, match=message):
        make(tmp_path, **changes)
    assert [row["step"] for row in make(tmp_path).history] == [1, 2, 3, 4, 5]


def test_a_resumed_mesh_counts_the_whole_making(tmp_path: Path) -> None:
    prior = mixture()

    def stop(pipe: Any, step: int, log: dict[str, float], parts: Any) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, prior=prior, callback_on_step_end=stop)
    facts_at = tmp_path / "ckpt-4" / "optimisation.json"
    facts = json.loads(facts_at.read_text())
    facts_at.write_text(json.dumps({**facts, "seconds": 1000.0}))
    before = prior.nfe
    made = make(tmp_path, prior=prior)
    assert prior.nfe - before == 4  # one look at four views
    assert made.nfe == 5 * 4 and [row["step"] for row in made.history] == [1, 2, 3, 4, 5]
    assert 1000 < made.seconds["optimise"] < 1060
    made.save(tmp_path / "files", frames=0, size=16)
    record = json.loads((tmp_path / "files" / "run.json").read_text())
    assert record["nfe"] == {"denoiser": 20} and len(record["notes"]["history"]) == 5 and record["seconds"] > 1000


def test_health_goes_on_where_it_was(tmp_path: Path) -> None:
    config = load_config(MeshRecipe, RECIPE).optimise
    guide = make_guide(load_config(MeshRecipe, RECIPE).score, mixture(), "a box")
    first, second = (Optimisation(config, guide, seed=5) for _ in range(2))
    first.health.streak = {"empty": 3, "full": 2}
    first.save(tmp_path)
    assert second.resume(tmp_path) and second.health.streak == {"empty": 3, "full": 2}


def test_without_resume_old_checkpoints_go_and_other_files_stay(tmp_path: Path) -> None:
    make(tmp_path, recipe={"optimise.steps": 9})
    (tmp_path / "ckpt-of-mine").mkdir()
    (tmp_path / "ckpt-6.tmp").mkdir()
    again = make(tmp_path, "a ball", resume=False)
    assert len(again.history) == 5
    assert steps(tmp_path) == ["ckpt-4", "ckpt-5", "ckpt-of-mine"]
    newest = latest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "ckpt-5"
    assert json.loads((newest / "optimisation.json").read_text())["guided_by"]["prompt"] == "a ball"


def test_the_record_covers_the_making(tmp_path: Path) -> None:
    before = datetime.now(timezone.utc)
    made = make(None, negative_prompt="fog")
    made.save(tmp_path, frames=0, size=16)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["seconds"] >= sum(made.seconds.values()) > 0
    assert before <= made.started and record["started"] == made.started.isoformat(timespec="seconds")
    notes = record["notes"]
    assert (notes["prompt"], notes["negative_prompt"], notes["prior"]) == ("a box", "fog", mixture().name)


def test_a_generator_gives_the_seed() -> None:
    source = generator(3)
    first, second = (make(None, seed=None, generator=source) for _ in range(2))
    assert first.seed != second.seed
    again = make(None, seed=first.seed)
    assert torch.equal(again.mesh.vertices, first.mesh.vertices)
    assert make(None, seed=None).seed == 0
    with pytest.raises(InputError, match="either seed or generator"):
        make(None, generator=source)


def test_the_same_seed_gives_the_same_mesh_whatever_else_draws() -> None:
    """Nothing of a mesh comes from the process's own generator, the hidden space of its surface neither."""
    meshes = []
    for _ in range(2):
        before = torch.get_rng_state()
        meshes.append(make(None, recipe={"mesh.visibility_views": 6}).mesh)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(7)
    first, second = meshes
    assert torch.equal(first.vertices, second.vertices) and torch.equal(first.faces, second.faces)
    assert (first.textures["base_color"] == second.textures["base_color"]).all()
