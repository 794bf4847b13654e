"""A prior that draws normal maps, on rendered normals beside the colours (RichDreamer, Qiu et al. 2023).

Light and paint hide geometry; a score of normals sees it bare. Any prior whose captions know words for maps serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..core.distillation.score import ScoreConfig
from ..core.priors import Prior
from ..geometry.cameras import Camera
from ..geometry.outputs import RenderOutput
from ..utils.errors import InputError
from ..utils.ramps import Ramp
from .guides import Guide, make_guide


@dataclass(frozen=True)
class NormalsConfig:
    """How normals become a picture that the prior knows, and how hard it pulls on them."""

    weight: tuple[float, ...] = (0.0,)  # of its loss, a number or [start, v0, v1, end]; at 0 the prior is not asked
    words: str = "normal map"  # at the end of the prompt
    axes: Literal["object", "camera"] = "object"  # camera: x right, y up, z towards the viewer
    mirrored: bool = False  # x turned around, as RichDreamer's and Stable Diffusion's maps have it
    background: tuple[float, float, float] = (0.5, 0.5, 0.5)  # RichDreamer: 0.5, 0.5, 1
    score: ScoreConfig | None = None  # None: that of the colours

    def __post_init__(self) -> None:
        ramp = Ramp.of(self.weight)
        if min(ramp.value0, ramp.value1) < 0:
            raise InputError(f"normals: weight={self.weight} must not be negative")

    @property
    def used(self) -> bool:
        """Whether the weight is ever more than 0."""
        ramp = Ramp.of(self.weight)
        return bool(ramp.value0 or ramp.value1)

    def at(self, share: float) -> float:
        """The weight at a share of the run."""
        return Ramp.of(self.weight).at(share)

    def picture(self, seen: RenderOutput, camera: Camera) -> Tensor:
        """Normals (B, H, W, 3) as colours (n + 1) / 2 over the background; differentiable."""
        normal = seen.normal
        if self.axes == "camera":
            turned = torch.einsum("bji,bhwj->bhwi", camera.c2w[:, :3, :3].to(normal), normal)  # OpenCV axes
            normal = turned * normal.new_tensor([1.0, -1.0, -1.0])
        if self.mirrored:
            normal = normal * normal.new_tensor([-1.0, 1.0, 1.0])
        behind = normal.new_tensor(self.background)
        return seen.alpha * (0.5 * normal + 0.5) + (1 - seen.alpha) * behind


class NormalGuide:
    """The same prior asked for normal maps."""

    def __init__(self, config: NormalsConfig, score: ScoreConfig, prior: Prior, prompt: str, views: int) -> None:
        """`score`: that of the colours. Raises InputError for priors that do not know the words, and for rules with a
        twin, which would have to learn two kinds of picture."""
        used = config.score or score
        if used.rule.made.twin:
            raise InputError(f"normals.score: the rule {used.rule.kind!r} learns one kind of picture; choose another")
        if unknown := prior.unknown_words(config.words):
            raise InputError(
                f"normals.words={config.words!r}: the prior {prior.name!r} has never seen {unknown[0][0]!r}; it needs "
                "one that was taught maps (docs/training.md), or normals.weight 0"
            )
        self.config = config
        self.guide: Guide = make_guide(used, prior, prompt, None, views, config.words)

    def __call__(
        self, seen: RenderOutput, camera: Camera, side: int, share: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """(weighted loss, log) of renders with normals, shown to the prior at `side` px (0: as rendered)."""
        images = self.config.picture(seen, camera).permute(0, 3, 1, 2)
        if side and images.shape[-1] != side:
            images = torch.nn.functional.interpolate(images, (side, side), mode="bilinear", antialias=True)
        out = self.guide(images, camera, share, generator)
        return self.config.at(share) * out.loss, {f"normals_{name}": value for name, value in out.log.items()}
