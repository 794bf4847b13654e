"""Maps from the preimage of a frozen prior, in one call (PrimeDepth, Zavadski et al. 2024); the prior is never changed.

The picture is looked at at train index 1, through a little noise; a refiner reads what the U-Net computed. Depth is
predicted as disparity, up to scale and shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.priors import StableDiffusionPrior, load_prior
from ..core.sampling.grids import Spacing
from ..core.sampling.preimage import INDEX, Preimage, decoder_positions, preimage
from ..core.sampling.sampler import StepCallback
from ..utils.configs import load_config
from ..utils.errors import InputError
from ..utils.files import read_json
from .confidence import ErrorModel
from .geometry_head import MANIFEST, HeadConfig
from .head_files import read_weights, write_head
from .refiner import PictureBranch, Refiner, RefinerConfig

KIND = "preimage"  # in head.json


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

    def __post_init__(self) -> None:
        if self.head.start != "zeros":
            raise InputError(f"start={self.head.start!r}: a head of a preimage is a one-step regressor; use zeros")
        if len(self.head.targets) != 1:
            raise InputError(f"targets={self.head.targets}: a head of a preimage predicts one map")


class PreimageHead:
    """A frozen prior, the refiner and the branch that makes a picture of what it says."""

    def __init__(
        self, prior: StableDiffusionPrior, settings: PreimageConfig, base: str | None = None, seed: int = 0
    ) -> None:
        """An untrained head. `base`: the name or folder the prior was loaded by."""
        self.prior, self.settings, self.config, self.base = prior, settings, settings.head, base
        self.codec = settings.head.codec()
        self.confidence: dict[str, ErrorModel] = {}
        self.text = prior.encode_text([""])
        channels, side = prior.latent_shape[0], prior.latent_shape[1]
        like = self.seen(torch.zeros(1, channels, side, side, device=prior.device))
        self.refiner = Refiner(prior.network, like, settings.refiner, seed).to(prior.device)
        self.branch = PictureBranch(prior.vae, settings.refiner.out_channels, seed).to(prior.device).float()
        self._asked = prior.nfe

    @property
    def stochastic(self) -> bool:
        """See MapHead."""
        return False

    @property
    def groups(self) -> int:
        """Number of maps."""
        return 1

    @property
    def nfe(self) -> int:
        """Network rows asked so far."""
        return self.prior.nfe - self._asked

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return torch.device(self.prior.device)

    def modules(self) -> dict[str, nn.Module]:
        """What learns."""
        return {"refiner": self.refiner, "branch": self.branch}

    def encode_image(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w) of images (B, 3, H, W) in [0, 1]."""
        return self.prior.encode(images)

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
        return self.codec.decode(self.decode_pictures(latents))

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
    def predict(
        self,
        image_latents: Tensor,
        start: Tensor,
        steps: int | None = None,
        spacing: Spacing | None = None,
        callback: StepCallback | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """`refined`; there is nothing to start from, no step and no level that a callback could be told of."""
        return self.refined(image_latents)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> PreimageHead:
        """Moves all networks; the prior alone is cast, the refiner stays in float32."""
        self.prior.to(device, dtype)
        for module in self.modules().values():
            module.to(device)
        self.text = self.text.to(device)
        return self

    def save(self, folder: str | Path, base: str | None = None, **facts: Any) -> Path:
        """Writes the refiner and branch (fp16 safetensors) and head.json; the prior is named, not written.

        Raises InputError without a base and for a folder that holds something else.
        """
        base = base or self.base
        if base is None:
            raise InputError('base=None: name the prior that this head looks through, for example base="toybox"')
        return write_head(folder, self.modules(), KIND, base, self.settings, facts)

    @classmethod
    def load(
        cls, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> PreimageHead:
        """Reads what `save` wrote; the prior is the folder beside it, or found by name."""
        folder = Path(folder)
        manifest = read_json(folder / MANIFEST)
        base = str(manifest["base"])
        beside = folder.resolve().parent / base
        prior = load_prior(beside if beside.is_dir() else base, device, dtype)
        if not isinstance(prior, StableDiffusionPrior):
            raise InputError(f"the base {base!r} of {folder} is not a Stable Diffusion prior")
        head = cls(prior, load_config(PreimageConfig, manifest["config"]), base)
        read_weights(folder, head.modules(), device)
        return head
