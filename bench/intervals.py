"""Numbers with their uncertainty: proportions, means and ratios of errors, to the digits that are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, SupportsFloat

import numpy as np
from scipy import stats

from ..utils.errors import InputError

LEVEL = 0.95
DRAWS = 1000


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion (Wilson 1927)."""
    if trials < 1:
        raise InputError(f"trials={trials}: a proportion needs at least one")
    found = stats.binomtest(successes, trials).proportion_ci(LEVEL, "wilson")
    return float(found.low), float(found.high)


def share(flags: Sequence[bool] | np.ndarray) -> dict[str, Any]:
    """A proportion with its 95 % interval and count, rounded for reading."""
    hits, total = int(np.sum(flags)), len(flags)
    low, high = wilson(hits, total)
    return {"value": round(hits / total, 4), "low": round(low, 4), "high": round(high, 4), "n": total}


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Mean, standard deviation, median and count."""
    array = np.asarray(values, float)
    return {
        "mean": round(float(array.mean()), 5),
        "std": round(float(array.std()), 5),
        "median": round(float(np.median(array)), 5),
        "n": len(array),
    }


def resamples(count: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Rows (draws, count) drawn with replacement, the same for the same count, so that differences stay paired."""
    return np.random.default_rng(seed).integers(count, size=(draws, count))


def bootstrapped(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Mean with its 95 % bootstrap interval, standard deviation, median and count, to five digits."""
    array = np.asarray(values, float)
    low, high = _interval((array,), np.mean)
    found = {"mean": array.mean(), "low": low, "high": high, "std": array.std(), "median": np.median(array)}
    return {**{name: digits(value) for name, value in found.items()}, "n": len(array)}


def ratio(values: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Ratio of the means of two paired sets of errors (n,) with its 95 % bootstrap interval over the pairs."""
    a, b = (np.asarray(v, float) for v in (values, others))

    def of_means(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return a.mean(axis) / np.maximum(b.mean(axis), 1e-300)

    low, high = _interval((a, b), of_means)
    return {"ratio": digits(of_means(a, b, -1)), "low": digits(low), "high": digits(high)}


def _interval(samples: tuple[np.ndarray, ...], statistic: Callable[..., Any]) -> tuple[float, float]:
    """Quantiles of the statistic over resampled rows, the same rows of all samples (Efron 1979)."""
    if len(samples[0]) < 2:
        return (float(statistic(*samples, axis=-1)),) * 2
    found = stats.bootstrap(
        samples,
        statistic,
        n_resamples=DRAWS,
        vectorized=True,
        paired=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def digits(value: SupportsFloat, count: int = 5) -> float:
    """The value to so many significant digits."""
    return float(f"{float(value):.{count}g}")
