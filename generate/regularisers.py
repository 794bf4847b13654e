"""Regularisers of what is optimised: less fog, fewer floaters, true distances, smooth surfaces.

Each is a mean over pixels or points; weights are numbers or [start, value, value, end] and multiply a mean that is of
order one, while guidance losses sum over pixels: weights of 10 to 1000 are normal. Those that look at renders alone
stand here, the others with their representation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..geometry.outputs import RenderOutput
from ..geometry.representation import Representation
from ..utils.errors import InputError
from ..utils.ramps import Ramp

Weight = tuple[float, ...]


@dataclass(frozen=True)
class LossWeights:
    """Weights; 0 or an empty list switches a term off."""

    opacity: Weight = (0.0,)  # mean sqrt(alpha^2 + 0.01), DreamFusion's sparsity
    entropy: Weight = (0.0,)  # of alpha as a coin: pixels become full or empty
    spread: Weight = (0.0,)  # variance of the weights along each ray, metres^2: thin surfaces instead of fog
    eikonal: Weight = (0.0,)  # (|grad sdf| - 1)^2, volumes with head "sdf" only
    smooth: Weight = (0.0,)  # the representation's own roughness
    orientation: Weight = (0.0,)  # normals that face away from the camera that sees them


@dataclass(frozen=True)
class Scene:
    """What a regulariser of renders may look at."""

    render: RenderOutput
    directions: Tensor  # (B, H, W, 3) world, of the rendered rays


def opacity(scene: Scene) -> Tensor:
    """Sparsity of the image (Poole et al. 2022)."""
    return (scene.render.alpha.square() + 0.01).sqrt().mean()


def entropy(scene: Scene) -> Tensor:
    """Binary entropy of alpha in bits."""
    alpha = scene.render.alpha.clamp(1e-3, 1 - 1e-3)
    return -(alpha * alpha.log2() + (1 - alpha) * (1 - alpha).log2()).mean()


def orientation(scene: Scene) -> Tensor:
    """Squared cosine of rendered normals that point away from the viewer (Verbin et al. 2022)."""
    toward = torch.nn.functional.normalize(scene.directions, dim=-1)
    away = (scene.render.normal * toward).sum(-1).clamp_min(0)
    return (scene.render.alpha[..., 0].detach() * away.square()).mean()


TERMS: dict[str, Callable[[Scene], Tensor]] = {"opacity": opacity, "entropy": entropy, "orientation": orientation}


def check_terms(weights: LossWeights, shape: Representation) -> None:
    """Raises InputError when a weight is of a term that the representation does not know."""
    known = (*TERMS, *shape.terms)
    for name, ramp in _ramps(weights).items():
        if name not in known and (ramp.value0 or ramp.value1):
            raise InputError(f"losses.{name} has no meaning for {shape.kind}; use some of {', '.join(known)}")


def active_terms(weights: LossWeights, share: float) -> dict[str, float]:
    """The terms with a weight at this share of the run."""
    values = {name: ramp.at(share) for name, ramp in _ramps(weights).items()}
    return {name: value for name, value in values.items() if value}


def regularisation(
    terms: dict[str, float], shape: Representation, scene: Scene, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum, and the unweighted terms for the log."""
    found = shape.regularisers(scene.render, terms, generator)
    found |= {name: TERMS[name](scene) for name in terms if name in TERMS}
    total, log = scene.render.rgb.new_zeros(()), dict[str, Tensor]()
    for name in (name for name in terms if name in found):
        total, log[name] = total + terms[name] * found[name], found[name].detach()
    return total, log


def _ramps(weights: LossWeights) -> dict[str, Ramp]:
    given = {f.name: getattr(weights, f.name) for f in fields(weights)}
    return {name: Ramp.of(value) for name, value in given.items() if value}
