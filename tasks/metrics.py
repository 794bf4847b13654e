"""Exact definitions of depth and normals errors. Maps are (B, H, W), masks bool; a result is one value an image (B,).

A depth metric is computed over the valid pixels of an image and then averaged over images by the caller; an image
without valid pixels gives not-a-number, which `torch.nanmean` leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from ..utils.errors import InputError

Alignment = Literal["none", "scale", "depth", "disparity"]
MIN_DEPTH = 1e-6
MIN_DISPARITY = 1e-3
NORMAL_THRESHOLDS_DEG = (5.0, 7.5, 11.25, 22.5, 30.0)


class Affine(NamedTuple):
    """s and t (B,) of s x + t."""

    scale: Tensor
    shift: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """The map applied to (B, H, W)."""
        return self.scale[:, None, None] * values + self.shift[:, None, None]


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid pixels (B,); nan where there are none."""
    kept = torch.where(valid, values, torch.zeros_like(values)).flatten(1).sum(1)
    return kept / valid.flatten(1).sum(1)


def mean_of_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over images of the mean over valid pixels; images without any count 0."""
    return masked_mean(values, valid).nan_to_num(0.0).mean()


def edge_error(error: Tensor, valid: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of the error (B, H, W) between valid neighbours, at strides 1, 2, 4 (MiDaS)."""
    total = error.new_zeros(())
    for k in range(scales):
        values, keep = error[:, :: 2**k, :: 2**k], valid[:, :: 2**k, :: 2**k]
        for axis in (1, 2):
            pairs = keep.narrow(axis, 1, keep.shape[axis] - 1) & keep.narrow(axis, 0, keep.shape[axis] - 1)
            total = total + mean_of_valid(values.diff(dim=axis).abs(), pairs)
    return total / (2 * scales)


def fit_affine(prediction: Tensor, target: Tensor, valid: Tensor, ridge: float = 0.0, positive: bool = False) -> Affine:
    """argmin_(s,t) sum (s p + t - d)^2 over the valid pixels, in float64; differentiable.

    `ridge` is added to the variance of p; a constant prediction gives s = 0 and t = mean(d). With `positive` s >= 0.
    """
    p, d = prediction.double(), target.double()
    count = valid.flatten(1).sum(1).clamp(min=1)  # an image without valid pixels gives s = t = 0

    def mean(values: Tensor) -> Tensor:
        return torch.where(valid, values, torch.zeros_like(values)).flatten(1).sum(1) / count

    mean_p, mean_d = mean(p), mean(d)
    centred = p - mean_p[:, None, None]
    variance = mean(centred**2)
    covariance = mean(centred * (d - mean_d[:, None, None]))
    scale = covariance / (variance + ridge).clamp(min=1e-18)
    scale = scale.clamp(min=0) if positive else scale
    return Affine(scale, mean_d - scale * mean_p)


def fit_scale(prediction: Tensor, target: Tensor, valid: Tensor) -> Affine:
    """argmin_s sum (s p - d)^2 over the valid pixels."""
    p, d = prediction.double(), target.double()
    scale = masked_mean(p * d, valid) / masked_mean(p * p, valid).clamp(min=1e-18)
    return Affine(scale, torch.zeros_like(scale))


def align(
    prediction: Tensor,
    depth_m: Tensor,
    valid: Tensor,
    how: Alignment = "depth",
    limits: tuple[float, float] | None = None,
) -> Tensor:
    """The prediction in metres (B, H, W) after a least-squares fit to the ground truth.

    Args:
        prediction: depth up to an affine map ("depth"), up to scale ("scale"), in metres ("none"), or disparity up to
            an affine map ("disparity": fitted to 1 / d, clipped at 1e-3, inverted).
        depth_m: ground truth, positive where valid.
        valid: which pixels count.
        how: the fit.
        limits: range of the data set; the result is clipped to it, and to >= 1e-6 in any case.
    """
    fits = {"none": _as_it_is, "scale": _scaled, "depth": _in_depth, "disparity": _in_disparity}
    if how not in fits:
        raise InputError(f"alignment {how!r} is unknown; have {', '.join(fits)}")
    metres = fits[how](prediction, depth_m, valid)
    if limits is not None:
        metres = metres.clamp(*limits)
    return metres.clamp(min=MIN_DEPTH).to(prediction.dtype)


def _as_it_is(prediction: Tensor, depth_m: Tensor, valid: Tensor) -> Tensor:
    return prediction.double()


def _scaled(prediction: Tensor, depth_m: Tensor, valid: Tensor) -> Tensor:
    return fit_scale(prediction, depth_m, valid)(prediction.double())


def _in_depth(prediction: Tensor, depth_m: Tensor, valid: Tensor) -> Tensor:
    return fit_affine(prediction, depth_m, valid)(prediction.double())


