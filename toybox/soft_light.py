"""Light of windows and lamps with an extent: sampled soft shadows, one diffuse bounce and one mirror-like one; sun.

Monte Carlo over the rays of a pixel, so a picture keeps a little grain, as photographs do. After the first bounce a
constant radiance stands for the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import open3d as o3d

from .hits import Hits
from .scenes import Light, Panel

OFFSET_M = 2e-3  # start of a ray above its surface
SHARP = 0.3  # roughness below which reflections keep their detail
NEAR_SHARE = 0.01  # of the mean depth: how far from a surface's plane a neighbour still belongs to it
KERNEL = (3 / 8, 1 / 4, 1 / 16)  # B3 spline
MIDDLE_GREY = 0.25  # where the exposure puts the log-mean luminance


class Surfaces(Protocol):
    """What the estimator asks of a renderer."""

    caster: o3d.t.geometry.RaycastingScene

    def hit(self, origins: np.ndarray, directions: np.ndarray) -> Hits: ...

    def material(self, hits: Hits, coarse: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]: ...


def facing(hits: Hits) -> np.ndarray:
    """Normals (N, 3) on the side of the viewer."""
    side = (hits.normal * hits.view).sum(1)
    return np.where((side < 0)[:, None], hits.normal - 2 * side[:, None] * hits.view, hits.normal)


def reached(
    caster: o3d.t.geometry.RaycastingScene, start: np.ndarray, toward: np.ndarray, far: float = np.inf
) -> np.ndarray:
    """Which shadow rays (N, 3), (N, 3) meet nothing within `far` lengths of their directions, (N,) bool."""
    rays = np.concatenate([start, toward], 1).astype(np.float32)
    return ~caster.test_occlusions(o3d.core.Tensor(rays), tnear=1e-3, tfar=far).numpy()


def shade(
    world: Surfaces,
    hits: Hits,
    shape: tuple[int, int],
    light: Light,
    reflectance: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """Outgoing radiance (N, 3) of the hits among the rays of an image of that shape (rows, columns).

    Light is smoothed before it meets the albedo. `reflectance` (f0, roughness, n . v) is that of the mirror-like part.
    """
    albedo, rough, metal, glow = world.material(hits)
    normal = facing(hits)
    start = hits.point + OFFSET_M * normal
    scattered = _unit(normal + _on_sphere(len(start), rng))
    light_in = _panels(world, start, normal, light.panels, rng) / np.pi
    light_in += _bounced(world, start, scattered, light, rng, False)
    n_v = np.clip((normal * hits.view).sum(1), 1e-3, 1.0)
    mirrored = 2 * n_v[:, None] * normal - hits.view
    mirrored = _unit(mirrored + (rough**2)[:, None] * 0.8 * _on_sphere(len(start), rng))
    below = (mirrored * normal).sum(1)
    mirrored -= np.minimum(2 * below, 0)[:, None] * normal
    shine = _bounced(world, start, mirrored, light, rng, True)
    smooth = smoothed(np.concatenate([light_in, shine], 1), hits, normal, shape)
    crisp = smoothed(shine, hits, normal, shape, passes=1)
    shine = np.where((rough < SHARP)[:, None], crisp, smooth[:, 3:])
    f0 = 0.04 * (1 - metal)[:, None] + albedo * metal[:, None]
    diffuse = smooth[:, :3] + _sun(world, start, normal, light) / np.pi
    return albedo * (glow[:, None] + (1 - metal)[:, None] * diffuse) + reflectance(f0, rough, n_v) * shine


def smoothed(values: np.ndarray, hits: Hits, normal: np.ndarray, shape: tuple[int, int], passes: int = 3) -> np.ndarray:
    """Values (N, C) averaged along surfaces: an edge-avoiding wavelet (Dammertz et al. 2010) on normals and planes."""
    rows, columns = shape
    image = np.zeros((values.shape[1] + 7, rows * columns), np.float32)
    image[:, hits.where] = np.concatenate([values, normal, hits.point, np.ones((len(values), 1))], 1).T
    image = image.reshape(-1, rows, columns)
    now, guide = image[:-7], image[-7:]
    near = max(float(hits.depth.mean()), 1e-3) * NEAR_SHARE
    for step in (2**k for k in range(passes)):
        total, weights = np.zeros_like(now), np.full((rows, columns), 1e-6, np.float32)
        for dy in (-2, -1, 0, 1, 2):
            for dx in (-2, -1, 0, 1, 2):
                here, there = _overlap(dy * step, dx * step, rows, columns)
                weight = KERNEL[abs(dy)] * KERNEL[abs(dx)] * _likeness(guide[here], guide[there], near)
                total[here] += weight * now[there]
                weights[here[1:]] += weight
        now = total / weights
    return now.reshape(len(now), -1)[:, hits.where].T.astype(np.float64)


def _likeness(one: np.ndarray, other: np.ndarray, near: float) -> np.ndarray:
    """Weight (H, W) of guides (7, H, W): normal, point and whether there is a surface."""
    turned = np.maximum(one[0] * other[0] + one[1] * other[1] + one[2] * other[2], 0)
    for _ in range(5):
        turned *= turned
    x, y, z = other[3:6] - one[3:6]
    away = np.abs(x * one[0] + y * one[1] + z * one[2])
    return turned * np.exp(-away / near) * other[6]


def _overlap(dy: int, dx: int, rows: int, columns: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where planes (C, rows, columns) have a neighbour at that distance, and the neighbours."""
    here = (slice(None), slice(max(-dy, 0), rows - max(dy, 0)), slice(max(-dx, 0), columns - max(dx, 0)))
    there = (slice(None), slice(max(dy, 0), rows + min(dy, 0)), slice(max(dx, 0), columns + min(dx, 0)))
    return here, there


