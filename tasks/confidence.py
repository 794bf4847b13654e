"""How sure a prediction is, in probabilities that hold: an error model fitted and calibrated on held-out scenes.

The size of the error is predicted from what can be seen without the truth, sigma = exp(w . features), by least
squares on log errors over every other scene, of differences within scenes: what tells easy scenes from hard ones, the
light or what is shown, does not tell the good pixels of one from the bad. On the scenes between, the scaled errors e
/ sigma have quantiles: with those, a bound q sigma holds for the wanted share of the pixels of scenes like these
(split conformal prediction with scaled residuals; Papadopoulos et al. 2002, Lei et al. 2018), and the share of pixels
whose error is below a tolerance is a probability.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.configs import load_config
from ..utils.errors import InputError

SHARES = 100  # quantiles kept
RIDGE = 0.05  # on weights, of the mean square of a feature
SMALLEST = 1e-6  # error, before its logarithm


@dataclass(frozen=True)
class ErrorModel:
    """Saved with a head for one target."""

    unit: str
    """of errors: "relative", "deg" ..."""
    tolerance: float
    """error below which a prediction counts as right; confidence is the probability of that"""
    weights: tuple[float, ...]
    """of the features, then the constant"""
    quantiles: tuple[float, ...]
    """of error / sigma at shares 1/100, 2/100 ... 99/100"""
    scenes: int = 0
    """that it was calibrated on"""

    def __post_init__(self) -> None:
        if len(self.quantiles) != SHARES - 1 or any(np.diff(self.quantiles) < 0) or not self.weights:
            raise InputError(f"quantiles must be {SHARES - 1} numbers that do not fall, and weights not be empty")

    def sigma(self, features: np.ndarray) -> np.ndarray:
        """Size of the error for features (..., F)."""
        weights = np.asarray(self.weights)
        return np.exp(np.clip(features @ weights[:-1] + weights[-1], -30, 30))

    def bound(self, features: np.ndarray, level: float) -> np.ndarray:
        """Error that is not exceeded in a share `level` of the cases."""
        if not 0.01 <= level <= 0.99:
            raise InputError(f"level={level} must lie between 0.01 and 0.99")
        return self.sigma(features) * np.interp(level, _shares(), self.quantiles)

    def probability(self, features: np.ndarray) -> np.ndarray:
        """Share of such cases whose error is at most the tolerance, in [0.01, 0.99]."""
        return np.interp(self.tolerance / self.sigma(features), self.quantiles, _shares())

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> ErrorModel:
        """From the JSON of a head. Raises InputError for another one's."""
        return load_config(cls, dict(values))


def fit_error_model(features: list[np.ndarray], errors: list[np.ndarray], unit: str, tolerance: float) -> ErrorModel:
    """The model for features (n_i, F) and errors (n_i,) of scenes i, which count alike whatever their size.

    Every other scene gives the weights, those between them the quantiles, so that sets one after the other are in both.
    Scenes of one row, cameras, are compared with each other instead of within. Raises InputError for fewer than 4.
    """
    if len(features) < 4 or len(features) != len(errors):
        raise InputError(f"{len(features)} scenes: an error model needs 4 at least, half of them to calibrate on")
    weights = _weights(features[::2], [np.log(np.maximum(e, SMALLEST)) for e in errors[::2]])
    model = ErrorModel(unit, tolerance, tuple(weights.tolist()), tuple(np.ones(SHARES - 1).tolist()))
    scaled = [e / model.sigma(f) for f, e in zip(features[1::2], errors[1::2], strict=True)]
    weight = np.concatenate([np.full(len(part), 1 / len(part)) for part in scaled])
    quantiles = _quantiles(np.concatenate(scaled), weight, len(scaled))
    return ErrorModel(unit, tolerance, model.weights, tuple(quantiles.tolist()), len(features))


def _weights(features: list[np.ndarray], wanted: list[np.ndarray]) -> np.ndarray:
    """(F + 1,) of features and the constant by ridge regression on `wanted`, scenes alike whatever their size."""
    whole = max(len(part) for part in features) == 1
    middles = [np.mean(features, 0)[0]] * len(features) if whole else [part.mean(0) for part in features]
    means = [np.mean([part.mean() for part in wanted])] * len(wanted) if whole else [part.mean() for part in wanted]
    rows = np.concatenate([(f - m) / np.sqrt(len(f)) for f, m in zip(features, middles, strict=True)])
    aims = np.concatenate([(w - m) / np.sqrt(len(w)) for w, m in zip(wanted, means, strict=True)])
    gram = rows.T @ rows + RIDGE * len(features) * np.eye(rows.shape[1])
    slopes = np.linalg.solve(gram, rows.T @ aims)
    constant = np.mean([mean - middle @ slopes for mean, middle in zip(means, middles, strict=True)])
    return np.append(slopes, constant)


def pixel_features(maps: Tensor, spread: Tensor | None, images: Tensor) -> np.ndarray:
    """(B, H, W, F) of what goes with errors at a pixel: the ensemble's spread, edges of the map and of the picture at
    two scales, darkness, and the distance to the picture's edge. Maps (B, C, H, W), images (B, 3, H, W) of one size."""
    grey = images.float().mean(1, keepdim=True)
    height, width = maps.shape[2:]
    y = torch.linspace(-1, 1, height, device=maps.device).reshape(1, 1, -1, 1).expand(len(maps), 1, height, width)
    x = torch.linspace(-1, 1, width, device=maps.device).reshape(1, 1, 1, -1).expand(len(maps), 1, height, width)
    edges = [_log(_edges(part, reach)) for part in (maps.float(), grey) for reach in (1, 4)]
    told = torch.zeros_like(grey) if spread is None else _log(spread.float())
    stacked = torch.cat([told, *edges, grey, torch.maximum(x.abs(), y.abs()), y], 1)
    return stacked.permute(0, 2, 3, 1).double().cpu().numpy()


def coverage(model: ErrorModel, features: list[np.ndarray], errors: list[np.ndarray], level: float) -> float:
    """Share of errors within the bound of a level: mean over scenes."""
    inside = [float((e <= model.bound(f, level)).mean()) for f, e in zip(features, errors, strict=True)]
    return float(np.mean(inside))


def _edges(maps: Tensor, reach: int) -> Tensor:
    """(B, 1, H, W) largest difference of a map within so many pixels."""
    side = 2 * reach + 1
    padded = F.pad(maps, (reach,) * 4, mode="replicate")
    return (F.max_pool2d(padded, side, 1) + F.max_pool2d(-padded, side, 1)).amax(1, keepdim=True)


def _log(values: Tensor) -> Tensor:
    return values.clamp(min=1e-4).log()


def _shares() -> np.ndarray:
    return np.arange(1, SHARES) / SHARES


def _quantiles(values: np.ndarray, weights: np.ndarray, scenes: int) -> np.ndarray:
    """Weighted quantiles at the shares, raised by the (n + 1) / n that a new scene needs: it counts as one more, with
    endless errors (hierarchical conformal prediction, Lee, Barber & Willett 2023). Few scenes make bounds wide."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    wanted = np.minimum(_shares() * (scenes + 1) / scenes, 1.0)
    return values[order][np.minimum(np.searchsorted(reached, wanted - 1e-12), len(values) - 1)]
