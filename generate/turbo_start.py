"""What a generator of planes learns first: to look like the views that a prior draws of its prompts.

A start of Progressive Rendering Distillation without 3D data either. Views are drawn once a prompt (`drawn_views`); the
shape of a step is compared with them along some rays, as a volume:
    coverage  cross entropy of the alpha of rays with the drawn coverage;
    hull      cross entropy of 1 / (1 + e^(s f)) at points along the rays with what no view shows to be empty: it pulls
              where a volume is too sharp to say anything, and weighs most at the beginning;
    colours   |rgb - drawn rgb| where the drawing covers, over it, so that colour says nothing of coverage;
    normals   1 - cos of d f / d p at the depth of a ray with the drawn normal, where both cover;
    eikonal   (|d f / d p| - 1)^2 there and at random points.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..geometry.outputs import RenderOutput
from ..geometry.shapes.dual import DualVolume
from ..utils.errors import InputError
from ..utils.ramps import Moment, Ramp
from .drawn_views import DrawnViews, DrawnViewsConfig
from .lessons import Logs

NEAR = 5  # pixels across of what counts as near the object
COVERED = 0.9  # of the coverage from which a drawing shows the object alone
FREE = 512  # random points of the eikonal term
LEAST = 1e-3  # of the coverage that any ray has and lacks before its logarithm
HULL_STD = 20.0  # 1/metre, s
DEEP = 0.9  # metres in front of and behind the middle of a ray where points lie


@dataclass(frozen=True)
class StartConfig:
    """How long a training begins so, and what counts."""

    updates: int = 0  # of the run; 0: none
    student: str = ""  # who draws normals in the place of the prior of several views: a name or a folder; empty: nobody
    painter: str = ""  # what reads normals, export/ of a direct25-texture training or a shipped one; empty: no colours
    drawn: DrawnViewsConfig = field(default_factory=DrawnViewsConfig)
    rays: int = 768  # of an object and step, half of them near it
    coverage: float = 1.0
    hull: tuple[float, ...] = (0, 2.0, 0.5, 1)  # a number or [start, v0, v1, end] in shares of these updates
    colors: float = 1.0
    normals: float = 0.5
    eikonal: float = 0.1

    def __post_init__(self) -> None:
        if self.updates < 0 or self.rays < 2:
            raise InputError(f"start: updates={self.updates} must not be negative, and rays={self.rays} at least 2")


@dataclass(frozen=True)
class PickedRays:
    """Some rays of a camera, as a picture of one row."""

    origins: Tensor  # (1, 1, R, 3)
    directions: Tensor  # (1, 1, R, 3), of unit depth

    def rays(self) -> tuple[Tensor, Tensor]:
        """See Rays."""
        return self.origins, self.directions


def start_loss(
    shape: DualVolume, views: DrawnViews, config: StartConfig, now: Moment, rng: torch.Generator
) -> tuple[Tensor, Logs]:
    """(loss, logs) of the shape as it is filled against views of it; the whole ball is sampled."""
    device = shape.device
    shape.field.on_step(now)
    shape.occupancy.mask.fill_(True)
    places = picked(views.alpha.float(), config.rays, rng)
    origins, directions = views.camera.rays()
    rays = PickedRays(*(one.reshape(-1, 3)[places].to(device)[None, None] for one in (origins, directions)))
    wanted = views.alpha.reshape(-1)[places].float().to(device)
    solid = wanted > COVERED
    colors = None if views.colors is None else views.colors.reshape(-1, 3)[places].float().to(device)
    behind: float | Tensor = 1.0 if colors is None else colors[None, None]
    seen = shape.render(rays, ("rgb", "alpha", "depth"), behind, rng)
    alpha = seen.alpha.reshape(-1)
    soft = LEAST + (1 - 2 * LEAST) * alpha.clamp(0, 1)
    logs: Logs = {"coverage": torch.nn.functional.binary_cross_entropy(soft, wanted)}
    logs["hull"] = _hull_error(shape, rays, views, rng)
    if colors is not None:
        logs["colors"] = (seen.rgb.reshape(-1, 3) - colors).abs()[solid].sum() / (3 * len(places))
    both = solid & (alpha.detach() > 0.5)
    told = views.normals.reshape(-1, 3)[places].float().to(device)[both]
    logs["normals"], logs["eikonal"] = _slopes(shape, seen, rays, both, told, rng)
    hull = Ramp.of(config.hull).at(min(now.step / max(config.updates, 1), 1.0))
    weights = {"coverage": config.coverage, "hull": hull, "colors": config.colors, "normals": config.normals}
    weights["eikonal"] = config.eikonal
    loss = torch.stack([weights[name] * torch.as_tensor(value) for name, value in logs.items()]).sum()
    return loss, {name: torch.as_tensor(value).detach() for name, value in logs.items()}


def picked(alpha: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Flat places (count,) of pixels of coverages (B, H, W): half of them near the object, the others anywhere."""
    near = torch.nn.functional.max_pool2d(alpha[:, None], NEAR, 1, NEAR // 2).reshape(-1) > 0.5
    close = near.nonzero()[:, 0]
    close = close if len(close) else torch.arange(near.numel())
    half = count // 2
    first = close[torch.randint(len(close), (half,), generator=rng)]
    return torch.cat([first, torch.randint(near.numel(), (count - half,), generator=rng)])


def hull_of(views: DrawnViews, points: Tensor) -> Tensor:
    """Whether all views cover points (N, 3): bool (N,)."""
    screen, _ = views.camera.project(points)  # (B, N, 2)
    size = screen.new_tensor([views.camera.width, views.camera.height])
    places = (2 * screen / size - 1)[:, :, None]
    shown = torch.nn.functional.grid_sample(views.alpha.float()[:, None], places, align_corners=False)
    return shown[:, 0, :, 0].amin(dim=0) > 0.5


def _hull_error(shape: DualVolume, rays: PickedRays, views: DrawnViews, rng: torch.Generator) -> Tensor:
    """Mean cross entropy at a random point of every ray."""
    origins, directions = rays.origins.view(-1, 3), rays.directions.view(-1, 3)
    middle = -(origins * directions).sum(-1) / directions.square().sum(-1)
    along = middle + DEEP * (2 * torch.rand(len(middle), generator=rng).to(middle) - 1)
    points = (origins + along[:, None] * directions).clamp(-shape.field.half_side, shape.field.half_side)
    inside = hull_of(views, points.cpu()).to(points)
    logits = -HULL_STD * shape.planes.distance(points)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, inside)


def _slopes(
    shape: DualVolume, seen: RenderOutput, rays: PickedRays, chosen: Tensor, wanted: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(mean over the rays of 1 - cos, of those chosen (R,) against normals (M, 3); the eikonal term there and at some
    random points)."""
    depth = seen.depth.detach().reshape(-1, 1)
    points = (rays.origins.view(-1, 3) + depth * rays.directions.view(-1, 3))[chosen]
    free = (2 * torch.rand(FREE, 3, generator=rng) - 1) * (shape.field.half_side - shape.field.spacing)
    slope = seen.extras["snapshot"].gradient(torch.cat([points, free.to(points)]))
    cosine = torch.nn.functional.cosine_similarity(slope[: len(points)], wanted, dim=-1, eps=1e-8)
    return (1 - cosine).sum() / len(chosen), (slope.norm(dim=-1) - 1).square().mean()
