"""Where a sampler puts its levels: spacings over train indices, over lambda and over the sigmas of a flow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import beta

from ...utils.errors import InputError
from ..priors.base import Spacing
from ..priors.schedulers import Layout, layout_of, read_scheduler

SPACINGS: tuple[Spacing, ...] = ("trailing", "leading", "linspace", "logsnr", "karras")
KARRAS_RHO = 7.0
BETA_SHAPE = 0.6  # both parameters of the beta distribution (Lee et al. 2024, "Beta Sampling is All You Need")


@dataclass(frozen=True)
class GridRule:
    """The grid that a prior's own scheduler would take."""

    spacing: str = "leading"
    offset: int = 0  # added to "leading" train indices
    final: str = "index0"  # how a grid ends: "zero" (no noise) or "index0" (the least noisy train step)
    layout: Layout = field(default_factory=Layout)
    sigmas: str | None = None  # "karras", "exponential", "lu" or "beta" instead of the spacing in time
    sigma_min: float | None = None  # sigma / alpha of their ends
    sigma_max: float | None = None
    distilled: int = 50  # train steps that a thinned grid is taken from
    shift: float = 1.0  # of flows: sigma' = s sigma / (1 + (s - 1) sigma)
    linear: bool = False  # dynamic shifts are mu itself, not exp(mu)
    terminal: float | None = None  # of flows: the last sigma before the end, to which the others are stretched
    dynamic: Mapping[str, float] | None = None  # of flows whose shift depends on the number of tokens

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GridRule:
        """The grid of any diffusers scheduler config; raises InputError for what is not supported."""
        read = {key: value for key, value in read_scheduler(config).items() if value is not None}
        layout, flow = layout_of(read), read.get("prediction_type") == "flow_prediction"
        dynamic = {name: float(read.get(name, usual)) for name, usual in _DYNAMIC.items()}
        moving = flow and bool(read.get("use_dynamic_shifting"))
        return cls(
            read.get("spacing") or (layout.flow if flow else read.get("timestep_spacing", "leading")),
            int(read.get("steps_offset", 0)),
            "zero" if flow or read.get("set_alpha_to_one", True) else "index0",
            layout,
            read.get("sigma_spacing"),
            read.get("sigma_min"),
            read.get("sigma_max"),
            int(read.get("original_inference_steps", 50)),
            float(read.get("shift", 1.0)),
            read.get("time_shift_type") == "linear",
            read.get("shift_terminal") or None,
            dynamic if moving else None,
        )

    def dynamic_shift(self, tokens: int) -> float:
        """exp(mu) with mu linear in the number of image tokens, as FLUX pipelines compute it."""
        t0, t1, m0, m1 = (self.dynamic or _DYNAMIC).values()
        return self.shift_of(m0 + (m1 - m0) * (tokens - t0) / (t1 - t0))

    def shift_of(self, mu: float) -> float:
        """The shift that a pipeline's mu stands for."""
        return mu if self.linear else math.exp(mu)


_DYNAMIC = {"base_image_seq_len": 256.0, "max_image_seq_len": 4096.0, "base_shift": 0.5, "max_shift": 1.15}


def time_spaced(
    n: int, steps: int, spacing: str, offset: int = 0, spare: bool = False, whole: bool = True
) -> list[float]:
    """n train indices, decreasing, as diffusers rounds them.

    "leading" and "linspace" need no trailing end, "trailing" starts at steps - 1. `spare`: the first n of n + 1;
    not `whole`: "linspace" is not rounded.
    """
    laid = n + spare
    if spacing == "trailing":
        indices = np.round(np.arange(steps, 0, -steps / n))[:n] - 1
    elif spacing == "leading":
        indices = (np.arange(laid) * (steps // laid))[::-1][:n] + offset
    elif spacing == "linspace":
        indices = np.linspace(0, steps - 1, laid)[::-1][:n]
        indices = np.round(indices) if whole else indices
    else:
        raise InputError(f"spacing={spacing!r} is unknown; have {', '.join(SPACINGS)}")
    return [float(i) for i in np.minimum(indices, steps - 1)]


def thinned(n: int, steps: int, distilled: int) -> list[float]:
    """n train indices, decreasing, out of the `distilled` ones that a consistency model learnt (Luo et al. 2023)."""
    if not n <= distilled <= steps:
        raise InputError(f"steps={n} must not exceed the {distilled} steps that this model was distilled on")
    learnt = (np.arange(1, distilled + 1) * (steps // distilled) - 1)[::-1]
    return [float(learnt[int(place)]) for place in np.linspace(0, distilled, n, endpoint=False)]


def lambda_spaced(n: int, low: float, high: float, spacing: str) -> list[float]:
    """n lambdas rising from low to high.

    Evenly ("logsnr", which diffusers calls exponential sigmas and, at its rho of 1, lu lambdas), evenly in
    e^{-lambda/7} ("karras"), or with e^{-lambda} at the quantiles of a beta distribution ("beta").
    """
    if spacing in ("logsnr", "exponential", "lu"):
        return [float(lam) for lam in np.linspace(low, high, n)]
    if spacing == "beta":
        top, bottom = math.exp(-low), math.exp(-high)
        shares = beta.ppf(1 - np.linspace(0, 1, n), BETA_SHAPE, BETA_SHAPE)
        return [-math.log(bottom + share * (top - bottom)) for share in shares]
    start, end = math.exp(-low / KARRAS_RHO), math.exp(-high / KARRAS_RHO)
    return [-KARRAS_RHO * math.log(root) for root in np.linspace(start, end, n)]


def flow_spaced(n: int, steps: int, spacing: str, shift: float, moving: bool) -> list[float]:
    """n sigmas of a flow, falling from 1, before their shift.

    "trailing" (FLUX): evenly to 1 / n. "linspace" (SD3): evenly to the smallest train sigma, which is shifted already
    unless the shift is a moving one. "leading": train indices. "full" (UniPC), "short" (DPM-Solver): evenly towards
    the smallest train sigma or, one train step further down, towards 0, neither reached.
    """
    if spacing == "leading":
        return [(i + 1) / steps for i in time_spaced(n, steps, spacing)]
    if spacing == "linspace":
        smallest = 1 / steps if moving else shifted(1 / steps, shift)
        return [1 - k * (1 - smallest) / max(n - 1, 1) for k in range(n)]
    if spacing == "full":
        return [1 - k * (1 - 1 / steps) / n for k in range(n)]
    if spacing == "short":
        return [(1 - 1 / steps) * (1 - k / n) for k in range(n)]
    if spacing == "trailing":
        return [1 - k / n for k in range(n)]
    raise InputError(f"spacing={spacing!r} is unknown; have {', '.join(SPACINGS)}")


def flow_shaped(sigmas: Sequence[float], shift: float, rule: GridRule | None = None) -> list[float]:
    """Sigmas of a flow after the shift; and, with a rule, stretched to its terminal and spaced as its sigmas are."""
    moved = [min(shifted(sigma, shift), 1.0) for sigma in sigmas]
    if rule is not None and rule.terminal is not None:
        stretch = (1 - moved[-1]) / (1 - rule.terminal)
        moved = [1 - (1 - sigma) / stretch for sigma in moved]
    if rule is not None and rule.sigmas is not None:
        ends = -math.log(moved[0]), -math.log(moved[-1])
        moved = [min(math.exp(-lam), 1.0) for lam in lambda_spaced(len(moved), *ends, rule.sigmas)]
    return moved


def shifted(sigma: float, shift: float) -> float:
    """s sigma / (1 + (s - 1) sigma)."""
    return shift * sigma / (1 + (shift - 1) * sigma)