def _bounced(
    world: Surfaces,
    start: np.ndarray,
    directions: np.ndarray,
    light: Light,
    rng: np.random.Generator,
    glowing: bool,
) -> np.ndarray:
    """Radiance (N, 3) that comes along the directions from what they meet; the ambient one where they meet nothing.

    What shines by itself, and the sky, count only if `glowing`: their diffuse light comes from the panels already.
    """
    hits, ambient = world.hit(start, directions), np.asarray(light.ambient)
    out = np.broadcast_to(ambient if light.sky is None or not glowing else light.sky, start.shape).copy()
    if not hits.where.size:
        return out
    albedo, _, metal, glow = world.material(hits, coarse=True)
    normal = facing(hits)
    there = hits.point + OFFSET_M * normal
    lit = _panels(world, there, normal, light.panels, rng, one=True) + _sun(world, there, normal, light)
    emitted = albedo * (glow * glowing)[:, None]
    out[hits.where] = emitted + albedo * (1 - 0.5 * metal)[:, None] * (lit / np.pi + ambient)
    return out


def _panels(
    world: Surfaces,
    start: np.ndarray,
    normal: np.ndarray,
    panels: tuple[Panel, ...],
    rng: np.random.Generator,
    one: bool = False,
) -> np.ndarray:
    """Irradiance (N, 3) from one point drawn on each panel, or on one panel drawn for each start."""
    total = np.zeros_like(start)
    if one:
        which = rng.integers(len(panels), size=len(start))
        for index, panel in enumerate(panels):
            rows = np.flatnonzero(which == index)
            total[rows] = len(panels) * _panel(world, start[rows], normal[rows], panel, rng)
        return total
    for panel in panels:
        total += _panel(world, start, normal, panel, rng)
    return total


def _panel(
    world: Surfaces, start: np.ndarray, normal: np.ndarray, panel: Panel, rng: np.random.Generator
) -> np.ndarray:
    u, v = rng.random((2, len(start), 1))
    offset = panel.corner + u * panel.span_u + v * panel.span_v - start
    square = np.maximum((offset**2).sum(1), 0.02)
    area_normal = np.cross(panel.span_u, panel.span_v)  # its length is the area
    cosines = np.maximum((offset * normal).sum(1), 0) * np.maximum(-(offset @ area_normal), 0) / square
    rows = np.flatnonzero(cosines > 0)
    rows = rows[reached(world.caster, start[rows], offset[rows], 0.99)]
    out = np.zeros_like(start)
    out[rows] = (cosines[rows] / square[rows])[:, None] * panel.radiance
    return out


def _sun(world: Surfaces, start: np.ndarray, normal: np.ndarray, light: Light) -> np.ndarray:
    """Irradiance (N, 3) of a sun without extent."""
    out = np.zeros_like(start)
    if light.sun_direction is None:
        return out
    cosine = normal @ light.sun_direction
    rows = np.flatnonzero(cosine > 0)
    rows = rows[reached(world.caster, start[rows], np.broadcast_to(light.sun_direction, (len(rows), 3)))]
    out[rows] = cosine[rows, None] * light.intensity
    return out


def develop(radiance: np.ndarray) -> np.ndarray:
    """Linear values in [0, 1) of a picture's radiance, exposed for its log-mean luminance, with a soft shoulder."""
    luminance = radiance @ np.array([0.2126, 0.7152, 0.0722])
    gain = MIDDLE_GREY / np.exp(np.log(luminance + 1e-3).mean())
    return 1 - np.exp(-gain * radiance)


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9)


def _on_sphere(count: int, rng: np.random.Generator) -> np.ndarray:
    return _unit(rng.normal(size=(count, 3)))
