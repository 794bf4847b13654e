"""Score distillation seen from a renderer: which text and which cameras each view of the object comes with."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..core.distillation.score import GuidanceOut, ScoreConfig, ScoreDistillation
from ..core.priors import Condition, Prior
from ..geometry.cameras import Camera, to_mvdream
from .views import VIEW_TEXT, view_classes


class Guide(Protocol):
    """What pulls renders towards a prompt."""

    def __call__(self, images: Tensor, camera: Camera, step: int, generator: torch.Generator) -> GuidanceOut:
        """Loss of renders (B, 3, H, W) seen by B cameras."""
        ...


class MultiViewGuide:
    """For priors that see the views of an object at once: cameras instead of words."""

    def __init__(self, config: ScoreConfig, prior: Prior, condition: Condition, views: int) -> None:
        """`condition` has one row; renders come in groups of `views` consecutive ones that see each other."""
        self.score, self.views = ScoreDistillation(config, prior, condition), views

    def __call__(self, images: Tensor, camera: Camera, step: int, generator: torch.Generator) -> GuidanceOut:
        """See Guide."""
        groups = self.score.condition.repeat(max(len(images) // self.views, 1))
        seen = groups.with_views(to_mvdream(camera.c2w).to(images), self.views)
        return self.score(images, step, generator, condition=seen)


class ViewTextGuide:
    """For single-image priors: the prompt with "front view", "side view", "back view" or "top view" added."""

    def __init__(self, config: ScoreConfig, prior: Prior, prompt: str, negative: str | None = None) -> None:
        self.rows = list(VIEW_TEXT)
        texts = [f"{prompt}, {VIEW_TEXT[name]}" for name in self.rows]
        self.conditions = prior.encode_text(texts, negative)
        self.score = ScoreDistillation(config, prior, self.conditions.index([0]))

    def __call__(self, images: Tensor, camera: Camera, step: int, generator: torch.Generator) -> GuidanceOut:
        """See Guide."""
        rows = [self.rows.index(name) for name in view_classes(camera)]
        return self.score(images, step, generator, condition=self.conditions.index(rows))


def make_guide(
    config: ScoreConfig, prior: Prior, prompt: str, negative: str | None = None, views: int | None = None
) -> Guide:
    """The guide that suits a prior: joint views when it knows cameras, view words otherwise.

    `views` is the number of consecutive renders that see each other; None: as many as the prior learnt to draw.
    """
    if prior.multiview:
        return MultiViewGuide(config, prior, prior.encode_text([prompt], negative), views or prior.frames)
    return ViewTextGuide(config, prior, prompt, negative)
