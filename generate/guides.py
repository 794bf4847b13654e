"""Score distillation seen from a renderer: which text and which cameras each view of the object comes with."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..core.distillation.rules import NEGATIVE
from ..core.distillation.score import GuidanceOut, ScoreConfig, ScoreDistillation
from ..core.distillation.twin import Twin
from ..core.priors import Condition, Prior
from ..core.priors.image_prompt import with_picture
from ..core.sampling.perp_neg import PerpNeg, negative_branch
from ..geometry.cameras import Camera, to_mvdream
from ..utils.errors import InputError
from .views import VIEW_TEXT, perp_neg_views, view_classes


class Guide(Protocol):
    """What pulls renders towards a prompt."""

    @property
    def score(self) -> ScoreDistillation:
        """The distillation behind it."""
        ...

    @property
    def nfe(self) -> int:
        """Network rows spent so far by all who ask the same network."""
        ...

    @property
    def twin(self) -> Twin | None:
        """A second network that learns from the renders as they are made, for rules that have one."""
        ...

    def __call__(self, images: Tensor, camera: Camera, share: float, generator: torch.Generator) -> GuidanceOut:
        """Loss of renders (B, 3, H, W) seen by B cameras, when a share of the run is done."""
        ...


class ScoreGuide:
    """What the guides that distil one prior share."""

    score: ScoreDistillation

    @property
    def nfe(self) -> int:
        """See Guide."""
        return self.score.nfe

    @property
    def twin(self) -> Twin | None:
        """See Guide."""
        return self.score.twin


class MultiViewGuide(ScoreGuide):
    """For priors that see the views of an object at once: cameras instead of words."""

    def __init__(self, config: ScoreConfig, prior: Prior, condition: Condition, views: int) -> None:
        """`condition` has one row; renders come in groups of `views` consecutive ones that see each other."""
        if config.perp_neg:
            raise InputError(f"score.perp_neg is for priors of single images; {prior.name} knows cameras, leave it out")
        self.score, self.views = ScoreDistillation(config, prior, condition), views

    def __call__(self, images: Tensor, camera: Camera, share: float, generator: torch.Generator) -> GuidanceOut:
        """See Guide. Raises InputError when the cameras are no whole groups."""
        groups = camera.batch // self.views
        if groups * self.views != camera.batch:
            raise InputError(f"{camera.batch} cameras are no groups of views={self.views}")
        cameras = to_mvdream(camera.c2w).to(images)
        seen = self.score.condition.repeat(groups).with_views(cameras, self.views)
        return self.score(images, share, generator, condition=seen, told=seen)


class ViewWords:
    """A prompt with "front view", "side view", "back view" or "top view" added, for each of some cameras."""

    def __init__(
        self,
        config: ScoreConfig,
        prior: Prior,
        prompt: str,
        negative: str | None = None,
        shows: str = "",
        picture: Tensor | None = None,
    ) -> None:
        """See ViewTextGuide."""
        if config.perp_neg and prior.guidance_embedded:
            raise InputError(f"score.perp_neg needs branches of guidance, which {prior.name} takes as an input instead")
        self.rows, self.config = list(VIEW_TEXT), config
        texts = [f"{prompt}, {VIEW_TEXT[name]}{_ending(shows)}" for name in self.rows]
        told = encoded(config, prior, texts, negative)
        self.conditions = told if picture is None else with_picture(prior, told, picture)

    def told(self, camera: Camera) -> tuple[Condition, PerpNeg | None]:
        """What each view is told, and a guidance where `config.perp_neg` has one of its own."""
        if self.config.perp_neg:
            return self._perpendicular(camera)
        return self.conditions.index([self.rows.index(name) for name in view_classes(camera)]), None

    def _perpendicular(self, camera: Camera) -> tuple[Condition, PerpNeg]:
        """Words mixed between neighbouring views, and the views that each camera is to be kept from."""
        mixes, against, weights = perp_neg_views(camera, self.rows)
        first, second, share = mixes
        condition = self.conditions.index(first)
        near = self.conditions.index(second)["cond"]["text"]
        part = share.to(near)[:, None, None]
        text = condition["cond"].with_tensors(text=torch.lerp(near, condition["cond"]["text"], part))
        condition = condition.branch("cond", text)
        for number, rows in enumerate(against):
            condition = condition.branch(negative_branch(number), self.conditions.index(rows)["cond"])
        return condition, PerpNeg(self.config.guidance, weights)


class ViewTextGuide(ScoreGuide):
    """For single-image priors: words for views instead of cameras."""

    def __init__(
        self,
        config: ScoreConfig,
        prior: Prior,
        prompt: str,
        negative: str | None = None,
        shows: str = "",
        picture: Tensor | None = None,
    ) -> None:
        """`shows`: words for another kind of picture, at the end. With `config.perp_neg` the words of neighbouring
        views are mixed and those of others push away. `picture` (1, 3, H, W) in [0, 1] is what the prior's IP-Adapter
        reads, from every side the same."""
        plain = encoded(config, prior, [prompt + _ending(shows)], negative)
        self.words = ViewWords(config, prior, prompt, negative, shows, picture)
        self.score = ScoreDistillation(config, prior, plain if picture is None else with_picture(prior, plain, picture))

    def __call__(self, images: Tensor, camera: Camera, share: float, generator: torch.Generator) -> GuidanceOut:
        """See Guide."""
        told = with_cameras(self.score.repeated(camera.batch), self.twin, camera, images)
        condition, guidance = self.words.told(camera)
        return self.score(images, share, generator, condition=condition, guidance=guidance, told=told)


def with_cameras(told: Condition, twin: Twin | None, camera: Camera, like: Tensor) -> Condition:
    """What a twin is told of views: beside the text their cameras, where it reads any and the text has none yet."""
    if twin is None or not twin.cameras or told["cond"].get("cameras") is not None:
        return told
    return told.with_rows(cameras=to_mvdream(camera.c2w).to(like))


def encoded(config: ScoreConfig, prior: Prior, texts: list[str], negative: str | None) -> Condition:
    """The texts as conditions: a negative prompt is their unconditional branch, or one of its own for rules that ask
    both; an empty one is the empty prompt, which is asked once."""
    if not negative or not config.rule.made.negative:
        return prior.encode_text(texts, negative)
    apart = prior.encode_text([negative] * len(texts))
    return prior.encode_text(texts).branch(NEGATIVE, apart["cond"])


def make_guide(
    config: ScoreConfig,
    prior: Prior,
    prompt: str,
    negative: str | None = None,
    views: int | None = None,
    shows: str = "",
    picture: Tensor | None = None,
) -> Guide:
    """The guide that suits a prior: joint views when it knows cameras, view words otherwise.

    `views` is the number of consecutive renders that see each other; None: as many as the prior learnt to draw.
    `shows`: words for another kind of picture, such as "normal map". `picture` is one that the prior reads beside the
    words, which priors of several views do not.
    """
    if prior.multiview:
        condition = encoded(config, prior, [prompt + _ending(shows)], negative)
        return MultiViewGuide(config, prior, condition, views or prior.frames)
    return ViewTextGuide(config, prior, prompt, negative, shows, picture)


def _ending(shows: str) -> str:
    return f", {shows}" if shows else ""
