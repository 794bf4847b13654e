"""What can be done with a backbone, each verb as small as it goes: it runs and what comes out is finite, or it fails.

The same functions serve tiny networks on a CPU, a pretended device and full-size ones on a GPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..core.priors.diffusers import DiffusersPrior, FluxPrior, StableDiffusionPrior
from ..core.priors.steering import with_controls
from ..core.sampling import RestoreConfig
from ..pipelines import EditImage, RestoreImage, TextToImage
from ..pipelines.calibrations import Sizes, measure_statistics
from ..pipelines.image_to_geometry import ImageToGeometry
from ..pipelines.text_to_mesh import MeshRecipe, TextToMesh
from ..scripts.random_backbones import random_control
from ..tasks.geometry_head import GeometryHead, HeadConfig
from ..utils.configs import load_config
from ..utils.errors import InputError, UnprojectError
from ..utils.seeds import generator

CELLS = 8  # latent rows and columns of a small picture
MESH: dict[str, Any] = {
    "score": {"guidance": 5.0},
    "optimise": {
        "steps": 2,
        "sizes": [[0, 8]],
        "checkpoint_every": 0,
        "health": {"patience": 9},
        "shape": {
            "volume": {
                "field": {"grid": {"sides": [5, 9], "starts": [0, 0]}},
                "rays": {"step": 0.1, "cells": 8},
                "occupancy_from": 1.0,
            }
        },
    },
    "mesh": {"resolution": 16, "faces": 200, "texture": 16, "depth_samples": 2, "visibility_views": 0},
    "preview_every": 0,
}


def side_of(prior: DiffusersPrior) -> int:
    """px of a small picture."""
    return CELLS * prior.vae_factor


def draw(prior: DiffusersPrior, prompt: str = "a red chair", **settings: Any) -> np.ndarray:
    """A small picture (1, S, S, 3). Raises UnprojectError where it holds what is no number."""
    side = settings.pop("side", None) or side_of(prior)
    asked = {"num_inference_steps": 2, "seed": 0, "output_type": "np", "height": side, "width": side, **settings}
    if prior.multiview:
        asked["cameras"] = torch.randn(prior.frames, 16, generator=generator(0))
    return finite(TextToImage(prior)(prompt, return_dict=False, **asked)[0])


def finite(values: Any) -> np.ndarray:
    """The values; raises UnprojectError unless all of them are numbers."""
    array = np.asarray(values.float().cpu() if isinstance(values, torch.Tensor) else values)
    if not np.isfinite(array).all():
        raise UnprojectError("what came out holds values that are not finite")
    return array


def _picture(prior: DiffusersPrior) -> np.ndarray:
    return np.random.default_rng(0).random((side_of(prior), side_of(prior), 3), np.float32)


def mesh(prior: DiffusersPrior) -> None:
    """Text to mesh: two steps of a small field at the prior's own size of views (tiny ones: a small picture)."""
    recipe = load_config(MeshRecipe, MESH, **{"optimise.guided_px": min(prior.image_size, 512)})
    if isinstance(prior, FluxPrior):  # whose files do not tell its size
        recipe = load_config(MeshRecipe, MESH, **{"optimise.guided_px": side_of(prior)})
    made = TextToMesh(prior, recipe)("a red chair", seed=0)
    finite(made.mesh.vertices)


def edit(prior: DiffusersPrior) -> None:
    """An edit by exact inversion."""
    settings: dict[str, Any] = {"num_inference_steps": 2, "size": side_of(prior), "output_type": "np"}
    finite(EditImage(prior)(_picture(prior), "a chair", "a dog", return_dict=False, **settings)[0])


def restore(prior: DiffusersPrior) -> None:
    """Super-resolution by the prior."""
    config = RestoreConfig(1, guidance=2.0, data_steps=1)
    settings: dict[str, Any] = {"config": config, "seed": 0, "size": side_of(prior), "output_type": "np"}
    finite(RestoreImage(prior)(_picture(prior), "super-resolution:2", return_dict=False, **settings)[0])


def calibrate(prior: DiffusersPrior) -> None:
    """Model statistics."""
    sizes = Sizes(guidance=2.0, size=side_of(prior), steps=2, batch=1)
    pipe = TextToImage(prior)
    found = measure_statistics(pipe, ["a dog", "a chair"], sizes, cells=2, derivative="difference")
    finite(torch.stack([found.ell, found.s, found.b]))


def head(prior: DiffusersPrior) -> None:
    """A geometry head grown out of the network."""
    if not isinstance(prior, StableDiffusionPrior) or prior.multiview:
        raise InputError("heads grow out of the U-Nets of Stable Diffusion")
    grown = GeometryHead.from_prior(copy.copy(prior), HeadConfig(processing_resolution=side_of(prior)))
    grown.to(prior.device, prior.dtype)
    for made in ImageToGeometry(grown)(_picture(prior)).maps.values():
        finite(made.prediction)


def control(prior: DiffusersPrior) -> None:
    """A ControlNet of the network's own form, of random weights."""
    if not prior.steered_by:
        raise InputError("controls steer networks that draw single images")
    net = random_control(prior.network, prior.vae_factor, std=0.1)
    draw(with_controls(prior, [net]), control_image=_picture(prior))


VERBS: dict[str, Callable[[DiffusersPrior], Any]] = {
    "text-to-image": draw,
    "text-to-mesh": mesh,
    "edit": edit,
    "restore": restore,
    "calibrate-solver": calibrate,
    "--cache deep": lambda prior: draw(prior, cache="deep:2", num_inference_steps=8),
    "--cache inherit": lambda prior: draw(prior, cache="inherit", num_inference_steps=8),
    "--cache regions": lambda prior: draw(prior, cache="regions:0.5", num_inference_steps=8),
    "--control focus": lambda prior: draw(
        prior, "a red chair and a blue dog", control="focus:1", subjects=("red chair", "blue dog")
    ),
    "--control-image": control,
    "depth, normals": head,
}


def suits(verb: str, prior: DiffusersPrior) -> bool:
    """Whether a verb is meant for a kind of backbone; elsewhere it is to be refused by name."""
    single = isinstance(prior, StableDiffusionPrior) and not prior.multiview
    return {
        "--cache deep": prior.backbone == "unet",
        "--cache regions": prior.backbone == "transformer",
        "--control-image": bool(prior.steered_by),
        "depth, normals": single,
    }.get(verb, True)
