"""Score distillation seen from a renderer: which text and which cameras each view of the object comes with."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from ..core.distillation.score import GuidanceOut, ScoreConfig, ScoreDistillation
from ..core.priors.base import Condition, Prior
from ..geometry.cameras import Camera, to_mvdream
from .views import VIEW_TEXT, view_classes


class Guide(Protocol):
    """What pulls renders towards a prompt."""

    def __call__(self, images: Tensor, camera: Camera, step: int, generator: torch.Generator) -> GuidanceOut:
        """Loss of renders (B, 3, H, W) seen by B cameras."""
        ...


class MultiViewGuide:
    """For priors that see all views of an object at once: cameras instead of words."""

    def __init__(self, config: ScoreConfig, prior: Prior, condition: Condition) -> None:
        self.score = ScoreDistillation(config, prior, condition)

    def __call__(self, images: Tensor, camera: Camera, step: int, generator: torch.Generator) -> GuidanceOut:
        """See Guide."""
        return self.score(images, step, generator, cameras=to_mvdream(camera.c2w).to(images))


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
        condition = replace(self.conditions.index(rows), frames=1)
        return self.score(images, step, generator, condition=condition)


def make_guide(config: ScoreConfig, prior: Prior, prompt: str, negative: str | None = None) -> Guide:
    """The guide that suits a prior: joint views when it knows cameras, view words otherwise."""
    if hasattr(prior, "views"):
        return MultiViewGuide(config, prior, prior.encode_text([prompt], negative))
    return ViewTextGuide(config, prior, prompt, negative)
