"""Metres in one call, told the picture and the camera it was taken with (DM-Calib, Deng et al. 2024).

The U-Net gets the latents of the picture and of the camera as a picture (`codecs.camera`), no noise, and answers the
latents of the depth; a copy of the VAE's decoder that learnt with it makes them a picture of metres
(`codecs.metric`). Without a camera (`camera: false`) its latents are zeros: a head to compare with.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.priors import Condition, Rows, StableDiffusionPrior
from ..core.priors.latents import latent_affine
from ..core.sampling import Denoiser, NoiseSchedule
from ..core.training.adapters import adapted, learning
from ..core.training.loss import LossOut
from ..core.training.objectives.base import Objective
from ..geometry.camera_image import pixel_tangents
from ..utils.configs import load_config
from ..utils.errors import InputError
from ..utils.files import read_json
from .bases import base_prior
from .codecs import CameraCodec
from .codecs.metric import MetresCodec
from .data import GeometryData
from .geometry_head import ENDS, MANIFEST, expanded_unet
from .head_files import read_weights, write_head
from .train import LossConfig

KIND = "metric"  # in head.json


@dataclass(frozen=True)
class MetricConfig:
    """How the network is asked."""

    codec: MetresCodec = field(default_factory=MetresCodec)
    timestep: int = 999
    """time that the network is told; 1000, beyond the train steps, of the published head"""
    prompt: str = ""
    camera: bool = True
    """whether it is told the camera"""
    processing_resolution: int = 96
    """px of the longest edge; 0 = the input's own"""
    rank: int = 0
    """of the adapters that network and decoder learn as, beside their first and last layers; 0: all their weights"""


