"""What of a network learns and how it is written: all of it, all of it told a guidance scale, or a low-rank adapter.

Further kinds stand beside their methods. A kind is a frozen dataclass of its settings; at first its network answers as
the prior's did (a `Full` one on another noise path excepted, which learns that path anew).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import diffusers
import torch
from diffusers import ConfigMixin, FlowMatchEulerDiscreteScheduler
from diffusers.loaders import PeftAdapterMixin
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors.torch import load_file
from torch import Tensor, nn

from ...utils.errors import InputError
from ..priors.diffusers import DiffusersPrior
from ..priors.lora import add_loras
from ..training.checkpoints import copy_into
from ..training.objectives.base import fixed_init

ADAPTER = "student"
SCALE_FEATURES = 256  # numbers that tell a U-Net its guidance scale


class Kind:
    """Everything learns."""

    name: ClassVar[str] = "full"
    stock: ClassVar[bool] = True
    """the files are a whole pipeline of diffusers"""

    def check(self, prior: DiffusersPrior) -> None:
        """Raises InputError for settings that do not suit a prior, as far as they can be told before any work."""

    def fitted(self, prior: DiffusersPrior, seed: int) -> DiffusersPrior:
        """The prior with a network of its own, of which learns what requires gradients; the rest is shared."""
        network = copy.deepcopy(prior.network).requires_grad_(True)
        return prior.with_network(network, prior.prediction_type)

    @contextlib.contextmanager
    def off(self, network: nn.Module) -> Iterator[None]:
        """Inside, the network answers as the prior's did. Raises InputError where nothing can be turned off."""
        raise InputError(f"a student of kind {self.name} has changed its prior's weights; make the teacher from it")
        yield

    def write(self, prior: DiffusersPrior, folder: Path) -> None:
        """Writes what `read` takes: here the whole pipeline folder."""
        pipe, name, config = prior.pipe, prior.backbone, dict(prior.scheduler_config)
        given = {name: getattr(pipe, name), "scheduler": pipe.scheduler}
        scheduler = given["scheduler"]
        if any(scheduler.config.get(key) != value for key, value in config.items() if key != "_class_name") or (
            config["_class_name"] != type(scheduler).__name__
        ):
            scheduler = getattr(diffusers, config["_class_name"]).from_config(told(config))
        try:
            pipe.register_modules(**{name: prior.network, "scheduler": scheduler})
            prior.save(folder)
        finally:
            pipe.register_modules(**given)

    def read(self, prior: DiffusersPrior, folder: Path) -> None:
        """Takes the weights that `write` wrote."""
        given = type(prior.network).from_pretrained(folder / prior.backbone)  # type: ignore[attr-defined]
        copy_into(prior.network.state_dict(), given.state_dict(), str(folder))

    def loaded(self, prior: DiffusersPrior, folder: Path) -> DiffusersPrior:
        """The student that `write` wrote, on a prior."""
        fitted = self.fitted(prior, 0)
        self.read(fitted, folder)
        return fitted


def told(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without diffusers' own notes, among them which values are to stay the defaults."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


@dataclass(frozen=True)
class Full(Kind):
    """Everything learns, on the prior's own noise path or on that of a rectified flow."""

    path: Literal["own", "flow", "linear"] = "own"
    """flow: the network is asked x_t = (1 - t) x0 + t eps at time 1000 t and answers eps - x0; linear: the betas of a
    VP path rise linearly"""

    def fitted(self, prior: DiffusersPrior, seed: int) -> DiffusersPrior:
        """See Kind.fitted."""
        fitted = super().fitted(prior, seed)
        if self.path == "linear":
            return fitted.on_path({**prior.scheduler_config, "beta_schedule": "linear"})
        return fitted if self.path == "own" else fitted.on_path(flow_config(prior))


def flow_config(prior: DiffusersPrior) -> dict[str, Any]:
    """The scheduler config of a rectified flow with a prior's train steps, ending one step from the clean end."""
    steps = int(prior.scheduler_config.get("num_train_timesteps", 1000))
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=steps)
    return {**scheduler.config, "_class_name": type(scheduler).__name__, "spacing": "trailing"}


