"""Three feature planes (xy, xz, yz) read bilinearly, added, decoded by a small MLP (EG3D, Chan et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .base import Field, Query
from .heads import Head
from .mlp import Decoder

AXES = ((0, 1), (0, 2), (1, 2))


@dataclass(frozen=True)
class TriplaneConfig:
    """Planes with their decoder."""

    side: int = 64  # texels along an edge
    features: int = 12  # per plane
    width: int = 32  # of the decoder's hidden layer
    plane_lr: float = 0.02
    decoder_lr: float = 0.002


class TriplaneField(Field):
    """Triplane features decoded to geometry and colour. `planes` (3, C, S, S) may also be filled by a generator."""

    kind = "triplane"

    def __init__(self, config: TriplaneConfig, head: Head, half: float = 1.0, generator: torch.Generator | None = None):
        super().__init__(head, half)
        self.config = config
        shape = (3, config.features, config.side, config.side)
        self.planes = nn.Parameter(0.1 * torch.randn(shape, generator=generator))
        self.decoder = Decoder(config.features, config.width, generator)

    @property
    def spacing(self) -> float:
        """Edge of a texel in metres."""
        return 2 * self.half_side / (self.config.side - 1)

    @property
    def kept_numbers(self) -> int:
        """See Field: the point on three planes, and what the decoder keeps."""
        return 6 + self.decoder.kept_numbers

    def query(self) -> Query:
        """Sum of the three projections, then the decoder."""

        def ask(points: Tensor) -> Tensor:
            flat = torch.stack([points[:, a : b + 1 : b - a] for a, b in AXES]) / self.half_side  # (3, N, 2)
            read = nn.functional.grid_sample(
                self.planes, flat[:, None].to(self.planes), align_corners=True, padding_mode="border"
            )
            return self.decoder(read[:, :, 0].sum(dim=0).t())  # (N, 4)

        return ask

    def roughness(self, query: Query | None = None) -> Tensor:
        """Mean squared difference of neighbouring texels."""
        across = (self.planes[..., 1:] - self.planes[..., :-1]).square().mean()
        return across + (self.planes[..., 1:, :] - self.planes[..., :-1, :]).square().mean()

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Planes and networks at their own rates."""
        nets = list(self.decoder.parameters()) + [p for p in self.head.parameters() if p.requires_grad]
        planes = {"params": [self.planes], "lr": lr * self.config.plane_lr}
        return [planes, {"params": nets, "lr": lr * self.config.decoder_lr}]
