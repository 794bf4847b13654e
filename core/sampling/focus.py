"""Test-time control of the velocity by the gradient of a cost, and the FOCUS cost for prompts with several subjects.

A running cost f(x_t) around a frozen flow is a stochastic optimal control problem; one local gradient stands for its
adjoint (Bill et al. 2025). In diffusers' sign (u = eps - x0, sigma falling), at data time t = 1 - sigma,
    u <- u + lambda w(t) grad f,   w = (1 - t)^2 / t   ("local", what the derivation gives),
so that x moves along -grad f. Any path is controlled through the flow of equal signal-to-noise ratio, y = x / (alpha +
sigma): grad_y f = (alpha + sigma) grad_x f, and a change of u changes eps by alpha / (alpha + sigma) of it and x0 by
-sigma / (alpha + sigma).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...utils.errors import InputError
from ..priors.base import Prior
from ..priors.rows import COND
from .attention import AttentionTap, subject_phrases, subject_tokens
from .denoiser import Denoiser
from .levels import Level, Scalar
from .prediction import Prediction

Cost = Callable[[Denoiser, Tensor, Level], Tensor]
MapCost = Callable[[Tensor, Sequence[Sequence[int]]], Tensor]
WEIGHTS: dict[str, Callable[[Scalar], Scalar]] = {
    "local": lambda t: (1 - t) ** 2 / t,
    "noise": lambda t: 2 * (1 - t) ** 2 / t,  # sigma_m^2 (1 - t), twice the local one
    "linear": lambda t: 1 - t,
}
TINY = 1e-12
PATTERN = "focus[:STRENGTH] or attend-and-excite[:STRENGTH]"


class VelocityControl:
    """A control of a Denoiser that descends a cost while sampling; strength 0 gives every prediction back untouched."""

    def __init__(self, cost: Cost, strength: float = 1.0, weight: str = "local", floor: float = 0.02) -> None:
        """A cost, how much of it, and when.

        Args:
            cost: (denoiser, x (B, C, h, w), level) to (B,), differentiable in x; rows must not depend on each other.
            strength: lambda; 1 to 5 for FOCUS. Negative climbs.
            weight: how it falls with the data time t: local, noise or linear.
            floor: smallest t put into the weight, which would be infinite at the start.
        """
        if weight not in WEIGHTS:
            raise InputError(f"weight={weight!r} is unknown; have {', '.join(WEIGHTS)}")
        if not 0 < floor <= 1:
            raise InputError(f"floor={floor} must lie in (0, 1]")
        self.cost, self.strength, self.weight, self.floor = cost, strength, WEIGHTS[weight], floor

    def __call__(self, denoiser: Denoiser, prediction: Prediction) -> Prediction:
        """The prediction with its velocity changed."""
        if self.strength == 0:
            return prediction
        slope = cost_gradient(self.cost, denoiser, prediction.x, prediction.level)
        alpha, sigma = prediction.alpha, prediction.sigma
        share = alpha / (alpha + sigma)
        time = share.clamp(min=self.floor) if isinstance(share, Tensor) else max(share, self.floor)
        return moved(prediction, self.strength * self.weight(time) * (alpha + sigma) * slope)


def cost_gradient(cost: Cost, denoiser: Denoiser, x: Tensor, level: Level) -> Tensor:
    """Gradient (B, C, h, w) of the cost of every row with respect to its state; weights get none."""
    with torch.enable_grad():
        free = x.detach().requires_grad_(True)
        value = cost(denoiser, free, level)
        if value.shape != (x.shape[0],):
            raise InputError(f"the cost has shape {tuple(value.shape)}, expected one number per row ({x.shape[0]},)")
        return torch.autograd.grad(value.sum(), free)[0].detach()


def moved(prediction: Prediction, change: Tensor) -> Prediction:
    """The prediction whose u differs by `change` at the same state."""
    alpha, sigma = prediction.alpha, prediction.sigma
    total = alpha + sigma
    factors = {
        "epsilon": alpha / total,
        "sample": -sigma / total,
        "v_prediction": (alpha * alpha + sigma * sigma) / total,
        "flow_prediction": 1.0,
    }
    return prediction.with_raw(prediction.raw + factors[prediction.kind] * change)


class AttentionCost:
    """A cost on the text attention of the conditional branch, which it runs once more with gradients."""

    def __init__(
        self, subjects: Sequence[Sequence[int]] | Sequence[Sequence[Sequence[int]]], measure: MapCost | None = None
    ) -> None:
        """Token positions of every subject (`attention.subject_tokens`), shared by all rows or one list per row."""
        if not subjects or not all(len(group) for group in subjects):
            raise InputError("subjects must name at least one token each; see attention.subject_tokens")
        self.subjects, self.measure = subjects, measure or focus_cost

    def __call__(self, denoiser: Denoiser, x: Tensor, level: Level) -> Tensor:
        """(B,) costs."""
        network = denoiser.prior.network
        if network is None:
            raise InputError(f"the prior {denoiser.prior.name!r} has no network whose attention could be read")
        with AttentionTap(network) as tap:
            denoiser.ask(x, level, (COND,))
        maps = tap.maps(x.shape[-2:])
        return torch.stack([self.measure(row, self._groups(i, len(maps))) for i, row in enumerate(maps)])

    def _groups(self, row: int, rows: int) -> Sequence[Sequence[int]]:
        first = self.subjects[0][0]
        if isinstance(first, int):
            return self.subjects  # type: ignore[return-value]
        if len(self.subjects) != rows:
            raise InputError(f"got subjects for {len(self.subjects)} rows, the batch has {rows}")
        return self.subjects[row]  # type: ignore[return-value]


def focus_cost(maps: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Half of [disagreement of a subject's tokens + overlap of the subjects], a number in [0, 1].

    Maps (tokens, h, w) >= 0; groups of token positions, one per subject. 0 for subjects that are apart and whose tokens
    agree.
    """
    rows = [maps[list(group)].flatten(1) for group in groups]
    within = [divergence(row) for row in rows if len(row) > 1]
    disagreement = torch.stack(within).mean() if within else maps.new_zeros(())
    overlap = 1 - divergence(torch.stack([row.mean(0) for row in rows])) if len(rows) > 1 else maps.new_zeros(())
    return 0.5 * (disagreement + overlap)


