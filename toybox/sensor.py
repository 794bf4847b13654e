"""A depth camera in numbers: what a structured-light or time-of-flight sensor makes of exact depth.

Lengths in metres, image distances in pixels, angles in radians, depth along the optical axis, 0 = no measurement.
  axial noise     std = a + b (z - 0.4)^2 + c / sqrt(z) (t / (pi/2 - t))^2 at incidence angle t
  lateral noise   std = l + m t / (pi/2 - t) pixels; both from Nguyen, Izadi, Lovell: Modeling Kinect Sensor Noise
                  for Improved 3D Reconstruction and Tracking, 3DIMPVT 2012
  quantisation    disparity d = f B / z in steps s, so that depth comes in steps of about s z^2 / (f B): Khoshelham,
                  Elberink: Accuracy and Resolution of Kinect Depth Data, Sensors 2012
  shadow          what the projector, B to the right of the camera, does not see: f B (1/z_near - 1/z_far) px wide
  weak return     holes where diffuse plus mirrored infrared light is too weak, as on dark, oblique or metallic
                  surfaces, and mixed depths at edges for time of flight: Sarbolandi, Lefloch, Kolb: Kinect Range
                  Sensing, CVIU 2015 (the effects; the smooth thresholds here are ours)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..utils.errors import InputError
from .render import Rendering

STEEPEST_RAD = 1.45  # incidence angles are cut here, where the noise formulas diverge


@dataclass(frozen=True)
class SensorModel:
    """The parameters of one sensor; the defaults are a Kinect-like structured-light camera."""

    kind: Literal["structured-light", "time-of-flight"] = "structured-light"
    baseline_m: float = 0.075
    """camera to projector"""
    disparity_step_px: float = 0.125
    """at `reference_focal_px`; structured light"""
    depth_step_m: float = 0.001
    """time of flight"""
    reference_focal_px: float = 585.0
    """focal length of the sensor's own images, to which the pixel numbers here refer"""
    axial_m: tuple[float, float, float] = (0.0012, 0.0019, 0.0001)
    """a (m), b (1/m), c (m^1.5) above"""
    lateral_px: tuple[float, float] = (0.8, 0.035)
    """l, m above"""
    range_m: tuple[float, float] = (0.4, 8.0)
    weakest_return: float = 0.004
    """return at which half of the pixels are lost; a white wall seen straight from 2 m returns 1"""
    return_width: float = 0.35
    """width of that threshold in the logarithm of the return"""
    grazing_rad: float = 1.40
    """pixels seen at larger incidence angles are lost"""
    speckle: float = 0.002
    """share of pixels lost at random"""
    mixed_px: float = 0.7
    """time of flight: std of the aperture over which depths mix, in pixels of the image"""
    window_px: float = 0.0
    """structured light: the same of the window that is matched, from which pixels fly at edges; 0: none do"""

    def __post_init__(self) -> None:
        if self.kind not in ("structured-light", "time-of-flight"):
            raise InputError(f"kind={self.kind!r} is unknown; have structured-light, time-of-flight")
        if min(self.baseline_m, self.disparity_step_px, self.depth_step_m, self.reference_focal_px) <= 0:
            raise InputError("baseline_m, disparity_step_px, depth_step_m and reference_focal_px must be positive")
        if not 0 < self.range_m[0] < self.range_m[1]:
            raise InputError(f"range_m={self.range_m} must be two increasing positive depths")

    def axial_std(self, depth_m: np.ndarray, incidence_rad: np.ndarray) -> np.ndarray:
        """Standard deviation of the measured depth in metres."""
        a, b, c = self.axial_m
        return a + b * (depth_m - 0.4) ** 2 + c / np.sqrt(depth_m) * _steepness(incidence_rad) ** 2

    def lateral_std(self, incidence_rad: np.ndarray, focal_px: float) -> np.ndarray:
        """Standard deviation of the measured place in pixels of an image with this focal length."""
        plain, steep = self.lateral_px
        return (plain + steep * _steepness(incidence_rad)) * focal_px / self.reference_focal_px

    def quantised(self, depth_m: np.ndarray) -> np.ndarray:
        """Depth as the sensor can tell it; what is nearer than half a step of disparity from infinity becomes 0."""
        if self.kind == "time-of-flight":
            return np.round(depth_m / self.depth_step_m) * self.depth_step_m
        scale = self.reference_focal_px * self.baseline_m
        steps = np.round(scale / np.maximum(depth_m, 1e-6) / self.disparity_step_px)
        return np.where(steps > 0, scale / np.maximum(steps * self.disparity_step_px, 1e-9), 0.0)


