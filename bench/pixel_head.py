"""A map from the colours of a picture alone: a U-Net of pixels without prior and codec, the baseline of all heads."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from ..core.training.loss import LossOut
from ..core.training.objectives.base import Objective, fixed_init
from ..tasks.codecs import TargetCodec

WIDTHS = (32, 64, 64)


class PixelObjective(Objective):
    """Trains the U-Net by the codec's own loss, on batches as those of the heads."""

    def __init__(self, codec: TargetCodec, seed: int = 0, widths: tuple[int, ...] = WIDTHS) -> None:
        """`widths`: channels of the levels, from fine to coarse; the seed is that of the weights."""
        self.codec = codec
        with fixed_init(seed):
            self.net = UNet2DModel(
                in_channels=3,
                out_channels=3,
                block_out_channels=widths,
                layers_per_block=1,
                norm_num_groups=8,
                down_block_types=("DownBlock2D",) * len(widths),
                up_block_types=("UpBlock2D",) * len(widths),
            )
        self.config = {"codec": codec, "widths": widths}
        self.modules: dict[str, nn.Module] = {"net": self.net}
        self.frozen: dict[str, nn.Module] = {}

    def pictures(self, images: Tensor) -> Tensor:
        """Predicted pictures (B, 3, H, W), about [-1, 1], of images (B, 3, H, W) in [0, 1]."""
        made: Tensor = self.net(2 * images - 1, 0).sample
        return made

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss."""
        images = torch.from_numpy(batch["images"]).permute(0, 3, 1, 2).float() / 255
        target, valid = self.codec.truth(torch.from_numpy(batch[self.codec.column.batch]).float())
        parts = self.codec.loss(self.pictures(images), self.codec.beside(target, images), valid)
        total = sum((self.codec.weights[name] * value for name, value in parts.items()), images.new_zeros(()))
        return LossOut(total, {name: value.detach() for name, value in parts.items()})

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Maps (B, C, H, W)."""
        return self.codec.decode(self.pictures(images))
