"""Several predictions of one image to one prediction and its uncertainty.

Affine-invariant maps are aligned first (Marigold, Ke et al. 2024): minimise over s_i, t_i
sum_(i<j) sqrt(mean((s_i d_i + t_i - s_j d_j - t_j)^2)) + strength (|min(m)| + |1 - max(m)|), m the reduced map.
The minimum of that sum is a collapse (all s_i near 0: the pull is too weak); what works is two BFGS steps on gradients
by finite differences of float32 values, whose result changes by up to 0.02 when the maps change by 1e-7. That is the
"published" solver, equal to diffusers', down to its lower median: of an even number of members the lower of the two
middle ones, so that two members show no deviation at all. "consensus" has no such collapse: members are standardised
and refitted by least squares to their mean until they agree, in float64. Its median, and that of maps that need no
alignment, is the mean of the two middle members where their number is even.
"""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from ..utils.errors import InputError

Reduction = Literal["median", "mean"]
Solver = Literal["consensus", "published"]


class Ensembled(NamedTuple):
    """One prediction out of E."""

    prediction: Tensor  # (1, C, H, W)
    uncertainty: Tensor  # (1, 1, H, W)


class Alignment(NamedTuple):
    """How affine members are aligned."""

    solver: Solver = "published"
    shift: bool = True  # False: scale only
    strength: float = 0.02  # of the pull to the range [0, 1]
    max_iter: int = 2
    tol: float = 1e-3
    max_size: int = 1024  # px, longest edge at which the fit is made


PUBLISHED = Alignment()
CONSENSUS = Alignment("consensus")
ALIGNMENTS: dict[Solver, Alignment] = {how.solver: how for how in (CONSENSUS, PUBLISHED)}
ROUNDS = 8


def ensemble_affine(maps: Tensor, reduction: Reduction = "median", how: Alignment = PUBLISHED) -> Ensembled:
    """Aligns, reduces and rescales to [0, 1] maps (E, 1, H, W); the uncertainty is the median absolute deviation.

    Reduction "mean" gives the standard deviation instead. Medians of even E are the mean of the two middle members,
    with the published solver the lower of them.
    """
    if maps.ndim != 4 or maps.shape[1] != 1:
        raise InputError(f"maps have shape {tuple(maps.shape)}, expected (E, 1, H, W)")
    if reduction not in ("median", "mean"):
        raise InputError(f"reduction {reduction!r} is unknown; have median, mean")
    aligned = _apply(maps, _fit(maps, reduction, how), how.shift)
    prediction = _reduce(aligned, reduction, how.solver)
    spread = (
        _reduce((aligned - prediction).abs(), reduction, how.solver)
        if reduction == "median"
        else aligned.std(0, keepdim=True)
    )
    low = prediction.min() if how.shift else prediction.new_zeros(())
    span = (prediction.max() - low).clamp(min=1e-6)
    return Ensembled((prediction - low) / span, spread / span)


def ensemble_directions(normals: Tensor, reduction: Literal["closest", "mean"] = "closest") -> Ensembled:
    """Unit vectors (E, 3, H, W): the member closest to the mean direction, or that direction itself.

    The uncertainty is the members' mean angle to it, divided by pi.
    """
    if normals.ndim != 4 or normals.shape[1] != 3:
        raise InputError(f"normals have shape {tuple(normals.shape)}, expected (E, 3, H, W)")
    if reduction not in ("closest", "mean"):
        raise InputError(f"reduction {reduction!r} is unknown; have closest, mean")
    mean = F.normalize(normals.mean(0, keepdim=True), dim=1, eps=1e-6)  # (1, 3, H, W)
    cosine = (mean * normals).sum(1, keepdim=True).clamp(-1, 1)  # (E, 1, H, W)
    uncertainty = cosine.arccos().mean(0, keepdim=True) / np.pi
    if reduction == "mean":
        return Ensembled(mean, uncertainty)
    nearest = cosine.argmax(0, keepdim=True).expand(-1, 3, -1, -1)
    return Ensembled(torch.gather(normals, 0, nearest), uncertainty)


