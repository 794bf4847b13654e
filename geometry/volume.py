"""Volume rendering of fields in plain torch: bounding ball, occupancy skipping, hidden samples dropped.

Quadrature (Max 1995): alpha_i = 1 - exp(-density_i step), T_i = prod_{j<i} (1 - alpha_j), w_i = T_i alpha_i,
rgb = sum w_i c_i + (1 - sum w_i) background. Samples are `step` metres apart along each ray, jittered per ray.
Values that need gradients are packed: only samples inside the ball, in occupied cells and not yet hidden are asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..utils.errors import InputError
from .fields.base import Field, Snapshot
from .outputs import ALPHA_VISIBLE, Rays, RenderOutput, over_background


@dataclass(frozen=True)
class VolumeConfig:
    """How rays are sampled."""

    step: float = 0.031  # metres between samples
    radius: float = 0.95  # metres; nothing outside this ball is rendered
    cells: int = 32  # occupancy cells along an edge; 0 asks everywhere
    occupied: float = 0.005  # opacity of one step above which a cell counts as occupied
    hidden: float = 1e-3  # transmittance below which samples are dropped

    def __post_init__(self) -> None:
        if self.step <= 0 or self.radius <= 0:
            raise InputError(f"volume: step={self.step} and radius={self.radius} must be positive")


class Occupancy(nn.Module):
    """Which cells of the cube may hold density: largest density over jittered probes, grown by one cell."""

    def __init__(self, config: VolumeConfig, half: float) -> None:
        super().__init__()
        self.config, self.half_side = config, half
        self.register_buffer("mask", torch.ones(max(config.cells, 1) ** 3, dtype=torch.bool))
        self.mask: Tensor  # (n^3,) bool, [x, y, z] order; all of them at first

    @torch.no_grad()
    def update(self, field: Field, generator: torch.Generator) -> None:
        """Probes every cell at its centre and at one random place."""
        n = self.config.cells
        if n == 0:
            return
        device = self.mask.device
        axis = torch.arange(n, device=device)
        corner = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3).float()
        jitter = torch.rand(corner.shape, generator=generator).to(device)
        snapshot, edge = field.snapshot(), 2 * self.half_side / n
        probes = [(corner + offset) * edge - self.half_side for offset in (0.5, jitter)]
        density = torch.stack([snapshot.density_color(p)[0] for p in probes]).amax(dim=0)
        full = (density * self.config.step > self.config.occupied).float().view(1, 1, n, n, n)
        self.mask.copy_(nn.functional.max_pool3d(full, 3, stride=1, padding=1).view(-1) > 0)

    def at(self, points: Tensor) -> Tensor:
        """Bool (N,) for points (N, 3)."""
        n = max(self.config.cells, 1)
        cell = ((points + self.half_side) * (n / (2 * self.half_side))).long().clamp_(0, n - 1)
        return self.mask[(cell[:, 0] * n + cell[:, 1]) * n + cell[:, 2]]

    @property
    def share(self) -> float:
        """Share of occupied cells."""
        return float(self.mask.float().mean())


@dataclass(frozen=True)
class Samples:
    """Packed samples of R rays with at most S steps each."""

    rays: int
    steps: int
    index: Tensor  # (N,) int64, position ray * S + step
    points: Tensor  # (N, 3) world
    distance: Tensor  # (N,) metres along the ray

    @property
    def ray(self) -> Tensor:
        """Ray of each sample (N,)."""
        return self.index // self.steps

    def keep(self, mask: Tensor) -> Samples:
        """The samples where mask (N,) holds."""
        return Samples(self.rays, self.steps, self.index[mask], self.points[mask], self.distance[mask])


def place_samples(
    origins: Tensor,
    directions: Tensor,
    config: VolumeConfig,
    occupancy: Occupancy | None,
    generator: torch.Generator | None,
) -> Samples:
    """Samples of rays with origins and unit directions (R, 3); a generator jitters each ray by up to one step."""
    middle = -(origins * directions).sum(-1)  # distance of the point nearest to the centre
    chord = (config.radius**2 - (origins + middle[:, None] * directions).square().sum(-1)).clamp_min(0).sqrt()
    near, far = (middle - chord).clamp_min(0), middle + chord
    steps = max(1, int(2 * config.radius / config.step) + 1)
    shift = torch.full_like(near, 0.5)
    if generator is not None:
        shift = torch.rand(near.shape, generator=generator).to(near)
    along = near[:, None] + config.step * (torch.arange(steps, device=near.device) + shift[:, None])  # (R, S)
    index = (along < far[:, None]).view(-1).nonzero()[:, 0]
    ray, distance = index // steps, along.view(-1)[index]
    points = torch.addcmul(origins[ray], directions[ray], distance[:, None])
    samples = Samples(len(origins), steps, index, points, distance)
    return samples if occupancy is None or bool(occupancy.mask.all()) else samples.keep(occupancy.at(points))


def transmittance(optical: Tensor, samples: Samples) -> Tensor:
    """T (N,) before each packed sample from its optical depth density * step (N,)."""
    dense = optical.new_zeros(samples.rays * samples.steps).index_copy(0, samples.index, optical)
    dense = dense.view(samples.rays, samples.steps)
    return torch.exp(-(dense.cumsum(dim=1) - dense)).view(-1)[samples.index]


def drop_hidden(snapshot: Snapshot, samples: Samples, config: VolumeConfig) -> Samples:
    """Samples with transmittance above `hidden`, by a pass without gradients."""
    with torch.no_grad():
        optical = snapshot.density_color(samples.points)[0] * config.step
        seen = transmittance(optical, samples) > config.hidden
    return samples.keep(seen)  # with gradients: points know their rays


def render(
    field: Field,
    camera: Rays,
    background: float | Tensor = 1.0,
    config: VolumeConfig = VolumeConfig(),
    occupancy: Occupancy | None = None,
    generator: torch.Generator | None = None,
    normals: bool = True,
) -> RenderOutput:
    """Renders B views of a camera, or any rays; differentiable in the field.

    Args:
        background: grey, (3,), (B, 3) or (B, H, W, 3) sRGB.
        occupancy: cells to skip; None asks the whole ball.
        generator: jitters the samples of each ray; None puts them at the middle of their steps.
        normals: without them the `normal` map is zero and a third of the time is saved.

    Extras: "spread" (B, H, W, 1) metres^2, variance of the weights along the ray; "snapshot".
    """
    origins, directions = camera.rays()
    shape = directions.shape[:3]
    stretch = directions.norm(dim=-1, keepdim=True)  # ray distance per z-depth
    samples = place_samples(origins.reshape(-1, 3), (directions / stretch).reshape(-1, 3), config, occupancy, generator)
    snapshot = field.snapshot()
    samples = drop_hidden(snapshot, samples, config)
    density, color = snapshot.density_color(samples.points)
    optical = density * config.step
    weight = transmittance(optical, samples) * -torch.expm1(-optical)  # (N,)

    columns = [weight[:, None], weight[:, None] * color, (weight * samples.distance)[:, None]]
    columns.append((weight * samples.distance.square())[:, None])
    if normals:
        columns.append(weight.detach()[:, None] * _sparse_normals(snapshot, samples, weight.detach()))
    packed = torch.cat(columns, dim=1)
    ray = samples.ray
    rows = packed.new_zeros(samples.rays, packed.shape[1]).index_add(0, ray, packed).view(*shape, -1)
    alpha, rgb, first, second = rows[..., :1], rows[..., 1:4], rows[..., 4:5], rows[..., 5:6]
    visible = alpha > ALPHA_VISIBLE
    mean = first / alpha.clamp_min(ALPHA_VISIBLE)
    normal = nn.functional.normalize(rows[..., 6:], dim=-1, eps=1e-6) * visible if normals else torch.zeros_like(rgb)
    return RenderOutput(
        rgb=over_background(rgb, alpha, background),
        alpha=alpha,
        depth=torch.where(visible, mean / stretch, torch.zeros_like(mean)),
        normal=normal,
        extras={"spread": (second - 2 * mean * first + mean.square() * alpha).clamp_min(0), "snapshot": snapshot},
    )


def _sparse_normals(snapshot: Snapshot, samples: Samples, weight: Tensor) -> Tensor:
    """Normals (N, 3) where the weight matters, zero elsewhere."""
    seen = (weight > 0.01).nonzero()[:, 0]
    normal = snapshot.normal(samples.points[seen])
    return normal.new_zeros(len(weight), 3).index_copy(0, seen, normal)
