"""Meshes from prompts, whatever made them, without the light that the prior painted into their base colour."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TypeVar

from ..core.priors import Prior
from ..generate.view_albedo import AlbedoConfig, check_knows_albedo, without_shading
from ..utils.progress import under_way
from ..utils.seeds import generator
from .direct25_mesh import Direct25Config, Direct25TextToMesh
from .text_to_mesh import MadeMesh

M = TypeVar("M", bound=MadeMesh)

__all__ = ["AlbedoConfig", "check_knows_albedo", "paint_albedo", "take_out_shading"]


def paint_albedo(pipe: Direct25TextToMesh, words: str = AlbedoConfig.words) -> Direct25TextToMesh:
    """The pipeline, which asks for albedo when it paints from now on: no light gets in. `take_out_shading` then only
    notes it. Raises InputError for priors of single images and for those that were never taught albedo."""
    check_knows_albedo(pipe.prior, words)
    paint = pipe.config.paint
    if words not in paint.words.split(", "):
        told = ", ".join(filter(None, (paint.words, words)))
        pipe.config = replace(pipe.config, paint=replace(paint, words=told))
    return pipe


def take_out_shading(made: M, prior: Prior, config: AlbedoConfig | None = None) -> M:
    """The same output, its mesh with albedo as base colour: `prior` of several views draws four of them again with the
    word for it. Its report, network rows and seconds count that too.

    >>> pipe = TextToMesh.from_pretrained("toybox")
    >>> take_out_shading(pipe("a red chair", seed=0), pipe.prior).mesh.save("chair.glb")

    Raises InputError for priors of single images and for those that were never taught albedo.
    """
    config = config or AlbedoConfig()
    if isinstance(made.config, Direct25Config) and config.words in made.config.paint.words.split(", "):
        made.mesh = replace(made.mesh, notes={**made.mesh.notes, "albedo": 1.0})
        return made
    began, spent = time.perf_counter(), prior.nfe
    with under_way("albedo"):
        rng = generator(made.seed)
        made.mesh = without_shading(made.mesh, prior, made.prompt, rng, config, made.negative_prompt)
    made.report = made.mesh.check()
    made.nfe += prior.nfe - spent
    made.seconds = {**made.seconds, "albedo": time.perf_counter() - began}
    return made
