"""A smaller U-Net in a small file: the prior's weights without some layers, and an adapter that makes up for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from safetensors.torch import load_file, save_file

from ..priors.diffusers import DiffusersPrior
from ..training.checkpoints import copy_into
from .cuts import check_units, leave_out
from .kinds import Kind, Lora, adapter_weights
from .prune import Pruned

FILE = "pruned_adapter.safetensors"


@dataclass(frozen=True)
class PrunedLora(Kind):
    """A U-Net cut as `Pruned` cuts, of which a low-rank adapter learns; the rest is the prior's and in no file."""

    name: ClassVar[str] = "pruned-lora"
    stock: ClassVar[bool] = False

    layers: int | None = None
    """see Pruned"""
    depth: tuple[int, ...] | None = None
    mid: bool = True
    removed: tuple[str, ...] = ()
    """single units that are left out as well, as in down_blocks.2.attentions.0 (`asdm.redundancy` says of which it
    costs least)"""
    rank: int = 8
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2")
    """see Lora"""

    def check(self, prior: DiffusersPrior) -> None:
        """See Kind.check: there are so many layers, and the names are those of units that they leave."""
        small = Pruned(self.layers, self.depth, self.mid)
        small.check(prior)
        check_units(small.fitted(prior, 0).network, self.removed)

    def fitted(self, prior: DiffusersPrior, seed: int) -> DiffusersPrior:
        """See Kind.fitted. Raises InputError for networks that are no U-Nets, more layers than there are, and names of
        no unit."""
        small = Pruned(self.layers, self.depth, self.mid).fitted(prior, seed)
        leave_out(small.network, self.removed)
        return Lora(self.rank, self.rank, self.targets).fitted(small, seed)

    def write(self, prior: DiffusersPrior, folder: Path) -> None:
        """The adapter."""
        save_file({name: value.contiguous() for name, value in adapter_weights(prior.network).items()}, folder / FILE)

    def read(self, prior: DiffusersPrior, folder: Path) -> None:
        """See Kind.read."""
        copy_into(adapter_weights(prior.network), load_file(folder / FILE), str(folder))

    def loaded(self, prior: DiffusersPrior, folder: Path) -> DiffusersPrior:
        """See Kind.loaded; the adapter becomes part of the weights."""
        fitted = super().loaded(prior, folder)
        network = cast(Any, fitted.network)
        network.fuse_lora()
        network.unload_lora()
        return fitted
