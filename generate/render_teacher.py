"""A frozen prior as a teacher of whoever makes shapes for many prompts: its pull on renders of one of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..core.distillation.score import GuidanceOut, ScoreConfig, ScoreDistillation
from ..core.distillation.twin import Twin
from ..core.priors import Condition, Prior
from ..core.sampling.guidance import Guidance, as_guidance
from ..core.training.loss import LossOut
from ..geometry.cameras import Camera, to_mvdream
from ..geometry.outputs import RenderOutput
from ..utils.errors import InputError
from ..utils.ramps import Ramp
from .guides import ViewWords, encoded, with_cameras
from .normal_guide import NormalsConfig


@dataclass(frozen=True)
class TeacherConfig:
    """Who teaches, what it is shown, and how hard it pulls."""

    prior: str = ""  # name or folder; empty: nobody
    weight: tuple[float, ...] = (1.0,)  # of its loss, a number or [start, v0, v1, end] in shares of the schedule
    guidance: tuple[float, ...] = ()  # of the schedule; empty: score.guidance
    shows: Literal["colours", "normals"] = "colours"
    normals: NormalsConfig = field(default_factory=NormalsConfig)  # its words, axes and background
    optional: bool = False  # left out, with a warning, where the prior has never seen the words of what it is shown
    views: Literal["all", "one"] = "all"  # of the rendered ones; priors of several views see all of them
    view_words: bool = False  # priors of single images are told from where they look (and see score.perp_neg)
    negative: str = ""
    score: ScoreConfig = field(default_factory=ScoreConfig)

    def __post_init__(self) -> None:
        if self.score.perp_neg and (not self.view_words or self.guidance):
            raise InputError(
                "teacher: score.perp_neg mixes words for views at the scale of score.guidance; set view_words: true and"
                " leave guidance out"
            )
        Ramp.of(self.weight)

    @property
    def words(self) -> str:
        """What the prior has to know to see what it is shown."""
        return self.normals.words if self.shows == "normals" else ""


def known_teachers(configs: Mapping[str, TeacherConfig], priors: Mapping[str, Prior]) -> dict[str, RenderTeacher]:
    """Those of the configs that name a prior; optional ones whose words it has never seen are left out."""
    found = {}
    for name, config in configs.items():
        if config.prior and config.optional and priors[name].unknown_words(config.words):
            left = f"the teacher {name!r} is left out: {config.prior} has never seen {config.words!r}"
            warnings.warn(left, stacklevel=2)
        elif config.prior:
            found[name] = RenderTeacher(config, priors[name])
    return found


class RenderTeacher:
    """One of them, ready to be asked."""

    def __init__(self, config: TeacherConfig, prior: Prior) -> None:
        """Raises InputError for priors that do not know the words of what they are shown."""
        self.config, self.prior = config, prior
        words = config.words
        if unknown := prior.unknown_words(words):
            raise InputError(
                f"teacher: the prior {prior.name!r} has never seen {unknown[0][0]!r}; leave it out (optional)"
            )
        if prior.multiview and config.view_words:
            raise InputError(f"teacher: {prior.name} is told cameras; leave view_words and score.perp_neg out")
        self.ending = f", {words}" if words else ""
        self.score = ScoreDistillation(config.score, prior, self._told(""))

    @property
    def twin(self) -> Twin | None:
        """A second network that learns the renders of all prompts, for rules that have one."""
        return self.score.twin

    def weight(self, share: float) -> float:
        """Of its loss at a share of the schedule."""
        return Ramp.of(self.config.weight).at(share)

    def channels(self) -> tuple[str, ...]:
        """What it needs of a render beside colour, coverage and depth."""
        return ("normal",) if self.config.shows == "normals" else ()

    def __call__(
        self, seen: RenderOutput, camera: Camera, prompt: str, side: int, share: float, generator: torch.Generator
    ) -> GuidanceOut:
        """Its loss of the views of one object, shown to it at `side` px (0: as rendered)."""
        images, camera = self._shown(seen, camera, generator)
        told = self._plain(prompt, images, camera)
        condition: Condition = told
        guidance: Guidance | None = None
        if self.config.view_words:
            words = ViewWords(self.config.score, self.prior, prompt, self.config.negative or None, self.config.words)
            condition, guidance = words.told(camera)
        if self.config.guidance:
            guidance = as_guidance(Ramp.of(self.config.guidance).at(share))
        told = with_cameras(told, self.twin, camera, images)
        return self.score(_sized(images, side), share, generator, condition=condition, guidance=guidance, told=told)

    def lesson(self, seen: RenderOutput, camera: Camera, prompt: str, side: int, generator: torch.Generator) -> LossOut:
        """What its twin has to learn of the views of one object, which carry no gradients."""
        assert self.twin is not None
        images, camera = self._shown(seen, camera, generator)
        told = with_cameras(self._plain(prompt, images, camera), self.twin, camera, images)
        with torch.no_grad():
            self.twin.told(self.prior.encode(_sized(images, side)), told)
        return self.twin.loss(generator)

    def _shown(self, seen: RenderOutput, camera: Camera, generator: torch.Generator) -> tuple[Tensor, Camera]:
        """Pictures (B, 3, H, W) that it is shown, and their cameras."""
        shown = self.config.normals.picture(seen, camera) if self.config.shows == "normals" else seen.rgb
        images = shown.movedim(-1, 1)
        if self.prior.multiview or self.config.views == "all":
            return images, camera
        chosen = int(torch.randint(len(images), (), generator=generator))
        return images[chosen : chosen + 1], camera[chosen : chosen + 1]

    def _plain(self, prompt: str, images: Tensor, camera: Camera) -> Condition:
        """The prompt for each of the views, or for all of them with their cameras."""
        told = self._told(prompt)
        if self.prior.multiview:
            return told.with_views(to_mvdream(camera.c2w).to(images), camera.batch)
        return told.repeat(len(images))

    def _told(self, prompt: str) -> Condition:
        return encoded(self.config.score, self.prior, [prompt + self.ending], self.config.negative or None)


def _sized(images: Tensor, side: int) -> Tensor:
    if not side or images.shape[-1] == side:
        return images
    return torch.nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
