"""The kinds of files that maps are written as. Reading this loads no network library."""

from __future__ import annotations

from collections.abc import Iterable

from ..utils.errors import InputError

MAP_FORMATS: dict[str, tuple[str, ...]] = {  # endings of the files of a map, the one that is always there first
    "npz": (".npz",),
    "npy": (".npy", "-uncertainty.npy"),
    "exr": (".exr", "-uncertainty.exr"),
    "tiff": (".tiff", "-uncertainty.tiff"),
    "png": (".png", "-16bit.png", "-uncertainty.png"),
}
USUAL = ("npz", "png")
PREVIEW = "-preview.png"
MAP_ENDINGS = tuple(sorted({PREVIEW, *(end for ends in MAP_FORMATS.values() for end in ends)}, key=len, reverse=True))


def map_formats(names: Iterable[str], argument: str = "formats") -> tuple[str, ...]:
    """Known formats, each once. Raises InputError for others."""
    found = tuple(dict.fromkeys(name.strip().lower().removeprefix(".") for name in names))
    odd = [name for name in found if name not in MAP_FORMATS]
    if odd or not found:
        raise InputError(f"{argument} {','.join(odd) or 'is empty'}: maps are written as {', '.join(MAP_FORMATS)}")
    return found
