"""Heads of other kinds, by the name that a task's file gives them, or by folder; head.json says which kind it is.

A head whose weights are not here yet is no failure of the machine: the message says how to train one.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from ..core.priors import weights_root
from ..utils.configs import load_config
from ..utils.errors import InputError
from ..utils.files import check_named, read_json
from .geometry_head import MANIFEST, GeometryHead
from .heads import head_table, layout_entry, load_head, published_place
from .map_head import MapHead
from .one_step import OneStepHead
from .preimage_head import PreimageHead
from .published import Loading, load_published
from .refine import RefineConfig, RefinedHead
from .table import Alternative, task_table

REFINER = "refiner"  # the name of the refiner of a task
KINDS = (PreimageHead.kind, RefinedHead.kind, OneStepHead.kind)


def kind_of(folder: str | Path) -> str:
    """What a folder's head.json says that it is; "" for a folder without one and for plain heads."""
    manifest = Path(folder) / MANIFEST
    told = read_json(manifest) if manifest.is_file() else {}
    kind = told.get("kind") if isinstance(told, dict) else None
    return kind if kind in KINDS else ""


def load_alternative(
    name: str | Path,
    target: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    first: str | Path = "",
    **options: Any,
) -> MapHead:
    """A frozen head of another kind.

    Args:
        name: of the alternatives in a task's file, or a folder that such a head was saved to.
        target: what it has to predict, a codec's name.
        device: where the networks live.
        dtype: their dtype.
        first: the one-step head that a refiner goes on from; empty: the one that its head.json names.
        options: of `load_head`, for the first head.

    Raises InputError for unknown names, absent weights and heads of something else.
    """
    check_named(name, "the head's name", "give one of an alternative or a folder")
    place = published_place(name, options)
    if place is not None:
        published: MapHead = load_published(place, Loading(device, dtype, options.get("base")))
        return _of_target(published, target, str(name))
    folder = _folder_of(str(name), target)
    kind = kind_of(folder)
    if kind == PreimageHead.kind:
        head: MapHead = PreimageHead.load(folder, device, dtype)
    elif kind == OneStepHead.kind:
        head = OneStepHead.load(folder, device, dtype)
    else:
        begun = load_first(_first_of(folder, first), target, device, dtype, **options)
        head = RefinedHead.load(folder, begun)
    return _of_target(head, target, str(folder))


def _first_of(folder: Path, first: str | Path) -> str | Path:
    """The one-step head that a refiner goes on from: the one that was asked for, with a warning where the refiner
    learnt on another, else its own."""
    base = str(read_json(folder / MANIFEST)["base"])
    beside = folder.resolve().parent / base
    own = beside if beside.is_dir() else Path(base)
    if not first:
        return own if beside.is_dir() else base
    places = (own, weights_root() / base)
    if not any(place.is_dir() and place.resolve() == Path(first).resolve() for place in places):
        warnings.warn(f"{folder} learnt to refine {base}, and is given {first} to go on from", stacklevel=3)
    return first


def find_alternative(name: str | Path, target: str) -> Path | None:
    """The folder of a head of another kind, by its files alone; None for a published one, which loading looks at.

    Raises InputError as `load_alternative` does, for unknown names and absent weights.
    """
    check_named(name, "the head's name", "give one of an alternative or a folder")
    if layout_entry(name) is not None or published_place(name, {}) is not None:
        return None
    return _folder_of(str(name), target)


def calls_of(name: str | Path, target: str) -> int:
    """Network calls of a prediction by a head of another kind: one, of a refiner also its steps and its look for what
    the picture means. Raises InputError as `find_alternative` does."""
    folder = find_alternative(name, target)
    if folder is None or kind_of(folder) != RefinedHead.kind:
        return 1
    config = load_config(RefineConfig, read_json(folder / MANIFEST).get("config", {}))
    return 1 + config.meaning + config.steps


def _of_target(head: MapHead, target: str, where: str) -> MapHead:
    if target not in head.config.targets:
        raise InputError(f"{where} predicts {', '.join(head.config.targets)}, not {target}")
    return head


def load_first(
    name: str | Path,
    target: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> GeometryHead | OneStepHead:
    """The one-step head that a refiner goes on from: a plain one, or one that is told the picture beside it."""
    if kind_of(name) == OneStepHead.kind:
        return OneStepHead.load(name, device, dtype)
    return load_head(name, (target,), device, dtype, **options)


def _folder_of(name: str, target: str) -> Path:
    known = {label: one for task in task_table().values() if task.codec == target for label, one in named(task).items()}
    if name in known:
        folder = weights_root() / known[name].weights
        if not (folder / MANIFEST).is_file():
            recipe, option = known[name].recipe, "--refiner" if name == REFINER else "--head"
            raise InputError(
                f"the weights of {name!r} are not in {folder}; train them with `unproject train {recipe} "
                f"--out runs/{recipe}` and give {option} runs/{recipe}/export, or set UNPROJECT_WEIGHTS"
            )
        return _of_a_kind(folder)
    if Path(name).is_dir():
        return _of_a_kind(Path(name))
    ids = [label for label, entry in head_table().items() if entry.layout and entry.target == target]
    have = ", ".join([*known, *ids]) or "none"
    raise InputError(f"head {name!r} is neither a folder nor one of {have} for {target}")


def _of_a_kind(folder: Path) -> Path:
    """A folder that holds a head of another kind. Raises InputError for others."""
    if kind_of(folder):
        return folder
    if not (folder / MANIFEST).is_file() and kind_of(folder / "export"):
        raise InputError(f"{folder} is the folder of a training; give {folder / 'export'}")
    raise InputError(f"{folder} holds no head of these kinds: {', '.join(KINDS)}; plain heads are given as --prior")


def named(task: Any) -> dict[str, Alternative]:
    """The alternatives of a task by name, its refiner among them."""
    return {**task.heads, **({REFINER: task.refiner} if task.refiner is not None else {})}
