"""What a picture means, told to a U-Net from inside: features of an encoder, read by a copy of the U-Net's own encoder
and added behind each of its layers (Ye et al. 2024, StableNormal).

The copy is asked at time 0, once for a picture. Its residuals change the activations themselves, so that the deeper
layers and the skip connections carry them; a ControlNet's are added to the skips alone, and both may act at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ..core.priors.control import PictureControl
from ..core.priors.rows import Rows
from ..core.training.objectives.base import fixed_init
from .latent_control import LatentControl

MEANING = "meaning"  # row: features (B, D, h', w')


class MeaningEncoder(LatentControl):
    """Features (B, D, h', w') to one residual for each of `encoder_layers`.

    A small embedding brings them to the first width and the latents' size. Each residual has a gate that begins at 0,
    so that a fresh encoder changes nothing; the published weights have none, which is 1.
    """

    def __init__(self, unet: UNet2DConditionModel, features: int, seed: int = 0) -> None:
        super().__init__(unet, unet.config.in_channels)
        width = int(unet.conv_in.out_channels)
        self.body.conv_in, self.body.mid_block = nn.Identity(), None
        with fixed_init(seed):
            self.merge = nn.Sequential(nn.Conv2d(features, width, 1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.merge.to(next(unet.parameters()))
        self.features = features
        self.gates = nn.Parameter(torch.zeros(len(encoder_layers(unet))).to(next(unet.parameters())))

    def residuals(self, features: Tensor, size: tuple[int, int], text: Tensor) -> list[Tensor]:
        """The residuals for latents of a size (h, w), with text (B, L, D)."""
        at = F.interpolate(features, size, mode="bilinear")
        time = torch.zeros((), device=at.device, dtype=torch.long)
        found, _ = self(at, time, text, at)
        return [gate * one for gate, one in zip(self.gates, found, strict=True)]


def encoder_layers(unet: Any) -> list[nn.Module]:
    """The modules whose outputs are the skip connections: conv_in, each layer of a down block, each downsampler."""
    layers: list[nn.Module] = [unet.conv_in]
    for block in unet.down_blocks:
        layers += list(block.attentions) if getattr(block, "attentions", None) else list(block.resnets)
        layers += list(block.downsamplers or ())
    return layers


@dataclass(eq=False)
class AddedMeaning(PictureControl):
    """The control of a U-Net by a `MeaningEncoder`; it stays on the network it was made for."""

    row: str = MEANING
    unet: Any = None
    _now: list[Tensor] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        for number, layer in enumerate(encoder_layers(self.unet)):
            layer.register_forward_hook(self._adder(number))
        self.unet.register_forward_hook(lambda *_: self._now.clear())  # calls without the row are plain ones

    def added(self, x: Tensor, time: Tensor, text: Tensor, rows: Rows, more: Mapping[str, Any]) -> dict[str, Any]:
        """See PictureControl.added; of a picture that stays the same they are computed once."""
        given = rows[self.row]
        if torch.is_grad_enabled() or self._kept is None or self._kept[0] is not given:
            self._kept = given, self.network.residuals(given.to(x), (x.shape[2], x.shape[3]), text)  # type: ignore[operator]
        self._now[:] = self._kept[1]
        return {}

    def _adder(self, number: int) -> Any:
        def add(layer: nn.Module, args: Any, output: Any) -> Any:
            if not self._now:
                return output
            residual = self.scale * self._now[number]
            return (output[0] + residual, *output[1:]) if isinstance(output, tuple) else output + residual

        return add
