"""A map in one call, with the picture told beside the network (StableNormal's "YOSO", Ye et al. 2024).

The U-Net's input is noise, or nothing, and it answers the clean latents x0; what the picture shows comes from a copy of
its encoder that reads the picture's latents (`latent_control`), without zero convolutions. The network is told time
t* = 401 whatever the input, 0 in the published "turbo". In training noise is now and then replaced by its mean, zeros,
so that the answer does not hang on it (`one_step_train`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ..core.priors import Condition, Rows, StableDiffusionPrior
from ..core.priors.control import CONTROL, PictureControl
from ..core.sampling import Denoiser, Level, NoiseSchedule
from ..core.training.adapters import adapted
from ..utils.configs import load_config
from ..utils.errors import InputError
from ..utils.files import read_json
from .bases import base_prior
from .geometry_head import ENDS, MANIFEST, HeadConfig
from .head_files import read_weights
from .latent_control import CONTROL_ENDS, LatentControl
from .one_map import OneMapHead
from .walk import USUAL, Walk

TOLD = 401  # t*, of 1000 train steps


@dataclass(frozen=True)
class OneStepConfig:
    """What is predicted, and how the network is asked."""

    target: str = "normals"
    """a codec"""
    start: Literal["zeros", "noise"] = "zeros"
    """the network's input; noise of another seed is another member of an ensemble"""
    timestep: int = TOLD
    """train index that the network and the picture's encoder are told"""
    prompt: str = ""
    processing_resolution: int = 96
    """px of the longest edge; 0 = the input's own"""
    rank: int = 0
    """of the adapters that both networks learn as, beside first and last layers; 0: all their weights"""
    codecs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """see HeadConfig.codecs"""

    def head(self) -> HeadConfig:
        """What pipelines ask a head for."""
        return HeadConfig(
            targets=(self.target,),
            kind="sample",
            start=self.start,
            processing_resolution=self.processing_resolution,
            codecs=self.codecs,
        )


class OneStepHead(OneMapHead):
    """A U-Net that answers x0, and the encoder of the picture beside it."""

    kind = "one-step"
    stands_on = 'the prior whose codec and text encoder this head uses, for example base="toybox"'

    def __init__(
        self, prior: StableDiffusionPrior, settings: OneStepConfig, base: str | None = None, seed: int = 0
    ) -> None:
        """An untrained head: the prior's own U-Net. `base`: the name or folder the prior was loaded by."""
        super().__init__(prior, settings, settings.head())
        self.base = base
        self.schedule = NoiseSchedule.from_config(prior.scheduler_config)
        if not 0 <= settings.timestep < self.schedule.steps:
            raise InputError(f"timestep={settings.timestep} must lie in 0 to {self.schedule.steps - 1}")
        self.unet: UNet2DConditionModel = copy.deepcopy(prior.network)
        self.hint = LatentControl(self.unet, prior.latent_shape[0], seed)
        if settings.rank:
            adapted(self.unet, settings.rank, whole=ENDS, seed=seed)
            adapted(self.hint, settings.rank, whole=CONTROL_ENDS, seed=seed)
        self.asked = prior.with_network(self.unet, "sample").controlled([PictureControl(self.hint, row=CONTROL)])
        self.text = prior.encode_text([settings.prompt])["cond"]["text"]

    @property
    def nfe(self) -> int:
        """Network rows asked so far."""
        return self.asked.nfe

    def modules(self) -> dict[str, nn.Module]:
        """What learns."""
        return {"unet": self.unet, "hint": self.hint}

    def level(self) -> Level:
        """What the network is told."""
        return self.schedule.at_index(self.settings.timestep)

    def answer(self, image_latents: Tensor, start: Tensor) -> Tensor:
        """x0 (B, C, h, w) of images and inputs like them; differentiable."""
        text = self.text.to(image_latents.device).expand(len(image_latents), -1, -1)
        condition = Condition({"cond": Rows({"text": text, CONTROL: image_latents})})
        return Denoiser(self.asked, condition)(start, self.level()).x0

    @torch.no_grad()
    def predict(self, image_latents: Tensor, start: Tensor, walk: Walk = USUAL) -> Tensor:
        """`answer`; there is one step, and a callback is told of none."""
        return self.answer(image_latents, start)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> OneStepHead:
        """Moves and casts the networks."""
        self.prior.to(device, dtype)
        for module in self.modules().values():
            module.to(device=device, dtype=dtype)
        self.asked.to(device, dtype)
        self.text = self.text.to(device=device, dtype=dtype)
        return self

    @classmethod
    def load(
        cls, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> OneStepHead:
        """Reads what `save` wrote; the prior is the folder beside it, or found by name."""
        folder = Path(folder)
        manifest = read_json(folder / MANIFEST)
        base = str(manifest["base"])
        head = cls(base_prior(folder, base, device, dtype), load_config(OneStepConfig, manifest["config"]), base)
        read_weights(folder, head.modules(), device)
        return head
