"""Splats from posed pictures (3D Gaussian Splatting, Kerbl et al. 2023): L1 and structural similarity, view by view.

The number of Gaussians, harmonics, rates and schedules are the representation's own; this is the loop around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.distillation.score import DivergedError
from ..core.training.checkpoints import Tensors, copy_into
from ..core.training.loop import Loop
from ..core.training.loss import LossOut
from ..core.training.players import Group, Player, Turn, named_groups
from ..geometry.cameras import Camera
from ..geometry.posed import HELD_OUT, PosedImages, moved
from ..geometry.shapes import GaussianConfig, Gaussians
from ..geometry.similarity import WINDOW, psnr, ssim
from ..geometry.splats import GaussianCloud
from ..utils.configs import to_dict
from ..utils.digests import digest
from ..utils.errors import InputError
from ..utils.ramps import Moment
from ..utils.seeds import generator as seeded
from .resumable import ResumableRun

StepEnd = Callable[["SplatFit", int, dict[str, float]], None]
GREYS = {"white": 1.0, "black": 0.0}
NEAR, FAR = 0.01, 1000.0  # planes in extents of the scene
TRIES = 100  # to find random places that pictures do not show as empty
AROUND = 3.0  # extents
SPREAD = 0.5  # of the distance from the cameras to what they look at: radius of the ball in which points are drawn


@dataclass(frozen=True)
class SplatFitConfig:
    """configs/fit/*.yaml: how splats follow pictures; what changes during the run is given in shares of it."""

    steps: int = 2000
    views: int = 1  # pictures of each step
    sizes: tuple[tuple[float, float], ...] = ((0, 0.5), (0.2, 1.0))  # (from share, factor on the pictures' size)
    ssim: float = 0.2  # weight of 1 - SSIM; L1 has the rest
    held_out: int = HELD_OUT  # the first of so many pictures is not learnt from; 0: all are
    background: Literal["random", "white", "black"] = "random"  # behind pictures that have alpha; others have black
    start: Literal["auto", "points", "random"] = "auto"  # at the scene's points, or anywhere; auto: at points if any
    opacity_weight: float = 0.0  # of the mean opacity in the loss
    scale_weight: float = 0.0  # of the mean scale, in extents
    refine_poses: bool = False
    pose_lr: float = 0.0003  # radians, and extents, a step; falls to a hundredth
    adam_eps: float = 1e-15
    checkpoint_every: int = 500  # steps; 0: never
    splats: GaussianConfig = field(
        default_factory=lambda: GaussianConfig(bounds=1e9, degree=2, degree_every=0.2, mean_lr_end=0.01)
    )

    def __post_init__(self) -> None:
        starts = [share for share, _ in self.sizes]
        if self.steps < 1 or self.views < 1 or self.held_out < 0 or self.held_out == 1:
            raise InputError(
                f"fit: steps={self.steps}, views={self.views} at least 1, held_out={self.held_out} 0 or 2+"
            )
        if not starts or starts[0] != 0 or starts != sorted(starts) or not all(0 < f <= 1 for _, f in self.sizes):
            raise InputError(f"sizes={self.sizes} must start at share 0, be in order and have factors in (0, 1]")
        if not 0 <= self.ssim <= 1 or min(self.opacity_weight, self.scale_weight, self.pose_lr) < 0:
            raise InputError(f"fit: ssim={self.ssim} lies in [0, 1]; weights and rates are not negative")

    def factor_at(self, now: Moment) -> float:
        """Of the pictures' size."""
        return [factor for share, factor in self.sizes if now.reached(share)][-1]


class SplatFit(ResumableRun):
    """Gaussians on their way to look like pictures."""

    document = "fit"
    log_every = 50
    shape: Gaussians

    def __init__(
        self, pictures: PosedImages, config: SplatFitConfig, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(config, seed, device)
        self.config = config
        self.pictures = pictures
        self.learnt, self.held = pictures.split(config.held_out)
        if min(pictures.cameras.width, pictures.cameras.height) * min(f for _, f in config.sizes) < WINDOW:
            raise InputError(
                f"pictures of {pictures.cameras.width} x {pictures.cameras.height} px are too small to fit"
            )
        self.extent = self.learnt.extent
        cloud = starting_cloud(self.learnt, config, self.generator)
        self.shape = Gaussians.from_cloud(cloud, replace(config.splats, extent=config.splats.extent or self.extent))
        self.shape.to(self.device)
        steps = torch.zeros(len(self.learnt), 6, device=self.device)
        self.pose_steps = nn.Parameter(steps) if config.refine_poses else None
        self._smaller: dict[float, PosedImages] = {1.0: self.learnt}
        self._fitted_to = _digests(pictures)
        self.loop = Loop([self._player()], {"splats": self._loss})

    def _player(self) -> Player:
        shape = self.shape
        return Player(
            "splats",
            self._groups,
            partial(torch.optim.Adam, eps=self.config.adam_eps, fused=True),
            rate=self._rates,
            grows=True,
            before_step=lambda turn: shape.after_backward(self.now),
            after_step=lambda turn: shape.after_step(self.now),
        )

    def _groups(self) -> list[Group]:
        groups = named_groups(self.shape, self.shape.param_groups(float(self.config.views) ** 0.5))
        if self.pose_steps is not None:
            groups.append({"params": {"pose_steps": self.pose_steps}, "lr": self.config.pose_lr})
        return groups

    def _rates(self, step: int) -> list[float]:
        now = Moment(step, self.config.steps)
        return [*self.shape.rates(now), *([0.01**now.share] if self.pose_steps is not None else [])]

    def run(self, out: Path | None = None, on_step: StepEnd | None = None) -> None:
        """The remaining steps; see ResumableRun.go_on."""
        self.go_on(out, None if on_step is None else partial(on_step, self))

    def _loss(self, turn: Turn) -> LossOut:
        """(1 - w) L1 + w (1 - SSIM), and the means of opacities and scales."""
        config = self.config
        self.shape.on_step(self.now, self.generator)
        pictures = self._sized(config.factor_at(self.now))
        rows = self._rows(turn.step)
        background = self._background(len(rows))
        target = pictures.picture(rows, background).to(self.device)
        seen = self.shape.render(self.cameras(rows, pictures.cameras), ("rgb",), background.to(self.device)).rgb
        seen, target = told_parts(pictures, rows, seen, target)
        apart = (seen - target).abs().mean()
        loss = (1 - config.ssim) * apart
        if config.ssim:
            loss = loss + config.ssim * (1 - ssim(seen, target).mean())
        log = {"l1": float(apart.detach()), "splats": float(len(self.shape.means))}
        if not bool(torch.isfinite(loss)):
            raise DivergedError(
                f"step {turn.step}: the loss is not finite; lower the rates of the splats and run again"
            )
        if config.opacity_weight:
            loss = loss + config.opacity_weight * self.shape.logits.sigmoid().mean()
        if config.scale_weight:
            loss = loss + config.scale_weight * self.shape.log_scales.exp().mean() / self.extent
        return LossOut(loss, log)

    def _rows(self, step: int) -> list[int]:
        """The pictures of a step: all in random order, then all again; a function of the step."""
        count = len(self.learnt)
        places = range(step * self.config.views, (step + 1) * self.config.views)
        orders = {
            turn: torch.randperm(count, generator=seeded(self.seed * 1_000_003 + turn)).tolist()
            for turn in {place // count for place in places}
        }
        return [orders[place // count][place % count] for place in places]

    def _sized(self, factor: float) -> PosedImages:
        """The pictures to learn from at a factor of their size."""
        if factor not in self._smaller:
            self._smaller = {1.0: self.learnt, factor: self.learnt.resized(factor)}
        return self._smaller[factor]

    def _background(self, count: int) -> Tensor:
        """sRGB (count, 3)."""
        if self.pictures.alpha is None:
            return torch.zeros(count, 3)
        if self.config.background == "random":
            return torch.rand(count, 3, generator=self.generator)
        return torch.full((count, 3), GREYS[self.config.background])

    @property
    def judged_over(self) -> float:
        """The grey behind pictures that are compared."""
        return 0.0 if self.pictures.alpha is None else GREYS.get(self.config.background, 1.0)

    def cameras(self, rows: list[int], given: Camera | None = None) -> Camera:
        """Those of pictures to learn from, as they are by now; with gradients to the steps of poses."""
        camera = self.planes((self.learnt.cameras if given is None else given)[rows]).to(self.device)
        return camera if self.pose_steps is None else moved(camera, self._scaled(self.pose_steps[rows]))

    def _scaled(self, steps: Tensor) -> Tensor:
        """Shifts in metres."""
        return steps * steps.new_tensor([1.0, 1.0, 1.0, self.extent, self.extent, self.extent])

    def planes(self, camera: Camera) -> Camera:
        """With near and far planes that suit the scene."""
        return replace(camera, near=NEAR * self.extent, far=FAR * self.extent)

    @property
    def cloud(self) -> GaussianCloud:
        """What was fitted, apart from gradients."""
        return self.shape.cloud.detached()

    @torch.no_grad()
    def measured(self, pictures: PosedImages, refined: bool = False) -> list[dict[str, float]]:
        """PSNR in dB and SSIM of each picture, rendered at its own size; refined: they are those that were learnt."""
        found = []
        for row in range(len(pictures)):
            target = pictures.picture([row], self.judged_over).to(self.device)
            camera = self.cameras([row]) if refined else self.planes(pictures.cameras[row]).to(self.device)
            seen = self.shape.render(camera, ("rgb",), self.judged_over).rgb
            seen, target = told_parts(pictures, [row], seen, target)
            found.append({"psnr": float(psnr(seen, target)), "ssim": float(ssim(seen, target))})
        return found

    def identity(self) -> dict[str, Mapping[str, Any]]:
        """See ResumableRun."""
        return {"fitted_to": self._fitted_to, "config": to_dict(self.config)}

    def own_state(self) -> tuple[Tensors, dict[str, Any]]:
        """See ResumableRun."""
        return ({} if self.pose_steps is None else {"pose_steps": self.pose_steps.detach()}), {}

    def take_state(self, tensors: Tensors, facts: Mapping[str, Any]) -> None:
        """See ResumableRun."""
        if self.pose_steps is not None:
            copy_into({"pose_steps": self.pose_steps}, tensors, "the checkpoint")


def told_parts(pictures: PosedImages, rows: list[int], *maps: Tensor) -> tuple[Tensor, ...]:
    """Maps (B, H, W, C) with 0 where the pictures say nothing."""
    if pictures.valid is None:
        return maps
    told = pictures.valid[rows].to(maps[0])
    return tuple(value * told for value in maps)


def _digests(pictures: PosedImages) -> dict[str, str]:
    """Of the pictures and of their cameras."""
    pixels = {"images": pictures.images, **({} if pictures.alpha is None else {"alpha": pictures.alpha})}
    cameras = {"c2w": pictures.cameras.c2w, "K": pictures.cameras.K}
    return {"pictures": digest(pixels, torch.uint8), "cameras": digest(cameras)}


def starting_cloud(pictures: PosedImages, config: SplatFitConfig, generator: torch.Generator) -> GaussianCloud:
    """At the points of the scene, or at random ones in a ball around what the cameras look at.

    Random points lie nowhere where a picture shows that nothing is. Raises InputError where points are asked for and
    there are none.
    """
    splats, points = config.splats, pictures.points
    if config.start == "points" and points is None:
        raise InputError("start=points, but the pictures come with none; use random")
    if points is not None and config.start != "random":
        most = splats.mcmc.most if splats.strategy == "mcmc" else splats.density.most
        kept = points.subsampled(most, generator)
        return GaussianCloud.from_points(kept.points, kept.colors, splats.opacity, splats.size)
    place = random_places(pictures, splats.count, generator)
    return GaussianCloud.from_points(place, torch.rand(place.shape, generator=generator), splats.opacity, splats.size)


def random_places(pictures: PosedImages, count: int, generator: torch.Generator) -> Tensor:
    """(count, 3) in a ball around what the cameras look at, where no picture shows that nothing is.

    Where everything covers, there is a world behind it: every other point lies in a ball of three extents, as gsplat's
    random ones do. Pictures that leave next to nothing count for nothing.
    """
    middle = pictures.middle
    near = SPREAD * float((pictures.cameras.centres - middle).norm(dim=-1).median())
    radius = torch.full((4 * count, 1), near)
    if pictures.alpha is None:
        radius[::2] = max(near, AROUND * pictures.extent)
    found: list[Tensor] = []
    for _ in range(TRIES):
        place = torch.nn.functional.normalize(torch.randn(4 * count, 3, generator=generator), dim=-1)
        place = middle + radius * torch.rand(len(place), 1, generator=generator) ** (1 / 3) * place
        found.append(place[pictures.may_be_full(place)])
        if sum(map(len, found)) >= count:
            break
    kept = torch.cat(found)[:count]
    return kept if len(kept) == count else place[:count]


def fit_splats(
    pictures: PosedImages,
    config: SplatFitConfig = SplatFitConfig(),
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    out: str | Path | None = None,
    on_step: StepEnd | None = None,
) -> SplatFit:
    """Fits splats to posed pictures; `.cloud`, `.measured(...)` and `.cameras(...)` of what comes back tell the rest.

    out: folder for checkpoints, from the newest of which it goes on. Raises InputError for pictures that do not suit,
    DivergedError where the loss is no number.

    >>> fitted = fit_splats(load_posed("capture/transforms.json", downscale=4))
    >>> save_splats(fitted.cloud, "capture.ply")
    """
    run = SplatFit(pictures, config, seed, device)
    folder = None if out is None else Path(out)
    if folder is not None:
        run.resume(folder)
    run.run(folder, on_step)
    return run