def attend_and_excite_cost(maps: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """1 - the peak of the most neglected subject (Chefer et al. 2023); maps (tokens, h, w).

    At each pixel the subjects' maps are divided by their sum: a peak is where a subject has the pixel to itself.
    """
    subjects = torch.stack([maps[list(group)].mean(0) for group in groups])  # (S, h, w)
    shares = subjects / subjects.sum(0).clamp_min(TINY)
    return 1 - shares.flatten(1).amax(1).min()


def divergence(rows: Tensor) -> Tensor:
    """Jensen-Shannon divergence of T >= 2 maps (T, pixels) over log T, in [0, 1]: 0 equal, 1 disjoint.

    Maps are cubed first, which sharpens them, and normalised to sum 1.
    """
    shares = rows.clamp_min(0) / rows.detach().amax(1, keepdim=True).clamp_min(TINY)
    shares = shares**3
    shares = shares / shares.sum(1, keepdim=True).clamp_min(TINY)
    middle = shares.mean(0)
    relative = shares * ((shares + TINY) / (middle + TINY)).log()
    return relative.sum(1).mean() / torch.log(torch.tensor(float(len(rows)), dtype=rows.dtype, device=rows.device))


COSTS: dict[str, MapCost] = {"focus": focus_cost, "attend-and-excite": attend_and_excite_cost}


def parse_control(text: str) -> tuple[str, float]:
    """(cost, strength) of "focus", "focus:2" or "attend-and-excite:5". Raises InputError for anything else."""
    name, _, number = text.partition(":")
    try:
        strength = float(number) if number else 1.0
    except ValueError:
        strength = math.nan
    if name not in COSTS or not math.isfinite(strength):
        raise InputError(f"control {text!r} is unknown; write {PATTERN}")
    return name, strength


def attention_control(text: str, prior: Prior, prompt: str, subjects: Sequence[str] = ()) -> VelocityControl:
    """The control that a text such as "focus:2" names, for all images of one prompt.

    Without `subjects` (words of the prompt) they are read off a simple sentence. Raises InputError where those are
    fewer than two, for an unknown control, and for subjects that the prompt does not contain.
    """
    name, strength = parse_control(text)
    named = list(subjects) or subject_phrases(prompt)
    if not subjects and len(named) < 2:
        raise InputError(
            f"{name} keeps subjects apart, but only {named} was found in the prompt {prompt!r}; name two or more of "
            'them (subjects=, --subjects "red chair; blue dog")'
        )
    return VelocityControl(AttentionCost(subject_tokens(prior, prompt, named), COSTS[name]), strength)
