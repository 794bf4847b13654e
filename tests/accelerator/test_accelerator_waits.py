"""A step of an optimisation waits for the device twice: for the samples that may be dropped, and for its numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unproject.core.priors import load_prior
from unproject.generate.guides import make_guide
from unproject.generate.optimise import Optimisation
from unproject.pipelines import TextToImage
from unproject.pipelines.text_to_shape import MeshRecipe
from unproject.utils.configs import load_config

VIEWS = {"fov_y_deg": [40.0, 40.0], "elevation_deg": [10.0, 10.0], "margin": [1.0, 1.0], "high_share": 0.0}


def recipe(kind: str) -> MeshRecipe:
    """Nine steps of SDS on a field, with normals and three regularisers."""
    field = {"kind": kind, "head": {"kind": "density"}, "grid": {"sides": [5, 9], "starts": [0, 0]}}
    optimise = {
        "steps": 9,
        "sizes": [[0, 8]],
        "guided_px": 32,
        "checkpoint_every": 0,
        "views": VIEWS,
        "losses": {"opacity": [1.0], "orientation": [1.0], "smooth": [1.0]},
        "shape": {"volume": {"occupancy_from": 0.9, "field": field, "rays": {"step": 0.1, "cells": 8}}},
    }
    score = {"form": "score", "guidance": 3.0, "weight": "sigma2", "rescale": 0.0}
    return load_config(MeshRecipe, {"score": score, "optimise": optimise})


@pytest.mark.parametrize("kind", ["grid", "hash", "triplane"])
def test_a_step_waits_twice(pretend_device: Any, kind: str) -> None:
    found: list[dict[str, int]] = []
    with pretend_device.Pretend(double=False) as device:

        def note(*_: Any) -> None:
            found.append(dict(device.waits))
            device.waits.clear()

        prior, made = load_prior("toybox").to(pretend_device.DEVICE), recipe(kind)
        guide = make_guide(made.score, prior, "a red chair", None, made.optimise.views.views)
        Optimisation(made.optimise, guide, 1, pretend_device.DEVICE).run(on_step=note)
    first, *others = ({line.split(":")[0]: count for line, count in waits.items()} for waits in found)
    assert len(others) == 8
    for waits in others:
        assert waits == {"geometry/volume.py": 1, "core/training/loop.py": 1}, waits
    assert sum(first.values()) <= 4, "the samples are counted once, and the parameters looked at"


def test_lookups_send_nothing_to_the_device(pretend_device: Any) -> None:
    """Corners of cells and axes of planes are no constants that travel with every call."""
    from unproject.geometry.fields import FieldConfig, make_field

    with pretend_device.Pretend(double=False) as device:
        for kind in ("grid", "hash", "triplane"):
            field = make_field(FieldConfig(kind=kind), torch.Generator().manual_seed(0)).to(pretend_device.DEVICE)
            points = torch.zeros(5, 3).to(pretend_device.DEVICE)
            query = field.query()
            device.uploads.clear()
            query(points)
            assert not device.uploads, (kind, device.uploads)


@pytest.mark.parametrize(
    ("family", "cache"), [("sd15", None), ("sd15", "deep:2"), ("sd15", "inherit"), ("sd3", "regions:0.5")]
)
def test_a_step_of_drawing_waits_twice_at_most(prior_on: Any, pretend_device: Any, family: str, cache: str) -> None:
    """With a cache, whose decisions follow from what the sampler knows, and with a callback that changes nothing."""
    found: list[dict[str, int]] = []
    with pretend_device.Pretend(double=False) as device:

        def note(pipe: Any, call: int, time: float, given: dict[str, Any]) -> dict[str, Any]:
            found.append(dict(device.waits))
            device.waits.clear()
            return given

        asked = {"height": 32, "width": 32, "seed": 0, "output_type": "latent", "callback_on_step_end": note}
        prior = prior_on(family, pretend_device.DEVICE, torch.float16)
        TextToImage(prior)("a red chair", num_inference_steps=9, cache=cache, **asked)
    assert len(found) == 9
    for waits in found[1:]:
        assert sum(waits.values()) <= 2 and not any("caches" in line or "sampler" in line for line in waits), waits
