"""What a prior of diffusers' networks knows of its place: where it computes, and how much memory that takes."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from ...utils.errors import InputError
from .base import Prior
from .footprint import decoder_numbers, encoder_numbers, network_numbers
from .placement import WHOLE, execution_device
from .replay import forget

P = TypeVar("P", bound="PlacedPrior")


class PlacedPrior(Prior):
    """A prior whose networks may be offloaded; subclasses have a VAE and a pipeline with the network in `backbone`."""

    backbone: str
    pipe: Any
    vae: Any
    network: nn.Module
    placement = WHOLE

    @property
    def device(self) -> torch.device:
        """See Prior.device; what is offloaded comes there when it is asked."""
        return execution_device(self.network)

    def to(self: P, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> P:
        """See Prior.to. Raises InputError for a prior that is offloaded or quantised."""
        if self.placement.offload != "none" or self.placement.weights != "full":
            raise InputError(
                f"the prior {self.name!r} is loaded with offload={self.placement.offload!r} and "
                f"weights={self.placement.weights!r}, which decide its place; load it again for another one"
            )
        forget(self.network)
        return super().to(device, dtype)

    def encode_bytes(self, height: int, width: int, by_block: bool = False) -> int:
        """See Prior.encode_bytes."""
        numbers = encoder_numbers(self.vae.config, by_block)
        return int(numbers * height * width * self.vae.dtype.itemsize)

    def encode_by_block(self, wanted: bool) -> None:
        """See Prior.encode_by_block; by diffusers' own checkpointing."""
        if wanted != self.vae.encoder.gradient_checkpointing:
            (self.vae.enable_gradient_checkpointing if wanted else self.vae.disable_gradient_checkpointing)()

    def row_bytes(self, height: int, width: int) -> int:
        """See Prior.row_bytes."""
        pixels = height * width // self.vae_factor**2
        settings = getattr(self.pipe, self.backbone).config
        return int(network_numbers(type(self.network).__name__, settings, pixels) * self.dtype.itemsize)

    def decode_bytes(self, height: int, width: int) -> int:
        """See Prior.decode_bytes."""
        return int(decoder_numbers(self.vae.config) * height * width * self.vae.dtype.itemsize)

    def smaller_setting(self) -> str:
        """See Prior.smaller_setting: the next of half precision, offloading and quantised weights."""
        place = self.placement
        if self.dtype == torch.float32:
            return "use half precision: --dtype bfloat16 or float16"
        if place.offload in ("none", "text"):
            return "move one network at a time to the device: --offload model"
        if place.weights == "full":
            return "store the weights in 8 bit: --weights float8"
        if place.offload == "model":
            return "move one layer at a time to the device: --offload sequential"
        return "use a smaller prior or smaller renders (optimise.sizes)"
