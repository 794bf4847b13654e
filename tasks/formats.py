"""The kinds of files that maps are written as. Reading this loads no network library."""

from __future__ import annotations

from collections.abc import Iterable

from ..utils.errors import InputError

MAP_FORMATS: dict[str, tuple[str, ...]] = {  # endings of the files of a map, the one that is always there first
    "npz": (".npz",),
    "npy": (".npy", "-uncertainty.npy", "-confidence.npy"),
    "exr": (".exr", "-uncertainty.exr", "-confidence.exr"),
    "tiff": (".tiff", "-uncertainty.tiff", "-confidence.tiff"),
    "png": (".png", "-16bit.png", "-uncertainty.png", "-confidence.png"),
}
USUAL = ("npz", "png")
MATERIAL_MAPS = ("albedo", "normal", "roughness", "metallic", "height")
MATERIAL_FORMATS: dict[str, tuple[str, ...]] = {  # endings of the files of a material
    "png": (*(f"-{name}.png" for name in MATERIAL_MAPS), "-sheet.png"),
    "npz": (".npz",),
    "glb": (".glb",),
    "mtlx": (".mtlx",),
    "usda": (".usda",),
    "usdz": (".usdz",),
}
MATERIAL_USUAL = ("png", "glb", "mtlx")
PREVIEW = "-preview.png"
MAP_ENDINGS = tuple(sorted({PREVIEW, *(end for ends in MAP_FORMATS.values() for end in ends)}, key=len, reverse=True))


def map_formats(names: Iterable[str], argument: str = "formats") -> tuple[str, ...]:
    """Known formats of maps, each once. Raises InputError for others."""
    return _known(names, MAP_FORMATS, argument, "maps")


def material_formats(names: Iterable[str], argument: str = "--format") -> tuple[str, ...]:
    """Known formats of materials, each once. Raises InputError for others."""
    return _known(names, MATERIAL_FORMATS, argument, "materials")


def _known(names: Iterable[str], table: Iterable[str], argument: str, what: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(name.strip().lower().removeprefix(".") for name in names))
    odd = [name for name in found if name not in table]
    if odd or not found:
        raise InputError(f"{argument} {','.join(odd) or 'is empty'}: {what} are written as {', '.join(table)}")
    return found
