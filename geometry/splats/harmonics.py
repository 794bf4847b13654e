"""Real spherical harmonics of degree 0 to 3 as splats use them: the order and signs of gsplat and of the 3DGS files.

Order within degree l: m = -l .. l, with the Condon-Shortley phase: degree 1 is (-y, z, -x). A splat's colour in
direction d is max(0, 0.5 + sum_k c_k Y_k(d)), display-referred sRGB.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...utils.errors import InputError

MAX_DEGREE = 3
C0 = 0.28209479177387814  # Y_0; the colour of a splat of degree 0 is 0.5 + C0 c_0


def count_of(degree: int) -> int:
    """Number of coefficients of all degrees up to `degree`. Raises InputError unless it is 0 to 3."""
    if not 0 <= degree <= MAX_DEGREE:
        raise InputError(f"SH degree {degree} is not one of 0 to {MAX_DEGREE}")
    return (degree + 1) ** 2


def degree_of(count: int) -> int:
    """The degree that has `count` coefficients. Raises InputError for a number that no degree has."""
    for degree in range(MAX_DEGREE + 1):
        if (degree + 1) ** 2 == count:
            return degree
    raise InputError(f"{count} SH coefficients fit no degree; have 1, 4, 9 or 16")


def basis(directions: Tensor, degree: int) -> Tensor:
    """Y_k of directions (..., 3) of any length: (..., (degree + 1)^2) (Sloan, JCGT 2013)."""
    count = count_of(degree)
    x, y, z = torch.nn.functional.normalize(directions, dim=-1).unbind(-1)
    values = [torch.full_like(x, C0)]
    if degree >= 1:
        values += [-0.48860251190292 * y, 0.48860251190292 * z, -0.48860251190292 * x]
    if degree >= 2:
        c1, s1 = x * x - y * y, 2 * x * y
        values += [0.5462742152960395 * s1, -1.092548430592079 * y * z, 0.9461746957575601 * z * z - 0.3153915652525201]
        values += [-1.092548430592079 * x * z, 0.5462742152960395 * c1]
    if degree >= 3:
        ring, c2, s2 = 0.4570457994644658 - 2.285228997322329 * z * z, x * c1 - y * s1, x * s1 + y * c1
        values += [-0.5900435899266435 * s2, 1.445305721320277 * z * s1, ring * y]
        values += [z * (1.865881662950577 * z * z - 1.119528997770346), ring * x]
        values += [1.445305721320277 * z * c1, -0.5900435899266435 * c2]
    assert len(values) == count
    return torch.stack(values, dim=-1)


def rotations(rotation: Tensor, degree: int) -> list[Tensor]:
    """The matrices (2 l + 1, 2 l + 1) in float64 that turn the coefficients of degrees l = 1 .. degree.

    f'(d) = f(R^T d) has the coefficients D_l c: with enough directions d_i, D_l solves Y_l(d) D_l = Y_l(R^T d). These
    are Wigner's matrices of the real harmonics. rotation: (3, 3), orthonormal with determinant 1.
    """
    turn = rotation.detach().double().cpu()
    if float((turn @ turn.mT - torch.eye(3)).abs().max()) > 1e-4 or float(torch.linalg.det(turn)) < 0:
        raise InputError("harmonics turn by rotations only; the matrix is not orthonormal with determinant 1")
    index = torch.arange(32, dtype=torch.float64) + 0.5  # a Fibonacci sphere determines every degree
    height, angle = 1 - index / 16, index * 2.399963229728653
    ring = torch.sqrt(1 - height**2)
    directions = torch.stack([ring * torch.cos(angle), ring * torch.sin(angle), height], dim=-1)
    here, there = basis(directions, degree), basis(directions @ turn, degree)
    bands = [slice(level**2, (level + 1) ** 2) for level in range(1, degree + 1)]
    return [torch.linalg.lstsq(here[:, band], there[:, band]).solution for band in bands]


def rotated(coefficients: Tensor, rotation: Tensor) -> Tensor:
    """Coefficients (N, K, C) of the same function in a frame turned by a rotation (3, 3)."""
    degree = degree_of(coefficients.shape[1])
    parts = [coefficients[:, :1]]
    for level, matrix in enumerate(rotations(rotation, degree), start=1):
        band = coefficients[:, level**2 : (level + 1) ** 2]
        parts.append(torch.einsum("km,nmc->nkc", matrix.to(band), band))
    return torch.cat(parts, dim=1)
