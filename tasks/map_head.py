"""What a pipeline of pictures to maps needs of a head, whatever stands behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..core.priors import StableDiffusionPrior
from .codecs import StackCodec
from .confidence import ErrorModel
from .geometry_head import HeadConfig
from .walk import USUAL, Walk


class MapHead(Protocol):
    """`GeometryHead` (one U-Net), or one of the kinds on `OneMapHead`."""

    prior: StableDiffusionPrior
    config: HeadConfig
    codec: StackCodec
    confidence: dict[str, ErrorModel]
    """how sure it is, by target; empty: nobody has measured"""

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise of their own."""

    @property
    def nfe(self) -> int:
        """Network rows asked so far."""

    @property
    def device(self) -> torch.device:
        """Where the networks live."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w) of images (B, 3, H, W) in [0, 1]."""

    def shape(self, image_latents: Tensor) -> tuple[int, int, int]:
        """Of a starting state and of what `predict` says."""

    def predict(self, image_latents: Tensor, start: Tensor, walk: Walk = USUAL) -> Tensor:
        """What `decode` reads, (B, *shape), from a starting state; the wishes of `walk` hold for this call."""

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        """Maps (B, C, H, W) by name."""

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
        """Moves and casts the networks."""

    def save(self, folder: str | Path, base: str | None = None, **facts: Any) -> Path:
        """Writes a folder that `load_head` reads."""
