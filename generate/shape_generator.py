"""Trained weights that make a shape of a prompt without optimising it: what all such generators share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core.distillation.teacher import prior_hash
from ..core.priors import Prior
from ..core.training.export import folder_path
from ..geometry.shapes.volume import Volume, VolumeShapeConfig
from ..utils.configs import load_config, to_dict
from ..utils.errors import InputError
from ..utils.files import read_json, write_json
from ..utils.ramps import Moment

G = TypeVar("G", bound="ShapeGenerator")


class ShapeGenerator(ABC):
    """A generator on a frozen prior, with the shape that it fills, whose shared parts are among its weights."""

    stem: ClassVar[str]  # of its two files, STEM.json and STEM.safetensors
    training: ClassVar[str]  # the recipe of `unproject train` that makes its weights
    settings: ClassVar[type[Any]]  # the dataclass of `config`
    prior: Prior
    config: Any
    shape: Volume

    def __init__(self, prior: Prior, config: Any) -> None:
        """What it is made of; subclasses add the rest."""
        self.prior, self.config = prior, config

    @property
    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """What learns."""

    @property
    @abstractmethod
    def nfe(self) -> int:
        """Rows that its network was asked so far."""

    @abstractmethod
    def made(self, prompt: str, seed: int) -> Volume:
        """A shape of its own of a prompt, ready to be rendered, meshed, saved or optimised."""

    @property
    def shape_config(self) -> VolumeShapeConfig:
        """Of the shapes it makes."""
        config: VolumeShapeConfig = self.shape.config
        return config

    @torch.no_grad()
    def filled(self, values: dict[str, Tensor]) -> Volume:
        """A shape of its own with these values of the field's parameters by name, as sharp as at the end of a training.

        Nothing is known of which of its cells are empty, so all of them are asked; `on_step` finds out.
        """
        shape = type(self.shape)(self.shape_config).to(self.shape.device)
        same = {name: value for name, value in self.shape.state_dict().items() if name.startswith("field.")}
        own = {f"field.{name}": value for name, value in values.items()}
        shape.load_state_dict({**shape.state_dict(), **same, **own})
        shape.field.on_step(Moment(1, 1))
        return shape

    def to(self: G, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> G:
        """Moves everything, and casts the frozen networks alone: what learns stays in float32."""
        self.prior.to(device, dtype)
        for module in (*self.modules.values(), self.shape):
            module.to(self.prior.device)
        return self

    def state(self) -> dict[str, Tensor]:
        """Its weights by name."""
        return {f"{part}.{name}": v for part, m in self.modules.items() for name, v in m.state_dict().items()}

    def take(self, weights: dict[str, Tensor], where: str) -> None:
        """Takes weights over. Raises InputError naming `where` unless they are exactly those it has."""
        own = self.state()
        if odd := sorted(own.keys() ^ weights.keys()):
            raise InputError(f"{where} holds other weights: {len(odd)} names differ, first {odd[0]!r}")
        for name, value in weights.items():
            if own[name].shape != value.shape:
                raise InputError(f"{where}: {name} is {tuple(value.shape)}, expected {tuple(own[name].shape)}")
            with torch.no_grad():
                own[name].copy_(value)

    def save(self, folder: str | Path, **about: Any) -> Path:
        """Writes STEM.safetensors (half precision) and STEM.json, with what else there is `about` it."""
        halves = {name: value.detach().cpu().half().contiguous() for name, value in self.state().items()}
        with folder_path(folder) as temporary:
            save_file(halves, temporary / f"{self.stem}.safetensors")
            base = {"base": self.prior.name, "base_hash": prior_hash(self.prior)}
            write_json(temporary / f"{self.stem}.json", {**base, "config": to_dict(self.config), **about})
        return Path(folder)

    @classmethod
    def load(cls: type[G], folder: str | Path, prior: Prior) -> G:
        """What `save` wrote, on its prior. Raises InputError for files that are missing, or made for another prior."""
        folder = Path(folder)
        if not (folder / f"{cls.stem}.json").is_file():
            raise InputError(f"{folder} holds no {cls.stem}.json; give the export/ of a {cls.training} training")
        about = read_json(folder / f"{cls.stem}.json")
        if about.get("base_hash") != prior_hash(prior):
            raise InputError(
                f"{folder} belongs to the prior {about.get('base')} of other weights than {prior.name} has; train anew "
                f"(unproject train {cls.training})"
            )
        made = cls(prior, load_config(cls.settings, about["config"]))
        path = folder / f"{cls.stem}.safetensors"
        try:
            weights = load_file(path)
        except Exception as error:
            raise InputError(f"{path} is missing or damaged ({error})") from error
        made.take({name: value.float() for name, value in weights.items()}, str(path))
        return made
