"""Options of the commands that load a prior, and the one place where they load it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..utils.errors import InputError
from .common import Command, pick_device

if TYPE_CHECKING:
    import torch

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class PriorCommand(Command):
    """Options of commands that use a prior."""

    prior: str = "toybox"
    """A name from `unproject priors`, a folder in diffusers' layout, or a hub id owner/name."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of the networks; auto is float16 for large backbones on CUDA, float32 elsewhere."""

    def check(self) -> None:
        """The device has to be there and the prior known."""
        pick_device(self.device)
        if Path(self.prior).is_dir() or _HUB_ID.fullmatch(self.prior):
            return
        known = self.known()
        if self.prior not in known:
            raise InputError(f"--prior {self.prior!r} is unknown; have {', '.join(known)}, a folder, or owner/name")

    def known(self) -> list[str]:
        """Names --prior accepts."""
        return prior_names()

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [f"would load prior {self.prior} on {pick_device(self.device)}"]

    def placement(self) -> dict[str, Any]:
        """The arguments dtype and device of `from_pretrained`."""
        device = pick_device(self.device)
        return {"device": device, "dtype": self._dtype(device)}

    def _dtype(self, device: str) -> torch.dtype:
        import torch

        if self.dtype == "auto":
            large = device.startswith("cuda") and not self.prior.startswith("toybox")
            return torch.float16 if large else torch.float32
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[self.dtype]


@dataclass(frozen=True, kw_only=True)
class QualityCommand(PriorCommand):
    """Options of commands that draw pictures."""

    quality: Literal["fast", "balanced", "best", "native"] = "balanced"
    """Solver and steps: few, some or many; native is what the prior's makers recommend."""

    def placement(self) -> dict[str, Any]:
        """See PriorCommand.placement; and the quality."""
        return {**super().placement(), "quality": self.quality}


def head_names() -> list[str]:
    """The geometry heads: the embedded one and those of the registry."""
    from ..utils.configs import config_path, read_yaml

    return ["toybox", *read_yaml(config_path("tasks/heads"))["heads"]]


def prior_names() -> list[str]:
    """The embedded priors and those of the registry, read without loading any network library."""
    from ..utils.configs import config_path, read_yaml

    return ["toybox", "toybox-mv", "toybox-dit", *read_yaml(config_path("priors"))["priors"]]
