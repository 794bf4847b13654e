"""A pinhole from rays, half of which may be wrong: K of the x and y that a network says each pixel looks along.

x = a u + b with a = 1 / fx and b = -cx / fx, likewise y over v. The noise is in the rays and the pixels are exact, so
x is fitted to u, not u to x: that would make the focal length too short. Lines begin at the repeated median (Siegel
1982) of the medians of columns or rows, which half of these and half of each cannot move, and end at the M-estimate
with Tukey's weights on angles, whose width is the median residual. (The published RANSAC measures its threshold of 1
along the tangent, keeps nearly everything, and misses f by 10 to 43 % at 30 % outliers.) Nothing is drawn at random.

y takes the cosine of the azimuth that was fitted, not of the one that was predicted, so that errors stay in their axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..utils.errors import InputError
from .lenses import check_field

Array = np.ndarray
ROUNDS = 40
TUKEY = 4.685  # in units of the standard deviation: 95 % efficient for Gaussian noise
NORMAL_MAD = 1.4826  # standard deviation over the median absolute deviation
FLOOR = 1e-9  # rad, of the width of the weights
BLOCKS = 4  # a side, of the jackknife
LONGEST_FOCAL, SHORTEST_FOCAL = 100.0, 0.05  # in longer sides of the picture


@dataclass(frozen=True)
class Known:
    """What need not be estimated."""

    focal_px: tuple[float, float] | None = None  # fx, fy
    principal_px: tuple[float, float] | None = None  # cx, cy
    square: bool = False  # fx = fy

    def __post_init__(self) -> None:
        if self.focal_px is not None and not min(self.focal_px) > 0:
            raise InputError(f"focal_px={self.focal_px} must be above 0")


@dataclass(frozen=True)
class PinholeFit:
    """A camera and how well the rays agree with it."""

    K: Array  # (3, 3) float64, px
    sd: Array  # (4,) standard deviations of fx, fy, cx, cy in px: jackknife over parts of the picture
    inliers: Array  # (N, H, W) bool
    residual_px: float  # root mean square over inliers, at the principal point
    spread_rad: float  # robust standard deviation of all angles


def fit_pinhole(tangents: Tensor, valid: Tensor, size: tuple[int, int], known: Known = Known()) -> PinholeFit:
    """The camera of N pictures taken with it.

    Args:
        tangents: (N, 2, h, w) x and y at the pixel centres of a grid over each picture.
        valid: (N, 1, h, w) bool, which of them count.
        size: (width, height) in px of the pictures; K is in these pixels, whatever the grid.
        known: what is not estimated.

    Raises InputError where the valid rays are too few for a line, or fit no camera, and for a known focal length that
    is no camera's.
    """
    if known.focal_px is not None:
        check_field(known.focal_px, size, "focal_px")
    n, _, height, width = tangents.shape
    if valid.shape != (n, 1, height, width):
        raise InputError(f"valid has shape {tuple(valid.shape)}, expected {(n, 1, height, width)}")
    x, y = (part.double().cpu().numpy() for part in tangents.unbind(1))
    keep = valid[:, 0].cpu().numpy() & np.isfinite(x) & np.isfinite(y)
    u, v = ((np.arange(count) + 0.5) * side / count for count, side in zip((width, height), size, strict=True))
    return _Fit(x, y, keep, u, v, known).solved(max(size))


class _Fit:
    """The rays of one camera, in float64, and lines through them."""

    def __init__(self, x: Array, y: Array, keep: Array, u: Array, v: Array, known: Known) -> None:
        self.x, self.u, self.v, self.keep, self.known = x, u, v, keep, known
        self.cot = y / np.sqrt(1 + x**2)  # of the polar angle
        self.basis, self.fixed = _constraints(known)

    def solved(self, longest: float) -> PinholeFit:
        """See `fit_pinhole`."""
        lines = self._first()
        for _ in range(ROUNDS):
            before = lines
            angles, gains = self._residuals(lines)
            width = max(NORMAL_MAD * float(np.median(np.abs(angles[:, self.keep]))), FLOOR)
            weights = _tukey(angles / (TUKEY * width)) / gains**2 * self.keep
            lines = self._least_squares(*(part.sum(0)[None] for part in self._sums(lines, weights, 1)))[0]
            if np.abs(lines - before).max() <= 1e-13 * np.abs(lines).max():
                break
        self._check(lines, longest)
        angles, gains = self._residuals(lines)
        spread = NORMAL_MAD * float(np.median(np.abs(angles[:, self.keep])))
        inliers = (np.abs(angles) <= max(3 * spread, 1 / longest)).all(0) & self.keep
        K = _matrix(lines)
        focal = np.array([K[0, 0], K[1, 1]]).reshape(2, 1, 1, 1)
        error = np.sqrt(np.mean((angles * focal)[:, inliers] ** 2)) if inliers.any() else 0.0
        return PinholeFit(K, self._jackknife(lines, weights), inliers, float(error), spread)

    def _first(self) -> Array:
        """(4,) a, b of both axes that no half of the rays can move, constraints included."""
        across = _repeated_median(self.u, _medians(np.where(self.keep, self.x, np.nan), (0, 1)))
        fitted = across[0] * self.u + across[1]
        y = np.where(self.keep, self.cot * np.sqrt(1 + fitted**2), np.nan)
        down = _repeated_median(self.v, _medians(y, (0, 2)))
        lines = np.array([*across, *down])
        if self.known.principal_px is None and self.known.focal_px is None and not self.known.square:
            return lines
        # pulled to the constraints by how far a line of either axis moves over the picture
        metric = np.diag([self.u.max() ** 2 / 3, 1.0, self.v.max() ** 2 / 3, 1.0])
        return self._least_squares(metric[None], (metric @ lines)[None])[0]

    def _residuals(self, lines: Array) -> tuple[Array, Array]:
        """(angles (2, N, h, w) in rad by which rays miss the lines, d tangent / d angle there)."""
        fitted_x = (lines[0] * self.u + lines[1])[None, None, :]
        fitted_y = (lines[2] * self.v + lines[3])[None, :, None]
        root = np.sqrt(1 + fitted_x**2)
        gain_x, gain_y = 1 + fitted_x**2, (1 + fitted_x**2 + fitted_y**2) / root
        shape = self.x.shape
        gains = np.stack([np.broadcast_to(gain_x, shape), np.broadcast_to(gain_y, shape)])
        misses = np.stack([self.x - fitted_x, self.cot * root - fitted_y])
        return np.where(self.keep, misses, 0.0) / gains, gains

    def _sums(self, lines: Array, weights: Array, blocks: int) -> tuple[Array, Array]:
        """Normal equations (G, 4, 4) and right sides (G, 4) of the blocks (blocks^2 a picture) of the pictures."""
        root = np.sqrt(1 + (lines[0] * self.u + lines[1]) ** 2)[None, None, :]
        values = (np.where(self.keep, self.x, 0.0), np.where(self.keep, self.cot, 0.0) * root)
        places = (self.u[None, None, :], self.v[None, :, None])
        cells = _cells(self.x.shape, blocks)
        count = self.x.shape[0] * blocks**2
        normal, right = np.zeros((count, 4, 4)), np.zeros((count, 4))
        for axis, (place, value) in enumerate(zip(places, values, strict=True)):
            w, at = weights[axis], 2 * axis

            def total(terms: Array) -> Array:
                return np.bincount(cells.ravel(), np.broadcast_to(terms, self.x.shape).ravel(), count)

            normal[:, at, at] = total(w * place**2)
            normal[:, at, at + 1] = normal[:, at + 1, at] = total(w * place)
            normal[:, at + 1, at + 1] = total(w)
            right[:, at], right[:, at + 1] = total(w * value * place), total(w * value)
        return normal, right

    def _least_squares(self, normal: Array, right: Array) -> Array:
        """Lines (G, 4) of sums (G, 4, 4) and (G, 4), within the constraints."""
        reduced = self.basis.T @ normal @ self.basis
        target = (right - normal @ self.fixed) @ self.basis
        if self.basis.shape[1] == 0:
            return np.broadcast_to(self.fixed, right.shape)
        return np.einsum("gij,gj->gi", np.linalg.pinv(reduced, hermitian=True), target) @ self.basis.T + self.fixed

    def _jackknife(self, lines: Array, weights: Array) -> Array:
        """Standard deviations (4,) of fx, fy, cx, cy: every block left out once (Quenouille; Tukey 1958). Errors of a
        network go together in neighbouring pixels, so that the usual formula would promise far too much."""
        normal, right = self._sums(lines, weights, BLOCKS)
        used = normal[:, 1, 1] + normal[:, 3, 3] > 0
        normal, right = normal[used], right[used]
        if len(normal) < 3:
            return np.full(4, np.nan)
        without = self._least_squares(normal.sum(0) - normal, right.sum(0) - right)
        found = np.stack([1 / without[:, 0], 1 / without[:, 2], *_centres(without)], 1)
        spread: Array = np.sqrt((len(found) - 1) * found.var(0))
        return spread

    def _check(self, lines: Array, longest: float) -> None:
        for name, slope in (("x", lines[0]), ("y", lines[2])):
            focal = np.inf if slope == 0 else 1 / slope / longest
            if not SHORTEST_FOCAL <= focal <= LONGEST_FOCAL:
                raise InputError(
                    f"the rays fit no camera (f{name} would be {focal:.3g} times the longer side); give its focal "
                    "length, or use another head"
                )


def _constraints(known: Known) -> tuple[Array, Array]:
    """Lines = basis (4, k) q + fixed (4,): what is left to estimate of ax, bx, ay, by."""
    fixed = np.zeros(4)
    if known.focal_px is not None:
        fixed[[0, 2]] = 1 / np.array(known.focal_px)
        if known.principal_px is not None:
            fixed[[1, 3]] = -fixed[[0, 2]] * known.principal_px
            return np.zeros((4, 0)), fixed
        return np.eye(4)[:, [1, 3]], fixed
    cx, cy = (None, None) if known.principal_px is None else known.principal_px
    slope_x, slope_y = np.array([1.0, 0, 0, 0]), np.array([0, 0, 1.0, 0])
    if cx is not None and cy is not None:
        slope_x[1], slope_y[3] = -cx, -cy
    slopes = [slope_x + slope_y] if known.square else [slope_x, slope_y]
    free = [] if cx is not None else [np.eye(4)[1], np.eye(4)[3]]
    return np.stack([*slopes, *free], 1), fixed


def _medians(values: Array, axes: tuple[int, int]) -> Array:
    """Median of what is not nan in each column or row; nan where all is."""
    return _median(np.moveaxis(values, axes, (0, 1)).reshape(-1, values.shape[({0, 1, 2} - set(axes)).pop()]))


def _median(values: Array) -> Array:
    """Of the finite values along the first axis, the middle of an even number; nan where there are none."""
    ordered = np.sort(values, 0)  # nans come last
    count = np.isfinite(ordered).sum(0)
    lower, upper = (np.take_along_axis(ordered, at[None], 0)[0] for at in (np.maximum(count - 1, 0) // 2, count // 2))
    return np.where(count > 0, 0.5 * (lower + upper), np.nan)


def _repeated_median(places: Array, values: Array) -> tuple[float, float]:
    """Slope and intercept of values over places: the median over points of the median slope to all others."""
    known = np.isfinite(values)
    if known.sum() < 2:
        raise InputError("the picture shows too little: a camera needs valid rays in two columns and two rows at least")
    p, t = places[known], values[known]
    apart = p[None] - p[:, None]
    np.fill_diagonal(apart, np.nan)
    slope = float(np.median(_median(((t[None] - t[:, None]) / apart).T)))
    return slope, float(np.median(t - slope * p))


def _tukey(ratio: Array) -> Array:
    """(1 - r^2)^2, 0 beyond 1."""
    return np.clip(1 - ratio**2, 0, None) ** 2


def _cells(shape: tuple[int, ...], blocks: int) -> Array:
    """The number of the block (picture, row, column) that each ray of (N, h, w) lies in."""
    n, height, width = shape
    rows, columns = (np.arange(side) * blocks // side for side in (height, width))
    inside = rows[:, None] * blocks + columns[None]
    return np.arange(n)[:, None, None] * blocks**2 + inside[None]


def _centres(lines: Array) -> tuple[Array, Array]:
    """cx and cy of lines (..., 4)."""
    return -lines[..., 1] / lines[..., 0], -lines[..., 3] / lines[..., 2]


def _matrix(lines: Array) -> Array:
    cx, cy = _centres(lines)
    return np.array([[1 / lines[0], 0, cx], [0, 1 / lines[2], cy], [0, 0, 1.0]])
