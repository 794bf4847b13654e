"""Pictures that tile: convolutions that wrap around, in a network and in the decoder after it.

StableMaterials (2024) shifts features at random around each convolution of circularly padded input and shifts them
back. For a layer that is equivariant to shifts that is the circularly padded layer, whatever the shift, so the
padding is all that is done here; attention over the whole picture wraps around by itself. The first quarter of the
steps runs with the network's own padding, as published.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..priors.base import Prior
from .levels import Level
from .prediction import Prediction
from .sampler import Denoise

PLAIN_SHARE = 0.25  # of the steps, before the padding wraps around
MARGIN = 8  # latents are decoded with 1 / MARGIN of their sides around them


@contextlib.contextmanager
def circular_padding(network: nn.Module) -> Iterator[None]:
    """Inside, every padded convolution of this network wraps around; afterwards it is as before, whatever happens."""
    wide = [m for m in network.modules() if isinstance(m, nn.Conv2d) and any(_sides(m)) and m.padding_mode == "zeros"]
    for layer in wide:
        layer.padding_mode = "circular"
    try:
        yield
    finally:
        for layer in wide:
            layer.padding_mode = "zeros"


def _sides(layer: nn.Conv2d) -> tuple[int, ...]:
    return (0,) if isinstance(layer.padding, str) else tuple(layer.padding)


class Tileable:
    """A denoiser whose network wraps around from call `first` on; calls are counted from 0."""

    def __init__(self, denoiser: Denoise, network: nn.Module, first: int = 0) -> None:
        self.denoiser, self.network, self.first, self.calls = denoiser, network, first, 0

    @classmethod
    def for_steps(cls, denoiser: Denoise, network: nn.Module, steps: int) -> Tileable:
        """For a run of so many steps: the first quarter of them, rounded down, does not wrap."""
        return cls(denoiser, network, int(PLAIN_SHARE * steps))

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """See Denoiser."""
        wraps = self.calls >= self.first
        self.calls += 1
        with circular_padding(self.network) if wraps else contextlib.nullcontext():
            return self.denoiser(x, level)


def decode_tileable(prior: Prior, latents: Tensor, clamp: bool = True) -> Tensor:
    """Images (B, 3, H, W) of latents that tile: decoded with what lies around them, of which the middle is kept."""
    margins = [max(1, side // MARGIN) for side in latents.shape[2:]]
    around = torch.nn.functional.pad(latents, (margins[1],) * 2 + (margins[0],) * 2, mode="circular")
    images = prior.decode(around, clamp)
    factor = images.shape[2] // around.shape[2]
    top, left = (margin * factor for margin in margins)
    return images[..., top : images.shape[2] - top, left : images.shape[3] - left]


def seam_energy(images: Tensor) -> Tensor:
    """Mean absolute difference across the wrapped edges over that of neighbours inside (B,), of images (B, C, H, W).

    1 where the edges are like any other place; infinite is never reached: flat images give 1.
    """
    ratios = []
    for axis in (2, 3):
        inner = images.diff(dim=axis).abs().flatten(1).mean(1)
        first, last = images.narrow(axis, 0, 1), images.narrow(axis, images.shape[axis] - 1, 1)
        seam = (first - last).abs().flatten(1).mean(1)
        ratios.append(torch.where(inner > 0, seam / inner.clamp(min=1e-12), torch.ones_like(seam)))
    return torch.stack(ratios).mean(0)
