"""Which of several sets of weights a repository or folder holds: plain files, or variants such as `fp16`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ...utils.errors import InputError

_WEIGHTS = re.compile(
    r"([^/]+)/(?:model|diffusion_pytorch_model)(?:\.([^/]+?))?(?:-\d{5}-of-\d{5})?\.safetensors"
)  # component/model.VARIANT-00001-of-00002.safetensors


def weight_files(folder: Path) -> list[str]:
    """The paths of the safetensors in a folder's components, relative to it, with slashes."""
    return [path.relative_to(folder).as_posix() for path in sorted(folder.glob("*/*.safetensors"))]


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
