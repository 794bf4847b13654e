"""Gaussians to the image plane, one by one: compiled loops, forward and by hand backward (Zwicker et al., EWA 2001).

p = W m + t; A = W R diag(s); B = J A; cov2d = B B^T + eps2d I; conic = cov2d^-1. Arithmetic is in float64 whatever the
arrays hold. Each call works on a range of the Gaussians of one camera, so that threads share nothing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]
ALPHA_MIN = 1.0 / 255.0  # numba keeps compiled loops by file: after a change here, save kernels_tiles.py anew too
REACH = 3.33  # standard deviations; exp(-REACH^2 / 2) is just below ALPHA_MIN
OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": {"contract"}}


@njit(**OPTIONS)
def axes_of(quaternion: Array, R: Array) -> float:
    """Writes the rotation of (w, x, y, z) into R (3, 3); returns the quaternion's length."""
    w, x, y, z = quaternion[0], quaternion[1], quaternion[2], quaternion[3]
    length = math.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w / length, x / length, y / length, z / length
    R[0, 0], R[0, 1], R[0, 2] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    R[1, 0], R[1, 1], R[1, 2] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    R[2, 0], R[2, 1], R[2, 2] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    return length


@njit(**OPTIONS)
def multiplied(a: Array, b: Array, out: Array) -> None:
    """out = a b of small matrices."""
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            total = 0.0
            for k in range(a.shape[1]):
                total += a[i, k] * b[k, j]
            out[i, j] = total


@njit(**OPTIONS)
def jacobian(p: Array, K: Array, width: int, height: int, ortho: bool, J: Array) -> tuple[float, float, bool, bool]:
    """Writes d(pixel)/d(camera point) into J (2, 3), with x/z and y/z kept within 1.3 of the view as in 3DGS.

    Returns the x/z and y/z it was taken at and whether they are the point's own.
    """
    J[:] = 0.0
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    if ortho:
        J[0, 0], J[1, 1] = fx, fy
        return 0.0, 0.0, True, True
    margin_x, margin_y = 0.15 * width / fx, 0.15 * height / fy
    u, v = p[0] / p[2], p[1] / p[2]
    x = min((width - cx) / fx + margin_x, max(-cx / fx - margin_x, u))
    y = min((height - cy) / fy + margin_y, max(-cy / fy - margin_y, v))
    J[0, 0], J[1, 1] = fx / p[2], fy / p[2]
    J[0, 2], J[1, 2] = -fx * x / p[2], -fy * y / p[2]
    return x, y, x == u, y == v


@njit(**OPTIONS)
def placed(mean: Array, quaternion: Array, scale: Array, view: Array, p: Array, R: Array, M: Array, A: Array) -> float:
    """Fills p = W m + t, R, M = R diag(s) and A = W M; returns the quaternion's length."""
    length = axes_of(quaternion, R)
    for i in range(3):
        p[i] = view[i, 3] + view[i, 0] * mean[0] + view[i, 1] * mean[1] + view[i, 2] * mean[2]
        for j in range(3):
            M[i, j] = R[i, j] * scale[j]
    multiplied(view[:3, :3], M, A)
    return length


@njit(**OPTIONS)
def thinnest(scale: Array, R: Array, mean: Array, centre: Array, forward: Array, ortho: bool) -> tuple[int, float]:
    """The shortest axis and the sign with which it faces the camera."""
    axis = 0
    for j in range(1, 3):
        if scale[j] < scale[axis]:
            axis = j
    towards = 0.0
    for i in range(3):
        towards -= R[i, axis] * (forward[i] if ortho else mean[i] - centre[i])
    return axis, 1.0 if towards >= 0 else -1.0


