"""Linear degradations of images with exact adjoints: super-resolution, blur, inpainting, identity.

Images are (B, C, H, W), any range; y = A x. The separable ones act as one small matrix along each axis, which makes the
adjoint a transpose and the pseudo-inverse a product of pseudo-inverses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from ...utils.errors import InputError

CUTOFF = 0.3  # singular values below this share of the largest are not inverted: at most 1 / CUTOFF^2 of noise gain


class Operator(ABC):
    """A linear map of images."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, so that <A x, y> = <x, A^T y>."""

    @abstractmethod
    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A plausible image for y: A^+ y, without the directions that would amplify noise."""

    def count(self, y: Tensor) -> Tensor:
        """Numbers that were measured in each row of y, (B,)."""
        return torch.full((y.shape[0],), float(y[0].numel()), device=y.device)


class Identity(Operator):
    """Noise alone."""

    def forward(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """y."""
        return y

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """y."""
        return y


class Inpainting(Operator):
    """Keeps the pixels where the mask is set; the others are zero in y."""

    def __init__(self, known: Tensor) -> None:
        """Mask (H, W), (1, 1, H, W) or (B, 1, H, W), true where a pixel is known."""
        if known.ndim == 2:
            known = known[None, None]
        if known.ndim != 4 or known.shape[1] != 1:
            raise InputError(f"known has shape {tuple(known.shape)}, expected (H, W) or (B, 1, H, W)")
        self.known = known.bool()

    def forward(self, x: Tensor) -> Tensor:
        """x where it is known, else 0."""
        return x * self.known.to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """The same map."""
        return self.forward(y)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Unknown pixels take the mean of the known ones, per row and channel."""
        known = self.known.to(y)
        mean = (y * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp_min(1)
        return y * known + mean * (1 - known)

    def count(self, y: Tensor) -> Tensor:
        """See Operator.count."""
        return (self.known.sum((1, 2, 3)) * y.shape[1]).to(y.device, torch.float32).expand(y.shape[0])


class Separable(Operator):
    """y = R x C^T with one matrix along the rows and one along the columns."""

    def __init__(self, vertical: Tensor, horizontal: Tensor) -> None:
        """Matrices R (h, H) and C (w, W)."""
        self.vertical, self.horizontal = vertical.double(), horizontal.double()
        self._inverses = [torch.linalg.pinv(m, rtol=CUTOFF) for m in (self.vertical, self.horizontal)]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) of images (B, C, H, W)."""
        wanted = (self.vertical.shape[1], self.horizontal.shape[1])
        if tuple(x.shape[-2:]) != wanted:
            raise InputError(f"images are {tuple(x.shape[-2:])} pixels, this operator was made for {wanted}")
        return _along(x, self.vertical, self.horizontal)

    def adjoint(self, y: Tensor) -> Tensor:
        """R^T y C."""
        return _along(y, self.vertical.mT, self.horizontal.mT)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """See Operator.pseudo_inverse."""
        return _along(y, *self._inverses)


def _along(x: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    return vertical.to(x) @ x @ horizontal.to(x).mT


def super_resolution(factor: int, height: int, width: int) -> Separable:
    """Bicubic antialiased reduction of (height, width) px images by `factor`."""
    if factor < 1 or height % factor or width % factor:
        raise InputError(f"factor={factor} must divide the image's sides {height} x {width} px")
    return Separable(_reduction(height, factor), _reduction(width, factor))


def _reduction(size: int, factor: int) -> Tensor:
    """(size / factor, size): what the library's resizing does along one axis."""
    if factor == 1:
        return torch.eye(size, dtype=torch.float64)
    rows = torch.eye(size, dtype=torch.float64)[None, None]  # (1, 1, size, size): every column one unit signal
    return F.interpolate(rows, (size // factor, size), mode="bicubic", antialias=True)[0, 0]


def gaussian_blur(std_px: float, height: int, width: int) -> Separable:
    """Gaussian blur of (height, width) px images, edges mirrored; std 0 is the identity."""
    if std_px < 0:
        raise InputError(f"std_px={std_px} cannot be negative")
    return Separable(_blur(height, std_px), _blur(width, std_px))


def _blur(size: int, std_px: float) -> Tensor:
    """(size, size) rows of a Gaussian cut at 3 std, folded back at the ends, each summing to 1."""
    reach = min(int(3 * std_px + 0.5), size - 1)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets.double() / std_px) ** 2) if std_px else torch.ones(1, dtype=torch.float64)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for offset, weight in zip(offsets.tolist(), (weights / weights.sum()).tolist()):
        column = (torch.arange(size) + offset).abs()
        column = torch.where(column > size - 1, 2 * (size - 1) - column, column)
        matrix[torch.arange(size), column] += weight
    return matrix
