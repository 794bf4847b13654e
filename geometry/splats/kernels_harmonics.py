"""Colours of Gaussians from their spherical harmonics: compiled loops, forward and by hand backward."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .kernels_project import OPTIONS, Array


@njit(**OPTIONS)
def fill_basis(x: float, y: float, z: float, Y: Array) -> None:
    """Writes the harmonics of a unit direction into Y (K,), as harmonics.basis."""
    Y[0] = 0.28209479177387814
    if len(Y) > 1:
        Y[1], Y[2], Y[3] = -0.48860251190292 * y, 0.48860251190292 * z, -0.48860251190292 * x
    if len(Y) > 4:
        c, s = x * x - y * y, 2 * x * y
        Y[4], Y[5], Y[6] = (
            0.5462742152960395 * s,
            -1.092548430592079 * y * z,
            0.9461746957575601 * z * z - 0.3153915652525201,
        )
        Y[7], Y[8] = -1.092548430592079 * x * z, 0.5462742152960395 * c
        if len(Y) > 9:
            ring = 0.4570457994644658 - 2.285228997322329 * z * z
            Y[9], Y[10], Y[11] = -0.5900435899266435 * (x * s + y * c), 1.445305721320277 * z * s, ring * y
            Y[12], Y[13] = z * (1.865881662950577 * z * z - 1.119528997770346), ring * x
            Y[14], Y[15] = 1.445305721320277 * z * c, -0.5900435899266435 * (x * c - y * s)


@njit(**OPTIONS)
def fill_slopes(x: float, y: float, z: float, G: Array) -> None:
    """Writes dY_k / d(x, y, z) of the polynomials of `fill_basis` into G (K, 3)."""
    G[:] = 0.0
    if len(G) > 1:
        G[1, 1], G[2, 2], G[3, 0] = -0.48860251190292, 0.48860251190292, -0.48860251190292
    if len(G) > 4:
        a, b = 2 * 0.5462742152960395, -1.092548430592079
        G[4, 0], G[4, 1], G[5, 1], G[5, 2] = a * y, a * x, b * z, b * y
        G[6, 2], G[7, 0], G[7, 2], G[8, 0], G[8, 1] = 2 * 0.9461746957575601 * z, b * z, b * x, a * x, -a * y
        if len(G) > 9:
            c, s = x * x - y * y, 2 * x * y
            ring, d_ring = 0.4570457994644658 - 2.285228997322329 * z * z, -2 * 2.285228997322329 * z
            e, f = -3 * 0.5900435899266435, 1.445305721320277
            G[9, 0], G[9, 1] = e * s, e * c
            G[10, 0], G[10, 1], G[10, 2] = 2 * f * z * y, 2 * f * z * x, f * s
            G[11, 1], G[11, 2], G[12, 2] = ring, d_ring * y, 3 * 1.865881662950577 * z * z - 1.119528997770346
            G[13, 0], G[13, 2] = ring, d_ring * x
            G[14, 0], G[14, 1], G[14, 2] = 2 * f * z * x, -2 * f * z * y, f * c
            G[15, 0], G[15, 1] = e * c, -e * s


@njit(**OPTIONS)
def colors_forward(
    start: int, stop: int, sh: Array, count: int, means: Array, centre: Array, radii: Array, colors: Array
) -> None:
    """Writes max(0, 0.5 + sum_{k < count} sh_k Y_k) of rows start..stop into colors (N, 3); 0 where not drawn."""
    Y = np.empty(count)
    for n in range(start, stop):
        colors[n] = 0
        if radii[n, 0] <= 0:
            continue
        x, y, z = means[n, 0] - centre[0], means[n, 1] - centre[1], means[n, 2] - centre[2]
        length = max(math.sqrt(x * x + y * y + z * z), 1e-12)
        fill_basis(x / length, y / length, z / length, Y)
        for c in range(3):
            total = 0.5
            for k in range(count):
                total += Y[k] * sh[n, k, c]
            colors[n, c] = max(total, 0.0)


@njit(**OPTIONS)
def colors_backward(
    start: int, stop: int, sh: Array, count: int, means: Array, centre: Array, radii: Array, colors: Array,
    v_colors: Array, v_sh: Array, v_means: Array, v_centre: Array,
) -> None:  # fmt: skip
    """Adds the gradients of rows start..stop to v_sh and v_means, and to v_centre (3,) of this range."""
    Y, G, v, pull = np.empty(count), np.empty((count, 3)), np.empty(3), np.empty(3)
    for n in range(start, stop):
        if radii[n, 0] <= 0:
            continue
        x, y, z = means[n, 0] - centre[0], means[n, 1] - centre[1], means[n, 2] - centre[2]
        length = max(math.sqrt(x * x + y * y + z * z), 1e-12)
        x, y, z = x / length, y / length, z / length
        fill_basis(x, y, z, Y)
        fill_slopes(x, y, z, G)
        v[:] = 0.0
        for c in range(3):
            pull[c] = v_colors[n, c] if colors[n, c] > 0 else 0.0
        for k in range(count):
            steep = 0.0
            for c in range(3):
                v_sh[n, k, c] += pull[c] * Y[k]
                steep += pull[c] * sh[n, k, c]
            for i in range(3):
                v[i] += steep * G[k, i]
        along = v[0] * x + v[1] * y + v[2] * z
        v[0], v[1], v[2] = (v[0] - along * x) / length, (v[1] - along * y) / length, (v[2] - along * z) / length
        for i in range(3):
            v_means[n, i] += v[i]
            v_centre[i] -= v[i]
