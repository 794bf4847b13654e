"""What the pipelines around one frozen prior share: loading, saving, moving."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch

from ..core.priors import Prior, load_prior

P = TypeVar("P", bound="PriorPipeline")


class PriorPipeline:
    """A recipe on top of a prior."""

    def __init__(self, prior: Prior) -> None:
        self.prior = prior

    @classmethod
    def from_pretrained(
        cls: type[P],
        name: str | Path = "toybox",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> P:
        """Loads a prior by name, folder, registry id or hub repository (`core.priors.load_prior`)."""
        return cls(load_prior(name, device, dtype, **options))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes the prior as a folder `from_pretrained` reads."""
        return self.prior.save(folder)

    def to(self: P, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> P:
        """Moves and casts the prior."""
        self.prior.to(device, dtype)
        return self
