"""Views that a prior of several views draws of prompts, normals and colours, as what a generator of shapes begins with.

Nothing is rendered: a prior, or its student, draws the normal maps of an object from all around, and the adapter that
reads normals paints them. One seed for all prompts gives objects of one kind one shape in every colour.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor

from ..core.distillation.score import DivergedError
from ..core.priors import Prior
from ..core.sampling.plan import SamplingPlan
from ..geometry.cameras import Camera
from ..utils.errors import InputError
from ..utils.seeds import generator
from .view_normals import NormalsDraw, check_draws_normals, draw_normals, draw_views

TRIES = 3  # seeds after which a prompt has no views


@dataclass(frozen=True)
class DrawnViewsConfig:
    """How they are drawn."""

    normals: NormalsDraw = field(default_factory=lambda: NormalsDraw(plan=SamplingPlan(guidance=2.0)))
    paint: SamplingPlan = field(default_factory=lambda: SamplingPlan(steps=6, guidance=3.0))
    elevations: tuple[float, ...] = (20.0,)  # degrees; a prompt has one of them, always the same
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.elevations:
            raise InputError("drawn views: elevations names no height; give one at least")


class DrawnViews(NamedTuple):
    """B views of one object."""

    camera: Camera
    alpha: Tensor  # (B, H, W) coverage in [0, 1]
    normals: Tensor  # (B, H, W, 3) unit, world axes; anything where nothing is
    colors: Tensor | None  # (B, H, W, 3) sRGB in [0, 1]; None: nobody painted


class ViewDrawer:
    """Draws the views of a prompt once and keeps them, in half precision."""

    def __init__(
        self,
        config: DrawnViewsConfig,
        prior: Prior,
        painter: Prior | None = None,
        student: Prior | None = None,
    ) -> None:
        """`prior`: of several views, which knows normal maps; `student` draws in its place, as it recommends;
        `painter`: the prior that reads normals; without it views have no colours. Raises InputError for others."""
        check_draws_normals(prior, config.normals.words)
        if student is not None:
            plan = SamplingPlan.of(student.recommended)
            config = replace(config, normals=replace(config.normals, plan=plan))
        self.config, self.prior, self.painter = config, student or prior, painter
        self._known: dict[str, DrawnViews | None] = {}

    @property
    def priors(self) -> Sequence[Prior]:
        """Those that draw."""
        return [one for one in (self.prior, self.painter) if one is not None]

    def of(self, prompt: str) -> DrawnViews | None:
        """The views of a prompt, the same at every call; None where the prior drew nothing."""
        if prompt not in self._known:
            self._known[prompt] = self._drawn(prompt)
        return self._known[prompt]

    def _drawn(self, prompt: str) -> DrawnViews | None:
        config, elevations = self.config, self.config.elevations
        elevation = elevations[zlib.crc32(prompt.encode()) % len(elevations)]
        asked = replace(config.normals, ring=replace(config.normals.ring, elevation_deg=elevation))
        for attempt in range(TRIES):
            try:
                normals, alpha, camera = draw_normals(self.prior, prompt, asked, generator(config.seed + attempt))
            except DivergedError:
                continue
            colors = None
            if self.painter is not None:
                pictures = asked.code.encode(normals, alpha[..., None])
                maps = self.painter.encode(pictures.to(self.painter.device))
                rng = generator(config.seed + attempt)
                painted = draw_views(self.painter, prompt, camera, config.paint, rng, maps=maps)
                colors = painted.permute(0, 2, 3, 1).cpu().half()
            return DrawnViews(camera, alpha.half(), normals.half(), colors)
        return None
