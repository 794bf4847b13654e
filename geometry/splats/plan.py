"""What a rasterisation is asked for, checked once: shared by the fast one, its slow twin and gsplat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...utils.errors import InputError
from .harmonics import count_of

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
RASTERIZE_MODES = ("classic", "antialiased")
CAMERA_MODELS = ("pinhole", "ortho")


@dataclass(frozen=True)
class Plan:
    """All settings of a rasterisation, in the names of gsplat 1.5."""

    width: int  # pixels
    height: int
    near_plane: float = 0.01  # metres of z-depth; nearer centres are not drawn
    far_plane: float = 1e10
    radius_clip: float = 0.0  # pixels; Gaussians that reach no further in either direction are not drawn
    eps2d: float = 0.3  # pixels^2 added to the projected variances
    sh_degree: int | None = None  # of the colours; None: colours are colours
    render_mode: str = "RGB"  # D: sum of w z; ED: that over alpha
    rasterize_mode: str = "classic"  # antialiased: opacity times sqrt(det / det with eps2d)
    camera_model: str = "pinhole"
    normals: bool = False  # also sum w n, n the shortest axis towards the camera

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise InputError(f"rasterization: width={self.width} and height={self.height} must be positive")
        for name, value, known in (
            ("render_mode", self.render_mode, RENDER_MODES),
            ("rasterize_mode", self.rasterize_mode, RASTERIZE_MODES),
            ("camera_model", self.camera_model, CAMERA_MODELS),
        ):
            if value not in known:
                raise InputError(f"rasterization: {name}={value!r} is unknown; use one of {', '.join(known)}")
        if self.eps2d < 0 or not self.near_plane < self.far_plane:
            raise InputError(
                f"rasterization: eps2d={self.eps2d} must not be negative and near_plane={self.near_plane} "
                f"must be below far_plane={self.far_plane}"
            )

    @property
    def antialiased(self) -> bool:
        """Whether opacities are compensated for eps2d."""
        return self.rasterize_mode == "antialiased"

    @property
    def ortho(self) -> bool:
        """Whether rays are parallel."""
        return self.camera_model == "ortho"

    @property
    def with_color(self) -> bool:
        """Whether colours are rendered."""
        return self.render_mode.startswith("RGB")

    @property
    def with_depth(self) -> bool:
        """Whether depth is rendered."""
        return self.render_mode.endswith("D")

    def check(self, arrays: dict[str, Tensor], colors: Tensor, backgrounds: Tensor | None) -> None:
        """Raises InputError for arrays of wrong shapes; `arrays` are those with names as in `rasterization`."""
        means, viewmats = arrays["means"], arrays["viewmats"]
        n, c = len(means), len(viewmats)
        wanted: dict[str, tuple[int, ...]] = {
            "means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,),
            "viewmats": (c, 4, 4), "Ks": (c, 3, 3),
        }  # fmt: skip
        for name, shape in wanted.items():
            if tuple(arrays[name].shape) != shape:
                raise InputError(f"rasterization: {name} has shape {tuple(arrays[name].shape)}, expected {shape}")
            if arrays[name].dtype != means.dtype or arrays[name].device != means.device:
                raise InputError(f"rasterization: {name} must have the dtype and device of means, {means.dtype}")
        shape, sh = tuple(colors.shape), self.sh_degree is not None
        if sh and (colors.ndim != 3 or shape[0] != n or shape[2] != 3 or shape[1] < count_of(self.sh_degree or 0)):
            raise InputError(f"rasterization: colors has shape {shape}; sh_degree={self.sh_degree} needs ({n}, K, 3)")
        if not sh and (colors.ndim not in (2, 3) or shape[:-1] not in ((n,), (c, n))):
            raise InputError(f"rasterization: colors has shape {shape}, expected ({n}, D) or ({c}, {n}, D)")
        channels = 3 if sh else shape[-1]
        if backgrounds is not None and tuple(backgrounds.shape) != (c, channels):
            raise InputError(
                f"rasterization: backgrounds has shape {tuple(backgrounds.shape)}, expected ({c}, {channels})"
            )

    def finish(
        self, image: Tensor, alpha: Tensor, channels: int, backgrounds: Tensor | None, meta: dict[str, Any]
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """(renders, alphas, meta) from channels (C, H, W, colours + depth + normals) and alpha (C, H, W, 1)."""
        import torch

        parts, place = [], 0
        if self.with_color:
            color, place = image[..., :channels], channels
            if backgrounds is not None:
                color = color + (1 - alpha) * backgrounds[:, None, None, :]
            parts.append(color)
        if self.with_depth:
            depth, place = image[..., place : place + 1], place + 1
            parts.append(depth / alpha.clamp_min(1e-10) if "ED" in self.render_mode else depth)
        if self.normals:
            meta["normals"] = image[..., place : place + 3]
        meta |= {"width": self.width, "height": self.height, "n_cameras": len(image)}
        return torch.cat(parts, dim=-1), alpha, meta
