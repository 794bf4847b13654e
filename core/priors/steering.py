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
_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::(\d+\.?\d*|\.\d+))?")
CLASSES = ("ControlNetModel", "T2IAdapter", "SD3ControlNetModel", "FluxControlNetModel")
SAME = {  # settings that a control shares with its backbone
    "U-Net": ("cross_attention_dim", "block_out_channels"),
    "transformer": ("in_channels", "num_attention_heads", "attention_head_dim", "joint_attention_dim"),
}


def with_controls(prior: P, controls: Sequence[str | Path | nn.Module | PictureControl]) -> P:
    """A prior that is steered by controls; its networks are shared.

    Args:
        prior: of single images.
        controls: networks, or folders in diffusers' layout or hub ids, each "NAME" or "NAME:SCALE".

    Its conditions need the rows "control", "control_2", ... in this order. Raises InputError for priors of several
    views and for controls of another backbone.
    """
    if not prior.steered_by:
        raise InputError(f"controls steer networks that draw single images, not {prior.name!r}")
    made: list[PictureControl] = []
    for number, one in enumerate(controls):
        control = one if isinstance(one, PictureControl) else PictureControl(*_network(one, prior))
        control.row = CONTROL if number == 0 else f"{CONTROL}_{number + 1}"
        _check(control, prior)
        _see_places(control.network, prior)
        control.network.to(prior.device, prior.dtype).requires_grad_(False).eval()
        made.append(control)
    _check_together([control.network for control in made])
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


def _check(control: PictureControl, prior: DiffusersPrior) -> None:
    """Raises InputError where a control was made for another backbone, or for more than a picture."""
    kind = type(control.network).__name__
    if kind not in prior.steered_by:
        raise InputError(f"a control of {prior.name!r} is a {' or '.join(prior.steered_by)}, got {kind}")
    own: Any = prior.network.config
    other: Any = control.network.config
    for name in SAME["U-Net" if prior.backbone == "unet" else "transformer"]:
        mine, theirs = own.get(name), other.get(name)
        if theirs is not None and _plain(mine) != _plain(theirs):
            raise InputError(
                f"this control was made for another backbone than {prior.name!r}: its {name} is {theirs}, not {mine}"
            )
    if other.get("extra_conditioning_channels"):
        raise InputError("this control wants a mask beside the picture (it is one for inpainting); give another one")
    if other.get("guidance_embeds") and not own.get("guidance_embeds"):
        raise InputError(f"this control is told a guidance scale, which {prior.name!r} does not have; give another one")
    kinds = other.get("num_mode")
    if (kinds is None) != (control.mode is None) or not 0 <= (control.mode or 0) < (kinds or 1):
        needs = "takes no mode" if kinds is None else f"serves {kinds} kinds of pictures and has to be told which"
        raise InputError(f"this control {needs}, got mode={control.mode}; give PictureControl(network, mode=...)")


def _check_together(networks: Sequence[nn.Module]) -> None:
    """Raises InputError for controls whose features do not add up."""
    configs: list[Any] = [network.config for network in networks if hasattr(network, "controlnet_blocks")]
    settings = ("num_layers", "num_single_layers", "conditioning_embedding_channels")
    forms = {tuple(config.get(name) for name in settings) for config in configs}
    if len(forms) > 1:
        raise InputError("these controls have different numbers of blocks, whose features do not add up; give one")


def _see_places(network: Any, prior: DiffusersPrior) -> None:
    """A control without an embedding of places (those of SD3.5) gets that of the transformer."""
    if type(network).__name__ == "SD3ControlNetModel" and network.pos_embed is None:
        network.pos_embed = network._get_pos_embed_from_transformer(prior.network)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value
