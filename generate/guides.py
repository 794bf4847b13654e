"""Score distillation seen from a renderer: which text and which cameras each view of the object comes with."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..core.distillation.score import GuidanceOut, ScoreConfig, ScoreDistillation
from ..core.priors import Condition, Prior
from ..core.priors.image_prompt import with_picture
from ..geometry.cameras import Camera, to_mvdream
from ..utils.errors import InputError
from .views import VIEW_TEXT, view_classes


class Guide(Protocol):
    """What pulls renders towards a prompt."""

    @property
    def nfe(self) -> int:
        """Network rows spent so far by all who ask the same network."""
        ...

    def __call__(self, images: Tensor, camera: Camera, share: float, generator: torch.Generator) -> GuidanceOut:
        """Loss of renders (B, 3, H, W) seen by B cameras, when a share of the run is done."""
        ...


class MultiViewGuide:
    """For priors that see the views of an object at once: cameras instead of words."""

    def __init__(self, config: ScoreConfig, prior: Prior, condition: Condition, views: int) -> None:
        """`condition` has one row; renders come in groups of `views` consecutive ones that see each other."""
        self.score, self.views = ScoreDistillation(config, prior, condition), views

    @property
    def nfe(self) -> int:
        """See Guide."""
        return self.score.prior.nfe

    def __call__(self, images: Tensor, camera: Camera, share: float, generator: torch.Generator) -> GuidanceOut:
        """See Guide. Raises InputError when the cameras are no whole groups."""
        groups = camera.batch // self.views
        if groups * self.views != camera.batch:
            raise InputError(f"{camera.batch} cameras are no groups of views={self.views}")
        cameras = to_mvdream(camera.c2w).to(images)
        seen = self.score.condition.repeat(groups).with_views(cameras, self.views)
        return self.score(images, share, generator, condition=seen)


class ViewTextGuide:
    """For single-image priors: the prompt with "front view", "side view", "back view" or "top view" added."""

    def __init__(
        self,
        config: ScoreConfig,
        prior: Prior,
        prompt: str,
        negative: str | None = None,
        picture: Tensor | None = None,
    ) -> None:
        """`picture` (1, 3, H, W) in [0, 1] is what the prior's IP-Adapter reads, from every side the same."""
        self.rows = list(VIEW_TEXT)
        texts = [f"{prompt}, {VIEW_TEXT[name]}" for name in self.rows]
        self.conditions = prior.encode_text(texts, negative)
        if picture is not None:
            self.conditions = with_picture(prior, self.conditions, picture)
        self.score = ScoreDistillation(config, prior, self.conditions.index([0]))

    @property
    def nfe(self) -> int:
        """See Guide."""
        return self.score.prior.nfe

    def __call__(self, images: Tensor, camera: Camera, share: float, generator: torch.Generator) -> GuidanceOut:
        """See Guide."""
        rows = [self.rows.index(name) for name in view_classes(camera)]
        return self.score(images, share, generator, condition=self.conditions.index(rows))


def make_guide(
    config: ScoreConfig,
    prior: Prior,
    prompt: str,
    negative: str | None = None,
    views: int | None = None,
    picture: Tensor | None = None,
) -> Guide:
    """The guide that suits a prior: joint views when it knows cameras, view words otherwise.

    `views` is the number of consecutive renders that see each other; None: as many as the prior learnt to draw.
    `picture` is one that the prior reads beside the words, which priors of several views do not.
    """
    if prior.multiview:
        return MultiViewGuide(config, prior, prior.encode_text([prompt], negative), views or prior.frames)
    return ViewTextGuide(config, prior, prompt, negative, picture)
