"""Gaussians on the image plane to pixels, tile by tile: compiled loops, forward and by hand backward (3DGS, 2023).

alpha_i = min(.999, o_i exp(-sigma_i)), sigma = (A dx^2 + 2 B dx dy + C dy^2) / 2; those below 1/255 are left out, and
a pixel ends before the Gaussian that would leave less than 1e-4 of the light. Within a tile the Gaussian is the outer
loop and the pixels of its ellipse the inner one. Tiles share nothing, so that threads can take any of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from .kernels_project import ALPHA_MIN, Array

TILE = 16
ALPHA_MAX = 0.999
LIGHT_MIN = 1e-4
SLACK = 1e-3  # of sigma, by which ellipses are drawn too large; what is too much is left out by its alpha
BLOCK = 4  # channels are padded to a multiple of it
OPTIONS: dict[str, Any] = {
    "nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract", "reassoc"},
}  # fmt: skip


@njit(**OPTIONS)
def tile_columns(
    row: int, x: float, y: float, A: float, B: float, C: float, tau: float, across: int
) -> tuple[int, int]:
    """First and last+1 tile column that the ellipse sigma <= tau meets in a row of tiles."""
    det = A * C - B * B
    half = math.sqrt(2 * tau * C / det)  # of the whole ellipse
    above, below = row * TILE - y, (row + 1) * TILE - y  # pixel y minus centre
    turn = -B / C * half  # where the rightmost point lies, seen from the centre
    right = _extent(min(max(turn, above), below), turn, half, A, B, C, tau)
    left = _extent(min(max(-turn, above), below) * -1.0, turn, half, A, B, C, tau)
    if right < -1e29 or left < -1e29:
        return 0, 0
    first = max(0, math.floor((x - left) / TILE))
    return first, max(first, min(across, math.floor((x + right) / TILE) + 1))


@njit(**OPTIONS)
def _extent(dy: float, turn: float, half: float, A: float, B: float, C: float, tau: float) -> float:
    """How far right of its centre the ellipse reaches at height dy; -1e30 where it is not."""
    if dy == turn:
        return half
    inside = B * B * dy * dy - A * (C * dy * dy - 2 * tau)
    return -1e30 if inside < 0 else (-B * dy + math.sqrt(inside)) / A


@njit(**OPTIONS)
def bin_tiles(
    order: Array, means2d: Array, conics: Array, opacities: Array, radii: Array, across: int, down: int, counts: Array,
    firsts: Array, ids: Array, slots: Array, write: bool,
) -> None:  # fmt: skip
    """Which Gaussians meet which tile of one image, nearest first; call it twice.

    order: drawn Gaussians by depth. Without `write`: adds to counts (tiles,) and to firsts (N,), the number of tiles of
    each Gaussian. With `write`: counts holds the next free place of each tile and firsts that of each Gaussian's
    gradients; both move on as ids and slots (both by tile) are filled.
    """
    for n in order:
        x, y = float(means2d[n, 0]), float(means2d[n, 1])
        A, B, C = float(conics[n, 0]), float(conics[n, 1]), float(conics[n, 2])
        tau = math.log(max(opacities[n] / ALPHA_MIN, 1.0)) + SLACK
        top = max(0, math.floor((y - radii[n, 1] - 1) / TILE))
        bottom = min(down, math.floor((y + radii[n, 1] + 1) / TILE) + 1)
        left = max(0, math.floor((x - radii[n, 0] - 1) / TILE))
        right = min(across, math.floor((x + radii[n, 0] + 1) / TILE) + 1)
        for row in range(top, bottom):
            first, last = left, right
            if A * C - B * B > 0 and A > 0:
                begin, end = tile_columns(row, x, y, A, B, C, tau, across)
                first, last = max(left, begin), min(right, end)
            for column in range(first, last):
                tile = row * across + column
                if write:
                    place = counts[tile]
                    ids[place] = n
                    slots[place] = firsts[n]
                counts[tile] += 1
                firsts[n] += 1


@njit(**OPTIONS)
def row_span(
    y: float, mx: float, my: float, A: float, B: float, C: float, tau: float, left: int, right: int
) -> tuple[int, int]:
    """Pixels first..last+1 of a row that lie within sigma <= tau, between columns left and right."""
    dy = my - y
    inside = B * B * dy * dy - A * (C * dy * dy - 2 * tau)
    if not inside >= 0:
        return 0, 0
    root, middle = math.sqrt(inside) / A, mx + B * dy / A
    first = max(float(left), math.ceil(middle - root - 0.5))
    last = min(float(right), math.floor(middle + root - 0.5) + 1)
    return (int(first), int(last)) if last > first else (0, 0)


@njit(**OPTIONS)
def blend_forward(
    tiles: Array, offsets: Array, ids: Array, means2d: Array, conics: Array, opacities: Array, colors: Array,
    width: int, height: int, across: int, image: Array, light: Array, last: Array,
) -> None:  # fmt: skip
    """Fills image (H, W, D), light (H, W), what is left of the light, and last (H, W), the place in `ids` after the
    last Gaussian that was drawn, for some tiles of one image. D is a multiple of BLOCK."""
    kind = image.dtype.type
    one, half, alpha_max, alpha_min, light_min = kind(1), kind(0.5), kind(ALPHA_MAX), kind(ALPHA_MIN), kind(LIGHT_MIN)
    channels = image.shape[2]
    T, acc, end = (
        np.empty(TILE * TILE, image.dtype),
        np.empty((TILE * TILE, channels), image.dtype),
        np.empty(TILE * TILE, np.int32),
    )
    for t in tiles:
        top, left = t // across * TILE, t % across * TILE
        bottom, right = min(top + TILE, height), min(left + TILE, width)
        T[:], acc[:], end[:] = one, 0, 0
        open_pixels = (bottom - top) * (right - left)
        for i in range(offsets[t], offsets[t + 1]):
            n = ids[i]
            mx, my, o = means2d[n, 0], means2d[n, 1], opacities[n]
            A, B, C = conics[n, 0], conics[n, 1], conics[n, 2]
            tau = math.log(float(o) / ALPHA_MIN) + SLACK
            for row in range(top, bottom):
                dy = my - kind(row + 0.5)
                first, stop = row_span(row + 0.5, float(mx), float(my), float(A), float(B), float(C), tau, left, right)
                for column in range(first, stop):
                    q = (row - top) * TILE + column - left
                    if T[q] < 0:
                        continue
                    dx = mx - kind(column + 0.5)
                    sigma = half * (A * dx * dx + C * dy * dy) + B * dx * dy
                    alpha = min(alpha_max, o * math.exp(-sigma))
                    if sigma < 0 or alpha < alpha_min:
                        continue
                    after = T[q] * (one - alpha)
                    if after <= light_min:
                        T[q] = -T[q]  # ended
                        open_pixels -= 1
                        continue
                    weight = alpha * T[q]
                    for k in range(0, channels, BLOCK):
                        acc[q, k] += weight * colors[n, k]
                        acc[q, k + 1] += weight * colors[n, k + 1]
                        acc[q, k + 2] += weight * colors[n, k + 2]
                        acc[q, k + 3] += weight * colors[n, k + 3]
                    T[q] = after
                    end[q] = i + 1
            if open_pixels == 0:
                break
        for row in range(top, bottom):
            for column in range(left, right):
                q = (row - top) * TILE + column - left
                light[row, column], last[row, column] = abs(T[q]), end[q]
                for k in range(channels):
                    image[row, column, k] = acc[q, k]


@njit(**OPTIONS)
def blend_backward(
    tiles: Array, offsets: Array, ids: Array, slots: Array, means2d: Array, conics: Array, opacities: Array,
    colors: Array, width: int, height: int, across: int, light: Array, last: Array, v_image: Array, v_alpha: Array,
    found: Array,
) -> None:  # fmt: skip
    """Fills found (intersections, 6 + D) with the gradients to (x, y, A, B, C, opacity, colour) of each meeting of a
    Gaussian and a tile, for some tiles. v_image (H, W, D), v_alpha (H, W).

    From back to front, S = sum_{j > i} (c_j . v) w_j - T_end v_alpha, dL/dalpha_i = T_i (c_i . v) - S / (1 - alpha_i).
    """
    kind = v_image.dtype.type
    one, half, alpha_max, alpha_min = kind(1), kind(0.5), kind(ALPHA_MAX), kind(ALPHA_MIN)
    channels = v_image.shape[2]
    T, S, end = (
        np.empty(TILE * TILE, v_image.dtype),
        np.empty(TILE * TILE, v_image.dtype),
        np.empty(TILE * TILE, np.int32),
    )
    pull, v_color = np.zeros((TILE * TILE, channels), v_image.dtype), np.empty(channels, v_image.dtype)
    for t in tiles:
        top, left = t // across * TILE, t % across * TILE
        bottom, right = min(top + TILE, height), min(left + TILE, width)
        deepest = offsets[t]
        for row in range(top, bottom):
            for column in range(left, right):
                q = (row - top) * TILE + column - left
                T[q], end[q] = light[row, column], last[row, column]
                S[q] = -T[q] * v_alpha[row, column]
                deepest = max(deepest, end[q])
                for k in range(channels):
                    pull[q, k] = v_image[row, column, k]
        for i in range(offsets[t], offsets[t + 1]):
            found[slots[i]] = 0
        for i in range(deepest - 1, offsets[t] - 1, -1):
            n = ids[i]
            mx, my, o = means2d[n, 0], means2d[n, 1], opacities[n]
            A, B, C = conics[n, 0], conics[n, 1], conics[n, 2]
            tau = math.log(float(o) / ALPHA_MIN) + SLACK
            v_x, v_y, v_A, v_B, v_C, v_o = kind(0), kind(0), kind(0), kind(0), kind(0), kind(0)
            v_color[:] = 0
            for row in range(top, bottom):
                dy = my - kind(row + 0.5)
                first, stop = row_span(row + 0.5, float(mx), float(my), float(A), float(B), float(C), tau, left, right)
                for column in range(first, stop):
                    q = (row - top) * TILE + column - left
                    if i >= end[q]:
                        continue
                    dx = mx - kind(column + 0.5)
                    sigma = half * (A * dx * dx + C * dy * dy) + B * dx * dy
                    fall = math.exp(-sigma)
                    raw = o * fall
                    alpha = min(alpha_max, raw)
                    if sigma < 0 or alpha < alpha_min:
                        continue
                    open_share = one / (one - alpha)
                    T[q] *= open_share  # the light before this Gaussian
                    weight = alpha * T[q]
                    shine = kind(0)
                    for k in range(0, channels, BLOCK):
                        shine += (
                            colors[n, k] * pull[q, k]
                            + colors[n, k + 1] * pull[q, k + 1]
                            + (colors[n, k + 2] * pull[q, k + 2] + colors[n, k + 3] * pull[q, k + 3])
                        )
                        v_color[k] += weight * pull[q, k]
                        v_color[k + 1] += weight * pull[q, k + 1]
                        v_color[k + 2] += weight * pull[q, k + 2]
                        v_color[k + 3] += weight * pull[q, k + 3]
                    v_here = T[q] * shine - S[q] * open_share
                    S[q] += shine * weight
                    if raw <= alpha_max:
                        v_o += fall * v_here
                        v_sigma = -raw * v_here
                        v_A += half * v_sigma * dx * dx
                        v_B += v_sigma * dx * dy
                        v_C += half * v_sigma * dy * dy
                        v_x += v_sigma * (A * dx + B * dy)
                        v_y += v_sigma * (B * dx + C * dy)
            out = found[slots[i]]
            out[0], out[1], out[2], out[3], out[4], out[5] = v_x, v_y, v_A, v_B, v_C, v_o
            for k in range(channels):
                out[6 + k] = v_color[k]


@njit(**OPTIONS)
def gather(start: int, stop: int, firsts: Array, found: Array, total: Array) -> None:
    """total[n] = the sum of found over the tiles firsts[n]..firsts[n + 1] of each Gaussian start..stop."""
    for n in range(start, stop):
        for i in range(firsts[n], firsts[n + 1]):
            for k in range(total.shape[1]):
                total[n, k] += found[i, k]
