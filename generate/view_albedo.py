"""The light taken out of a painted mesh by a prior that was taught what albedo looks like.

Score distillation paints what a prior likes to see: lit objects. Views of the mesh are noised part of the way and drawn
again with the word for albedo. What is drawn knows the light but not every detail, so that only its ratio to the views,
of linear colours and smooth, goes to the texture: light is smooth, paint is not (Land and McCann's Retinex, 1971).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ..core.priors import Prior
from ..core.sampling.plan import SamplingPlan
from ..geometry.bake import bake_views
from ..geometry.colors import linear_from_srgb, srgb_from_linear
from ..geometry.meshes import Mesh
from ..geometry.raycast import RayMesh
from ..utils.errors import InputError
from .view_normals import Ring, check_taught, worded
from .view_paint import redraw

DARK = 0.02  # linear light added to both sides of a ratio
STOPS = (-1.0, 2.0)  # what light may have done, as powers of two


@dataclass(frozen=True)
class AlbedoConfig:
    """How shading is taken out."""

    words: str = "albedo"  # at the end of the prompt
    redrawn: float = 0.5  # share of the steps: more forgets the texture, less keeps the light
    smooth: float = 0.125  # standard deviation of the ratio's blur, as a share of a picture's side
    plan: SamplingPlan = field(default_factory=lambda: SamplingPlan(guidance=2.0))
    ring: Ring = field(default_factory=lambda: Ring(elevation_deg=15.0))
    background: float = 1.0  # grey around an object in the albedo maps that were learnt from

    def __post_init__(self) -> None:
        if not 0 < self.redrawn <= 1 or not 0 <= self.background <= 1 or self.smooth <= 0:
            raise InputError("albedo: redrawn in (0, 1], background in [0, 1] and smooth > 0 needed")


def check_knows_albedo(prior: Prior, words: str = AlbedoConfig.words) -> None:
    """Raises InputError for priors of single images, and for those that have never seen the words."""
    check_taught(prior, words, "albedo", "albedo maps", "leave the shading in")


@torch.no_grad()
def without_shading(
    mesh: Mesh,
    prior: Prior,
    prompt: str,
    generator: torch.Generator,
    config: AlbedoConfig = AlbedoConfig(),
    negative: str | None = None,
) -> Mesh:
    """The mesh with a base colour of the same size that holds less light; its note "albedo" is 1.

    Raises InputError as `check_knows_albedo` does, and for meshes without UV charts and a base colour.
    """
    check_knows_albedo(prior, config.words)
    if mesh.uv is None or "base_color" not in mesh.textures:
        raise InputError("albedo: the mesh has no base colour texture; bake or paint one first")
    ring = config.ring.camera(prior.frames, prior.image_size)
    seen = RayMesh(mesh).render(ring, ("rgb",), config.background, supersample=2)
    words = worded(prior, prompt, config.words)
    drawn = redraw(prior, seen, words, ring, config.plan, config.redrawn, generator, negative)
    low, high = STOPS
    stops = lost_light(seen.rgb, drawn.permute(0, 2, 3, 1).to(seen.rgb), seen.alpha, config.smooth).clamp(low, high)
    texture = mesh.textures["base_color"][..., :3]
    baked = bake_views(mesh, (stops - low) / (high - low), ring, texture.shape[0])
    factor = 2.0 ** (low + (high - low) * _unit(baked.textures["base_color"]))
    bare = srgb_from_linear((linear_from_srgb(_unit(texture)) * factor).clamp(0, 1))
    textures = {**mesh.textures, "base_color": (bare * 255).round().to(torch.uint8).numpy()}
    return replace(mesh, textures=textures, notes={**mesh.notes, "albedo": 1.0})


def lost_light(lit: Tensor, albedo: Tensor, alpha: Tensor, smooth: float) -> Tensor:
    """Powers of two (B, H, W, 3) by which sRGB views without light (B, H, W, 3) are brighter in linear light than
    others, averaged inside the coverage (B, H, W, 1) by a Gaussian of `smooth` times the width."""
    inside = (alpha > 0.99).float().cpu().numpy()
    sigma = (0, smooth * lit.shape[2], smooth * lit.shape[2], 0)
    weight = gaussian_filter(inside, sigma, mode="constant")

    def averaged(views: Tensor) -> Tensor:
        light = linear_from_srgb(views.clamp(0, 1)).cpu().numpy()
        return torch.from_numpy(gaussian_filter(light * inside, sigma, mode="constant") / np.maximum(weight, 1e-4))

    return torch.log2((averaged(albedo) + DARK) / (averaged(lit) + DARK)).to(lit)


def _unit(texture: np.ndarray) -> Tensor:
    return torch.from_numpy(texture.astype(np.float32) / 255)
