"""A mesh painted by a prior of several views that sees its normals (Direct2.5, Lu et al. 2024).

Views all around are drawn with the latents of rendered normals as a further input, and baked into a texture by what
each says of a point. A second ring at another height keeps what the first one shows and draws what none showed
(RePaint). Without a network that reads normals, views begin at renders of the bare mesh and are redrawn inside its
outlines.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.priors import Prior
from ..core.sampling.held_parts import HeldParts
from ..core.sampling.init import ImageInit
from ..core.sampling.plan import SamplingPlan
from ..geometry.bake import SAID, bake_views
from ..geometry.cameras import Camera
from ..geometry.meshes import Mesh
from ..geometry.outputs import RenderOutput
from ..geometry.raycast import STUDIO, RayMesh
from ..geometry.seen import inside_px, view_weights
from ..utils.errors import InputError
from .view_normals import NormalCode, Ring, draw_views, worded

FRINGE = 2  # pixels of a drawn outline that show more than the object: codecs have blocks of 4 or 8


@dataclass(frozen=True)
class PaintConfig:
    """How a mesh is painted."""

    words: str = ""  # at the end of the prompt
    negative: str = ""  # what is always kept away, with what the caller names
    plan: SamplingPlan = field(default_factory=SamplingPlan)  # what is open is what suits the prior
    code: NormalCode = field(default_factory=NormalCode)  # of the normals that the network reads
    ring: Ring = field(default_factory=Ring)
    second_deg: float | None = None  # height of a second ring; None: there is none
    redrawn: float = 0.8  # share of the steps, for priors that read no normals
    background: float = 0.85  # grey behind what is redrawn or kept
    texture: int = 512  # texels along an edge

    def __post_init__(self) -> None:
        if not 0 < self.redrawn <= 1 or not 0 <= self.background <= 1 or self.texture < 16:
            raise InputError("paint: redrawn in (0, 1], background in [0, 1] and texture >= 16 needed")
        if self.second_deg is not None and not -89 <= self.second_deg <= 89:
            raise InputError(f"paint: second_deg={self.second_deg} must lie between -89 and 89")


class Painted(NamedTuple):
    """A mesh with a base colour; its note "unseen_share" says how much of it no view showed."""

    mesh: Mesh
    views: Tensor  # (B, H, W, 3) sRGB, as drawn; those of the second ring last
    cameras: Camera


class Painter:
    """Draws views of a mesh with one prior."""

    def __init__(self, prior: Prior, reads_normals: bool, config: PaintConfig = PaintConfig()) -> None:
        """`reads_normals`: the prior's row "concat" is the latents of its views' normals."""
        self.prior, self.reads_normals, self.config = prior, reads_normals, config

    @torch.no_grad()
    def __call__(self, mesh: Mesh, prompt: str, generator: torch.Generator, negative: str | None = None) -> Painted:
        """Paints a mesh that has UV charts. Raises InputError for one without, or that no view shows."""
        config, size = self.config, self.prior.image_size
        words = worded(self.prior, prompt, config.words)
        against = ", ".join(text for text in (config.negative, negative or "") if text) or None
        ring = config.ring.camera(self.prior.frames, size)
        views = self._drawn(mesh, ring, words, against, generator)
        scene = RayMesh(mesh)
        kept = without_fringe(views, torch.stack([inside_px(scene, ring[view]) for view in range(ring.batch)]))
        painted = bake_views(mesh, kept, ring, config.texture)
        if config.second_deg is None:
            return Painted(painted, views, ring)
        other = config.ring.camera(self.prior.frames, size, config.second_deg)
        more = self._completed(painted, ring, other, words, against, generator)
        kept, cameras = torch.cat([kept, more]), Camera.cat([ring, other])
        return Painted(bake_views(mesh, kept, cameras, config.texture), torch.cat([views, more]), cameras)

    def _drawn(self, mesh: Mesh, ring: Camera, words: str, negative: str | None, generator: torch.Generator) -> Tensor:
        """Views (B, H, W, 3) of a bare mesh."""
        if self.reads_normals:
            maps = self._latents(self._map(RayMesh(mesh).render(ring, ("normal",), supersample=2)))
            drawn = draw_views(self.prior, words, ring, self.config.plan, generator, negative, maps=maps)
        else:
            bare = RayMesh(mesh).render(ring, ("rgb",), self.config.background, STUDIO, supersample=2)
            plan, share = self.config.plan, self.config.redrawn
            drawn = redraw(self.prior, bare, words, ring, plan, share, generator, negative)
        return drawn.permute(0, 2, 3, 1).to(mesh.vertices)

    def _completed(
        self, mesh: Mesh, ring: Camera, other: Camera, words: str, negative: str | None, generator: torch.Generator
    ) -> Tensor:
        """Views (B, H, W, 3) from other cameras of a mesh painted from a ring: as it is, where that showed it."""
        scene = RayMesh(mesh)
        seen = scene.render(other, ("rgb", "normal", "depth"), self.config.background)
        new = unseen_pixels(scene, seen, ring, other)
        known = self._latents(seen.rgb.permute(0, 3, 1, 2))
        maps = self._latents(self._map(seen)) if self.reads_normals else None
        held, init = HeldParts(known, on_latents(new, self.prior)), ImageInit(known, 1.0)
        drawn = draw_views(self.prior, words, other, self.config.plan, generator, negative, init, maps, (held,))
        return torch.where(new, drawn.permute(0, 2, 3, 1).to(seen.rgb), seen.rgb)

    def _map(self, seen: RenderOutput) -> Tensor:
        """Rendered normals as pictures (B, 3, H, W), over what a normal of length 0 looks like."""
        return self.config.code.encode(seen.normal, seen.alpha)

    def _latents(self, pictures: Tensor) -> Tensor:
        return self.prior.encode(pictures.to(self.prior.device))


def on_latents(mask: Tensor, prior: Prior) -> Tensor:
    """(B, 1, h, w): the latent pixels of a prior with any pixel of a mask (B, H, W, 1)."""
    return torch.nn.functional.adaptive_max_pool2d(mask.permute(0, 3, 1, 2).float(), prior.latent_shape[1:])


def without_fringe(views: Tensor, inside: Tensor, fringe: int = FRINGE) -> Tensor:
    """Views (B, H, W, 3) whose pixels at outlines, where a codec mixes object and background, have colours further in:
    uphill in `inside`, the pixels (B, H, W) to an outline, for `fringe` of them or up to the ridge of a thin part."""
    order = torch.tensor([4, 0, 1, 2, 3, 5, 6, 7, 8], device=inside.device)  # the pixel itself wins over equals
    around = torch.nn.functional.unfold(torch.nn.functional.pad(inside[:, None], (1, 1, 1, 1), value=-1.0), 3)
    step = order[around[:, order].argmax(1)].reshape(inside.shape)
    _, height, width = inside.shape
    row = torch.arange(height, device=inside.device)[:, None] + step // 3 - 1
    column = torch.arange(width, device=inside.device) + step % 3 - 1
    batch, mixed = torch.arange(len(views), device=inside.device)[:, None, None], (inside < fringe)[..., None]
    for _ in range(fringe):
        views = torch.where(mixed, views[batch, row, column], views)
    return views


@torch.no_grad()
def redraw(
    prior: Prior,
    seen: RenderOutput,
    words: str,
    ring: Camera,
    plan: SamplingPlan,
    share: float,
    generator: torch.Generator,
    negative: str | None = None,
) -> Tensor:
    """Pictures (B, 3, H, W) of renders from a ring, drawn again inside their outlines by the last share of the steps
    (SDEdit, Meng et al. 2021)."""
    known = prior.encode(seen.rgb.permute(0, 3, 1, 2).to(prior.device))
    held = HeldParts(known, on_latents(seen.alpha > 0, prior))
    return draw_views(prior, words, ring, plan, generator, negative, ImageInit(known, share), controls=(held,))


def unseen_pixels(scene: RayMesh, seen: RenderOutput, ring: Camera, other: Camera) -> Tensor:
    """(B, H, W, 1) bool of the pixels of `other` cameras, which see `seen`, whose surface no camera of a ring shows."""
    hit = seen.alpha[..., 0] > 0.5
    points, normals = other.unproject(seen.depth)[hit], seen.normal[hit]
    told = points.new_zeros(len(points))
    for view in range(ring.batch):
        told += view_weights(scene, points, normals, ring[view])[0]
    new = torch.zeros_like(hit)
    new[hit] = told <= SAID
    return new[..., None]
