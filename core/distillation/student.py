"""What learns from a teacher: a prior whose network, or a low-rank adapter of it (Hu et al. 2021), is trainable.

At first it answers what its teacher does without guidance: all weights are copied, and an adapter begins as zero.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import PeftAdapterMixin
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors.torch import load_file
from torch import nn

from ...utils.errors import InputError
from ...utils.files import read_json, write_json
from ..priors.diffusers import DiffusersPrior
from ..priors.embedded import MultiViewPrior
from ..priors.rows import Condition
from ..sampling.denoiser import Denoiser
from ..sampling.guidance import Guidance
from ..sampling.levels import NoiseSchedule
from ..training.checkpoints import copy_into
from ..training.export import folder_path
from ..training.objectives.base import fixed_init
from .teacher import Teacher, prior_hash

ADAPTER = "student"
ABOUT = "student.json"


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter: W + (alpha / rank) B A with B = 0 at first."""

    rank: int = 16
    alpha: int = 16
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """ends of the names of the linear maps that get one"""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise InputError(f"adapter: rank={self.rank} must be at least 1 and alpha={self.alpha} positive")


class Student:
    """A trainable copy of a prior's network, or with `lora` a frozen one with a trainable adapter. The prior that is
    given stays as it is; text encoders and codec are shared with it and frozen."""

    def __init__(self, prior: DiffusersPrior, lora: Lora | None = None, seed: int = 0) -> None:
        """`seed` is that of the adapter's initial weights.

        Raises InputError when no layer has the targets' names, and for multi-view priors, whose network is more than
        the backbone that a student copies.
        """
        if isinstance(prior, MultiViewPrior):
            raise InputError(f"{prior.name} sees several views at once; make the student of its 2-D prior")
        self.lora, self.base = lora, prior_hash(prior)
        network = copy.deepcopy(prior.network).requires_grad_(lora is None)
        self.prior = prior.with_network(network, prior.prediction_type)
        self.schedule = NoiseSchedule.from_config(prior.scheduler_config)
        if lora is not None:
            _add_adapter(network, lora, seed)

    @property
    def network(self) -> nn.Module:
        """What is asked; parameters that do not learn require no gradients."""
        return self.prior.network

    @property
    def recipe(self) -> dict[str, Any]:
        """What defines it beside its weights, as plain values."""
        return {"kind": "lora" if self.lora else "full", "lora": asdict(self.lora) if self.lora else None}

    def trainable(self) -> dict[str, nn.Module]:
        """Modules for an objective and its player; they train what requires gradients."""
        return {"student": self.network}

    def denoiser(self, condition: Condition, guidance: Guidance | float | None = None) -> Denoiser:
        """It, told a condition; differentiable in weights and state."""
        return Denoiser(self.prior, condition, guidance)

    def teacher(self, guidance: Guidance | float | None = None) -> Teacher:
        """The prior that it was made of, out of the same memory. Raises InputError without an adapter."""
        if self.lora is None:
            raise InputError("a student of kind full has changed its prior's weights; make the teacher from the prior")
        return Teacher(self.prior, guidance, off=self.without_adapter)

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside, the network answers as the prior's did."""
        assert isinstance(self.network, PeftAdapterMixin)
        self.network.disable_adapters()
        try:
            yield
        finally:
            self.network.enable_adapters()

    def save(self, folder: str | Path) -> Path:
        """Writes what plain diffusers loads, and student.json: a pipeline folder, or with an adapter the file that
        `load_lora_weights` reads."""
        pipe, name = self.prior.pipe, self.prior.backbone
        with folder_path(folder) as temporary:
            if self.lora is None:
                given = getattr(pipe, name)
                setattr(pipe, name, self.network)
                try:
                    pipe.save_pretrained(temporary, safe_serialization=True)
                finally:
                    setattr(pipe, name, given)
            else:
                metadata = {k: list(v) if isinstance(v, set) else v for k, v in _config(self.network).items()}
                parts = {f"{name}_lora_layers": _adapter(self.network), f"{name}_lora_adapter_metadata": metadata}
                pipe.save_lora_weights(temporary, **parts)
            write_json(temporary / ABOUT, {**self.recipe, "base": self.base})
        return Path(folder)

    def load(self, folder: str | Path) -> None:
        """Takes the weights that `save` wrote. Raises InputError for a student of another prior or kind."""
        folder = Path(folder)
        about, mine = read_json(folder / ABOUT), {**self.recipe, "base": self.base}
        wanted = {**mine, "lora": mine["lora"] and {**mine["lora"], "targets": list(mine["lora"]["targets"])}}
        odd = [name for name, value in wanted.items() if about.get(name) != value]
        if odd:
            raise InputError(f"{folder} holds another student ({', '.join(f'{n} {about.get(n)}' for n in odd)})")
        if self.lora is None:
            given = type(self.network).from_pretrained(folder / self.prior.backbone)  # type: ignore[attr-defined]
            copy_into(self.network.state_dict(), given.state_dict(), str(folder))
        else:
            layers = load_file(folder / LORA_WEIGHT_NAME_SAFE)
            values = {key.removeprefix(f"{self.prior.backbone}."): value for key, value in layers.items()}
            copy_into(_adapter(self.network), values, str(folder))


def _add_adapter(network: nn.Module, lora: Lora, seed: int) -> None:
    if not isinstance(network, PeftAdapterMixin):
        raise InputError(f"{type(network).__name__} takes no adapters; make the student without lora")
    from peft import LoraConfig  # heavy

    targets = [name for name, _ in network.named_modules() if name.endswith(lora.targets)]
    if not targets:
        raise InputError(f"adapter: targets={lora.targets} name no layer of {type(network).__name__}")
    with fixed_init(seed):
        network.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets)), ADAPTER)


def _adapter(network: Any) -> dict[str, torch.Tensor]:
    """The adapter's weights by the names that files use; the tensors themselves."""
    from peft.utils import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(network, adapter_name=ADAPTER))


def _config(network: Any) -> dict[str, Any]:
    return dict(network.peft_config[ADAPTER].to_dict())
