"""Folders of pictures: which files are pictures, what each result is called, and why the others are left out."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..tasks.formats import MAP_ENDINGS, MAP_FORMATS, PREVIEW
from ..utils.errors import InputError
from ..utils.files import read_json

LIFTED = ("pointcloud", "mesh")  # what else is made of a picture
CAMERA, UNDISTORTED = "-camera.json", "-undistorted.png"  # endings of what lies beside those
POINT_KINDS = (".ply", ".glb", ".obj", ".xyz", ".usd", ".usda", ".usdc", ".usdz")
MESH_KINDS = (".glb", ".obj", ".ply", ".stl", ".usd", ".usda", ".usdc", ".usdz")
BESIDE = (CAMERA, UNDISTORTED, PREVIEW, ".report.json")
LIFTED_ENDINGS = (*BESIDE, ".mtl", "_base_color.png", *POINT_KINDS, ".stl")
_KINDS = "|".join(sorted({*MAP_FORMATS, *(kind[1:] for kind in (*POINT_KINDS, *MESH_KINDS))}))
MARKED = re.compile(  # before an ending of what lies beside an output; see utils.companions
    rf"\.(?:{_KINDS})(?:-(?:{_KINDS}))*(?:-\d+)?(?=(?:{'|'.join(map(re.escape, BESIDE))})$)"
)
NUMBERS = (".npz", ".npy", ".exr", ".tiff", "-16bit.png")  # of maps
OTHER_PICTURES = {  # that are not read, and the way out
    **dict.fromkeys((".heic", ".heif", ".avif"), "save it as JPEG or PNG, or pip install 'unproject[heic]'"),
    **dict.fromkeys(
        (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2"), "raw; develop it to TIFF or JPEG"
    ),
    **dict.fromkeys((".psd", ".xcf", ".svg", ".pdf", ".eps"), "a drawing; export it as PNG"),
    **dict.fromkeys((".exr", ".hdr"), "high dynamic range; save it as 8- or 16-bit picture"),
    **dict.fromkeys((".jxl", ".jp2", ".jpx", ".tga", ".ppm", ".pgm", ".ico", ".dds"), "save it as PNG or JPEG"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm"), "a film; save its frames as pictures"),
}


@dataclass
class Found:
    """Pictures, each with the folder (relative) that its results go to, and lines about all other files."""

    pictures: list[tuple[Path, Path]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    maps: int = 0


def find(folder: Path, recursive: bool, map_names: Collection[str], out: Path) -> Found:
    """The pictures of a folder by name. Raises InputError when there are none.

    map_names: commands whose maps (NAME-depth.png beside NAME-depth.npz) are no pictures. `out` is not entered.
    """
    from ..utils.pictures import READ_SUFFIXES

    found = Found()
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not _same(Path(place, f), out))
        if not recursive:
            found.skipped += [f"{Path(place, f)} is a folder; --recursive enters it" for f in folders if not _ours(f)]
            folders[:] = []
        visible = sorted(Path(place, name) for name in names if not name.startswith("."))
        pictures = [path for path in visible if path.suffix.lower() in READ_SUFFIXES]
        kept = without_maps(pictures, map_names)
        found.maps += len(pictures) - len(kept)
        found.pictures += [(path, Path(place).relative_to(folder)) for path in kept]
        others = [path for path in visible if path not in pictures and not _of_run(path, map_names)]
        found.skipped += [reason(path) for path in others]
    if not found.pictures and not found.maps:
        more = f": {found.skipped[0]}" if found.skipped else ""
        raise InputError(f"{folder} holds no images ({', '.join(READ_SUFFIXES)}){more}")
    return found


def reason(path: Path) -> str:
    """Why a file is no picture that can be read."""
    kind = path.suffix.lower()
    if kind in OTHER_PICTURES:
        return f"{path}: {kind[1:].upper()} is not read ({OTHER_PICTURES[kind]})"
    return f"{path} is no picture"


def distinct_stems(pictures: Sequence[Path]) -> list[str]:
    """A base name for each picture of a folder: its stem, with its suffix (a-jpg, a-png) where stems are shared."""
    shared = Counter(path.stem.casefold() for path in pictures)
    stems = [path.stem if shared[path.stem.casefold()] == 1 else _with_suffix(path) for path in pictures]
    unique = len({stem.casefold() for stem in stems}) == len(stems)
    stems = stems if unique else [_with_suffix(path) for path in pictures]
    taken = Counter(stem.casefold() for stem in stems)
    seen: Counter[str] = Counter()
    named = []
    for stem in stems:  # pictures of several folders, or names that differ in case only
        seen[stem.casefold()] += 1
        number = seen[stem.casefold()]
        named.append(stem if taken[stem.casefold()] == 1 or number == 1 else f"{stem}-{number}")
    return named


def without_maps(pictures: Sequence[Path], names: Collection[str]) -> list[Path]:
    """The pictures of a folder that were not made of another one: no NAME-depth.png beside NAME-depth.npz, and none
    whose name a record there (depth.run.json, or depth.exr.run.json of other formats) holds."""
    owners = {name for path in pictures for name in (path.stem, _with_suffix(path))}
    bases = {f"{owner}-{name}" for owner in owners for name in names}
    recorded = {base for folder in {path.parent for path in pictures} for base in _made_in(folder)}
    others = (*NUMBERS, *LIFTED_ENDINGS)

    def is_made(path: Path) -> bool:
        name = _unmarked(path.name)
        base = next((name.removesuffix(end) for end in (UNDISTORTED, *MAP_ENDINGS) if name.endswith(end)), "")
        beside = (path.with_name(f"{base}{end}") for end in others)
        return base in bases and (base in recorded or any(one != path and one.is_file() for one in beside))

    return [path for path in pictures if not is_made(path)]


def pixels_of(path: Path) -> int:
    """Of a picture, by its header; 0 where that cannot be told."""
    from ..utils.decoding import image_size

    with contextlib.suppress(InputError):
        width, height = image_size(path)
        return width * height
    return 0


def _made_in(folder: Path) -> Collection[str]:
    """Names of what records in a folder say was made of pictures."""
    found: set[str] = set()
    for record in folder.glob("*.run.json"):
        with contextlib.suppress(InputError, AttributeError):
            found |= set(read_json(record).get("notes", {}).get("sources", {}))
    return {Path(name).name for name in found}


def _of_run(path: Path, names: Collection[str]) -> bool:
    """Whether a file is what a command of ours left: a record, a map's numbers, points, a mesh, their camera."""
    maps = tuple(f"-{name}{end}" for name in names for end in MAP_ENDINGS)
    lifted = tuple(f"-{name}{end}" for name in LIFTED for end in LIFTED_ENDINGS)
    return _unmarked(path.name).endswith((*maps, *lifted, ".run.json")) or path.name == "run.json"


def _unmarked(name: str) -> str:
    """The name of what lies beside a map, points or a mesh without the formats that tell it from another's:
    a-mesh-camera.json of a-mesh.obj-ply-camera.json."""
    return MARKED.sub("", name)


def _ours(folder: str) -> bool:
    return folder in ("outputs", "runs")


def _same(folder: Path, out: Path) -> bool:
    return out.exists() and folder.exists() and folder.samefile(out)


def _with_suffix(path: Path) -> str:
    return f"{path.stem}-{path.suffix[1:]}"