def _in_disparity(prediction: Tensor, depth_m: Tensor, valid: Tensor) -> Tensor:
    disparity = 1 / torch.where(valid, depth_m, torch.ones_like(depth_m)).double()
    return 1 / fit_affine(prediction, disparity, valid)(prediction.double()).clamp(min=MIN_DISPARITY)


def depth_errors(metres: Tensor, depth_m: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Every depth metric, (B,) each, of an aligned prediction > 0 against depth > 0, both (B, H, W) in metres.

    abs_rel, sq_rel, rmse, rmse_log, log10, delta1..3 (share with max(d'/d, d/d') < 1.25^k, strict), silog
    (100 sqrt(mean g^2 - (mean g)^2), g = ln d' - ln d), irmse (on 1 / d).
    """
    one = torch.ones_like(depth_m, dtype=torch.float64)
    d = torch.where(valid, depth_m.double(), one)
    p = torch.where(valid, metres.double(), one)
    g = p.log() - d.log()
    ratio = torch.maximum(p / d, d / p)
    mean_square = masked_mean(g * g, valid)
    out = {
        "abs_rel": masked_mean((p - d).abs() / d, valid),
        "sq_rel": masked_mean((p - d) ** 2 / d, valid),
        "rmse": masked_mean((p - d) ** 2, valid).sqrt(),
        "rmse_log": mean_square.sqrt(),
        "log10": masked_mean((p.log10() - d.log10()).abs(), valid),
        "silog": 100 * (mean_square - masked_mean(g, valid) ** 2).clamp(min=0).sqrt(),
        "irmse": masked_mean((1 / p - 1 / d) ** 2, valid).sqrt(),
    }
    return out | {f"delta{k}": masked_mean((ratio < 1.25**k).double(), valid) for k in (1, 2, 3)}


def angles_deg(prediction: Tensor, target: Tensor) -> Tensor:
    """Angle (B, H, W) in degrees between vectors (B, 3, H, W); any lengths > 0."""
    p, n = (v.double() / v.double().norm(dim=1, keepdim=True).clamp(min=1e-12) for v in (prediction, target))
    return torch.rad2deg((p * n).sum(1).clamp(-1, 1).arccos())


def normal_errors(
    prediction: Tensor, target: Tensor, valid: Tensor | None = None, pooling: Literal["image", "pixels"] = "image"
) -> dict[str, Tensor]:
    """mean, median, rmse in degrees and shares below 5, 7.5, 11.25, 22.5, 30 degrees of vectors (B, 3, H, W).

    Ground truth that is zero does not count. Pooling "image" gives (B,) (average them), "pixels" pools all pixels of
    the set into one value (1,); the two can differ by a degree.
    """
    known = target.abs().sum(1) > 0
    known = known if valid is None else known & valid
    angles = angles_deg(prediction, target)
    if pooling == "pixels":
        groups = [angles[known]]
    elif pooling == "image":
        groups = [one[keep] for one, keep in zip(angles, known, strict=True)]
    else:
        raise InputError(f"pooling {pooling!r} is unknown; have image, pixels")
    rows = [_angle_statistics(group) for group in groups]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _angle_statistics(angles: Tensor) -> dict[str, Tensor]:
    """Statistics of angles (n,) in degrees; nan for n = 0."""
    unknown = angles.new_full((), torch.nan)
    names = ("mean", "median", "rmse", *(f"below_{limit:g}" for limit in NORMAL_THRESHOLDS_DEG))
    if angles.numel() == 0:
        return dict.fromkeys(names, unknown)
    ordered = angles.sort().values
    middle = 0.5 * (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2])
    shares = [(angles < limit).double().mean() for limit in NORMAL_THRESHOLDS_DEG]
    return dict(zip(names, (angles.mean(), middle, (angles**2).mean().sqrt(), *shares), strict=True))


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two vectors, e.g. uncertainty and error; equal values share a rank. 0 for a constant one."""
    one, other = (v.flatten().double().cpu().numpy() for v in (a, b))
    if min(np.ptp(one), np.ptp(other)) == 0:
        return 0.0
    return float(spearmanr(one, other).statistic)


def pck(
    errors: Sequence[Tensor], sizes: Sequence[float], alpha: float = 0.1, per: Literal["point", "image"] = "point"
) -> float:
    """Share of key points within alpha s of the truth (strictly), of errors (K_i,) in px of N pairs.

    Args:
        errors: distances, one tensor a pair; not-a-number counts as wrong.
        sizes: s of each pair: longer side of the target's box (SPair-71k), or of the picture (PF-Pascal).
        alpha: share of s.
        per: "point": all points of all pairs are one set; "image": the mean of the pairs' own shares.

    Raises InputError without any point.
    """
    right = [(one < alpha * size).double() for one, size in zip(errors, sizes, strict=True) if len(one)]
    if not right:
        raise InputError("there are no key points to measure")
    return float(torch.cat(right).mean() if per == "point" else torch.stack([one.mean() for one in right]).mean())
