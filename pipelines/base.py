"""What the pipelines around one frozen prior share: loading, saving, moving."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch

from ..core.priors import Prior, load_prior
from ..core.sampling.plan import SamplingPlan
from ..utils.errors import InputError
from .quality import TURBO, Quality, checked, settings, turbo_student

P = TypeVar("P", bound="PriorPipeline")
S = TypeVar("S", bound="SamplingPipeline")


class PriorPipeline:
    """A recipe on top of a prior."""

    def __init__(self, prior: Prior) -> None:
        self.prior = prior

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes the prior as a folder `from_pretrained` reads."""
        return self.prior.save(folder)

    def to(self: P, *where: torch.device | str | int | torch.dtype | None, **named: Any) -> P:
        """Moves and casts the prior: `.to("mps")`, `.to(torch.float16)`, `.to("mps", torch.float16)`, by name too."""
        self.prior.to(*placed(*where, **named))
        return self

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return torch.device(self.prior.device)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the networks."""
        return self.prior.dtype


class SamplingPipeline(PriorPipeline):
    """A recipe that draws."""

    def __init__(self, prior: Prior, quality: Quality = "balanced") -> None:
        """`quality`: "fast", "balanced" or "best", "native" for what the prior's makers recommend, or "turbo" for a
        student of few steps, which the prior then has to be."""
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

        `torch_dtype` is diffusers' name of `dtype`. With quality "turbo" it is the prior's student that is loaded
        (`quality.turbo_student`); raises InputError where there is none.
        """
        if quality == TURBO:
            from ..core.distillation.export import load_student  # heavy

            folder = turbo_student(name)
            return cls(load_student(folder, None, device, torch_dtype or dtype, **options), quality)
        return cls(load_prior(name, device, torch_dtype or dtype, **options), quality)


def placed(
    *where: torch.device | str | int | torch.dtype | None,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    silence_dtype_warnings: bool = False,
) -> tuple[torch.device | None, torch.dtype | None]:
    """(device, dtype) of the arguments of `.to` as diffusers takes them: in any order, by position or by name.

    Raises InputError for what is neither, and for two of a kind.
    """
    found: dict[str, Any] = {"device": device, "dtype": dtype}
    for value in (one for one in where if one is not None):
        name = "dtype" if isinstance(value, torch.dtype) else "device"
        if found[name] is not None:
            raise InputError(f".to: two values of {name}, {found[name]} and {value}; give one")
        found[name] = value
    kind = found["dtype"]
    if kind is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise InputError(f".to: dtype={kind!r} must be torch.float32, float16 or bfloat16")
    try:
        return None if found["device"] is None else torch.device(found["device"]), kind
    except (RuntimeError, TypeError) as error:
        raise InputError(f".to: device={found['device']!r} is no device; use cpu, cuda, cuda:1 or mps") from error
