"""Files of heads that are several modules beside something that is only named: refiner.safetensors and head.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ..core.training.adapters import own_weights, packed
from ..core.training.checkpoints import copy_into
from ..core.training.export import folder_path
from ..utils.configs import to_dict
from ..utils.errors import InputError
from ..utils.files import write_json
from ..utils.runs import versions
from .geometry_head import MANIFEST

WEIGHTS = "refiner.safetensors"


def write_head(
    folder: str | Path, modules: Mapping[str, nn.Module], kind: str, base: str, settings: Any, facts: Mapping[str, Any]
) -> Path:
    """Writes what is their own of modules in half precision, and what they are; `base` names what stands beside them.

    Raises InputError for a folder that holds something else: the whole folder is replaced.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file()):
        raise InputError(f"{folder} is no folder of a head and would be replaced; choose another folder")
    state = packed({f"{k}.{name}": p for k, m in modules.items() for name, p in own_weights(m).items()})
    with folder_path(folder) as temporary:
        save_file(state, temporary / WEIGHTS)
        told = {"kind": kind, "base": base, "config": to_dict(settings), "versions": versions(), **facts}
        write_json(temporary / MANIFEST, told)
    return folder


def read_weights(folder: Path, modules: Mapping[str, nn.Module], device: torch.device | str) -> None:
    """Loads what `write_head` wrote into modules, frozen and moved. Raises InputError where it does not fit."""
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} is not a whole head: {WEIGHTS} is missing")
    state = load_file(folder / WEIGHTS)
    for name, module in modules.items():
        own = {key.removeprefix(f"{name}."): v.float() for key, v in state.items() if key.startswith(f"{name}.")}
        copy_into(own_weights(module), own, f"{folder / WEIGHTS}, {name},")
        module.requires_grad_(False).eval().to(device)
