"""Which of several sets of weights a repository or folder holds: plain files, or variants such as `fp16`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ...utils.errors import InputError
from ...utils.files import read_json

_WEIGHTS = re.compile(
    r"([^/]+)/(?:model|diffusion_pytorch_model)(?:\.([^/]+?))?(?:-\d{5}-of-\d{5})?\.safetensors"
)  # component/model.VARIANT-00001-of-00002.safetensors


def weight_files(folder: Path) -> list[str]:
    """The paths of the safetensors in a folder's components, relative to it, with slashes."""
    return [path.relative_to(folder).as_posix() for path in sorted(folder.glob("*/*.safetensors"))]


def incomplete_parts(folder: Path, index: Mapping[str, Any], unused: Collection[str] = ()) -> list[str]:
    """Networks of a model_index.json of which the folder holds no whole set of safetensors, and parts of which it holds
    nothing: so an interrupted download leaves it."""
    lacking = []
    for part, named in index.items():
        is_part = isinstance(named, (list, tuple)) and len(named) == 2 and all(isinstance(n, str) for n in named)
        place = folder / part
        if is_part and not part.startswith("_") and part not in unused:
            is_network = (place / "config.json").is_file()
            if not place.is_dir() or (is_network and not _has_weights(place)):
                lacking.append(part)
    return lacking


def _has_weights(place: Path) -> bool:
    """Whether a component holds safetensors in one file, or all shards that an index names."""
    if any("-of-" not in path.name for path in place.glob("*.safetensors")):
        return True
    indices = place.glob("*.safetensors.index*.json")
    return any(all((place / name).is_file() for name in _shards(path)) for path in indices)


def _shards(path: Path) -> set[str]:
    """The files that an index of shards names; one that is nowhere where the index cannot be read."""
    try:
        return set(map(str, read_json(path)["weight_map"].values()))
    except (InputError, KeyError, TypeError, AttributeError):
        return {f"{path.name}.unreadable"}


def pick_variant(
    files: Iterable[str], given: str | None = None, preferred: str | None = None, unused: Iterable[str] = ()
) -> str | None:
    """The variant to load, None for plain files.

    Components without files of the variant are loaded from their plain ones. Weights are cast when they are loaded,
    so that any variant serves any dtype.

    Args:
        files: paths inside the repository.
        given: what the user asks for.
        preferred: taken where all components can be had with it.
        unused: components that are not loaded.

    Raises InputError when no component has the variant that is given.
    """
    parts: dict[str, set[str | None]] = {}
    for found in map(_WEIGHTS.fullmatch, files):
        if found and found[1] not in unused:
            parts.setdefault(found[1], set()).add(found[2])
    have = sorted({variant for variants in parts.values() for variant in variants if variant})
    if given is not None and given not in have:
        raise InputError(f"variant={given!r} is not among the files; have {', '.join(have) or 'plain files only'}")
    if given is not None:
        return given
    whole = [name for name in have if all({name, None} & variants for variants in parts.values())]
    if preferred in whole:
        return preferred
    if all(None in variants for variants in parts.values()):
        return None
    return "fp16" if "fp16" in whole else next(iter(whole), None)
