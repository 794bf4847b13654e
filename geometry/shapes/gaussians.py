"""3D Gaussians that are optimised: their number follows the picture, and a surface is fused from what is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...utils.errors import InputError
from ...utils.ramps import Moment
from ...utils.regrown import Regrown
from ...utils.seeds import generator as seeded
from ..cameras import Camera
from ..extract import EmptySurfaceError, extract_surface, grid_points
from ..meshes import Mesh
from ..outputs import Rays, RenderOutput
from ..representation import CHANNELS, MeshConfig, Representation
from ..splats import GaussianCloud
from ..splats.cloud import rotation_matrices
from ..splats.density import SHRINK, DensityConfig, decide, reset_logit, split_places
from ..splats.drawing import BLUR, SHARP, draw
from ..splats.fusion import fused_distance, seen_colors
from ..splats.harmonics import count_of
from ..splats.relocation import RelocationConfig, draw_relocation, shared_values, tremble
from .surface import orthographic_shell

GROWN = ("means", "log_scales", "quaternions", "logits", "base", "rest")
FUSED_VIEWS = 48  # when the mesh config asks for none
PIXELS_PER_CELL = 2


@dataclass(frozen=True)
class GaussianConfig:
    """Gaussians in a ball at the start; `from_cloud` starts anywhere else. Rates are gsplat's for bounds of one."""

    count: int = 5000
    radius: float = 0.5  # metres, of the ball they begin in
    bounds: float = 0.95  # metres; Gaussians outside this ball are not drawn
    degree: int = 0  # of the harmonics
    degree_every: float = 0.0  # share of the run after which one more degree is drawn; 0: all from the beginning
    opacity: float = 0.1  # at the start
    size: float = 1.0  # at the start, of the distance to the neighbours
    extent: float = 0.0  # metres, of what is looked at: lengths of rates and rules count in it; 0: the bounds
    antialiased: bool = False
    mean_lr: float = 0.00016  # extents a step
    mean_lr_end: float = 1.0  # share of it that is left at the end of a run, to which it falls exponentially
    scale_lr: float = 0.005
    turn_lr: float = 0.001
    opacity_lr: float = 0.05
    color_lr: float = 0.0025  # of what does not depend on direction; the rest is 20 times slower
    strategy: Literal["default", "mcmc"] = "default"  # of their number: 3DGS' density control, or relocation
    density: DensityConfig = field(default_factory=DensityConfig)
    mcmc: RelocationConfig = field(default_factory=RelocationConfig)

    @property
    def unit(self) -> float:
        """Metres in which lengths of rates and rules count."""
        return self.extent or self.bounds

    def __post_init__(self) -> None:
        count_of(self.degree)
        lengths = (self.radius, self.bounds, self.size, self.mean_lr_end)
        if self.count < 2 or min(lengths) <= 0 or self.extent < 0 or not 0 < self.opacity < 1:
            raise InputError(
                f"gaussians: count={self.count} at least 2, radius={self.radius}, bounds={self.bounds}, "
                f"size={self.size}, mean_lr_end={self.mean_lr_end} positive and 0 < opacity={self.opacity} < 1 needed"
            )


