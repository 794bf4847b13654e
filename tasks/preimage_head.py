"""Maps from the preimage of a frozen prior, in one call (PrimeDepth, Zavadski et al. 2024); the prior is never changed.

The picture is looked at at train index 1, through a little noise; a refiner reads what the U-Net computed. Depth is
predicted as disparity, up to scale and shift.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.priors import StableDiffusionPrior
from ..core.sampling.preimage import INDEX, Preimage, decoder_positions, preimage
from ..core.training.adapters import adapted
from ..utils.configs import load_config
from ..utils.errors import InputError
from ..utils.files import read_json
from .bases import base_prior
from .geometry_head import ENDS, MANIFEST, HeadConfig
from .head_files import read_weights
from .one_map import OneMapHead
from .refiner import PictureBranch, Refiner, RefinerConfig
from .walk import USUAL, Walk


@dataclass(frozen=True)
class PreimageConfig:
    """What is predicted, and from what."""

    head: HeadConfig = field(
        default_factory=lambda: HeadConfig(targets=("depth",), kind="sample", codecs={"depth": {"space": "disparity"}})
    )
    """targets, codecs, size; how a network is asked stands below"""
    refiner: RefinerConfig = field(default_factory=RefinerConfig)
    index: int = INDEX
    """train index that the picture is looked at"""
    sees: Literal["preimage", "latents"] = "preimage"
    """latents: the picture's own at every position, without the prior; to compare with"""

    rank: int = 0
    """of the adapters that the branch's copy of the decoder learns as, beside its first and last layers; 0: all its
    weights"""
    free_range: bool = False
    """the branch's numbers have a range of their own: each map is stretched to the codec's"""

    def __post_init__(self) -> None:
        if self.head.start != "zeros":
            raise InputError(f"start={self.head.start!r}: a head of a preimage is a one-step regressor; use zeros")
        if len(self.head.targets) != 1:
            raise InputError(f"targets={self.head.targets}: a head of a preimage predicts one map")


class PreimageHead(OneMapHead):
    """A frozen prior, the refiner and the branch that makes a picture of what it says."""

    kind = "preimage"
    stands_on = 'the prior that this head looks through, for example base="toybox"'

    def __init__(
        self, prior: StableDiffusionPrior, settings: PreimageConfig, base: str | None = None, seed: int = 0
    ) -> None:
        """An untrained head. `base`: the name or folder the prior was loaded by."""
        super().__init__(prior, settings, settings.head)
        self.base = base
        self.text = prior.encode_text([""])
        channels, side = prior.latent_shape[0], prior.latent_shape[1]
        like = self.seen(torch.zeros(1, channels, side, side, device=prior.device))
        self.refiner = Refiner(prior.network, like, settings.refiner, seed).to(prior.device)
        self.branch = PictureBranch(prior.vae, settings.refiner.out_channels, seed).to(prior.device).float()
        if settings.rank:
            adapted(self.branch, settings.rank, whole=[f"decoder.{end}" for end in ENDS], seed=seed)
        self._asked = prior.nfe

    @property
    def nfe(self) -> int:
        """Network rows asked so far."""
        return self.prior.nfe - self._asked

    def modules(self) -> dict[str, nn.Module]:
        """What learns."""
        return {"refiner": self.refiner, "branch": self.branch}

    def seen(self, latents: Tensor) -> Preimage:
        """What the refiner reads of latents (B, C, h, w)."""
        if self.settings.sees == "preimage":
            return preimage(self.prior, latents, self.text, self.settings.index, self.settings.refiner.attention)
        unet: Any = self.prior.network
        sizes, (height, width) = list[tuple[int, int]](), latents.shape[2:]
        for level, block in enumerate(reversed(unet.up_blocks)):  # the finest first
            sizes = [(-(-height // 2**level), -(-width // 2**level))] * len(block.resnets) + sizes
        assert len(sizes) == len(decoder_positions(unet))
        features = tuple(F.interpolate(latents, size, mode="bilinear") for size in sizes)
        return Preimage(features, tuple(one.new_zeros((len(one), 0, *one.shape[2:])) for one in features))

    def decode_pictures(self, refined: Tensor) -> Tensor:
        """Pictures (B, 1, 3, H, W), about [-1, 1], of what `predict` says."""
        pictures: Tensor = self.branch(refined)
        return pictures[:, None]

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        """Maps (B, C, H, W) by name."""
        pictures = self.decode_pictures(latents)
        if self.settings.free_range:
            grey = pictures.mean(2, keepdim=True)
            low, high = (pick(grey, (2, 3, 4), keepdim=True) for pick in (torch.amin, torch.amax))
            pictures = (2 * (grey - low) / (high - low).clamp(min=1e-6) - 1).expand_as(pictures)
        return self.codec.decode(pictures)

    def shape(self, image_latents: Tensor) -> tuple[int, int, int]:
        """(out_channels, h, w) of what `predict` says."""
        return (self.settings.refiner.out_channels, *image_latents.shape[2:])

    def refined(self, image_latents: Tensor) -> Tensor:
        """What the refiner says, (B, out_channels, h, w); differentiable in its weights."""
        unet: Any = self.prior.network
        seen, count = self.seen(image_latents), len(image_latents)
        with torch.no_grad():
            index = torch.full((count,), self.settings.index, device=image_latents.device)
            time = unet.time_embedding(unet.get_time_embed(image_latents.to(unet.dtype), index)).float()
            text = self.text["cond"]["text"].float().expand(count, -1, -1)
        said: Tensor = self.refiner(seen, time, text, image_latents.shape[2:])
        return said

    @torch.no_grad()
    def predict(self, image_latents: Tensor, start: Tensor, walk: Walk = USUAL) -> Tensor:
        """`refined`; there is nothing to start from, no step and no level that a callback could be told of."""
        return self.refined(image_latents)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PreimageHead:
        """Moves all networks; the prior alone is cast, the refiner stays in float32."""
        self.prior.to(device, dtype)
        for module in self.modules().values():
            module.to(device)
        self.text = self.text.to(device)
        return self

    @classmethod
    def load(
        cls, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> PreimageHead:
        """Reads what `save` wrote; the prior is the folder beside it, or found by name."""
        folder = Path(folder)
        manifest = read_json(folder / MANIFEST)
        base = str(manifest["base"])
        prior = base_prior(folder, base, device, dtype)
        head = cls(prior, load_config(PreimageConfig, manifest["config"]), base)
        read_weights(folder, head.modules(), device)
        return head
