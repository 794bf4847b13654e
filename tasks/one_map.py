"""What heads of one map that are several modules share, whatever these are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.priors import StableDiffusionPrior
from ..utils.errors import InputError
from .confidence import ErrorModel
from .geometry_head import HeadConfig
from .head_files import write_head
from .walk import USUAL, Walk


class OneMapHead(ABC):
    """A `MapHead` of one target, whose latents are the prior's; what it reads and learns is the subclass's."""

    kind: ClassVar[str]
    """in head.json"""
    stands_on: ClassVar[str]
    """what `base` names, for messages"""
    base: str | None = None
    """the name or folder of what stands beside its own weights; None: not known"""

    def __init__(self, prior: StableDiffusionPrior, settings: Any, config: HeadConfig) -> None:
        self.prior, self.settings, self.config, self.codec = prior, settings, config, config.codec()
        self.confidence: dict[str, ErrorModel] = {}

    @property
    def stochastic(self) -> bool:
        """See MapHead: what is drawn follows from the starting state."""
        return False

    @property
    def groups(self) -> int:
        """Number of maps."""
        return 1

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return torch.device(self.prior.device)

    @property
    @abstractmethod
    def nfe(self) -> int:
        """Network rows asked so far."""

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """What learns."""

    @abstractmethod
    def predict(self, image_latents: Tensor, start: Tensor, walk: Walk = USUAL) -> Tensor:
        """See MapHead.predict."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w) of images (B, 3, H, W) in [0, 1]."""
        return self.prior.encode(images)

    def encode_targets(self, targets: dict[str, Tensor], valid: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """(latents (B, C, h, w), codec states) of the target."""
        pictures, states = self.codec.encode(targets, valid)  # (B, 1, 3, H, W)
        return self.prior.encode(pictures[:, 0] / 2 + 0.5), states

    def decode_pictures(self, latents: Tensor) -> Tensor:
        """Pictures (B, 1, 3, H, W), about [-1, 1]; differentiable."""
        return 2 * self.prior.decode(latents, clamp=False)[:, None] - 1

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        """Maps (B, C, H, W) by name."""
        return self.codec.decode(self.decode_pictures(latents))

    def shape(self, image_latents: Tensor) -> tuple[int, int, int]:
        """(C, h, w) of a starting state and of what `predict` says."""
        return (image_latents.shape[1], *image_latents.shape[2:])

    def save(self, folder: str | Path, base: str | None = None, **facts: Any) -> Path:
        """Writes what learns (fp16 safetensors) and head.json; the base is named, not written.

        Raises InputError without a base and for a folder that holds something else.
        """
        base = base or self.base
        if base is None:
            raise InputError(f"base=None: name {self.stands_on}")
        return write_head(folder, self.modules(), self.kind, base, self.settings, facts)
