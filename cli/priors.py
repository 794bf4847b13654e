"""Options of the commands that load a prior, and the one place where they load it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from ..utils.errors import InputError
from ..utils.files import split_scale
from .common import Threaded, pick_device

if TYPE_CHECKING:
    import torch

EMBEDDED = ("toybox", "toybox-mv", "toybox-dit")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class PriorCommand(Threaded):
    """Options of commands that use a prior."""

    takes_file: ClassVar[bool] = True
    """whether --prior may be a checkpoint file"""

    prior: str = "toybox"
    """A name from `unproject priors`, a folder in diffusers' layout, a checkpoint file (Stable Diffusion, SDXL, FLUX,
    MVDream), or a hub id owner/name."""
    base: str | None = None
    """The prior that gives a checkpoint file in --prior its settings and the parts it lacks (default: by its kind)."""
    variant: str | None = None
    """Which of several sets of weights to load, such as fp16 (default: what the prior has)."""
    revision: str | None = None
    """Branch, tag or commit of a prior on the hub."""
    lora: tuple[str, ...] = ()
    """Adapters added to the weights of the prior, each FILE or FILE:SCALE."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision of the networks; auto is half precision for large backbones on CUDA, float32 elsewhere."""
    offload: Literal["auto", "none", "text", "model", "sequential"] = "auto"
    """What leaves the device when it is not in use: the text encoders, every network, or every layer, which is slow;
    auto is text for large backbones on a device other than the processor."""
    weights: Literal["full", "float8", "int8", "int4", "bnb-int8", "bnb-nf4"] = "full"
    """Storage of the network and of T5: float8 is cast as it is used, int8 and int4 need torchao, bnb-int8 and bnb-nf4
    bitsandbytes."""
    vae: Literal["whole", "slices", "tiles"] = "whole"
    """How pictures are decoded: together, one by one, or in parts that may show seams."""
    compile: bool = False
    """Compile the network's repeated blocks on their first call."""
    graphs: bool = False
    """Record calls of the network and replay them (CUDA graphs): for many steps of one size, on CUDA."""

    def check(self) -> None:
        """The device has to be there and the prior known."""
        pick_device(self.device)
        is_id = self.prior in prior_names()  # whatever lies in the working directory under this name
        is_file = self.takes_file and not is_id and Path(self.prior).is_file()
        if not is_file:
            _check_known("--prior", self.prior, self.known())
        if self.base is not None:
            if not is_file:
                raise InputError(f"--base {self.base} serves a checkpoint file, not --prior {self.prior}; leave it out")
            _check_known("--base", self.base, prior_names())
        here = self.prior in EMBEDDED or (not is_id and Path(self.prior).exists())
        if self.revision is not None and here:
            raise InputError(f"--revision {self.revision} serves priors on the hub, not --prior {self.prior}")
        if self.offload in ("text", "model", "sequential") and pick_device(self.device) == "cpu":
            raise InputError(f"--offload {self.offload} serves a device beside the processor, not --device cpu")
        if self.graphs and not pick_device(self.device).startswith("cuda"):
            raise InputError(f"--graphs serves CUDA, not --device {pick_device(self.device)}; leave it out")
        if self.graphs and (self.offload in ("model", "sequential") or self.weights == "float8"):
            moved = "--weights float8" if self.weights == "float8" else f"--offload {self.offload}"
            raise InputError(f"--graphs needs weights that stay where they are, not {moved}; leave one of them out")
        for text in self.lora:
            split_scale(text, "--lora")

    @property
    def known_cost(self) -> bool:
        """Whether `estimates` speaks of this prior on this device."""
        return self.prior in EMBEDDED and pick_device(self.device) == "cpu"

    def known(self) -> list[str]:
        """Names --prior accepts."""
        return prior_names()

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [f"would load prior {self.prior} on {pick_device(self.device)}"]

    def placement(self) -> dict[str, Any]:
        """The arguments device, dtype and what else is given of `from_pretrained`."""
        device = pick_device(self.device)
        given = {name: value for name in ("base", "variant", "revision", "lora") if (value := getattr(self, name))}
        if not self.takes_file:
            return {"device": device, "dtype": self._dtype(device), **given}
        from ..core.priors.placement import WHOLE, Placement

        leaves = "text" if device != "cpu" and not self.prior.startswith("toybox") else "none"
        offload = leaves if self.offload == "auto" else self.offload
        how = Placement(offload=offload, weights=self.weights, vae=self.vae, compile=self.compile, graphs=self.graphs)
        if how != WHOLE:
            given["placement"] = how
        return {"device": device, "dtype": self._dtype(device), **given}

    def _dtype(self, device: str) -> torch.dtype:
        import torch

        if self.dtype == "auto":
            if not device.startswith("cuda") or self.prior.startswith("toybox"):
                return torch.float32
            from ..core.priors.registry import half_of  # heavy

            return torch.bfloat16 if half_of(self.prior) == "bfloat16" else torch.float16
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[self.dtype]


