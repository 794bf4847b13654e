"""Regularisers of an optimised field: less fog, fewer floaters, true distances, smooth surfaces.

Each is a mean over pixels or points; weights are numbers or [step0, value0, value1, step1] and multiply a mean that is
of order one, while guidance losses sum over pixels: weights of 10 to 1000 are normal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..geometry.fields import Field, Snapshot
from ..geometry.outputs import RenderOutput
from ..utils.ramps import Ramp

Weight = tuple[float, ...]


@dataclass(frozen=True)
class LossWeights:
    """Weights; 0 or an empty list switches a term off."""

    opacity: Weight = (0.0,)  # mean sqrt(alpha^2 + 0.01), DreamFusion's sparsity
    entropy: Weight = (0.0,)  # of alpha as a coin: pixels become full or empty
    spread: Weight = (0.0,)  # variance of the weights along each ray, metres^2: thin surfaces instead of fog
    eikonal: Weight = (0.0,)  # (|grad sdf| - 1)^2, head "sdf" only
    smooth: Weight = (0.0,)  # the field's own roughness
    orientation: Weight = (0.0,)  # normals that face away from the camera that sees them


@dataclass(frozen=True)
class Scene:
    """What a regulariser may look at."""

    field: Field
    snapshot: Snapshot
    render: RenderOutput
    directions: Tensor  # (B, H, W, 3) world, of the rendered rays
    generator: torch.Generator


def opacity(scene: Scene) -> Tensor:
    """Sparsity of the image (Poole et al. 2022)."""
    return (scene.render.alpha.square() + 0.01).sqrt().mean()


def entropy(scene: Scene) -> Tensor:
    """Binary entropy of alpha in bits."""
    alpha = scene.render.alpha.clamp(1e-3, 1 - 1e-3)
    return -(alpha * alpha.log2() + (1 - alpha) * (1 - alpha).log2()).mean()


def spread(scene: Scene) -> Tensor:
    """Weighted variance of the depth along rays."""
    return scene.render.extras["spread"].mean()


def eikonal(scene: Scene, points: int = 4096) -> Tensor:
    """Deviation of the distance's slope from one, at random points of the cube."""
    half = scene.field.half_side - scene.field.spacing
    draw = torch.rand(points, 3, generator=scene.generator) * 2 - 1
    gradient = scene.snapshot.gradient((draw * half).to(scene.render.rgb))
    return (gradient.norm(dim=-1) - 1).square().mean()


def smooth(scene: Scene) -> Tensor:
    """See Field.roughness."""
    return scene.field.roughness(scene.snapshot.query)


def orientation(scene: Scene) -> Tensor:
    """Squared cosine of rendered normals that point away from the viewer (Verbin et al. 2022)."""
    toward = torch.nn.functional.normalize(scene.directions, dim=-1)
    away = (scene.render.normal * toward).sum(-1).clamp_min(0)
    return (scene.render.alpha[..., 0].detach() * away.square()).mean()


TERMS: dict[str, Callable[[Scene], Tensor]] = {
    "opacity": opacity,
    "entropy": entropy,
    "spread": spread,
    "eikonal": eikonal,
    "smooth": smooth,
    "orientation": orientation,
}


def active_terms(weights: LossWeights, step: int, sdf: bool) -> dict[str, float]:
    """The terms with a weight at this step."""
    ramps = {f.name: getattr(weights, f.name) for f in fields(weights) if getattr(weights, f.name)}
    values = {name: Ramp.of(ramp).at(step) for name, ramp in ramps.items()}
    return {name: value for name, value in values.items() if value and (sdf or name != "eikonal")}


def regularisation(terms: dict[str, float], scene: Scene) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum, and the unweighted terms for the log."""
    total, log = scene.render.rgb.new_zeros(()), {}
    for name, weight in terms.items():
        value = TERMS[name](scene)
        total, log[name] = total + weight * value, float(value.detach())
    return total, log