class Gaussians(Representation):
    """Means, sizes, orientations, opacities and harmonics of Gaussians whose number changes."""

    kind = "gaussians"
    grows = True

    def __init__(self, config: GaussianConfig, generator: torch.Generator | None = None) -> None:
        """Grey Gaussians at random places of a ball."""
        super().__init__()
        self.config = config
        place = torch.randn(config.count, 3, generator=generator)
        reach = config.radius * torch.rand(config.count, 1, generator=generator) ** (1 / 3)
        points = reach * torch.nn.functional.normalize(place, dim=-1)
        cloud = GaussianCloud.from_points(points, opacity=config.opacity, size=config.size)
        self._take(cloud.with_degree(config.degree))

    @classmethod
    def from_cloud(cls, cloud: GaussianCloud, config: GaussianConfig = GaussianConfig()) -> Gaussians:
        """Begins at a cloud, whose harmonics are cut or filled to the degree of the config."""
        made = cls(config, seeded(0))
        made._take(cloud.with_degree(config.degree))
        return made

    def _take(self, cloud: GaussianCloud) -> None:
        values = {name: getattr(cloud, name) for name in GROWN[:4]}
        for name, value in {**values, "base": cloud.sh[:, :1], "rest": cloud.sh[:, 1:]}.items():
            setattr(self, name, nn.Parameter(value.detach().clone()))
        self.means: nn.Parameter
        self.log_scales: nn.Parameter
        self.quaternions: nn.Parameter
        self.logits: nn.Parameter
        self.base: nn.Parameter
        self.rest: nn.Parameter
        self.register_buffer("pull", torch.zeros_like(cloud.logits.detach()))  # sum of gradients in the picture
        self.register_buffer("times", torch.zeros_like(cloud.logits.detach()))  # how often each was drawn
        self.register_buffer("degree", torch.tensor(self.config.degree))  # that is drawn
        self.pull: Tensor
        self.times: Tensor
        self.degree: Tensor
        self._looks: list[dict[str, Any]] = []  # what was drawn since the last step

    @property
    def bounds(self) -> float:
        """See Representation."""
        return float(self.config.bounds)

    @property
    def cloud(self) -> GaussianCloud:
        """The Gaussians as they are, differentiable."""
        mode = "mip" if self.config.antialiased else "default"
        sh = torch.cat([self.base, self.rest], dim=1)
        return GaussianCloud(self.means, self.log_scales, self.quaternions, self.logits, sh, mode)

    @property
    def shown(self) -> GaussianCloud:
        """Those of `cloud` that are drawn: finite, inside the bounds, and not too faint to be seen."""
        from ..splats.kernels_project import ALPHA_MIN  # numba

        cloud = self.cloud
        inside = cloud.means.norm(dim=-1) <= self.bounds
        return cloud[cloud.finite & inside & (cloud.opacities >= ALPHA_MIN)]

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Each part at its own rate."""
        c = self.config
        rates = (c.mean_lr * c.unit, c.scale_lr, c.turn_lr, c.opacity_lr, c.color_lr, c.color_lr / 20)
        return [{"params": [getattr(self, name)], "lr": lr * rate} for name, rate in zip(GROWN, rates, strict=True)]

    def rates(self, now: Moment) -> Sequence[float]:
        """See Representation: those of the means fall."""
        return [self._mean_rate(now), *(1.0,) * (len(GROWN) - 1)]

    def _mean_rate(self, now: Moment) -> float:
        return float(self.config.mean_lr_end**now.share)

    def render(
        self,
        cameras: Rays,
        channels: Sequence[str] = CHANNELS,
        background: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
    ) -> RenderOutput:
        """See Representation; whole pictures of pinhole or orthographic cameras only. Normals are shortest axes."""
        return self._drawn(cameras, channels, background, self.config.antialiased)

    def solid(
        self,
        cameras: Rays,
        channels: Sequence[str] = CHANNELS,
        background: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
    ) -> RenderOutput:
        """As `render`, for measuring: hardly blurred, and small Gaussians are as opaque as large ones."""
        return self._drawn(cameras, channels, background, False, SHARP)

    def _drawn(
        self, cameras: Rays, channels: Sequence[str], background: float | Tensor, antialiased: bool, eps2d: float = BLUR
    ) -> RenderOutput:
        cloud = self.cloud
        shown = (cloud.means.norm(dim=-1) <= self.bounds).to(cloud.means)
        seen, meta = draw(
            cloud, cameras, channels, background, antialiased=antialiased, degree=int(self.degree),
            eps2d=eps2d, shown=shown,
        )  # fmt: skip
        if torch.is_grad_enabled() and meta["means2d"].requires_grad:
            meta["means2d"].retain_grad()
            self._looks.append(meta)
        return seen

    def on_step(self, now: Moment, generator: torch.Generator) -> None:
        """Draws one more degree of the harmonics when it is time."""
        if self.config.degree_every > 0:
            self.degree.fill_(min(self.config.degree, int(now.share / self.config.degree_every + 1e-9)))

    @torch.no_grad()
    def after_backward(self, now: Moment) -> None:
        """Sums how hard the picture pulls at each Gaussian: gradients of places, where the picture spans [-1, 1]."""
        for look in self._looks:
            gradient = look["means2d"].grad
            if gradient is not None:
                drawn = (look["radii"] > 0).all(-1)  # (C, N)
                size = gradient.new_tensor([look["width"], look["height"]])
                pull = (gradient * size * (0.5 * look["n_cameras"])).norm(dim=-1)
                self.pull += (pull * drawn).sum(0)
                self.times += drawn.sum(0)
        self._looks = []

    @torch.no_grad()
    def after_step(self, now: Moment) -> Regrown | None:
        """Lets their number follow the picture by the rules of the strategy, when it is time."""
        self._looks = []
        return self._relocated(now) if self.config.strategy == "mcmc" else self._densified(now)

    def _densified(self, now: Moment) -> Regrown | None:
        """Copies, splits, removes, or resets opacities."""
        config = self.config.density
        if config.resets(now):
            self.logits = nn.Parameter(self.logits.detach().clamp_max(reset_logit(config)))
            every = torch.arange(len(self.logits))
            return Regrown(every[:0], cloned=every, names=("logits",))  # no moments
        if not config.refines(now):
            return None
        cloud = self.cloud
        pull, largest = self.pull / self.times.clamp_min(1), cloud.scales.amax(dim=-1)
        change = decide(config, now, pull, largest, cloud.opacities, self.config.unit)
        if not len(change.kept) + len(change.cloned) + len(change.split):
            return None  # nothing would be left to learn from
        values = self._rows(torch.cat([change.kept, change.cloned, change.split]))
        halves = len(values["means"]) - len(change.split)
        axes, scales = rotation_matrices(cloud.quaternions[change.split]), cloud.scales[change.split]
        rng = seeded(config.seed + now.step)
        values["means"][halves:] = split_places(values["means"][halves:], axes, scales, rng)
        values["log_scales"][halves:] = (scales / SHRINK).log()
        self._replace(values)
        return Regrown(change.kept, change.cloned, change.split, GROWN)

    def _relocated(self, now: Moment) -> Regrown | None:
        """Moves dead Gaussians to live ones, adds some, and lets all tremble."""
        config, change = self.config.mcmc, None
        rng = seeded(config.seed + now.step)
        if config.relocates(now):
            change = draw_relocation(config, self.cloud.opacities, rng)
        if change is not None:
            source = self.cloud[change.sources]
            opacities, scales = shared_values(source.opacities, source.scales, change.copies)
            values = self._rows(torch.cat([change.kept, change.sources]))
            values["logits"][len(change.kept) :] = torch.logit(opacities.clamp(config.least_opacity, 1 - 1e-6))
            values["log_scales"][len(change.kept) :] = scales.log()
            self._replace(values)
        if config.noise:
            rate = self.config.mean_lr * self._mean_rate(now) * config.noise
            self.means.add_(tremble(self.cloud, rate / self.config.unit, rng))
        return None if change is None else Regrown(change.kept, split=change.sources, names=GROWN)

    def _rows(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: getattr(self, name).detach()[rows].clone() for name in GROWN}

    def _replace(self, values: dict[str, Tensor]) -> None:
        """Other Gaussians, of which nothing was seen yet."""
        for name, value in values.items():
            setattr(self, name, nn.Parameter(value))
        self.pull, self.times = torch.zeros_like(self.logits.detach()), torch.zeros_like(self.logits.detach())

    def to_mesh(self, config: MeshConfig) -> Mesh:
        """Fused from renders all around; space that is never seen is solid."""
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters()):
            raise InputError("the Gaussians hold values that are not finite; lower lr and run again")
        spacing = 2 * self.bounds / (config.resolution - 1)
        points = grid_points(config.resolution, self.bounds).view(-1, 3).to(self.means)
        distance = fused_distance(self.solid, self._shell(config), points, spacing)
        distance = torch.maximum(distance, points.norm(dim=-1) - self.bounds)
        if not bool((distance < 0).any()):
            raise EmptySurfaceError("no surface is seen: the Gaussians are too few or too faint")
        side = (config.resolution,) * 3
        return extract_surface(distance.view(side).float(), 0.0, self.bounds, sign=-1, keep="all")

    def surface_color(self, points: Tensor, normals: Tensor, config: MeshConfig) -> Tensor:
        """The mean of what the views of `to_mesh` show there."""
        spacing = 2 * self.bounds / (config.resolution - 1)
        points, normals = points.to(self.means), normals.to(self.means)
        return seen_colors(self.solid, self._shell(config), points, normals, 2 * spacing)

    def _shell(self, config: MeshConfig) -> Camera:
        views, size = config.visibility_views or FUSED_VIEWS, PIXELS_PER_CELL * config.resolution
        return orthographic_shell(views, self.bounds, size).to(self.device)

    def restore(self, values: dict[str, Tensor], where: str) -> None:
        """Takes over a state with any number of Gaussians."""
        counts = {len(values[name]) for name in (*GROWN, "pull", "times") if name in values}
        if values.keys() == self.state_dict().keys() and len(counts) == 1:
            count = counts.pop()
            for name in GROWN:
                own = getattr(self, name)
                own.data = own.data.new_zeros(count, *own.shape[1:])
            self.pull, self.times = (b.new_zeros(count) for b in (self.pull, self.times))
        super().restore(values, where)
