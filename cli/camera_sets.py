"""What `convert` does with sets of cameras: from file to file, or through bent lenses with their pictures."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .showing import Shown

if TYPE_CHECKING:
    from ..geometry.straight_files import BentSet

COLMAP_TEXT = ("cameras.txt", "images.txt", "points3D.txt")
MODEL = ("cameras.txt", "cameras.bin")  # one of which every COLMAP model has
WHOLE = 0.999  # share of a picture's pixels that a lens has to see, or the rest is told


def camera_files(destination: Path, bent: BentSet | None) -> list[Path]:
    """The files that a set becomes; `bent` is one whose pictures are straightened."""
    files = [destination] if destination.suffix else [destination / name for name in COLMAP_TEXT]
    return files if bent is None else [*files, *(picture_folder(destination) / name for name in bent.names)]


def picture_folder(destination: Path) -> Path:
    """Where straight pictures go: `images` in a COLMAP folder, as COLMAP has it, `NAME-images` beside a file."""
    return destination.with_name(f"{destination.stem}-images") if destination.suffix else destination / "images"


def silent_set(source: Path) -> BentSet:
    """The set of bent lenses, without the warnings that the run itself gives."""
    from ..geometry.straight_files import bent_set

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bent_set(source)


def check_cameras(source: Path, destination: Path, undistort: bool) -> None:
    """Raises InputError for what cannot become of cameras."""
    if destination.suffix.lower() not in (".json", ""):
        raise InputError(f"cameras become .json or a folder, not {destination}")
    check_model(source)
    if undistort:
        silent_set(source)


def check_model(source: Path) -> None:
    """Raises InputError for a folder without a COLMAP model."""
    if source.is_dir() and not any((source / name).is_file() for name in MODEL):
        names = " or ".join(MODEL)
        raise InputError(f"{source} holds no COLMAP model ({names}); give the folder of one, or a transforms.json")


def convert_cameras(source: Path, destination: Path, undistort: bool, record: RunRecord) -> Shown:
    """Reads, converts, writes."""
    from ..geometry import camera_files as files

    data: dict[str, Any] = {}
    if undistort:
        camera, names, data = _straighten(source, destination, record)
    else:
        from ..geometry.posed_files import warn_of_sizes

        camera, names = (files.load_colmap if source.is_dir() else files.load_nerfstudio)(source)
        warn_of_sizes(source, camera, names)
    save = files.save_nerfstudio if destination.suffix else files.save_colmap
    record.keep(lambda to: save(to, camera, names), destination)
    return Shown([f"{len(names)} views"], data={"views": len(names), **data})


def _straighten(source: Path, destination: Path, record: RunRecord) -> tuple[Any, list[str], dict[str, Any]]:
    """Writes the straight pictures; (cameras, names of the pictures as the camera file says them, facts)."""
    from ..geometry.straight_files import bent_set
    from ..utils.pictures import save_image
    from ..utils.progress import Progress

    bent, folder, shares = bent_set(source), picture_folder(destination), []
    with Progress(len(bent.names), "undistorting") as bar:
        for name, made in zip(bent.names, bent.straight(), strict=True):
            record.keep(partial(save_image, image=made.pixels), folder / name)
            shares.append(made.seen)
            bar.advance()
    if min(shares) < WHOLE:
        told = f"up to {1 - min(shares):.1%} of a picture lies outside of what its lens saw, and is black"
        warnings.warn(f"{folder.name}: {told}", UserWarning, stacklevel=2)
    names = [f"{folder.name}/{name}" for name in bent.names] if destination.suffix else bent.names
    return bent.camera, names, {"least_seen": min(shares)}
