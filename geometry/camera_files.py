"""Posed images on disk: nerfstudio's transforms.json and COLMAP's text model, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import InputError
from ..utils.files import read_json, write_json, write_text
from .cameras import Camera, from_colmap, from_nerfstudio, to_colmap, to_nerfstudio
from .points import PointCloud

DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")


def save_nerfstudio(path: str | Path, camera: Camera, names: Sequence[str], cloud: str | None = None) -> Path:
    """Writes transforms.json: OpenGL camera-to-world in our z-up world, intrinsics a frame.

    names: image paths relative to the file, one a camera. cloud: relative path of a PLY with initial points.
    """
    _check_names(camera, names)
    frames = []
    for name, pose, K in zip(names, to_nerfstudio(camera.c2w.double()).tolist(), camera.K.tolist(), strict=True):
        intrinsics = {"fl_x": K[0][0], "fl_y": K[1][1], "cx": K[0][2], "cy": K[1][2]}
        frames.append({"file_path": name, **intrinsics, "transform_matrix": pose})
    document: dict[str, Any] = {"camera_model": "OPENCV", "w": camera.width, "h": camera.height, "frames": frames}
    if cloud is not None:
        document["ply_file_path"] = cloud
    return write_json(path, document)


def load_nerfstudio(path: str | Path, undo_applied: bool = True) -> tuple[Camera, list[str]]:
    """Cameras and image names of a transforms.json, in file order.

    undo_applied: take back the file's `applied_transform`, which returns COLMAP data to COLMAP's world. Raises
    InputError for missing fields, lens distortion or images of different sizes.
    """
    document = read_json(path)
    if not isinstance(document, dict) or not document.get("frames"):
        raise InputError(f"{path} has no frames; it should be nerfstudio's transforms.json")
    poses, intrinsics, names, sizes = [], [], [], set()
    try:
        for frame in document["frames"]:
            merged = {**document, **frame}
            _reject_distortion(path, {key: merged.get(key, 0.0) for key in DISTORTION})
            poses.append(_matrix(frame["transform_matrix"], 4, 4))
            intrinsics.append(_pinhole(merged))
            names.append(str(frame["file_path"]))
            sizes.add((int(merged["w"]), int(merged["h"])))
        applied = _matrix(document["applied_transform"], 3, 4) if "applied_transform" in document else None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a usable transforms.json: {error!r}") from error
    width, height = _one_size(path, sizes)
    c2w = from_nerfstudio(torch.stack(poses), applied if undo_applied else None)
    return Camera(c2w.float(), torch.stack(intrinsics).float(), width, height), names


def save_colmap(folder: str | Path, camera: Camera, names: Sequence[str], cloud: PointCloud | None = None) -> Path:
    """Writes cameras.txt (PINHOLE, one an image), images.txt (world-to-camera) and points3D.txt into a folder."""
    _check_names(camera, names)
    for name in names:
        if any(letter.isspace() for letter in name):
            raise InputError(f"COLMAP's text format cannot hold the image name {name!r}; rename it without spaces")
    folder = Path(folder)
    quaternions, translations = to_colmap(camera.c2w.double())
    cameras = ["# CAMERA_ID MODEL WIDTH HEIGHT fx fy cx cy"]
    images = ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line of 2D points"]
    for i, name in enumerate(names, start=1):
        K = camera.K[i - 1].double()
        values = [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]
        cameras.append(f"{i} PINHOLE {camera.width} {camera.height} {_numbers(values)}")
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
    """Cameras and image names of a COLMAP text model, sorted by image id, in COLMAP's own world.

    Reads SIMPLE_PINHOLE and PINHOLE, and SIMPLE_RADIAL, RADIAL and OPENCV when their distortion is zero.
    """
    folder = Path(folder)
    try:
        lenses = {row[0]: _colmap_lens(folder, row) for row in map(str.split, _lines(folder / "cameras.txt"))}
        rows = _lines(folder / "images.txt", keep_blank=True)[::2]
        entries = sorted((row.strip().split(maxsplit=9) for row in rows if row.strip()), key=lambda row: int(row[0]))
        poses = torch.tensor([[float(v) for v in row[1:8]] for row in entries], dtype=torch.float64)
        chosen = [lenses[row[8]] for row in entries]
        names = [row[9] for row in entries]
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder} is not a usable COLMAP text model: {error!r}") from error
    if not entries:
        raise InputError(f"{folder / 'images.txt'} lists no images")
    width, height = _one_size(folder, {(w, h) for w, h, _ in chosen})
    c2w = from_colmap(poses[:, :4], poses[:, 4:])
    return Camera(c2w.float(), torch.stack([K for _, _, K in chosen]).float(), width, height), names


def _colmap_lens(folder: Path, row: list[str]) -> tuple[int, int, Tensor]:
    """(width, height, K) of one row of cameras.txt."""
    model, width, height, values = row[1], int(row[2]), int(row[3]), [float(v) for v in row[4:]]
    if model in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"):
        (fx, cx, cy), lens = values[:3], values[3:]
        fy = fx
    elif model in ("PINHOLE", "OPENCV"):
        (fx, fy, cx, cy), lens = values[:4], values[4:]
    else:
        raise InputError(f"{folder}: camera model {model} is not supported; run colmap image_undistorter first")
    _reject_distortion(folder, {f"parameter {i}": v for i, v in enumerate(lens)})
    return width, height, _intrinsics(fx, fy, cx, cy)


def _pinhole(frame: dict[str, Any]) -> Tensor:
    """K (3, 3) from fl_x or camera_angle_x, with a centred principal point unless given."""
    width, height = float(frame["w"]), float(frame["h"])
    if "fl_x" in frame:
        fx = float(frame["fl_x"])
    else:
        fx = 0.5 * width / float(torch.tan(torch.tensor(0.5 * float(frame["camera_angle_x"]), dtype=torch.float64)))
    cx, cy = float(frame.get("cx", 0.5 * width)), float(frame.get("cy", 0.5 * height))
    return _intrinsics(fx, float(frame.get("fl_y", fx)), cx, cy)


def _intrinsics(fx: float, fy: float, cx: float, cy: float) -> Tensor:
    return torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]], dtype=torch.float64)


def _matrix(values: Any, rows: int, columns: int) -> Tensor:
    matrix = torch.tensor(values, dtype=torch.float64)
    if matrix.shape != (rows, columns) or not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"a matrix is not {rows} x {columns} finite numbers")
    return matrix


def _reject_distortion(path: str | Path, lens: dict[str, Any]) -> None:
    bent = {key: value for key, value in lens.items() if abs(float(value)) > 1e-9}
    if bent:
        raise InputError(f"{path} has lens distortion {bent}; undistort the images first")


def _one_size(path: str | Path, sizes: set[tuple[int, int]]) -> tuple[int, int]:
    if len(sizes) != 1:
        raise InputError(f"{path} mixes image sizes {sorted(sizes)}; resize the images to one size")
    return next(iter(sizes))


def _check_names(camera: Camera, names: Sequence[str]) -> None:
    if len(names) != camera.batch:
        raise InputError(f"{len(names)} names for {camera.batch} cameras; give one a camera")


def _lines(path: Path, keep_blank: bool = False) -> list[str]:
    """Lines without comments. Raises InputError for a missing or binary file."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as COLMAP text: {error}") from error
    return [line for line in text.splitlines() if not line.startswith("#") and (keep_blank or line.strip())]


def _numbers(values: Sequence[Any] | Tensor) -> str:
    return " ".join(f"{float(v):.17g}" for v in values)
