"""Shapes in one forward pass of a small network (Ma et al. 2024, "ScaleDreamer"): text to the parameters of a field.

The network learns by score distillation over a library of prompts (`amortised_train`); afterwards a prompt costs one
pass and no optimisation. Text is what the frozen text encoder of a prior makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.priors import Prior
from ..core.priors.rows import COND
from ..core.training.objectives.base import fixed_init
from ..geometry.fields import FieldConfig, HeadConfig, TriplaneConfig
from ..geometry.shapes.dual import DualVolume
from ..geometry.shapes.volume import Volume, VolumeShapeConfig
from ..utils.errors import InputError
from ..utils.seeds import generator, sample_noise
from .field_networks import NetworkConfig, Values, make_network
from .shape_generator import ShapeGenerator


@dataclass(frozen=True)
class AmortisedConfig:
    """A network and the volume that it fills."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    volume: VolumeShapeConfig = field(
        default_factory=lambda: VolumeShapeConfig(
            FieldConfig("triplane", head=HeadConfig("sdf", radius=0.5), triplane=TriplaneConfig(32, 16, 32))
        )
    )

    def __post_init__(self) -> None:
        if self.volume.field.head.learn_beta:
            raise InputError("amortised: field.head.learn_beta is of one shape; give beta a schedule instead")


class Amortised(ShapeGenerator):
    """A prior's text encoder, a network behind it, and a volume for the network to fill."""

    stem: ClassVar[str] = "amortised"
    training: ClassVar[str] = "amortised"
    settings: ClassVar[type[Any]] = AmortisedConfig
    config: AmortisedConfig

    def __init__(self, prior: Prior, config: AmortisedConfig = AmortisedConfig(), seed: int = 0) -> None:
        """`seed`: of the first weights. Raises InputError for networks that do not fill the field."""
        super().__init__(prior, config)
        made = DualVolume if config.volume.field.kind == "dual" else Volume
        volume = replace(config.volume, occupancy_every=1, occupancy_from=0.0)  # every prompt has cells of its own
        self.shape = made(volume, generator(seed)).to(prior.device)
        width = prior.encode_text([""])[COND]["text"].shape[-1]
        with fixed_init(seed):
            self.network = make_network(config.network, width, self.shape.field).to(prior.device)
        self.shared = self.network.shared(self.shape.field)
        self._rows = 0

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What learns."""
        return {"network": self.network, **({} if self.shared is None else {"shared": self.shared})}

    @property
    def nfe(self) -> int:
        """See ShapeGenerator: one for each object."""
        return self._rows

    def values(self, prompts: Sequence[str], style: Tensor) -> Values:
        """Parameters of the fields of B prompts by name, (B, ...), with gradients; style (B, S)."""
        self._rows += len(prompts)
        with torch.no_grad():
            text = self.prior.encode_text(list(prompts))[COND]["text"]
        found: Values = self.network(text, style)
        return found

    def style(self, generators: torch.Generator | Sequence[torch.Generator], count: int) -> Tensor:
        """N(0, I) (B, S), each object's from its own generator."""
        return sample_noise((self.config.network.style,), generators, count, self.prior.device)

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> Values:
        """Parameters of the fields of B prompts, one seed each."""
        return self.values(prompts, self.style([generator(seed) for seed in seeds], len(seeds)))

    def made(self, prompt: str, seed: int) -> Volume:
        """See ShapeGenerator."""
        return self.filled({name: value[0] for name, value in self.draw([prompt], [seed]).items()})
