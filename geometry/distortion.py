"""Pictures through bent lenses as a pinhole would show them: the polynomial of Brown and Conrady, as OpenCV has it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..utils.errors import InputError

COEFFICIENTS = ("k1", "k2", "p1", "p2", "k3")


def check_bent(bent: Mapping[str, float], model: str, where: str) -> None:
    """Raises InputError for lenses that `straightened` does not serve."""
    odd = sorted(set(bent) - set(COEFFICIENTS))
    if bent and (odd or model != "pinhole"):
        told = f"coefficients {', '.join(odd)}" if odd else f"a bent {model} lens"
        raise InputError(f"{where} has {told}, which is not straightened here; undistort the images first")


def bend(plane: Tensor, bent: Mapping[str, float]) -> Tensor:
    """Where a lens shows what a pinhole would show at (x / z, y / z) (..., 2), also in units of the focal length.

    x' = x (1 + k1 r^2 + k2 r^4 + k3 r^6) + 2 p1 x y + p2 (r^2 + 2 x^2), and y' with p1 and p2 exchanged.
    """
    k1, k2, p1, p2, k3 = (float(bent.get(name, 0.0)) for name in COEFFICIENTS)
    x, y = plane.unbind(-1)
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    return torch.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
        ],
        dim=-1,
    )


def straightened(image: Tensor, K: Tensor, bent: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """(picture (H, W, C), whether each pixel was seen (H, W, 1)) of a pinhole with the same K (3, 3)."""
    height, width = image.shape[:2]
    u, v = torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy")
    centre, focal = K[:2, 2].float(), torch.stack([K[0, 0], K[1, 1]]).float()
    place = bend((torch.stack([u, v], dim=-1) - centre) / focal, bent) * focal + centre  # pixels (H, W, 2)
    unit = 2 * place / place.new_tensor([width, height]) - 1
    picture = torch.nn.functional.grid_sample(
        image.permute(2, 0, 1)[None], unit[None].to(image), padding_mode="border", align_corners=False
    )
    return picture[0].permute(1, 2, 0), (unit.abs() <= 1).all(dim=-1, keepdim=True)
