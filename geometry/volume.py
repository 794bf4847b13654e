"""Volume rendering of fields in plain torch: bounding ball, occupancy skipping, hidden samples dropped.

Quadrature (Max 1995): alpha_i = 1 - exp(-density_i step), T_i = prod_{j<i} (1 - alpha_j), w_i = T_i alpha_i,
rgb = sum w_i c_i + (1 - sum w_i) background. Samples are `step` metres apart along each ray, jittered per ray.
Values that need gradients are packed: only samples inside the ball, in occupied cells and not yet hidden are asked.
Rays may be rendered in parts, each a second time in the backward pass: the same picture and gradients from less memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..utils.errors import InputError
from ..utils.recompute import in_parts
from .fields.base import Field, Snapshot
from .outputs import ALPHA_VISIBLE, Rays, RenderOutput, over_background

HEAVY = 0.01  # weight of a sample whose normal counts
SAMPLE, POINT = 25.6, 5.6  # numbers that autograd keeps of a sample, and of a point of a normal's stencil


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
        density = torch.stack([snapshot.density(p) for p in probes]).amax(dim=0)
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

    def keep(self, places: Tensor) -> Samples:
        """The samples at these places (M,) int64."""
        return Samples(self.rays, self.steps, self.index[places], self.points[places], self.distance[places])


def ray_shifts(near: Tensor, generator: torch.Generator | None) -> Tensor:
    """Where in its steps each ray is sampled (R,), in [0, 1): at random, or in the middle without a generator."""
    if generator is None:
        return torch.full_like(near, 0.5)
    return torch.rand(near.shape, generator=generator).to(near)


class Room:
    """How many samples a call makes room for: more than the calls before had, so that nobody waits for a count.

    On a CPU, where counting costs no wait, there is room for exactly as many as there are.
    """

    def __init__(self) -> None:
        self._most = 0  # of the last calls; older ones are forgotten by and by

    def on(self, device: torch.device) -> int | None:
        """Samples to make room for; None: count them, as for rays with gradients, which keep every place."""
        return None if not self._most or device.type == "cpu" else self._most + self._most // 8

    def enough(self, count: int, given: int | None) -> bool:
        """Whether `count` samples had room in `given` places."""
        self._most = max(count, self._most - self._most // 32)
        return given is None or count <= given


def place_samples(
    origins: Tensor,
    directions: Tensor,
    shift: Tensor,
    config: VolumeConfig,
    occupancy: Occupancy | None,
    room: int | None = None,
) -> tuple[Samples, Tensor]:
    """Samples in the ball and in occupied cells of rays with origins and unit directions (R, 3), shifts (R,).

    And how many there are. With `room` so many places are filled; places left over hold the index R S.
    """
    middle = -(origins * directions).sum(-1)  # distance of the point nearest to the centre
    chord = (config.radius**2 - (origins + middle[:, None] * directions).square().sum(-1)).clamp_min(0).sqrt()
    near, far = (middle - chord).clamp_min(0), middle + chord
    steps = max(1, int(2 * config.radius / config.step) + 1)
    along = near[:, None] + config.step * (torch.arange(steps, device=near.device) + shift[:, None])  # (R, S)
    wanted = along < far[:, None]
    if occupancy is not None:
        with torch.no_grad():
            everywhere = torch.addcmul(origins[:, None], directions[:, None], along[..., None])
            wanted &= occupancy.at(everywhere.view(-1, 3)).view_as(wanted)
    index = wanted.view(-1).nonzero()[:, 0] if room is None else first_places(wanted.view(-1), room)
    inside = index if room is None else index.clamp_max(wanted.numel() - 1)
    ray, distance = inside // steps, along.view(-1)[inside]
    points = torch.addcmul(origins[ray], directions[ray], distance[:, None])
    return Samples(len(origins), steps, index, points, distance), wanted.sum()


def transmittance(optical: Tensor, samples: Samples) -> Tensor:
    """T (N,) before each packed sample from its optical depth density * step (N,)."""
    count = samples.rays * samples.steps
    dense = optical.new_zeros(count + 1).index_copy(0, samples.index, optical)[:-1]  # the last place is nobody's
    dense = dense.view(samples.rays, samples.steps)
    return torch.exp(-(dense.cumsum(dim=1) - dense)).view(-1)[samples.index.clamp_max(count - 1)]


def drop_hidden(
    snapshot: Snapshot, samples: Samples, config: VolumeConfig, count: Tensor
) -> tuple[Samples, Tensor, int]:
    """The samples with transmittance above `hidden`, which of them weigh enough for a normal (M,), and `count`.

    From a pass without gradients. The kept samples have them: points know their rays.
    """
    with torch.no_grad():
        optical = snapshot.density(samples.points) * config.step
        before = transmittance(optical, samples)
        seen = (before > config.hidden) & (samples.index < samples.rays * samples.steps)
        heavy = seen & (before * -torch.expm1(-optical) > HEAVY)
        kept, weighty, counted = torch.stack((seen.sum(), heavy.sum(), count)).tolist()  # the one wait for the device
        order = (seen.cumsum(0) - 1)[first_places(heavy, weighty)]
        places = first_places(seen, kept)
    return samples.keep(places), order, counted  # with gradients: points know their rays


def first_places(mask: Tensor, count: int) -> Tensor:
    """The first `count` places where a mask (N,) holds, in order (count,) int64; N where there are fewer."""
    rank = mask.cumsum(0)
    rest = torch.where(mask & (rank <= count), rank - 1, count)  # all others share the place behind the last
    numbers = torch.arange(len(mask), device=mask.device)
    return torch.full((count + 1,), len(mask), device=mask.device).scatter_(0, rest, numbers)[:count]


def render(
    field: Field,
    camera: Rays,
    background: float | Tensor = 1.0,
    config: VolumeConfig = VolumeConfig(),
    occupancy: Occupancy | None = None,
    generator: torch.Generator | None = None,
    normals: bool = True,
    rays_at_once: int | None = None,
    room: Room | None = None,
) -> RenderOutput:
    """Renders B views of a camera, or any rays; differentiable in the field.

    Args:
        background: grey, (3,), (B, 3) or (B, H, W, 3) sRGB.
        occupancy: cells to skip; None asks the whole ball.
        generator: jitters the samples of each ray; None puts them at the middle of their steps.
        normals: without them the `normal` map is zero and a third of the time is saved.
        rays_at_once: those whose samples are in memory together (`in_parts`); None: all.
        room: what is known of earlier calls, for the speed of accelerators.

    Extras: "spread" (B, H, W, 1) metres^2, variance of the weights along the ray; "snapshot".
    """
    origins, directions = camera.rays()
    shape = directions.shape[:3]
    stretch = directions.norm(dim=-1, keepdim=True)  # ray distance per z-depth
    rays = origins.reshape(-1, 3), (directions / stretch).reshape(-1, 3)
    shift = ray_shifts(rays[0][:, 0].detach(), generator)
    snapshot, room = field.snapshot(), room or Room()

    def sums(origins: Tensor, directions: Tensor, shift: Tensor) -> Tensor:
        while True:
            places = None if origins.requires_grad or directions.requires_grad else room.on(origins.device)
            placed, count = place_samples(origins, directions, shift, config, occupancy, places)
            samples, weighty, counted = drop_hidden(snapshot, placed, config, count)
            if room.enough(counted, places):
                return ray_sums(snapshot, samples, weighty, config, normals)

    rows = in_parts(sums, rays_at_once, *rays, shift).view(*shape, -1)
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


def ray_bytes(field: Field, config: VolumeConfig, normals: bool) -> int:
    """About how much autograd keeps of a ray with normals or without, as at the start of a run, in fog."""
    samples = 2 * config.radius / config.step * 2 / 3  # of the mean chord of the ball
    return kept_bytes(field, int(samples), int(samples / 2) if normals else 0)


def kept_bytes(field: Field, samples: int, normals: int) -> int:
    """How much autograd keeps of so many samples that are asked, and of so many of them with normals, in float32.

    A sample: what the field keeps, and SAMPLE numbers of quadrature. A normal: what it keeps of six points, and POINT
    numbers of the head and the difference for each.
    """
    return int(4 * (samples * (field.kept_numbers + SAMPLE) + normals * 6 * (field.kept_numbers + POINT)))


def ray_sums(snapshot: Snapshot, samples: Samples, weighty: Tensor, config: VolumeConfig, normals: bool) -> Tensor:
    """sum of w, w colour, w distance, w distance^2 and, with `normals`, w normal along each ray (R, 6 or 9).

    Normals are those of the samples `weighty` (M,); the others' weigh too little.
    """
    density, color = snapshot.density_color(samples.points)
    optical = density * config.step
    weight = transmittance(optical, samples) * -torch.expm1(-optical)  # (N,)
    columns = [weight[:, None], weight[:, None] * color, (weight * samples.distance)[:, None]]
    columns.append((weight * samples.distance.square())[:, None])
    if normals:
        found = snapshot.normal(samples.points[weighty])
        normal = found.new_zeros(len(weight), 3).index_copy(0, weighty, found)  # zero where the weight is small
        columns.append(weight.detach()[:, None] * normal)
    packed = torch.cat(columns, dim=1)
    return packed.new_zeros(samples.rays, packed.shape[1]).index_add(0, samples.ray, packed)
