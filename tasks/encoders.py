"""Second encoders for correspondence: pictures (B, 3, H, W) in [-1, 1] to features (B, C, h, w)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..utils.errors import InputError
from ..utils.files import read_json

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINO_PX = 840  # of the square that DINOv2 looks at, 60 patches of 14 px
DINO_KINDS = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}


class Joined(nn.Module):
    """The levels of a pyramid as one map: each of unit length, at the size of the finest that is taken."""

    def __init__(self, maps: Callable[[Tensor], Sequence[Tensor]], skip: int = 1) -> None:
        """`maps` gives levels, fine to coarse, of which the first `skip` are left out: they see colours and edges."""
        super().__init__()
        self.maps, self.skip = maps, skip

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """Features (B, C, h, w) of pictures (B, 3, H, W) in [-1, 1]."""
        levels = list(self.maps(pictures))[self.skip :]
        size = levels[0].shape[2:]
        return torch.cat([F.normalize(F.interpolate(one, size, mode="bilinear"), dim=1) for one in levels], 1)


class DinoEncoder(nn.Module):
    """DINOv2 (Oquab et al. 2024): the patch tokens of its last block, before the closing normalisation."""

    def __init__(self, model: Any, side: int = DINO_PX) -> None:
        """`side`: px of the square that it looks at, rounded to whole patches."""
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        patch = int(model.config.patch_size)
        self.side = max(round(side / patch), 1) * patch
        self.apart = 1 + int(getattr(model.config, "num_register_tokens", 0))  # class token, registers

    @classmethod
    def from_folder(cls, folder: str | Path, side: int = DINO_PX) -> DinoEncoder:
        """DINOv2 in transformers' layout. Raises InputError for a folder that holds something else."""
        config = Path(folder) / "config.json"
        kind = read_json(config).get("model_type") if config.is_file() else None
        if kind not in DINO_KINDS:
            raise InputError(
                f"{folder} holds no DINOv2 in transformers' layout (a config.json with model_type "
                f"{' or '.join(DINO_KINDS)} and model.safetensors); facebook/dinov2-base is one"
            )
        import transformers

        model = getattr(transformers, DINO_KINDS[kind])
        return cls(model.from_pretrained(folder, local_files_only=True, use_safetensors=True), side)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """Tokens as (B, C, side / patch, side / patch) of square pictures (B, 3, S, S) in [-1, 1]."""
        images = F.interpolate(0.5 * pictures + 0.5, (self.side, self.side), mode="bilinear", antialias=True)
        mean, std = (images.new_tensor(values).reshape(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        hidden = self.model((images - mean) / std, output_hidden_states=True).hidden_states[-1]
        cells = self.side // int(self.model.config.patch_size)
        return hidden[:, self.apart :].transpose(1, 2).reshape(len(images), -1, cells, cells)