def _steepness(incidence_rad: np.ndarray) -> np.ndarray:
    angle = np.clip(incidence_rad, 0.0, STEEPEST_RAD)
    return angle / (0.5 * np.pi - angle)


def projector_shadow(depth_m: np.ndarray, focal_px: float, baseline_m: float) -> np.ndarray:
    """Pixels (H, W) bool that a projector `baseline_m` to the right of the camera does not see.

    Column u at depth z lies at projector column u - f B / z; another surface further right that lies at the same
    or a lower column is nearer and hides it.
    """
    columns = np.arange(depth_m.shape[1]) + 0.5
    with np.errstate(divide="ignore"):
        seen_at = np.where(depth_m > 0, columns - focal_px * baseline_m / depth_m, np.inf)
    lowest = np.minimum.accumulate(seen_at[:, ::-1], axis=1)[:, ::-1]
    following = np.concatenate([lowest[:, 1:], np.full((len(depth_m), 1), np.inf)], axis=1)
    return (depth_m > 0) & (seen_at >= following)


def infrared_return(
    depth_m: np.ndarray, incidence_rad: np.ndarray, albedo: np.ndarray, roughness: np.ndarray, metallic: np.ndarray
) -> np.ndarray:
    """Light that comes back (H, W), 1 for a white matte surface seen straight from 2 m.

    The diffuse part follows Lambert and the inverse square; the mirrored part, a Gaussian lobe of the roughness,
    only comes back from surfaces that face the sensor.
    """
    diffuse = albedo * (1 - metallic) * np.cos(incidence_rad)
    lobe = np.exp(-((np.tan(np.minimum(incidence_rad, STEEPEST_RAD)) / np.maximum(roughness, 0.05)) ** 2))
    mirrored = (0.04 * (1 - metallic) + albedo * metallic) * lobe
    return (diffuse + mirrored) * (2.0 / np.maximum(depth_m, 1e-3)) ** 2


