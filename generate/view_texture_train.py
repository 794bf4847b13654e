"""How a prior of several views learns to read normals: its own noise error on views whose normals are an input."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.distillation.teacher import prior_hash
from ..core.priors import MultiViewPrior
from ..core.sampling import DDIM, Denoiser, Sampler
from ..core.training.latents import Captioned, Encoded, ViewGroups
from ..core.training.objectives.diffusion import NoiseLossConfig
from ..core.training.objectives.multiview import MultiViewConfig, MultiViewObjective
from ..geometry.cameras import to_mvdream
from ..utils.errors import InputError
from ..utils.pictures import grid, save_image
from ..utils.seeds import generator, sample_noise
from .view_texture import NormalTexture, TextureConfig

SHOWN = 4  # groups of a preview


@dataclass(frozen=True)
class TextureTraining:
    """What is minimised, by what."""

    adapter: TextureConfig = field(default_factory=TextureConfig)
    noise: NoiseLossConfig = field(default_factory=NoiseLossConfig)
    """its `prediction` is that of the prior, whatever it says"""
    base: str = ""
    """hash of the prior; filled in"""


class PairedGroups(ViewGroups):
    """Batches of four-view groups with the latents of the same views' normal maps as "concat"."""

    def __init__(self, latents: Encoded, phrases: Captioned) -> None:
        """`latents.pictures.groups()` are in turn pictures and normal maps of the same views.

        Raises InputError for groups that are not."""
        super().__init__(latents, phrases, 0.0)
        if len(self.groups) % 2:
            raise InputError(f"{len(self.groups)} groups are no pairs; encode kinds=[picture, normal map] of one set")
        self.groups, self.maps = self.groups[0::2], self.groups[1::2]
        places, others = (self.cameras(one[:, 0])[0] for one in (self.groups, self.maps))
        if not np.array_equal(places, others):
            raise InputError("pictures and normal maps are not of the same views; encode kinds=[picture, normal map]")
        self.identity = {**self.identity, "groups": len(self.groups), "concat": "normal map"}

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, Any]:
        """See ViewGroups.batch."""
        return {**super().batch(indices, rng), "concat": self.latents.rows(self.maps[indices].ravel())}


class TextureObjective(MultiViewObjective):
    """Trains the adapter of a `NormalTexture`."""

    def __init__(
        self, config: TextureTraining, prior: MultiViewPrior, held_out: PairedGroups | None = None, seed: int = 0
    ) -> None:
        """`seed`: of the first weights. Raises InputError for a prior that answers with neither noise nor v."""
        kind = prior.prediction_type
        if kind != "epsilon" and kind != "v_prediction":
            raise InputError(
                f"base={prior.name} answers with {kind}; its noise error is that of epsilon or v_prediction"
            )
        self.texture = NormalTexture(prior, config.adapter, seed)
        noise = replace(config.noise, prediction=kind)
        super().__init__(MultiViewConfig(noise), prior.pipe, held_out, seed, self.texture.asked.views)
        self.config = replace(config, noise=noise, base=prior_hash(prior))
        self.modules = self.texture.modules
        self.frozen = prior.modules()  # whose parameters are those of the network that is asked

    def asked(self, batch: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """See MultiViewObjective.asked: with the normals, and with those of nothing instead."""
        blind = np.zeros_like(batch["concat"])
        return {"views": batch, "blind": {**batch, "concat": blind}}

    @torch.no_grad()
    def preview(self, step: int, out: Path) -> list[Path]:
        """Held-out views painted by their normals, a row of normals above each row of them."""
        if self.held_out is None:
            return []
        batch = self.held_out.batch(np.arange(min(SHOWN, len(self.held_out))), None)
        prior, noise, frames = self.texture.asked, self.config.noise, batch["frames"]
        maps = torch.from_numpy(batch["concat"]).float().to(prior.device)
        cameras = to_mvdream(torch.from_numpy(batch["c2w"])).to(prior.device)
        condition = prior.encode_text(batch["captions"][::frames]).with_views(cameras, frames)
        denoiser = Denoiser(prior, condition.with_rows(concat=maps), noise.preview_guidance)
        start = sample_noise(prior.latent_shape, generator(0), len(maps), prior.device)
        drawn = Sampler(DDIM()).run(denoiser, start, denoiser.schedule.grid(noise.preview_steps))
        rows = [row for pair in zip(maps.split(frames), drawn.split(frames), strict=True) for row in pair]
        path = out / f"painted-{step:07d}.png"
        return [save_image(path, grid(_pictures(prior, torch.cat(rows)), columns=frames))]

    def save(self, out: str | Path, base: str = "") -> Path:
        """Writes the adapter, which knows its prior by the hash of its weights; `base`: another name for that."""
        return self.texture.save(out, **({"base": base} if base else {}))


def _pictures(prior: MultiViewPrior, latents: Tensor) -> list[np.ndarray]:
    return list(prior.decode(latents).permute(0, 2, 3, 1).cpu().numpy())
