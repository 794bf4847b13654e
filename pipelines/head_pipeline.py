"""What pipelines around one head share: loading, saving, moving."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch

from ..tasks.heads import load_head
from ..tasks.map_head import MapHead
from ..utils.errors import InputError
from .base import placed

P = TypeVar("P", bound="HeadPipeline")


class HeadPipeline:
    """A head that predicts what the pipeline `needs`."""

    needs: tuple[str, ...] = ()

    def __init__(self, head: MapHead) -> None:
        missing = [name for name in self.needs if name not in head.config.targets]
        if missing:
            raise InputError(f"this head predicts {', '.join(head.config.targets)}, not {', '.join(missing)}")
        self.head = head

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "toybox",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        torch_dtype: torch.dtype | None = None,
        **options: Any,
    ) -> Any:
        """Loads a head: "toybox", a folder with head.json, a published one's, a known id or a hub repository.

        `torch_dtype` is diffusers' name of `dtype`.
        """
        return cls(load_head(name, cls.needs, device, torch_dtype or dtype, **options))

    def save_pretrained(self, folder: str | Path, base: str | None = None) -> Path:
        """Writes a folder `from_pretrained` reads; `base` names the prior of a head that was not loaded from files."""
        return self.head.save(folder, base)

    def to(self: P, *where: torch.device | str | int | torch.dtype | None, **named: Any) -> P:
        """Moves and casts the head and its prior, as diffusers' pipelines take it (`base.placed`)."""
        self.head.to(*placed(*where, **named))
        return self
