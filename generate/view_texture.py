"""What teaches a prior of several views to read the normals of what it paints: a small adapter and its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core.distillation.teacher import prior_hash
from ..core.priors import MultiViewPrior, Prior
from ..core.priors.view_adapter import shown_maps
from ..core.training.checkpoints import copy_into
from ..core.training.export import folder_path
from ..core.training.objectives.base import fixed_init
from ..utils.configs import load_config, to_dict
from ..utils.errors import InputError, damage
from ..utils.files import read_json, write_json

ABOUT, WEIGHTS = "direct25.json", "direct25.safetensors"
TRAIN = "unproject train direct25-texture --out runs/direct25-texture"


@dataclass(frozen=True)
class TextureConfig:
    """Size of the adapter."""

    rank: int = 16


class NormalTexture:
    """A prior with an adapter, which is all its weights; `asked` reads latents of normals as its row "concat"."""

    def __init__(self, prior: Prior, config: TextureConfig = TextureConfig(), seed: int = 0) -> None:
        """`seed`: of the first weights. Raises InputError for priors of single images."""
        if not isinstance(prior, MultiViewPrior):
            raise InputError(f"{prior.name} draws single images; textures are learnt on a prior of several views")
        self.prior, self.config = prior, config
        with fixed_init(seed):
            self.adapter, self.asked = shown_maps(prior, config.rank)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What learns."""
        return {"adapter": self.adapter}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> NormalTexture:
        """Moves everything, and casts the frozen networks alone."""
        self.prior.to(device, dtype)
        self.asked.to(device, dtype)
        self.adapter.to(self.prior.device, torch.float32)
        return self

    def save(self, folder: str | Path, **about: Any) -> Path:
        """Writes direct25.safetensors (half precision) and direct25.json, with what else there is `about` it."""
        weights = self.adapter.state_dict()
        halves = {name: value.detach().cpu().half().contiguous() for name, value in weights.items()}
        with folder_path(folder) as temporary:
            save_file(halves, temporary / WEIGHTS)
            base = {"base": self.prior.name, "base_hash": prior_hash(self.prior)}
            write_json(temporary / ABOUT, {**base, "config": to_dict(self.config), **about})
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path, prior: Prior) -> NormalTexture:
        """What `save` wrote, on its prior. Raises InputError for files that are missing, or made for another prior."""
        folder = Path(folder)
        if not (folder / ABOUT).is_file():
            raise InputError(f"{folder} holds no {ABOUT}; give the export/ of a direct25-texture training")
        about = read_json(folder / ABOUT)
        if not isinstance(about, dict) or not isinstance(about.get("config", {}), dict):
            raise InputError(f"{folder / ABOUT} is damaged: a mapping with a mapping 'config' is expected")
        try:
            config = load_config(TextureConfig, about.get("config", {}))
        except InputError as error:
            raise InputError(f"{folder / ABOUT}: {error}") from error
        made = cls(prior, config)
        if about.get("base_hash") != prior_hash(prior):
            raise InputError(
                f"{folder} belongs to the prior {about.get('base')} of other weights than {prior.name} has; train anew "
                f"({TRAIN})"
            )
        try:
            weights: dict[str, Tensor] = load_file(folder / WEIGHTS)
        except Exception as error:  # the reader raises many kinds
            raise InputError(f"{folder / WEIGHTS} is missing or damaged: {damage(error)}") from error
        copy_into(made.adapter.state_dict(), weights, str(folder / WEIGHTS))
        return made