class MetricHead:
    """A U-Net of [picture, camera] and the decoder of its answer."""

    def __init__(self, prior: StableDiffusionPrior, settings: MetricConfig, base: str | None = None) -> None:
        """An untrained head: the prior's own network for the picture, the camera not looked at yet."""
        self.prior, self.settings, self.base, self.codec = prior, settings, base, settings.codec
        self.schedule = NoiseSchedule.from_config(prior.scheduler_config)
        self.unet = expanded_unet(prior.network, 1, shared=False)  # type: ignore[arg-type]
        self.decoder: nn.Module = copy.deepcopy(prior.vae.decoder)
        if settings.rank:
            for module in self.modules().values():
                adapted(module, settings.rank, whole=ENDS)
        self.asked = prior.with_network(self.unet, "sample")
        self.text = prior.encode_text([settings.prompt])["cond"]["text"]

    @property
    def nfe(self) -> int:
        """Network rows asked so far."""
        return self.asked.nfe

    def modules(self) -> dict[str, nn.Module]:
        """What learns."""
        return {"unet": self.unet, "decoder": self.decoder}

    def camera_latents(self, images: Tensor, rays: Tensor) -> Tensor:
        """Latents (B, C, h, w) of cameras: tangents (B, 2, H, W) beside the grey of images (B, 3, H, W) in [0, 1]."""
        codec = CameraCodec()
        everywhere = torch.ones_like(images[:, :1], dtype=torch.bool)
        pictures, _ = codec.encode(codec.beside(rays.to(images), images), everywhere)
        return self.prior.encode(pictures / 2 + 0.5)

    def pictures(self, images: Tensor, rays: Tensor) -> Tensor:
        """Pictures of metres (B, 3, H, W) of images (B, 3, H, W) in [0, 1]; differentiable in what learns."""
        with torch.no_grad():
            seen = self.prior.encode(images)
            camera = self.camera_latents(images, rays) if self.settings.camera else torch.zeros_like(seen)
        text = self.text.to(seen.device).expand(len(seen), -1, -1)
        told = self.settings.timestep
        ask = Denoiser(
            self.asked,
            Condition({"cond": Rows({"text": text, "concat": seen})}),
            time_remap=lambda time: torch.full_like(time, told),
        )
        x0 = ask(camera, self.schedule.at_index(self.schedule.steps - 1)).x0
        shift, scale = latent_affine(self.prior.vae.config, x0)
        latents = (x0 / scale + shift).to(self.prior.vae.dtype)
        before: Any = self.prior.vae.post_quant_conv
        made: Tensor = self.decoder(latents if before is None else before(latents))
        return made.float()

    @torch.no_grad()
    def metres(self, images: Tensor, K: Tensor) -> Tensor:
        """z-depth (B, 1, H, W) in metres of images (B, 3, H, W) in [0, 1] through cameras K (B, 3, 3), px."""
        if K.shape != (len(images), 3, 3):
            raise InputError(f"K has shape {tuple(K.shape)}, expected {(len(images), 3, 3)}")
        rays = pixel_tangents(K.double(), images.shape[3], images.shape[2])
        return self.codec.decode(self.pictures(images, rays))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> MetricHead:
        """Moves and casts the networks."""
        self.prior.to(device, dtype)
        for module in self.modules().values():
            module.to(device=device, dtype=dtype)
        self.asked.to(device, dtype)
        self.text = self.text.to(device=device, dtype=dtype)
        return self

    def save(self, folder: str | Path, base: str | None = None, **facts: Any) -> Path:
        """Writes what learns (fp16 safetensors) and head.json; the prior is named, not written.

        Raises InputError without a base and for a folder that holds something else.
        """
        base = base or self.base
        if base is None:
            raise InputError('base=None: name the prior whose codec this head uses, for example base="toybox"')
        return write_head(folder, self.modules(), KIND, base, self.settings, facts)

    @classmethod
    def load(
        cls, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> MetricHead:
        """Reads what `save` wrote. Raises InputError for a folder of something else."""
        folder = Path(folder)
        manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
        if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
            raise InputError(f"{folder} holds no head of metres; train one with `unproject train metric-depth`")
        base = str(manifest["base"])
        head = cls(base_prior(folder, base, device, dtype), load_config(MetricConfig, manifest["config"]), base)
        read_weights(folder, head.modules(), device)
        return head


@dataclass(frozen=True)
class MetricTraining:
    """What a run is defined by."""

    head: MetricConfig
    losses: LossConfig


class MetricObjective(Objective):
    """Trains U-Net and decoder end to end on pictures with metres and cameras."""

    def __init__(self, config: LossConfig, head: MetricHead, held_out: GeometryData | None = None) -> None:
        self.losses, self.head, self.held_out = config, head, held_out
        self.config = MetricTraining(head.settings, config)
        self.weights = {**head.codec.weights, **config.weights}
        self.modules: dict[str, nn.Module] = head.modules()
        self.frozen: dict[str, nn.Module] = {"vae": head.prior.vae}
        for module in self.modules.values():
            learning(module)

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss: the codec's own loss of the decoded picture."""
        images, rays, depth, valid = self._tensors(batch)
        parts = self.head.codec.loss(self.head.pictures(images, rays), depth, valid)
        total = sum((self.weights[name] * value for name, value in parts.items()), images.new_zeros(()))
        return LossOut(total, {name: value.detach() for name, value in parts.items()})

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Errors in metres on held-out pictures through their own cameras, nothing aligned."""
        if self.held_out is None:
            return {}
        picked = np.linspace(0, len(self.held_out) - 1, min(self.losses.validation_images, len(self.held_out)))
        rows: dict[str, list[Tensor]] = {}
        for indices in np.array_split(picked.astype(int), max(1, len(picked) // 16)):
            images, rays, depth, valid = self._tensors(self.held_out.batch(indices, None))
            maps = self.head.codec.decode(self.head.pictures(images, rays))
            found = self.head.codec.metrics(maps, depth, valid)
            for name in self.head.codec.summary:
                rows.setdefault(name, []).append(found[name])
        return {name: float(torch.cat(values).nanmean()) for name, values in rows.items()}

    def _tensors(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(images (B, 3, H, W), tangents (B, 2, H, W), metres (B, 1, H, W), where these are known)."""
        device = self.head.unet.device
        images = torch.from_numpy(batch["images"]).to(device).permute(0, 3, 1, 2).float() / 255
        rays = torch.from_numpy(batch[CameraCodec.column.batch]).to(device).float().permute(0, 3, 1, 2)
        depth = torch.from_numpy(batch[self.head.codec.column.batch]).to(device).float()
        return images, rays, *self.head.codec.truth(depth)
