"""Adding controls to a prior: which networks can steer it, from where."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ...utils.errors import InputError
from ...utils.files import read_json, split_scale
from . import hub
from .build import quiet, told
from .control import CONTROL, PictureControl
from .diffusers import DiffusersPrior

P = TypeVar("P", bound=DiffusersPrior)
_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::([0-9.]+))?")
CLASSES = ("ControlNetModel", "T2IAdapter")


def with_controls(prior: P, controls: Sequence[str | Path | nn.Module | PictureControl]) -> P:
    """A prior that is steered by controls; its networks are shared.

    Args:
        prior: of Stable Diffusion or SDXL.
        controls: networks, or folders in diffusers' layout or hub ids, each "NAME" or "NAME:SCALE".

    Its conditions need the rows "control", "control_2", ... in this order. Raises InputError for priors without a
    U-Net of single images and for controls of another backbone.
    """
    if not prior.steerable:
        raise InputError(
            f"controls steer the U-Nets of Stable Diffusion and SDXL that draw single images, not {prior.name!r}"
        )
    made = []
    for number, one in enumerate(controls):
        control = one if isinstance(one, PictureControl) else PictureControl(*_network(one, prior))
        control.row = CONTROL if number == 0 else f"{CONTROL}_{number + 1}"
        _check(control.network, prior)
        control.network.to(prior.device, prior.dtype).requires_grad_(False).eval()
        made.append(control)
    return prior.controlled(made)


def _network(given: str | Path | nn.Module, prior: DiffusersPrior) -> tuple[nn.Module, float]:
    """(network, scale) of a network, a folder or a hub id."""
    if isinstance(given, nn.Module):
        return given, 1.0
    found = _HUB_ID.fullmatch(str(given)) if isinstance(given, str) else None
    if found is None or Path(given).exists() or Path(found[1]).exists():
        path, scale = split_scale(given, "controlnet", folder=True)
        return load_control(path, prior.dtype), scale
    return load_control(_fetched(found[1]), prior.dtype), float(found[2] or 1)


def _fetched(repo: str) -> Path:
    """The folder of a repository's control in the hub's cache. Raises InputError when it cannot be had."""
    where = {"local_files_only": not hub.reachable()}
    try:
        settings = hub.fetch_file(repo, "config.json", where)
        hub.fetch_file(repo, "diffusion_pytorch_model.safetensors", where)
    except hub.Unfetched as error:
        raise InputError(f"controlnet={repo!r} could not be fetched ({error}); give a local folder instead") from error
    return settings.parent


def load_control(folder: Path, dtype: torch.dtype) -> nn.Module:
    """A ControlNet or T2I-Adapter of a folder in diffusers' layout. Raises InputError for anything else."""
    import diffusers

    settings = folder / "config.json"
    if not settings.is_file():
        raise InputError(f"controlnet={str(folder)!r} is no folder with a config.json; give one in diffusers' layout")
    kind = read_json(settings).get("_class_name")
    if kind not in CLASSES:
        raise InputError(f"controlnet={str(folder)!r} is a {kind}; supported are {', '.join(CLASSES)}")
    with told(f"the control in {folder}", "cpu"), quiet():
        made: nn.Module = getattr(diffusers, kind).from_pretrained(str(folder), torch_dtype=dtype, use_safetensors=True)
    return made


def _check(network: nn.Module, prior: DiffusersPrior) -> None:
    """Raises InputError where a control was made for another backbone."""
    if type(network).__name__ not in CLASSES:
        raise InputError(f"a control is a {' or '.join(CLASSES)}, got {type(network).__name__}")
    own: Any = prior.network.config
    other: Any = network.config
    for name in ("cross_attention_dim", "block_out_channels"):
        mine, theirs = own.get(name), other.get(name)
        if theirs is not None and _plain(mine) != _plain(theirs):
            raise InputError(
                f"this control was made for another backbone than {prior.name!r}: its {name} is {theirs}, not {mine}"
            )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value
