"""Generators on an accelerator: every representation under score distillation in every precision of the prior, its
surface, its textures; and what the host waits for in a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unproject.geometry.cameras import Camera
from unproject.geometry.representation import CHANNELS
from unproject.geometry.shapes import ShapeConfig, make_shape
from unproject.pipelines.text_to_mesh import MeshRecipe, TextToMesh
from unproject.pipelines.text_to_shape import _started
from unproject.utils.configs import load_config
from unproject.utils.ramps import Moment
from unproject.utils.seeds import generator

SIDE = 32
VOLUME = {"occupancy_from": 0.1, "occupancy_every": 1, "rays": {"step": 0.1, "cells": 8}}
GRID = {"sides": [5, 9], "starts": [0, 0]}
FIELDS: dict[str, dict[str, Any]] = {
    "grid": {"kind": "grid", "grid": GRID},
    "hash": {"kind": "hash", "hash": {"levels": 2, "log2_rows": 8, "coarse": 4, "fine": 8}},
    "triplane": {"kind": "triplane", "triplane": {"side": 8}},
    "density": {"kind": "grid", "grid": GRID, "head": {"kind": "density"}},
}
SHAPES: dict[str, dict[str, Any]] = {
    **{name: {"kind": "volume", "volume": {**VOLUME, "field": field}} for name, field in FIELDS.items()},
    "triangles": {"kind": "triangles", "triangles": {"subdivisions": 2}},
    "gaussians": {"kind": "gaussians", "gaussians": {"count": 200}},
}
RECIPE = {
    "score": {"guidance": 5.0, "clip": [1.0]},
    "optimise": {"steps": 2, "sizes": [[0, 16]], "guided_px": SIDE, "checkpoint_every": 1, "health": {"patience": 9}},
    "mesh": {"resolution": 16, "faces": 200, "texture": 32, "depth_samples": 2, "visibility_views": 2},
    "preview_every": 2,
}


def recipe(shape: str, **changes: Any) -> MeshRecipe:
    return load_config(MeshRecipe, RECIPE, **{"optimise.shape": SHAPES[shape], **changes})


def begun(prior: Any, made: MeshRecipe, folder: Any) -> Any:
    return _started(made, prior, 0, "a chair", None, folder, True, TextToMesh(prior, made).step_memory_gb)


def optimised(prior: Any, made: MeshRecipe, folder: Any = None) -> Any:
    pipe = TextToMesh(prior, made)
    work = begun(prior, made, folder)
    pipe._optimise(work, made, folder, "a chair", None)
    return work


def draws(shape: str, device: torch.device) -> None:
    """Skips what CUDA draws with a package that may be missing."""
    if shape == "gaussians" and device.type == "cuda":
        pytest.importorskip("gsplat")


@pytest.mark.parametrize("shape", SHAPES)
def test_every_representation_is_pulled(prior_on: Any, device: torch.device, shape: str) -> None:
    draws(shape, device)
    work = optimised(prior_on("mv", device, torch.float16), recipe(shape))
    assert all(p.device.type == device.type for p in work.shape.parameters())
    assert all(bool(p.isfinite().all()) for p in work.shape.parameters())
    seen = work.picture(Camera.orbit([10.0], [20.0], 3.0, 34.0, 8))
    assert bool(seen.rgb.isfinite().all()) and seen.rgb.device.type == device.type


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("sd15", torch.float32), ("sd15", torch.bfloat16), ("sd3", torch.float16), ("flux", torch.bfloat16)]
    + [("mv", torch.float32), ("mv", torch.bfloat16)],
)
def test_every_family_pulls(prior_on: Any, device: torch.device, family: str, dtype: torch.dtype) -> None:
    changes = {"score.space": "image", "score.target_steps": 2} if dtype == torch.bfloat16 else {}
    work = optimised(prior_on(family, device, dtype), recipe("grid", **changes))
    losses = [row["loss"] for row in work.history]
    assert len(losses) == 2 and all(abs(loss) < 1e6 for loss in losses)


def test_held_targets_terms_and_checkpoints(prior_on: Any, device: torch.device, tmp_path: Any) -> None:
    changes = {
        "score.space": "image",
        "optimise.fit": {"steps": 2, "rays": 64, "sets": 2, "backdrop": "border", "matte": 0.3},
        "optimise.losses": {"eikonal": [1.0], "smooth": [0.3], "opacity": [1.0], "orientation": [1.0]},
    }
    made = recipe("grid", **changes)
    whole = optimised(prior_on("mv", device), made, tmp_path)
    assert (tmp_path / "preview.png").is_file()
    again = begun(prior_on("mv", device), made, tmp_path)
    assert again.step == 2 and all(p.device.type == device.type for p in again.shape.parameters())
    found = dict(again.shape.named_parameters())
    for name, parameter in whole.shape.named_parameters():
        assert name == "field.head.log_beta" or torch.equal(parameter, found[name])  # that follows a schedule


def test_a_mesh_comes_out(prior_on: Any, device: torch.device) -> None:
    made = TextToMesh(prior_on("mv", device, torch.float16), recipe("grid"))("a chair", seed=0)
    assert made.report.faces > 3 and made.mesh.vertices.device.type == "cpu"
    assert made.mesh.textures


@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_are_those_of_the_cpu(device: torch.device, shape: str) -> None:
    draws(shape, device)
    config = load_config(ShapeConfig, SHAPES[shape])
    camera, background = Camera.orbit([10.0, 130.0], [20.0, -5.0], 3.0, 34.0, 12), torch.tensor([0.2, 0.4, 0.9])
    wanted, found = (make_shape(config, generator(0)) for _ in range(2))
    found.to(device)
    for one in (wanted, found):
        one.on_step(Moment(1, 2), generator(1))
    seen = found.render(camera.to(device), CHANNELS, background.to(device))
    truth = wanted.render(camera, CHANNELS, background)
    for name in CHANNELS:
        a, b = getattr(seen, name), getattr(truth, name)
        assert float(((a.detach().cpu() - b.detach()).abs() > 1e-3).float().mean()) < 0.01, name
