"""Pictures through bent lenses as a pinhole would show them: OpenCV's models of (x, y) = (X / Z, Y / Z).

With r^2 = x^2 + y^2, Brown and Conrady: x' = x (1 + k1 r^2 + k2 r^4 + k3 r^6) / (1 + k4 r^2 + k5 r^4 + k6 r^6) +
2 p1 x y + p2 (r^2 + 2 x^2), and y' with p1 and p2 exchanged. Fisheye: theta = atan r, theta' = theta (1 + k1 theta^2 +
k2 theta^4 + k3 theta^6 + k4 theta^8), x' = x theta' / r.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..utils.bands import bands
from ..utils.errors import InputError

COEFFICIENTS = ("k1", "k2", "p1", "p2", "k3")
RATIONAL = (*COEFFICIENTS, "k4", "k5", "k6")  # in OpenCV's order
FISHEYE = ("k1", "k2", "k3", "k4")
OUTWARDS = 1 + 1e-3  # a little farther from the axis


def check_bent(bent: Mapping[str, float], model: str, where: str) -> None:
    """Raises InputError for lenses whose pictures of a set are not straightened."""
    odd = sorted(set(bent) - set(COEFFICIENTS))
    if bent and (odd or model != "pinhole"):
        told = f"coefficients {', '.join(odd)}" if odd else f"a bent {model} lens"
        raise InputError(f"{where} has {told}, which is not straightened here; undistort the images first")


def bend(plane: Tensor, bent: Mapping[str, float], fisheye: bool = False) -> Tensor:
    """Where a lens shows what a pinhole would show at (x / z, y / z) (..., 2), also in units of the focal length."""
    k1, k2, p1, p2, k3, k4, k5, k6 = (float(bent.get(name, 0.0)) for name in RATIONAL)
    x, y = plane.unbind(-1)
    r2 = x * x + y * y
    if fisheye:
        r = r2.sqrt().clamp_min(1e-12)
        theta = torch.atan(r)
        t2 = theta * theta
        radial = theta * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4)))) / r
        return torch.stack([x * radial, y * radial], dim=-1)
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    return torch.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        ],
        dim=-1,
    )


def folds(plane: Tensor, bent: Mapping[str, float], fisheye: bool = False) -> Tensor:
    """(...) bool: where the model is no lens any more: what lies farther out is shown farther in, as by polynomials
    beyond what they were fitted to."""
    farther = bend(plane * OUTWARDS, bent, fisheye).norm(dim=-1)
    return farther < bend(plane, bent, fisheye).norm(dim=-1)


def straightened(image: Tensor, K: Tensor, bent: Mapping[str, float], fisheye: bool = False) -> tuple[Tensor, Tensor]:
    """(picture (H, W, C), whether each pixel was seen (H, W, 1)) of a pinhole with the same K (3, 3); by rows."""
    height, width = image.shape[:2]
    picture = torch.empty_like(image)
    seen = torch.empty(height, width, 1, dtype=torch.bool, device=image.device)
    source, turn = image.permute(2, 0, 1)[None], K[:2, :2].double()
    u = torch.arange(width, dtype=torch.float64) + 0.5
    for rows in bands(height, width):
        v = torch.arange(rows.start, rows.stop, dtype=torch.float64) + 0.5
        pixels = torch.stack(torch.meshgrid(u, v, indexing="xy"), dim=-1)  # (h, W, 2)
        plane = (pixels - K[:2, 2].double()) @ torch.linalg.inv(turn).mT
        place = bend(plane, bent, fisheye) @ turn.mT + K[:2, 2].double()
        unit = 2 * place / place.new_tensor([width, height]) - 1
        part = torch.nn.functional.grid_sample(source, unit[None].to(image), padding_mode="border", align_corners=False)
        picture[rows] = part[0].permute(1, 2, 0)
        seen[rows] = ((unit.abs() <= 1).all(dim=-1) & ~folds(plane, bent, fisheye))[..., None].to(image.device)
    return picture, seen
