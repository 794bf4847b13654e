"""Posed images on disk: nerfstudio's transforms.json and COLMAP's models, both ways. Lenses stand in lenses.py."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..utils.errors import InputError, damage
from ..utils.files import read_json, write_json, write_text
from .cameras import Camera, from_colmap, from_nerfstudio, to_colmap, to_nerfstudio
from .colmap_model import Posed, has_points, read_model
from .lenses import (
    DISTORTION,
    Lens,
    check_lens,
    check_numbers,
    colmap_row,
    lens_of_frame,
    nerfstudio_model,
    reject_distortion,
)
from .points import PointCloud

VIEW_ENTRIES = {"frames", "file_path", "transform_matrix", "applied_transform", "applied_scale"}
LENS_ENTRIES = {"camera_model", "is_fisheye", "w", "h", "fl_x", "fl_y", "cx", "cy", "camera_angle_x", "camera_angle_y"}
HONOURED = VIEW_ENTRIES | LENS_ENTRIES | set(DISTORTION)  # of transforms.json
FARTHEST = 1e15  # of a camera's place, in the file's unit
LEAST_ROTATION = 1e-2  # how far R R^T may be from the unit matrix
LARGEST_LOSS = 1e-6  # of the cameras' spread: what float32 may round away before float64 is kept


def save_nerfstudio(path: str | Path, camera: Camera, names: Sequence[str], cloud: str | None = None) -> Path:
    """Writes transforms.json: OpenGL camera-to-world in our z-up world, intrinsics a frame.

    names: image paths relative to the file, one a camera. cloud: relative path of a PLY with initial points.
    """
    _check_names(camera, names)
    frames = []
    for name, pose, K in zip(names, to_nerfstudio(camera.c2w.double()).tolist(), camera.K.tolist(), strict=True):
        check_lens(Lens(camera.model, camera.width, camera.height, torch.tensor(K)), f"view {name}")
        intrinsics = {"fl_x": K[0][0], "fl_y": K[1][1], "cx": K[0][2], "cy": K[1][2]}
        frames.append({"file_path": name, **intrinsics, "transform_matrix": pose})
    size = {"w": camera.width, "h": camera.height}
    document: dict[str, Any] = {"camera_model": nerfstudio_model(camera.model), **size, "frames": frames}
    if cloud is not None:
        document["ply_file_path"] = cloud
    return write_json(path, document)


class Views(NamedTuple):
    """What a file says of its pictures."""

    camera: Camera  # as pinholes would be, whatever bends the lenses
    names: list[str]  # of the images
    lenses: list[Lens]


def load_nerfstudio(path: str | Path, undo_applied: bool = True) -> tuple[Camera, list[str]]:
    """Cameras and image names of a transforms.json, see `nerfstudio_views`. Raises InputError for lens distortion."""
    views = nerfstudio_views(path, undo_applied)
    reject_distortion(path, views.lenses)
    return views.camera, views.names


def nerfstudio_views(path: str | Path, undo_applied: bool = True, taken: Collection[str] = ()) -> Views:
    """Cameras, image names and lenses of a transforms.json (nerfstudio, NeRF-synthetic), in file order.

    taken: entries that somebody else reads.
    undo_applied: take back the file's `applied_transform` and `applied_scale`, which returns COLMAP data to COLMAP's
    world. Sizes that the file does not give come from the images beside it. Entries that are not carried over are named
    in a warning. Poses are float32, or float64 where float32 would round them. Raises InputError for missing fields,
    lenses that are not ours, mixed lenses or images of different sizes.
    """
    path = Path(path)
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("frames"), list) or not document["frames"]:
        raise InputError(f"{path} has no frames; it should be nerfstudio's transforms.json")
    poses, lenses, names = [], [], []
    try:
        for frame in document["frames"]:
            names.append(str(frame["file_path"]))
            lenses.append(lens_of_frame({**document, **frame}, path))
            check_numbers({"transform_matrix": frame["transform_matrix"]}, path)
            poses.append(_matrix(frame["transform_matrix"], 4, 4))
        check_numbers({key: document[key] for key in ("applied_transform", "applied_scale") if key in document}, path)
        applied = _matrix(document["applied_transform"], 3, 4) if "applied_transform" in document else None
        scale = float(document.get("applied_scale", 1.0))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a usable transforms.json: {damage(error)}") from error
    if not 0 < scale < float("inf"):
        raise InputError(f"{path} has applied_scale {scale}; it must be above 0")
    if applied is not None and not 1e-12 < abs(float(torch.linalg.det(applied[:, :3]))) < 1e12:
        raise InputError(f"{path} has an applied_transform that cannot be taken back: {applied.tolist()}")
    entries = {key for part in (document, *document["frames"]) for key in part} - HONOURED - set(taken)
    if entries:
        warnings.warn(f"{path.name}: not kept: {', '.join(sorted(entries))}", UserWarning, stacklevel=2)
    stacked = torch.stack(poses)
    if undo_applied:
        stacked[:, :3, 3] /= scale
    return Views(_camera(path, from_nerfstudio(stacked, applied if undo_applied else None), lenses), names, lenses)


def save_colmap(folder: str | Path, camera: Camera, names: Sequence[str], cloud: PointCloud | None = None) -> Path:
    """Writes cameras.txt (one an image), images.txt (world-to-camera) and points3D.txt into a folder.

    Pinholes are PINHOLE, fisheyes OPENCV_FISHEYE. Raises InputError for lenses that COLMAP does not know.
    """
    _check_names(camera, names)
    for name in names:
        if any(letter.isspace() for letter in name):
            raise InputError(f"COLMAP's text format cannot hold the image name {name!r}; rename it without spaces")
    folder = Path(folder)
    quaternions, translations = to_colmap(camera.c2w.double())
    cameras = ["# CAMERA_ID MODEL WIDTH HEIGHT fx fy cx cy"]
    images = ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line of 2D points"]
    for i, name in enumerate(names, start=1):
        model, values = colmap_row(Lens(camera.model, camera.width, camera.height, camera.K[i - 1].double()))
        cameras.append(f"{i} {model} {camera.width} {camera.height} {_numbers(values)}")
        images += [f"{i} {_numbers(quaternions[i - 1])} {_numbers(translations[i - 1])} {i} {name}", ""]
    points = ["# POINT3D_ID X Y Z R G B ERROR TRACK"]
    if cloud is not None:
        grey = torch.full_like(cloud.points, 0.5)
        colors = ((grey if cloud.colors is None else cloud.colors).clamp(0, 1) * 255).round().int().tolist()
        rows = zip(cloud.points.tolist(), colors, strict=True)
        points += [f"{i} {x:.9g} {y:.9g} {z:.9g} {r} {g} {b} 0" for i, ((x, y, z), (r, g, b)) in enumerate(rows, 1)]
    for name, lines in (("cameras.txt", cameras), ("images.txt", images), ("points3D.txt", points)):
        write_text(folder / name, "\n".join(lines) + "\n")
    return folder


def load_colmap(folder: str | Path) -> tuple[Camera, list[str]]:
    """Cameras and image names of a COLMAP model, see `colmap_views`. Raises InputError for lens distortion."""
    folder = Path(folder)
    views = colmap_views(folder)
    reject_distortion(folder, views.lenses)
    if has_points(folder):
        warnings.warn(f"{folder}: not kept: the points and matches of the model", UserWarning, stacklevel=2)
    return views.camera, views.names


def colmap_views(folder: str | Path) -> Views:
    """Cameras, image names and lenses of a COLMAP model, text or binary, sorted by image id, in COLMAP's own world.

    Pinholes and equidistant fisheyes are read. Raises InputError for others, for mixed lenses and for images of
    different sizes.
    """
    folder = Path(folder)
    entries: list[Posed] = read_model(folder)
    poses = torch.tensor([entry.pose for entry in entries], dtype=torch.float64)
    c2w = from_colmap(poses[:, :4], poses[:, 4:])
    lenses = [entry.lens for entry in entries]
    return Views(_camera(folder, c2w, lenses), [entry.name for entry in entries], lenses)


def _camera(path: Path, c2w: Tensor, lenses: Sequence[Lens]) -> Camera:
    """One batch of one model and size."""
    models, sizes = {lens.model for lens in lenses}, {(lens.width, lens.height) for lens in lenses}
    if len(models) > 1:
        raise InputError(f"{path} mixes the camera models {', '.join(sorted(models))}; keep one of them a file")
    if len(sizes) > 1:
        raise InputError(f"{path} mixes image sizes {sorted(sizes)}; resize the images to one size")
    for i, (lens, pose) in enumerate(zip(lenses, c2w, strict=True)):
        check_lens(lens, f"{path}, view {i}")
        _check_pose(pose, f"{path}, view {i}")
    K, (width, height) = torch.stack([lens.K for lens in lenses]), next(iter(sizes))
    centres = c2w[:, :3, 3]
    spread = float((centres - centres.mean(dim=0)).norm(dim=-1).max()) or 1.0
    if float((centres - centres.float().double()).abs().max()) <= LARGEST_LOSS * spread:
        c2w, K = c2w.float(), K.float()
    return Camera(c2w, K, width, height, model=models.pop())


def _check_pose(pose: Tensor, where: str) -> None:
    """Raises InputError for a pose (4, 4) that moves or turns nothing rigidly: scaled, sheared, mirrored or endless."""
    turn, place = pose[:3, :3], pose[:3, 3]
    if not bool((place.abs() < FARTHEST).all()):
        raise InputError(f"{where} stands at {place.tolist()}, which is too far; scale the cameras down")
    off = (turn @ turn.mT - torch.eye(3, dtype=turn.dtype)).abs().max()
    last = pose[3].tolist() != [0.0, 0.0, 0.0, 1.0]
    if last or not float(off) < LEAST_ROTATION or float(torch.linalg.det(turn)) < 0:
        raise InputError(f"{where} has a pose that is no rotation and place ({pose.tolist()}); export it without scale")


def _matrix(values: Any, rows: int, columns: int) -> Tensor:
    matrix = torch.tensor(values, dtype=torch.float64)
    if matrix.shape != (rows, columns) or not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"a matrix is not {rows} x {columns} finite numbers")
    return matrix


def _check_names(camera: Camera, names: Sequence[str]) -> None:
    if len(names) != camera.batch:
        raise InputError(f"{len(names)} names for {camera.batch} cameras; give one a camera")


def _numbers(values: Sequence[Any] | Tensor) -> str:
    return " ".join(f"{float(v):.17g}" for v in values)