@dataclass(frozen=True, kw_only=True)
class HeadCommand(PriorCommand):
    """Options of commands that load a head of a prior: what is asked of priors that draw pictures is not offered."""

    takes_file: ClassVar[bool] = False

    base: Annotated[str | None, tyro.conf.Suppress] = None
    lora: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    offload: Annotated[Literal["auto", "none", "text", "model", "sequential"], tyro.conf.Suppress] = "auto"
    weights: Annotated[Literal["full", "float8", "int8", "int4", "bnb-int8", "bnb-nf4"], tyro.conf.Suppress] = "full"
    vae: Annotated[Literal["whole", "slices", "tiles"], tyro.conf.Suppress] = "whole"
    compile: Annotated[bool, tyro.conf.Suppress] = False
    graphs: Annotated[bool, tyro.conf.Suppress] = False


@dataclass(frozen=True, kw_only=True)
class OwnWeightsCommand(HeadCommand):
    """Options of commands whose weights are of a kind of their own, in a folder."""

    names: ClassVar[tuple[str, ...]] = ("toybox",)
    """that --prior knows"""

    variant: Annotated[str | None, tyro.conf.Suppress] = None
    revision: Annotated[str | None, tyro.conf.Suppress] = None

    def known(self) -> list[str]:
        """Names --prior accepts."""
        return list(self.names)


@dataclass(frozen=True, kw_only=True)
class QualityCommand(PriorCommand):
    """Options of commands that draw pictures."""

    quality: Literal["fast", "balanced", "best", "native"] = "balanced"
    """Solver and steps: few, some or many; native is what the prior's makers recommend."""

    def placement(self) -> dict[str, Any]:
        """See PriorCommand.placement; and the quality."""
        return {**super().placement(), "quality": self.quality}


def _check_known(option: str, name: str, known: Sequence[str]) -> None:
    """Raises InputError for what is neither a known name, a folder nor a hub id."""
    if not name.strip():
        raise InputError(f"{option} is empty; have {', '.join(known)}, a folder, or owner/name")
    if name in known or Path(name).is_dir():
        return
    state = "is unknown"
    if name.endswith((".safetensors", ".pt", ".ckpt")):
        state = "is a file, which this cannot use" if Path(name).is_file() else "does not exist"
    elif _HUB_ID.fullmatch(name):
        return
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) if state == "is unknown" else []
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise InputError(f"{option} {name!r} {state}; have {', '.join(known)}, a folder, or owner/name{hint}")


def head_of(prior: str) -> str:
    """The --prior of a geometry head: the folder of a prior that has one in it or beside it, else the embedded one."""
    folder = Path(prior).resolve()
    places = (folder, folder.with_name(f"{folder.name}-geometry"))
    return prior if folder.is_dir() and any((place / "head.json").is_file() for place in places) else "toybox"


def head_names() -> list[str]:
    """The geometry heads: the embedded one and those of the registry."""
    from ..utils.configs import config_path, read_yaml

    return ["toybox", *read_yaml(config_path("heads"))["heads"]]


def prior_names() -> list[str]:
    """The embedded priors and those of the registry, read without loading any network library."""
    from ..utils.configs import config_path, read_yaml

    return [*EMBEDDED, *read_yaml(config_path("priors"))["priors"]]
