"""Checkpoints that are whole or absent, readable without running code: safetensors and JSON in a folder per step.

    OUT/ckpt-N.tmp/ is written and flushed, renamed to OUT/ckpt-N/, then OUT/LATEST names it and old ones are removed.
A process killed anywhere leaves either the old or the new state; what remains of a broken write ends in .tmp.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...utils.errors import InputError, NotWrittenError, UnprojectError, damage
from ...utils.files import read_json, write_text

Tensors = dict[str, Tensor]


def save_checkpoint(
    root: Path, step: int, tensors: Mapping[str, Tensors], documents: Mapping[str, Any], keep: int = 2
) -> Path:
    """Writes OUT/ckpt-`step` with a .safetensors for each of `tensors` and a .json for each of `documents`.

    A step that is already there is left as it is. Raises NotWrittenError when the disk refuses.
    """
    final, temporary = root / f"ckpt-{step}", root / f"ckpt-{step}.tmp"
    try:
        if not final.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for name, values in tensors.items():
                save_file(
                    {k: v.detach().contiguous().cpu() for k, v in values.items()}, temporary / f"{name}.safetensors"
                )
            for name, value in documents.items():
                (temporary / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n")
            for path in (*temporary.iterdir(), temporary):
                _flush(path)
            os.replace(temporary, final)
            _flush(root)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise NotWrittenError(f"writing checkpoint {final} failed: {reason}") from error
    write_text(root / "LATEST", final.name + "\n")
    for old in sorted(_complete(root), key=_step_of)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest_checkpoint(root: Path) -> Path | None:
    """The checkpoint that LATEST names, else the newest complete one, else None."""
    pointer = root / "LATEST"
    if pointer.is_file():
        named = root / pointer.read_text().strip()
        if named.is_dir():
            return named
    return max(_complete(root), key=_step_of, default=None)


def remove_checkpoints(root: Path) -> None:
    """Removes all checkpoints, broken ones too, and the pointer. Raises UnprojectError when one cannot be removed."""
    remove_broken(root)
    try:
        (root / "LATEST").unlink(missing_ok=True)
        for path in _complete(root):
            shutil.rmtree(path)
    except OSError as error:
        raise UnprojectError(f"removing the checkpoints in {root} failed: {error.strerror or error}") from error


def remove_broken(root: Path) -> None:
    """Removes what an interrupted write left behind."""
    for path in root.glob("ckpt-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def read_tensors(checkpoint: Path, name: str) -> Tensors:
    """Raises InputError when the part is missing or damaged."""
    path = checkpoint / f"{name}.safetensors"
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError, ValueError) as error:
        raise InputError(
            f"{path} is missing or damaged ({damage(error)}); delete {checkpoint} to use an older one"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def read_document(checkpoint: Path, name: str) -> Any:
    """Raises InputError when the part is missing or damaged."""
    return read_json(checkpoint / f"{name}.json")


def copy_into(named: Mapping[str, Tensor], values: Tensors, what: str) -> None:
    """Copies values into tensors of the same names, keeping their device, dtype and memory layout."""
    if named.keys() != values.keys():
        odd = sorted(named.keys() ^ values.keys())
        raise InputError(f"{what} does not fit this model: {len(odd)} names differ, first {odd[0]!r}")
    with torch.no_grad():
        for name, tensor in named.items():
            if tensor.shape != values[name].shape:
                raise InputError(f"{what}: {name} is {tuple(values[name].shape)}, the model has {tuple(tensor.shape)}")
            tensor.copy_(values[name])


def optimizer_state(optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]) -> tuple[Tensors, Any]:
    """(tensors keyed "parameter name:slot", hyperparameters per group with the names of its parameters)."""
    name_of = {id(p): n for n, p in named.items()}
    tensors: Tensors = {}
    plain: dict[str, Any] = {}
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            key = f"{name_of[id(parameter)]}:{slot}"
            (tensors if isinstance(value, Tensor) else plain)[key] = value
    groups = [
        {k: [name_of[id(p)] for p in v] if k == "params" else v for k, v in group.items()}
        for group in optimizer.param_groups
    ]
    return tensors, {"groups": groups, "plain": plain}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], tensors: Tensors, document: Any
) -> None:
    """The inverse of `optimizer_state`; slots get the memory layout and the device that they had."""
    for key, value in {**tensors, **document["plain"]}.items():
        name, slot = key.rsplit(":", 1)
        if name not in named:
            raise InputError(f"the optimizer state names {name!r}, which this model does not have")
        parameter = named[name]
        if isinstance(value, Tensor):
            value = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value.clone()
        optimizer.state[parameter][slot] = value
    for group, saved in zip(optimizer.param_groups, document["groups"], strict=True):
        group.update({k: tuple(v) if isinstance(v, list) else v for k, v in saved.items() if k != "params"})
        for parameter in group["params"] if group.get("fused", True) else ():  # whose kernels count on the device
            state = optimizer.state[parameter]
            state.update({k: v.to(parameter.device) for k, v in state.items() if isinstance(v, Tensor)})


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _complete(root: Path) -> list[Path]:
    return [p for p in root.glob("ckpt-*") if p.is_dir() and p.name.removeprefix("ckpt-").isdigit()]


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("ckpt-"))