@njit(**OPTIONS)
def project_forward(
    start: int, stop: int, means: Array, quats: Array, scales: Array, opacities: Array, view: Array, K: Array,
    centre: Array, width: int, height: int, near: float, far: float, radius_clip: float, eps2d: float,
    antialiased: bool, ortho: bool, radii: Array, means2d: Array, depths: Array, conics: Array, compensation: Array,
    normals: Array,
) -> None:  # fmt: skip
    """Rows start..stop of radii (N, 2), means2d (N, 2), depths (N,), conics (N, 3), compensation (N,), normals (N, 3).

    A Gaussian that is not drawn has radii 0 and the rest 0.
    """
    p, R, M, A, J, B = (
        np.empty(3),
        np.empty((3, 3)),
        np.empty((3, 3)),
        np.empty((3, 3)),
        np.empty((2, 3)),
        np.empty((2, 3)),
    )
    for n in range(start, stop):
        radii[n] = 0
        means2d[n], depths[n], conics[n], compensation[n], normals[n] = 0, 0, 0, 0, 0
        placed(means[n], quats[n], scales[n], view, p, R, M, A)
        if not near <= p[2] <= far:
            continue
        jacobian(p, K, width, height, ortho, J)
        multiplied(J, A, B)
        a0 = B[0, 0] * B[0, 0] + B[0, 1] * B[0, 1] + B[0, 2] * B[0, 2]
        b = B[0, 0] * B[1, 0] + B[0, 1] * B[1, 1] + B[0, 2] * B[1, 2]
        c0 = B[1, 0] * B[1, 0] + B[1, 1] * B[1, 1] + B[1, 2] * B[1, 2]
        a, c = a0 + eps2d, c0 + eps2d
        det = a * c - b * b
        if not det > 0:
            continue
        factor = math.sqrt(max(0.0, (a0 * c0 - b * b) / det))
        opacity = opacities[n] * (factor if antialiased else 1.0)
        if not opacity >= ALPHA_MIN:
            continue
        reach = min(REACH, math.sqrt(2 * math.log(opacity / ALPHA_MIN)))
        rx, ry = math.ceil(reach * math.sqrt(a)), math.ceil(reach * math.sqrt(c))
        if ortho:
            x, y = K[0, 0] * p[0] + K[0, 2], K[1, 1] * p[1] + K[1, 2]
        else:
            x, y = K[0, 0] * p[0] / p[2] + K[0, 2], K[1, 1] * p[1] / p[2] + K[1, 2]
        if (rx <= radius_clip and ry <= radius_clip) or not (-rx < x < width + rx and -ry < y < height + ry):
            continue
        radii[n, 0], radii[n, 1] = min(rx, 1 << 30), min(ry, 1 << 30)
        means2d[n, 0], means2d[n, 1], depths[n] = x, y, p[2]
        conics[n, 0], conics[n, 1], conics[n, 2] = c / det, -b / det, a / det
        compensation[n] = factor
        axis, sign = thinnest(scales[n], R, means[n], centre, view[2], ortho)
        for i in range(3):
            normals[n, i] = sign * R[i, axis]


@njit(**OPTIONS)
def quaternion_gradient(quaternion: Array, length: float, v: Array, out: Array) -> None:
    """Writes the gradient to (w, x, y, z) of any length from that to its rotation v (3, 3)."""
    w, x, y, z = quaternion[0] / length, quaternion[1] / length, quaternion[2] / length, quaternion[3] / length
    gw = 2 * (x * (v[2, 1] - v[1, 2]) + y * (v[0, 2] - v[2, 0]) + z * (v[1, 0] - v[0, 1]))
    gx = 2 * (
        -2 * x * (v[1, 1] + v[2, 2]) + y * (v[0, 1] + v[1, 0]) + z * (v[0, 2] + v[2, 0]) + w * (v[2, 1] - v[1, 2])
    )
    gy = 2 * (x * (v[0, 1] + v[1, 0]) - 2 * y * (v[0, 0] + v[2, 2]) + z * (v[1, 2] + v[2, 1]) + w * (v[0, 2] - v[2, 0]))
    gz = 2 * (x * (v[0, 2] + v[2, 0]) + y * (v[1, 2] + v[2, 1]) - 2 * z * (v[0, 0] + v[1, 1]) + w * (v[1, 0] - v[0, 1]))
    along = gw * w + gx * x + gy * y + gz * z  # the length has no effect
    out[0] += (gw - along * w) / length
    out[1] += (gx - along * x) / length
    out[2] += (gy - along * y) / length
    out[3] += (gz - along * z) / length


