"""What the pipelines around one frozen prior share: loading, saving, moving."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch

from ..core.priors import Prior, load_prior
from ..core.sampling.plan import SamplingPlan
from .quality import Quality, checked, settings

P = TypeVar("P", bound="PriorPipeline")
S = TypeVar("S", bound="SamplingPipeline")


class PriorPipeline:
    """A recipe on top of a prior."""

    def __init__(self, prior: Prior) -> None:
        self.prior = prior

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes the prior as a folder `from_pretrained` reads."""
        return self.prior.save(folder)

    def to(self: P, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> P:
        """Moves and casts the prior."""
        self.prior.to(device, dtype)
        return self


class SamplingPipeline(PriorPipeline):
    """A recipe that draws."""

    def __init__(self, prior: Prior, quality: Quality = "balanced") -> None:
        """`quality`: "fast", "balanced" or "best", or "native" for what the prior's makers recommend."""
        super().__init__(prior)
        self.quality = checked(quality)

    @property
    def settings(self) -> SamplingPlan:
        """How a call draws that says nothing else."""
        return settings(self.prior, self.quality)

    @classmethod
    def from_pretrained(
        cls: type[S],
        name: str | Path = "toybox",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        quality: Quality = "balanced",
        torch_dtype: torch.dtype | None = None,
        **options: Any,
    ) -> S:
        """Loads a prior by name, folder, registry id or hub repository (`core.priors.load_prior`).

        `torch_dtype` is diffusers' name of `dtype`.
        """
        return cls(load_prior(name, device, torch_dtype or dtype, **options), quality)
