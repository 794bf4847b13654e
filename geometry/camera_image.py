"""Pinholes as pictures of where each pixel looks (DM-Calib, Deng et al. 2024): azimuth and polar angle of every ray.

With (x, y, 1) = K^-1 (u, v, 1) at pixel centres and n the unit vector along it: azimuth theta = atan2(n_x, n_z) and
polar angle phi = arccos(n_y), 90 degrees on the horizon. The picture holds theta / pi in [-0.31, 0.31] and phi / pi in
[0.21, 0.79], linearly in [-1, 1]; farther rays saturate. The tangents x and y are affine in u and v, whatever part of
the picture is looked at: a crop, a mirror or another size changes K alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .cameras import Camera

AZIMUTH_LIMIT = 0.31 * math.pi  # rad; a picture is at most 111.6 degrees wide
POLAR_SPAN = 0.29 * math.pi  # rad to either side of the horizon; at most 104.4 degrees high
EDGE = 1e-4  # of the picture's range: what lies closer to its ends counts as saturated


def pixel_tangents(K: Tensor, width: int, height: int) -> Tensor:
    """(B, 2, H, W) x and y of the rays with z = 1 through the pixel centres of pinholes K (B, 3, 3)."""
    poses = torch.eye(4, dtype=K.dtype, device=K.device).expand(len(K), 4, 4)
    return Camera(poses, K, width, height).pixel_directions()[..., :2].permute(0, 3, 1, 2)


def angles_of_tangents(tangents: Tensor) -> Tensor:
    """(B, 2, H, W) azimuth and polar angle in rad of tangents (B, 2, H, W)."""
    x, y = tangents.unbind(1)
    return torch.stack([x.atan(), torch.atan2(torch.sqrt(1 + x**2), y)], 1)


def tangents_of_angles(angles: Tensor) -> Tensor:
    """Inverse of `angles_of_tangents`: x = tan theta, y = 1 / (tan phi cos theta)."""
    azimuth, polar = angles.unbind(1)
    return torch.stack([azimuth.tan(), polar.cos() / (polar.sin() * azimuth.cos())], 1)


def code_of_angles(angles: Tensor) -> Tensor:
    """Angles (B, 2, H, W) as the picture holds them, not clipped to [-1, 1]."""
    azimuth, polar = angles.unbind(1)
    return torch.stack([azimuth / AZIMUTH_LIMIT, (polar - 0.5 * math.pi) / POLAR_SPAN], 1)


def angles_of_code(code: Tensor) -> Tensor:
    """Inverse of `code_of_angles`, clipped to what the picture can hold."""
    azimuth, polar = code.clamp(-1, 1).unbind(1)
    return torch.stack([azimuth * AZIMUTH_LIMIT, polar * POLAR_SPAN + 0.5 * math.pi], 1)


def within_range(tangents: Tensor) -> Tensor:
    """(B, 1, H, W) bool: rays that the picture can hold; the others are clipped, both of their angles lost."""
    code = code_of_angles(angles_of_tangents(tangents))
    return (code.abs() < 1 - EDGE).all(1, keepdim=True)