@njit(**OPTIONS)
def covariance_gradient(conic: Array, v_conic: Array, B: Array, eps2d: float, v_factor: float, v_B: Array) -> None:
    """Writes the gradient to B (2, 3) of the conic and of the compensation sqrt(det(B B^T) / det(B B^T + eps I)).

    d(X^-1) = -X^-1 dX X^-1; d det(X) = <adj(X), dX>.
    """
    X00, X01, X11 = conic[0], conic[1], conic[2]
    v00, v01, v11 = v_conic[0], 0.5 * v_conic[1], v_conic[2]
    l00, l01, l10, l11 = X00 * v00 + X01 * v01, X00 * v01 + X01 * v11, X01 * v00 + X11 * v01, X01 * v01 + X11 * v11
    g00, g01, g11 = -(l00 * X00 + l01 * X01), -(l00 * X01 + l01 * X11), -(l10 * X01 + l11 * X11)
    if v_factor != 0:
        a, b, c = 0.0, 0.0, 0.0
        for j in range(3):
            a, b, c = a + B[0, j] * B[0, j], b + B[0, j] * B[1, j], c + B[1, j] * B[1, j]
        inner = a * c - b * b
        outer = (a + eps2d) * (c + eps2d) - b * b
        if inner > 0:
            own, blurred = 0.5 * v_factor / math.sqrt(inner * outer), 0.5 * v_factor * math.sqrt(inner / outer) / outer
            g00 += own * c - blurred * (c + eps2d)
            g01 += (blurred - own) * b
            g11 += own * a - blurred * (a + eps2d)
    for j in range(3):
        v_B[0, j] = 2 * (g00 * B[0, j] + g01 * B[1, j])
        v_B[1, j] = 2 * (g01 * B[0, j] + g11 * B[1, j])


@njit(**OPTIONS)
def point_gradient(
    p: Array, K: Array, place: tuple[float, float, bool, bool], ortho: bool, v2d: Array, v_J: Array, v_p: Array
) -> None:
    """Adds to v_p (3,) what reaches the camera point through the pixel (v2d) and through the Jacobian (v_J)."""
    fx, fy, z = K[0, 0], K[1, 1], p[2]
    if ortho:
        v_p[0] += fx * v2d[0]
        v_p[1] += fy * v2d[1]
        return
    x, y, own_x, own_y = place
    v_u, v_v = fx * v2d[0], fy * v2d[1]  # to x/z and y/z
    if own_x:
        v_u -= fx * v_J[0, 2] / z
    if own_y:
        v_v -= fy * v_J[1, 2] / z
    v_p[0] += v_u / z
    v_p[1] += v_v / z
    v_p[2] -= (v_u * p[0] + v_v * p[1]) / (z * z)
    v_p[2] += (fx * (x * v_J[0, 2] - v_J[0, 0]) + fy * (y * v_J[1, 2] - v_J[1, 1])) / (z * z)


@njit(**OPTIONS)
def project_backward(
    start: int, stop: int, means: Array, quats: Array, scales: Array, view: Array, K: Array, centre: Array,
    width: int, height: int, eps2d: float, ortho: bool, radii: Array, conics: Array, v_means2d: Array, v_depths: Array,
    v_conics: Array, v_compensation: Array, v_normals: Array, v_means: Array, v_quats: Array, v_scales: Array,
    v_view: Array,
) -> None:  # fmt: skip
    """Adds the gradients of rows start..stop to v_means, v_quats and v_scales, and to v_view (4, 4) of this range."""
    p, R, M, A, J, B = (
        np.empty(3),
        np.empty((3, 3)),
        np.empty((3, 3)),
        np.empty((3, 3)),
        np.empty((2, 3)),
        np.empty((2, 3)),
    )
    v_p, v_B, v_J, v_A = np.empty(3), np.empty((2, 3)), np.empty((2, 3)), np.empty((3, 3))
    v_M, v_R = np.empty((3, 3)), np.empty((3, 3))
    for n in range(start, stop):
        if radii[n, 0] <= 0:
            continue
        length = placed(means[n], quats[n], scales[n], view, p, R, M, A)
        place = jacobian(p, K, width, height, ortho, J)
        multiplied(J, A, B)
        covariance_gradient(conics[n], v_conics[n], B, eps2d, v_compensation[n], v_B)
        multiplied(v_B, A.T, v_J)
        multiplied(J.T, v_B, v_A)
        v_p[0], v_p[1], v_p[2] = 0.0, 0.0, v_depths[n]
        point_gradient(p, K, place, ortho, v_means2d[n], v_J, v_p)
        multiplied(view[:3, :3].T, v_A, v_M)
        axis, sign = thinnest(scales[n], R, means[n], centre, view[2], ortho)
        for i in range(3):
            for j in range(3):
                v_scales[n, j] += v_M[i, j] * R[i, j]
                v_R[i, j] = v_M[i, j] * scales[n, j]
                v_view[i, j] += v_p[i] * means[n, j]
                for k in range(3):
                    v_view[i, j] += v_A[i, k] * M[j, k]
            v_R[i, axis] += sign * v_normals[n, i]
            v_view[i, 3] += v_p[i]
            v_means[n, i] += view[0, i] * v_p[0] + view[1, i] * v_p[1] + view[2, i] * v_p[2]
        quaternion_gradient(quats[n], length, v_R, v_quats[n])
