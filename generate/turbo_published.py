"""The published checkpoint `triplane_turbo_sd_v1.pth` on a Stable Diffusion 2.1 prior, key by key.

{"state_dict": {"geometry.bbox", "geometry.{sdf,feature,deformation}_network.layers.{0,2,4}.weight",
"geometry.space_generator.peft_layers.layers.N. ...", ...}, "epoch", ...}; N is the place in `core.priors.planes.sites`.
A key that is not expected, or is missing, is an error: adapters that stay silent look like a worse model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..core.priors import Prior
from ..core.priors.pickled import tensors_of
from ..geometry.fields import DualConfig, FieldConfig, HeadConfig
from ..utils.errors import InputError
from .turbo import TriplaneTurbo, TurboConfig

ADAPTERS, HEADS = "geometry.space_generator.peft_layers.", "geometry."
UNUSED = ("geometry.bbox",)  # the cube, which is [-1, 1]^3


def load_published(path: str | Path, prior: Prior) -> TriplaneTurbo:
    """The generator that a checkpoint holds, on the prior that it was trained with (sd21-base, not in the file).

    Only tensors are read. Raises InputError for files of another layout and for any key that has no place here.
    """
    return from_published(tensors_of(path), prior, str(path))


def from_published(state: Mapping[str, Tensor], prior: Prior, where: str) -> TriplaneTurbo:
    """The same of a state dict."""
    weights = {renamed(key, where): value for key, value in state.items() if key not in UNUSED}
    rank = _shape(weights, "adapters.layers.0.to_q_xy_lora_geo.down.weight", where)[0]
    width, features = _shape(weights, "heads.sdf_network.layers.0.weight", where)
    field = FieldConfig("dual", head=HeadConfig("neus"), dual=DualConfig(features=features, width=width))
    turbo = TriplaneTurbo(prior, TurboConfig(rank, field=field))
    turbo.take({name: value.float() for name, value in weights.items()}, where)
    return turbo


def renamed(key: str, where: str) -> str:
    """Our name of a published one."""
    if key.startswith(ADAPTERS):
        return f"adapters.{key.removeprefix(ADAPTERS)}"
    if re.match(r"geometry\.(sdf|feature|deformation)_network\.", key):
        return f"heads.{key.removeprefix(HEADS)}"
    raise InputError(f"{where}: the key {key!r} has no place in a generator of planes")


def _shape(weights: Mapping[str, Tensor], name: str, where: str) -> tuple[int, ...]:
    if name not in weights:
        raise InputError(f"{where} lacks the key of {name}: it holds no generator of planes")
    return tuple(weights[name].shape)
