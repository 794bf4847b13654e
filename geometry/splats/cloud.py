"""3D Gaussians as they are stored, optimised and drawn: one set of tensors, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...utils.errors import InputError
from ..cameras import quaternion_from_rotation
from .harmonics import C0, count_of, degree_of, rotated

MODES = ("default", "mip", "2dgs")  # what a file's SplatRenderMode may be
FIELDS = ("means", "log_scales", "quaternions", "logits", "sh")


@dataclass(frozen=True)
class GaussianCloud:
    """N Gaussians; scales, opacities and rotations before their activations, as in 3DGS files."""

    means: Tensor  # (N, 3) metres
    log_scales: Tensor  # (N, 3), log of standard deviations in metres along the axes
    quaternions: Tensor  # (N, 4) as (w, x, y, z), any length but 0
    logits: Tensor  # (N,), logit of the opacity
    sh: Tensor  # (N, K, 3), K = 1, 4, 9 or 16; colour = 0.5 + sum_k sh_k Y_k, sRGB
    mode: str = "default"  # how it was made to be drawn: "mip" antialiased, "2dgs" flat along the third axis

    def __post_init__(self) -> None:
        count = len(self.means)
        wanted = {"means": (count, 3), "log_scales": (count, 3), "quaternions": (count, 4), "logits": (count,)}
        for name, shape in wanted.items():
            if tuple(getattr(self, name).shape) != shape:
                raise InputError(f"splats: {name} has shape {tuple(getattr(self, name).shape)}, expected {shape}")
        if self.sh.ndim != 3 or self.sh.shape[0] != count or self.sh.shape[2] != 3:
            raise InputError(f"splats: sh has shape {tuple(self.sh.shape)}, expected ({count}, K, 3)")
        degree_of(self.sh.shape[1])
        if self.mode not in MODES:
            raise InputError(f"splats: mode {self.mode!r} is unknown; use one of {', '.join(MODES)}")

    @classmethod
    def from_values(
        cls,
        means: Tensor,
        scales: Tensor,
        quaternions: Tensor,
        opacities: Tensor,
        sh: Tensor,
        mode: str = "default",
    ) -> GaussianCloud:
        """From scales in metres (N, 3), positive, and opacities (N,) in [0, 1]; both are kept from their infinities."""
        if bool((scales < 0).any()) or bool(((opacities < 0) | (opacities > 1)).any()):
            raise InputError("splats: scales must be positive and opacities in [0, 1]")
        logits = torch.logit(opacities.clamp(1e-6, 1 - 1e-6))
        return cls(means, scales.clamp_min(1e-12).log(), quaternions, logits, sh, mode)

    @classmethod
    def from_points(
        cls, points: Tensor, colors: Tensor | None = None, opacity: float = 0.1, size: float = 1.0
    ) -> GaussianCloud:
        """Round splats at points (N, 3), as large as the mean distance of the three nearest neighbours (3DGS, 5.1).

        colors: (N, 3) sRGB; None: grey. size: factor on the distances.
        """
        from scipy.spatial import cKDTree

        if len(points) < 2:
            raise InputError(f"{len(points)} points are too few to know how large splats should be")
        place = points.detach().double().cpu().numpy()
        distance, _ = cKDTree(place).query(place, k=min(4, len(place)))
        side = points.new_tensor((distance[:, 1:] ** 2).mean(1)).sqrt().clamp_min(1e-7) * size
        turn = points.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(len(points), 4).clone()
        sh = torch.zeros(len(points), 1, 3, dtype=points.dtype, device=points.device)
        if colors is not None:
            sh[:, 0] = (colors.to(points) - 0.5) / C0
        logits = points.new_full((len(points),), math.log(opacity / (1 - opacity)))
        return cls(points.clone(), side.log()[:, None].expand(-1, 3).clone(), turn, logits, sh)

    @classmethod
    def cat(cls, clouds: Sequence[GaussianCloud]) -> GaussianCloud:
        """Joins clouds of one degree; the mode is that of the first."""
        parts = {name: torch.cat([getattr(cloud, name) for cloud in clouds]) for name in FIELDS}
        return cls(**parts, mode=clouds[0].mode)

    def __len__(self) -> int:
        return len(self.means)

    @property
    def degree(self) -> int:
        """Of its harmonics."""
        return degree_of(self.sh.shape[1])

    @property
    def scales(self) -> Tensor:
        """Standard deviations (N, 3) in metres."""
        return self.log_scales.exp()

    @property
    def opacities(self) -> Tensor:
        """(N,) in [0, 1]."""
        return torch.sigmoid(self.logits)

    @property
    def colors(self) -> Tensor:
        """Colour (N, 3) without what depends on direction: sRGB, may leave [0, 1]."""
        return 0.5 + C0 * self.sh[:, 0]

    @property
    def finite(self) -> Tensor:
        """(N,) whether all numbers of a Gaussian are finite and its quaternion is not 0; a log-scale may be -inf."""
        fine = torch.isfinite(self.means).all(1) & torch.isfinite(self.sh).all((1, 2)) & ~self.logits.isnan()
        fine &= (self.log_scales < torch.inf).all(1)
        return fine & torch.isfinite(self.quaternions).all(1) & (self.quaternions.norm(dim=1) > 1e-12)

    def broken(self) -> dict[str, int]:
        """How many Gaussians are not finite, and of how many each of their parts is broken."""

        def odd(values: Tensor) -> int:
            return int((~torch.isfinite(values)).any(1).sum())

        turns = self.quaternions
        return {
            "splats": int((~self.finite).sum()),
            "positions": odd(self.means),
            "scales": int((self.log_scales.isnan() | (self.log_scales == torch.inf)).any(1).sum()),
            "rotations": int((~torch.isfinite(turns).all(1) | (turns.norm(dim=1) <= 1e-12)).sum()),
            "opacities": int(self.logits.isnan().sum()),
            "harmonics": odd(self.sh.flatten(1)),
        }

    def __getitem__(self, rows: Tensor | slice) -> GaussianCloud:
        """Some of the Gaussians: a slice, a mask (N,) or indices."""
        return replace(self, **{name: getattr(self, name)[rows] for name in FIELDS})

    def to(self, target: torch.device | str | torch.dtype) -> GaussianCloud:
        """On another device or in another floating type."""
        return replace(self, **{name: getattr(self, name).to(target) for name in FIELDS})

    def detached(self) -> GaussianCloud:
        """The same numbers without gradients, on the CPU in float32."""
        return replace(self, **{name: getattr(self, name).detach().cpu().float() for name in FIELDS})

    def with_degree(self, degree: int) -> GaussianCloud:
        """With fewer coefficients, or more that are 0."""
        count = count_of(degree)
        more = self.sh.new_zeros(len(self), max(0, count - self.sh.shape[1]), 3)
        return replace(self, sh=torch.cat([self.sh, more], dim=1)[:, :count])

    def transformed(self, matrix: Tensor) -> GaussianCloud:
        """Moved by a similarity (4, 4) or (3, 4): positions, sizes, orientations and harmonics together.

        Raises InputError for a mirror, a shear or a scale that differs between axes.
        """
        linear, shift = matrix[:3, :3].double().cpu(), matrix[:3, 3].double().cpu()
        scale = float(torch.linalg.det(linear).abs() ** (1 / 3))
        if not math.isfinite(scale) or scale < 1e-12:
            raise InputError("splats: the transform is singular")
        sh = rotated(self.sh, linear / scale)  # refuses what is no rotation
        turn = quaternion_from_rotation(linear / scale).to(self.quaternions)
        return replace(
            self,
            means=self.means @ linear.mT.to(self.means) + shift.to(self.means),
            log_scales=self.log_scales + math.log(scale),
            quaternions=quaternion_product(turn.expand(len(self), 4), self.quaternions),
            sh=sh,
        )


def quaternion_product(first: Tensor, second: Tensor) -> Tensor:
    """Hamilton's product (N, 4) of (w, x, y, z): the rotation `second`, then `first`."""
    w1, x1, y1, z1 = first.unbind(-1)
    w2, x2, y2, z2 = second.unbind(-1)
    return torch.stack(
        [
            w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
            w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
            w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
            w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
        ],
        dim=-1,
    )


def rotation_matrices(quaternions: Tensor) -> Tensor:
    """Rotations (..., 3, 3) of (w, x, y, z) of any length, with gradients; the columns are the Gaussian's axes."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)