def ensemble_median(maps: Tensor) -> Ensembled:
    """Per-pixel median of maps (E, C, H, W) that need no alignment, and the median deviation's mean over channels."""
    middle = median_of_members(maps)
    deviation = median_of_members((maps - middle).abs())
    return Ensembled(middle, deviation.mean(1, keepdim=True))


def median_of_members(members: Tensor) -> Tensor:
    """(1, ...) of members (E, ...), of even E the mean of the two middle ones, as numpy.median."""
    ranked, count = members.sort(0).values, len(members)
    low, high = ranked[(count - 1) // 2], ranked[count // 2]
    return ((low + high) / 2)[None]


def _reduce(aligned: Tensor, reduction: Reduction, solver: Solver) -> Tensor:
    if reduction == "mean":
        return aligned.mean(0, keepdim=True)
    return torch.median(aligned, 0, keepdim=True).values if solver == "published" else median_of_members(aligned)


def _apply(maps: Tensor, parameters: np.ndarray, shift: bool) -> Tensor:
    """s_i d_i + t_i with parameters (s_1 .. s_E[, t_1 .. t_E])."""
    values = torch.from_numpy(parameters).to(maps).reshape(-1, maps.shape[0], 1, 1, 1)
    return maps * values[0] + values[1] if shift else maps * values[0]


def _cost(parameters: np.ndarray, maps: Tensor, reduction: Reduction, how: Alignment) -> float:
    aligned = _apply(maps, parameters, how.shift)
    pairs = itertools.combinations(range(len(maps)), 2)
    cost = sum(((aligned[i] - aligned[j]) ** 2).mean().sqrt().item() for i, j in pairs)
    if how.strength > 0:
        reduced = _reduce(aligned, reduction, how.solver)
        cost += (reduced.min().abs().item() + (1.0 - reduced.max()).abs().item()) * how.strength
    return cost


def _fit(maps: Tensor, reduction: Reduction, how: Alignment) -> np.ndarray:
    """Parameters float64 (2 E,) or (E,) of the alignment."""
    small = maps.float()
    longest = max(small.shape[2:])
    if longest > how.max_size:
        size = [side * how.max_size // longest for side in small.shape[2:]]
        small = F.interpolate(small, size, mode="nearest-exact")
    if how.solver == "consensus":
        return _consensus(small.flatten(1).cpu().double(), how.shift).numpy()
    low, high = small.flatten(1).min(1).values, small.flatten(1).max(1).values
    if how.shift:
        scale = 1.0 / (high - low).clamp(min=1e-6)
        start = torch.cat([scale, -scale * low])
    else:
        start = 1.0 / high.clamp(min=1e-6)
    begin = start.cpu().numpy().astype(np.float64)
    if len(maps) < 2:
        return begin
    options = {"maxiter": how.max_iter, "disp": False}
    return minimize(_cost, begin, (small, reduction, how), method="BFGS", tol=how.tol, options=options).x


def _consensus(members: Tensor, shift: bool) -> Tensor:
    """Parameters (2 E,) or (E,) float64 that bring rows (E, n) to unit norm and together."""
    centre = members.mean(1, keepdim=True) if shift else torch.zeros_like(members[:, :1])
    rows = members - centre
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    weight = torch.ones_like(rows[:, :1])
    for _ in range(ROUNDS):  # power iteration towards the common direction; weights: each row's share of it
        common = (weight * rows).mean(0)
        common = common / common.norm().clamp(min=1e-12)
        weight = (rows @ common)[:, None].clamp(min=0.1)  # the least-squares factor of a unit row
    scale = weight[:, 0] / (members - centre).norm(dim=1).clamp(min=1e-12)
    return torch.cat([scale, -scale * centre[:, 0]]) if shift else scale