@dataclass(frozen=True)
class Told(Kind):
    """Everything learns, and the U-Net is told the guidance scale (`time_cond_proj_dim`), whose weights begin as 0."""

    name: ClassVar[str] = "told"

    def fitted(self, prior: DiffusersPrior, seed: int) -> DiffusersPrior:
        """See Kind.fitted. Raises InputError for networks that cannot be told a scale, or are already."""
        network = prior.network
        config = told(network.config) if isinstance(network, ConfigMixin) else {}
        if "time_cond_proj_dim" not in config or config["time_cond_proj_dim"]:
            state = "takes a guidance scale already" if prior.guidance_embedded else "cannot be told a guidance scale"
            raise InputError(f"the network of {prior.name} {state}; make a student of kind full or lora of it")
        with fixed_init(seed):
            made = cast(Any, type(network)).from_config({**config, "time_cond_proj_dim": SCALE_FEATURES})
        made.to(prior.device, prior.dtype)
        weights = dict(network.state_dict())
        projection = next(name for name in made.state_dict() if name not in weights)
        copy_into(
            made.state_dict(), {**weights, projection: torch.zeros_like(made.state_dict()[projection])}, prior.name
        )
        made.train(network.training).requires_grad_(True)
        return prior.with_network(made, prior.prediction_type)


@dataclass(frozen=True)
class Lora(Kind):
    """A low-rank adapter (Hu et al. 2021): W + (alpha / rank) B A with B = 0 at first."""

    name: ClassVar[str] = "lora"
    stock: ClassVar[bool] = False

    rank: int = 16
    alpha: int = 16
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """ends of the names of the linear maps and convolutions that get one"""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise InputError(f"adapter: rank={self.rank} must be at least 1 and alpha={self.alpha} positive")

    def fitted(self, prior: DiffusersPrior, seed: int) -> DiffusersPrior:
        """See Kind.fitted; `seed` is that of the adapter's first weights. Raises InputError where no layer is meant."""
        network = copy.deepcopy(prior.network).requires_grad_(False)
        if not isinstance(network, PeftAdapterMixin):
            raise InputError(f"{type(network).__name__} takes no adapters; make the student without lora")
        from peft import LoraConfig  # heavy

        targets = [name for name, _ in network.named_modules() if name.endswith(self.targets)]
        if not targets:
            raise InputError(f"adapter: targets={self.targets} name no layer of {type(network).__name__}")
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=list(self.targets))
        with fixed_init(seed):
            network.add_adapter(config, ADAPTER)
        return prior.with_network(network, prior.prediction_type)

    @contextlib.contextmanager
    def off(self, network: nn.Module) -> Iterator[None]:
        """See Kind.off."""
        assert isinstance(network, PeftAdapterMixin)
        network.disable_adapters()
        try:
            yield
        finally:
            network.enable_adapters()

    def write(self, prior: DiffusersPrior, folder: Path) -> None:
        """The file that `load_lora_weights` reads, with its rank and alpha."""
        name, config = prior.backbone, prior.network.peft_config[ADAPTER].to_dict()  # type: ignore[union-attr, index]
        metadata = {key: list(value) if isinstance(value, set) else value for key, value in config.items()}
        parts: Mapping[str, Any] = {
            f"{name}_lora_layers": {key: value.contiguous() for key, value in adapter_weights(prior.network).items()},
            f"{name}_lora_adapter_metadata": metadata,
        }
        prior.pipe.save_lora_weights(folder, **parts)

    def loaded(self, prior: DiffusersPrior, folder: Path) -> DiffusersPrior:
        """See Kind.loaded; the adapter becomes part of the weights, of this prior or of a fine-tune of it."""
        add_loras(prior, [folder / LORA_WEIGHT_NAME_SAFE])
        return prior

    def read(self, prior: DiffusersPrior, folder: Path) -> None:
        """See Kind.read."""
        layers = load_file(folder / LORA_WEIGHT_NAME_SAFE)
        values = {key.removeprefix(f"{prior.backbone}."): value for key, value in layers.items()}
        copy_into(adapter_weights(prior.network), values, str(folder))


def adapter_weights(network: Any) -> dict[str, Tensor]:
    """The adapter's weights by the names that files use; the tensors themselves."""
    from peft.utils import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(network, adapter_name=ADAPTER))
