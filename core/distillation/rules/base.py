"""What a rule of score distillation is: two predictions at one noised state, whose difference pulls on renders.

g = w(t) (eps_a - eps_b) at x_t = alpha x + sigma n. Members of the family differ in the reference b, in how the noised
state is made, and in the guidance of a; weight, clipping, form and levels are settings of `ScoreConfig`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...priors.rows import COND, NULL, Condition
from ...sampling.denoiser import Denoiser
from ...sampling.guidance import Guidance, Unconditional
from ...sampling.levels import Level, NoiseSchedule
from ...sampling.prediction import Prediction
from ...sampling.sampler import Denoise

NEGATIVE = "negative"  # branch of the negative prompt where a rule tells it from the empty one


class Pull(NamedTuple):
    """g = w (eps_a - eps_b), both at the same state and level."""

    ahead: Prediction  # a, what renders are pulled to
    reference: Prediction  # b
    plain: Prediction | None = None  # the conditional prediction beside a guided one, for its spread


@dataclass(frozen=True)
class Seen:
    """Renders at the levels of one step, and who may be asked about them. Nothing in it has gradients."""

    x: Tensor  # (B, C, h, w) scaled latents
    noise: Tensor  # (B, C, h, w)
    index: Tensor  # (B,) float64 train index on the CPU, equal within a group of views
    share: float  # of the run that is done
    lowest: float  # train index, lower end of the window of levels at this share
    denoiser: Denoiser  # of the prior, told the B rows of this call, with its guidance
    generator: torch.Generator | None  # of what a rule draws besides noise and index
    twin: Denoise | None = None  # a second network that learns the renders' score, told what it is to be told

    @property
    def schedule(self) -> NoiseSchedule:
        """The prior's noise path."""
        return self.denoiser.schedule

    @property
    def condition(self) -> Condition:
        """What the prior is told."""
        return self.denoiser.condition

    @cached_property
    def level(self) -> Level:
        """Of every row."""
        return self.schedule.at_index(self.index)

    @cached_property
    def noised(self) -> Tensor:
        """x_t = alpha x + sigma n (B, C, h, w)."""
        return self.schedule.add_noise(self.x, self.noise, self.level)

    def render(self, x: Tensor | None = None) -> Prediction:
        """The render itself as a prediction at x_t, or at another state of its levels: its noise is what was added."""
        return Prediction(self.noised if x is None else x, self.level, self.x, "sample")

    def noise_of(self, eps: Tensor, x: Tensor | None = None) -> Prediction:
        """A noise estimate (B, C, h, w) from elsewhere as a prediction at x_t, or at another state of its levels."""
        return Prediction(self.noised if x is None else x, self.level, eps, "epsilon")

    @property
    def fraction(self) -> Tensor:
        """t in [0, 1] (B,)."""
        return self.index / self.schedule.steps

    def ask(self, *names: str, x: Tensor | None = None, index: Tensor | None = None) -> dict[str, Prediction]:
        """The prior's predictions in these branches, all in one call, at x_t or at another state and train index.

        A branch "negative" that the condition lacks is its unconditional one.
        """
        state = self.noised if x is None else x
        level = self.level if index is None else self.schedule.at_index(index)
        known = {name: NULL if name == NEGATIVE and name not in self.condition else name for name in names}
        found = self.denoiser.ask(state, level, tuple(known.values()))
        return {name: found[asked] for name, asked in known.items()}

    def guided(
        self, x: Tensor | None = None, index: Tensor | None = None, rows: Tensor | None = None
    ) -> tuple[Prediction, Prediction]:
        """(guided, conditional) predictions in one call: at x_t, at another state of its levels, or of some rows at
        other train indices."""
        denoiser = self.denoiser if rows is None else self.denoiser.with_condition(self.condition.index(rows))
        level = self.level if index is None else self.schedule.at_index(index)
        names = dict.fromkeys((*denoiser.guidance.needs(level), COND))
        branches = denoiser.ask(self.noised if x is None else x, level, tuple(names))
        return denoiser.guidance(branches), branches[COND]

    def uniform(self) -> Tensor:
        """U[0, 1) (B,) float64, one draw for each group of views."""
        frames = self.condition.frames
        draw = torch.rand(len(self.x) // frames, generator=self.generator, dtype=torch.float64)
        return draw.repeat_interleave(frames)

    def inverted(
        self, x: Tensor, stops: Sequence[Tensor], guidance: Guidance | None = None, eta: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """DDIM run from clean to noisy: (state, noise estimate of the last step), both (B, C, h, w).

        stops: train indices (B,) that do not fall; x is a state of the first. A row that stays is not asked. guidance:
        None is the unconditional branch. eta: z of this many ancestral deviations is added at every step, as the
        published code of SDI does.
        """
        denoiser, eps = self.denoiser.with_condition(self.condition), self.noise
        denoiser.guidance = Unconditional() if guidance is None else guidance
        for now, after in pairwise(stops):
            rows = (after > now).nonzero()[:, 0]
            if not len(rows):
                continue
            on, asked = rows.to(x.device), denoiser.with_condition(self.condition.index(rows))
            p = asked(x[on], self.schedule.at_index(now[rows]))
            alpha, sigma = self.schedule.at_index(after[rows]).coefficients(x)
            moved = alpha * p.x0 + sigma * p.eps
            if eta:
                before = self.schedule.at_index(now[rows]).coefficients(x)
                z = torch.randn(moved.shape, generator=self.generator, dtype=moved.dtype).to(moved.device)
                moved = moved + eta * _ancestral(torch.as_tensor(alpha), torch.as_tensor(sigma), *before) * z
            x, eps = x.index_copy(0, on, moved.to(x.dtype)), eps.index_copy(0, on, p.eps.to(eps.dtype))
        return x, eps


class Rule(ABC):
    """A frozen dataclass of the settings of one paper; calling it is the paper's equation."""

    negative: ClassVar[bool] = False  # it asks the branch "negative" beside the unconditional one
    guided: ClassVar[bool] = True  # it has a guidance scale
    twin: ClassVar[bool] = False  # it needs a second network that learns the renders' score
    targets: ClassVar[bool] = False  # its target is a denoised image: rescale and walks of the recon form apply

    @abstractmethod
    def __call__(self, seen: Seen) -> Pull:
        """The two predictions whose difference pulls; under no_grad."""


def _ancestral(alpha: Tensor, sigma: Tensor, alpha_clean: Tensor | float, sigma_clean: Tensor | float) -> Tensor:
    """Deviation of the reverse transition to the cleaner level: sigma_s sqrt(1 - (alpha_t sigma_s / alpha_s sigma_t)^2)
    with t the noisier one."""
    return sigma_clean * (1 - (alpha * sigma_clean / (alpha_clean * sigma)) ** 2).clamp_min(0).sqrt()
