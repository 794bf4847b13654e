"""Fine-tuning a text-to-image prior into a four-view prior (Shi et al. 2023, "MVDream").

Group batches: joint attention over the F views, camera embedding, one t a group. Single-picture batches (mixed in by
the data) use the plain 2-D network and keep what it knew. The text encoder stays frozen unless asked otherwise.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor, nn

from ....geometry.cameras import Camera, to_mvdream
from ....utils.pictures import grid, save_image
from ...priors.embedded import MultiViewPrior
from ...priors.multiview import FRAMES, MultiViewUNet, inflate
from ...sampling import DDIM, Denoiser, NoiseSchedule, Sampler
from ..export import folder_path
from ..latents import ViewGroups
from ..loss import LossOut
from .base import Objective, fixed_init
from .diffusion import NoiseLossConfig, drop, noise_error, noise_weight, token_ids, write_pipeline


@dataclass(frozen=True)
class MultiViewConfig:
    """The loss; the network comes from the base prior."""

    noise: NoiseLossConfig = field(default_factory=NoiseLossConfig)
    train_text: bool = False
    """the text encoder learns too: one training then makes both priors, the 2-D one by `save_base`"""
    preview_elevation_deg: float = 20.0


class MultiViewObjective(Objective):
    """Trains the inflated U-Net and its camera embedding on `ViewGroups` batches."""

    def __init__(
        self,
        config: MultiViewConfig,
        base: StableDiffusionPipeline,
        held_out: ViewGroups | None = None,
        seed: int = 0,
        unet: MultiViewUNet | None = None,
    ) -> None:
        """`unet`: what is asked; None: the base's own, inflated."""
        self.config, self.held_out = config, held_out
        self.tokenizer, self.text_encoder, self.vae = base.tokenizer, base.text_encoder, base.vae
        self.scheduler = DDIMScheduler.from_config(base.scheduler.config, prediction_type=config.noise.prediction)
        self.schedule = NoiseSchedule.from_config({**self.scheduler.config, "_class_name": "DDIMScheduler"})
        with fixed_init(seed):
            self.unet = unet or inflate(base.unet)
        self.base = base
        self.modules: dict[str, nn.Module] = {"unet": self.unet}
        self.frozen: dict[str, nn.Module] = {"vae": self.vae}
        (self.modules if config.train_text else self.frozen)["text_encoder"] = self.text_encoder

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """Min-SNR-weighted noise error, one t and one prompt decision per group."""
        frames, rows = batch["frames"], len(batch["latents"])
        t = torch.randint(self.schedule.steps, (rows // frames,), generator=rng)
        t = t.repeat_interleave(frames)
        captions = drop(batch["captions"], self.config.noise.empty_share, rng, frames)
        noise = torch.randn(batch["latents"].shape, generator=rng)
        error = self._error(batch, captions, t, noise)
        weight = noise_weight(self.schedule.at_index(t), self.config.noise).to(error)
        name = "eps_mse_views" if frames > 1 else "eps_mse_single"
        return LossOut((weight * error).mean(), {name: error.detach().mean()})

    def validate(self) -> dict[str, float]:
        """Unweighted noise error on held-out groups, as `asked` asks them."""
        if self.held_out is None:
            return {}
        count = min(self.config.noise.validation_samples // FRAMES, len(self.held_out))
        rng = torch.Generator().manual_seed(0)
        errors: dict[str, list[Tensor]] = {}
        for indices in np.array_split(np.arange(count), max(1, count // 8)):
            batch = self.held_out.batch(indices, None)
            t = torch.from_numpy((indices * 997 + 499) % self.schedule.steps).repeat_interleave(FRAMES)
            noise = torch.randn(batch["latents"].shape, generator=rng)
            for name, one in self.asked(batch).items():
                errors.setdefault(name, []).append(self._error(one, batch["captions"], t, noise))
        return {f"eps_mse_{name}": float(torch.cat(parts).mean()) for name, parts in errors.items()}

    def asked(self, batch: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """What validation compares, by name: a batch jointly, and each of its views alone without a camera."""
        return {"views": batch, "single": {**batch, "frames": 1, "c2w": None}}

    @torch.no_grad()
    def preview(self, step: int, out: Path) -> list[Path]:
        """Four views of each preview prompt, a row a prompt, front first."""
        noise = self.config.noise
        images = self.sample(list(noise.preview_prompts), noise.preview_steps, noise.preview_guidance, seed=0)
        path = out / f"views-{step:07d}.png"
        save_image(path, grid(list(images.permute(0, 2, 3, 1).cpu().numpy()), columns=FRAMES))
        return [path]

    @torch.no_grad()
    def sample(self, prompts: list[str], steps: int, guidance: float, seed: int) -> Tensor:
        """DDIM samples (prompts * 4, 3, H, W) in [0, 1] at azimuths 0, 90, 180, 270; the camera is in both branches."""
        size = self.unet.unet.config.sample_size
        orbit = Camera.orbit(torch.arange(FRAMES) * 90.0, self.config.preview_elevation_deg, 3.0, 40.0, size, size)
        parts = {**self.base.components, "scheduler": self.scheduler}
        pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
        prior = MultiViewPrior(pipe, self.unet, frozen=False)
        condition = prior.encode_text(prompts).with_views(to_mvdream(orbit.c2w), FRAMES)
        shape = (condition.rows, *prior.latent_shape)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(prior.device)
        denoiser = Denoiser(prior, condition, guidance)
        return prior.decode(Sampler(DDIM()).run(denoiser, noise, denoiser.schedule.grid(steps)))

    def save(self, out: str | Path, base: str = "toybox") -> Path:
        """Writes the multi-view folder in fp16; the rest stays in the folder `base`, whose U-Net it is when the text
        encoder learnt too: `save_base` writes it."""
        with folder_path(out) as temporary:
            copied = copy.deepcopy(self.unet).to("cpu", torch.float16)
            for tensor in (*copied.parameters(), *copied.buffers()):
                tensor.data = tensor.data.contiguous()
            copied.save(temporary, base, shared=self.config.train_text, frames=FRAMES)
        return Path(out)

    def save_base(self, out: str | Path) -> Path:
        """Writes the 2-D prior these weights are at one frame: a pipeline folder in fp16."""
        inner = self.unet.unet
        plain = type(inner).from_config(inner.config)
        plain.load_state_dict(inner.state_dict())
        parts = {**self.base.components, "unet": plain, "scheduler": self.scheduler}
        return write_pipeline(StableDiffusionPipeline(**parts, requires_safety_checker=False), out)

    def _embed(self, captions: list[str]) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and "text_encoder" in self.modules):
            return self.text_encoder(token_ids(self.tokenizer, captions).to(self.unet.device)).last_hidden_state

    def _error(self, batch: dict[str, Any], captions: list[str], t: Tensor, noise: Tensor) -> Tensor:
        """Mean squared noise error per row (B F,)."""
        device = self.unet.device
        latents = torch.from_numpy(batch["latents"]).to(device, torch.float32)
        cameras = None if batch["c2w"] is None else to_mvdream(torch.from_numpy(batch["c2w"]).to(device))
        level = self.schedule.at_index(t)
        noisy, noise = self.schedule.noised(latents, level, noise)
        maps = batch.get("concat")  # latents of maps of these views, before the state
        state = noisy if maps is None else torch.cat([torch.from_numpy(maps).to(noisy), noisy], 1)
        predicted = self.unet(state, t.to(device), self._embed(captions), cameras, batch["frames"])
        return noise_error(self.schedule, self.config.noise.prediction, predicted, latents, noise, level)