def incidence(normal_camera: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Angle (H, W) between the surface normal (H, W, 3), camera axes, and the pixel's ray; 0 where there is none."""
    height, width = normal_camera.shape[:2]
    rays = np.empty((height, width, 3))
    rays[..., 0] = (np.arange(width) + 0.5 - K[0, 2]) / K[0, 0]
    rays[..., 1] = ((np.arange(height) + 0.5 - K[1, 2]) / K[1, 1])[:, None]
    rays[..., 2] = 1.0
    cosine = np.abs((rays * normal_camera).sum(-1)) / np.linalg.norm(rays, axis=-1)
    return np.where(np.any(normal_camera != 0, axis=-1), np.arccos(np.clip(cosine, 0, 1)), 0.0)


def measure(
    depth_m: np.ndarray,
    K: np.ndarray,
    rng: np.random.Generator,
    model: SensorModel = SensorModel(),
    normal_camera: np.ndarray | None = None,
    albedo: np.ndarray | None = None,
    roughness: np.ndarray | None = None,
    metallic: np.ndarray | None = None,
) -> np.ndarray:
    """Measured depth (H, W) float32 in metres, 0 where the sensor has no answer.

    Args:
        depth_m: exact depth (H, W), 0 = nothing there.
        K: intrinsics (3, 3) in pixels of this image.
        rng: draws all noise.
        normal_camera: unit normals (H, W, 3), camera axes; without them every surface counts as seen straight.
        albedo: linear (H, W) or (H, W, 3); without it 0.5.
        roughness, metallic: (H, W); without them 0.8 and 0.
    """
    depth = np.asarray(depth_m, float)
    if depth.ndim != 2:
        raise InputError(f"depth_m has shape {depth.shape}, expected (H, W)")
    angle = incidence(normal_camera, K) if normal_camera is not None else np.zeros_like(depth)
    gray = np.full(depth.shape, 0.5) if albedo is None else np.asarray(albedo, float)
    gray = gray @ np.array([0.2126, 0.7152, 0.0722]) if gray.ndim == 3 else gray
    rough = np.full(depth.shape, 0.8) if roughness is None else roughness
    metal = np.zeros(depth.shape) if metallic is None else metallic
    lost = _lost(depth, angle, infrared_return(depth, angle, gray, rough, metal), float(K[0, 0]), model, rng)
    seen = _jittered(depth, angle, float(K[0, 0]), model, rng)
    std = model.axial_std(np.maximum(seen, model.range_m[0]), angle)
    noisy = np.where(seen > 0, seen + std * rng.standard_normal(depth.shape), 0.0)
    told = np.where(noisy > 0, model.quantised(noisy), 0.0)
    kept = ~lost & (depth > 0) & (told >= model.range_m[0]) & (told <= model.range_m[1])
    return np.where(kept, told, 0.0).astype(np.float32)


def _lost(
    depth: np.ndarray, angle: np.ndarray, back: np.ndarray, focal: float, model: SensorModel, rng: np.random.Generator
) -> np.ndarray:
    """Pixels (H, W) without an answer: shadow, weak return, grazing view, speckle."""
    strength = (np.log(np.maximum(back, 1e-9)) - np.log(model.weakest_return)) / model.return_width
    weak = 1 / (1 + np.exp(np.clip(strength, -40, 40)))
    lost = (rng.random(depth.shape) < weak) | (angle > model.grazing_rad) | (rng.random(depth.shape) < model.speckle)
    if model.kind == "structured-light":
        lost |= projector_shadow(depth, focal, model.baseline_m)
    return lost


def _jittered(
    depth: np.ndarray, angle: np.ndarray, focal: float, model: SensorModel, rng: np.random.Generator
) -> np.ndarray:
    """Depth read at a slightly wrong place; an aperture or a window mixes two such places by a random share."""
    height, width = depth.shape
    rows, columns = np.mgrid[:height, :width]

    def read(std: np.ndarray | float) -> np.ndarray:
        v = np.clip(np.round(rows + std * rng.standard_normal(depth.shape)), 0, height - 1).astype(np.int64)
        u = np.clip(np.round(columns + std * rng.standard_normal(depth.shape)), 0, width - 1).astype(np.int64)
        return depth[v, u]

    first = read(model.lateral_std(angle, focal))
    mixed_px = model.window_px if model.kind == "structured-light" else model.mixed_px
    if model.kind == "structured-light" and mixed_px == 0:
        return first
    second, share = read(mixed_px), rng.random(depth.shape)
    return np.where((first > 0) & (second > 0), share * first + (1 - share) * second, first)


def sense(
    view: Rendering, c2w: np.ndarray, K: np.ndarray, rng: np.random.Generator, model: SensorModel = SensorModel()
) -> np.ndarray:
    """Measured depth (H, W) float32 of a rendered view with geometry; c2w (4, 4), K (3, 3) are its camera."""
    if view.depth_m is None or view.normal is None:
        raise InputError("the view has no geometry; render it with geometry=True")
    normal = view.normal @ np.asarray(c2w, float)[:3, :3]
    return measure(view.depth_m, K, rng, model, normal, view.albedo, view.roughness, view.metallic)
