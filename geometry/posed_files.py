"""Posed pictures from disk: transforms.json or a COLMAP model with the pictures beside it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..utils.decoding import image_size, read_layers
from ..utils.errors import InputError
from ..utils.files import check_named, is_there, read_json
from .camera_files import Views, colmap_views, nerfstudio_views
from .cameras import Camera, from_nerfstudio
from .colmap_model import read_points
from .distortion import check_bent, straightened
from .lenses import SUFFIXES
from .points import PointCloud
from .posed import SEEN_WHOLE, PosedImages, bytes_of, plain_colors, shrunk

TRANSFORMS = ("transforms.json", "transforms_train.json")
MODELS = (".", "sparse/0", "sparse", "colmap/sparse/0")  # where a COLMAP model lies in a folder
POINTS = "ply_file_path"  # of transforms.json
ASPECT = 0.01  # by which a picture's may differ from its camera's


def load_posed(source: str | Path, downscale: int = 1, images: str | Path | None = None) -> PosedImages:
    """Pictures with cameras, and the points of the scene where the files have some.

    source: a transforms.json, or a folder that holds one or a COLMAP model. images: folder of the pictures; None: as
    transforms.json says, or `images` in a COLMAP folder. Pictures that are not there are left out with a warning; bent
    lenses are straightened. Raises InputError for what cannot be used.
    """
    check_named(source, "the name of the pictures", "give a transforms.json or a folder")
    source = Path(source)
    if downscale < 1:
        raise InputError(f"downscale={downscale} must be 1 or more")
    file = source if source.is_file() else next((source / n for n in TRANSFORMS if (source / n).is_file()), None)
    if file is not None:
        views, points, root = (
            nerfstudio_views(file, taken=(POINTS,)),
            _nerfstudio_points(file),
            Path(images or file.parent),
        )
    else:
        model = next((source / m for m in MODELS if _has_model(source / m)), None)
        if model is None:
            raise InputError(f"{source} holds neither a transforms.json nor a COLMAP model; give a folder that does")
        views, points = colmap_views(model), _colmap_points(model)
        root = Path(images) if images is not None else image_folder(source, model)
    found = {i: path for i, name in enumerate(views.names) if (path := picture_file(root, name)) is not None}
    if not found:
        raise InputError(
            f"none of the {len(views.names)} pictures is there, such as {root / views.names[0]}; say where"
        )
    if len(found) < len(views.names):
        missing = len(views.names) - len(found)
        warnings.warn(f"{source}: {missing} of {len(views.names)} pictures are not there", UserWarning, stacklevel=2)
    return replace(_read(views, found, downscale), points=points)


def _has_model(folder: Path) -> bool:
    return any((folder / f"cameras.{kind}").is_file() for kind in ("txt", "bin"))


def image_folder(source: Path, model: Path) -> Path:
    """`images` beside the model or above it."""
    places = [source / "images", *(parent / "images" for parent in (model, *list(model.parents)[:2]))]
    return next((place for place in places if place.is_dir()), source)


def picture_file(root: Path, name: str) -> Path | None:
    """The picture of a name in a folder, whose suffix may be left out; None where there is none."""
    path = root / name.replace("\\", "/")
    return next((f for suffix in SUFFIXES if is_there(f := Path(f"{path}{suffix}"))), None)


def warn_of_sizes(source: Path, camera: Camera, names: Sequence[str]) -> None:
    """Warns of pictures beside a transforms.json, or the folder of a COLMAP model, that are of another size than their
    cameras say, or no pictures."""
    root = image_folder(source, source) if source.is_dir() else source.parent
    odd: list[str] = []
    for name in names:
        path = picture_file(root, name)
        if path is None:
            continue
        try:
            width, height = image_size(path)
        except InputError as error:
            odd.append(str(error))
            continue
        if (width, height) != (camera.width, camera.height):
            odd.append(f"{path} has {width} x {height} px")
    if odd:
        more = f" (and so {len(odd) - 1} more)" if len(odd) > 1 else ""
        warnings.warn(
            f"{source.name}: the cameras are of pictures of {camera.width} x {camera.height} px, and {odd[0]}{more}; "
            "correct the size and intrinsics, or the pictures",
            UserWarning,
            stacklevel=2,
        )


def _read(views: Views, found: dict[int, Path], downscale: int) -> PosedImages:
    rows, layers = list(found), [_layers(views, i, path, downscale) for i, path in found.items()]
    height, width = layers[0][0].shape[:2]
    parts = [torch.stack(part) for part in zip(*layers, strict=True)]
    alpha = None if bool((parts[1] == 255).all()) else parts[1]
    valid = None if bool(parts[2].all()) else parts[2]
    camera: Camera = views.camera[rows].resized(width, height)
    return PosedImages(camera, parts[0], alpha, valid, tuple(views.names[i] for i in rows))


def _layers(views: Views, index: int, path: Path, downscale: int) -> tuple[Tensor, Tensor, Tensor]:
    """(sRGB (H, W, 3) uint8, alpha (H, W, 1) uint8, valid (H, W, 1)) of a picture, straight and small."""
    lens, layers = views.lenses[index], read_layers(path)
    height, width = layers.rgb.shape[:2]
    if abs(width * lens.height / (height * lens.width) - 1) > ASPECT:
        raise InputError(f"{path} has {width} x {height} px and its camera {lens.width} x {lens.height}; crop neither")
    alpha = torch.ones(height, width, 1) if layers.alpha is None else torch.from_numpy(layers.alpha)[..., None]
    picture = torch.cat([torch.from_numpy(layers.rgb) * alpha, alpha], dim=-1)
    valid = torch.ones(height, width, 1, dtype=torch.bool)
    if lens.bent:
        check_bent(lens.bent, lens.model, str(path))
        K = views.camera[index].resized(width, height).K[0]
        picture, valid = straightened(picture, K, lens.bent)
    size = (max(1, round(lens.height / downscale)), max(1, round(lens.width / downscale)))
    small = shrunk(picture[None], size)[0]
    kept = shrunk(valid.float()[None], size)[0] > SEEN_WHOLE
    return bytes_of(plain_colors(small)), bytes_of(small[..., 3:]), kept


def _colmap_points(model: Path) -> PointCloud | None:
    places, colors = read_points(model)
    if not len(places):
        return None
    return PointCloud(torch.from_numpy(places).float(), torch.from_numpy(colors).float() / 255)


def _nerfstudio_points(file: Path) -> PointCloud | None:
    """Those of `ply_file_path`, which lie in the world of the poses as they are written."""
    document: Any = read_json(file)
    name = document.get(POINTS) if isinstance(document, dict) else None
    if name is None or not (file.parent / str(name)).is_file():
        return None
    cloud = PointCloud.load(file.parent / str(name))
    scale, applied = float(document.get("applied_scale", 1.0)), document.get("applied_transform")
    pose = torch.eye(4).repeat(len(cloud), 1, 1)
    pose[:, :3, 3] = cloud.points / scale
    if applied is not None:
        pose = from_nerfstudio(pose, torch.tensor(applied, dtype=torch.float32))
    return PointCloud(pose[:, :3, 3], cloud.colors)
