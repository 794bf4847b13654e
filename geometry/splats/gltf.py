"""Splats in a GLB: points with the extension KHR_gaussian_splatting, kernel "ellipse", in glTF's axes.

Rotations are unit (x, y, z, w), scales linear, opacities in [0, 1]; COLOR_0 is what viewers without the extension see.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...utils.errors import InputError, damage
from ..cameras import GLTF_FROM_WORLD
from ..colors import linear_from_srgb
from ..formats.gltf import check_required, placed_meshes
from ..formats.gltf_data import Accessors, split_chunks
from ..formats.piece import Notes
from ..glb import Builder, container
from .cloud import GaussianCloud
from .harmonics import MAX_DEGREE

NAME = "KHR_gaussian_splatting"
SPACE = "srgb_rec709_display"
POINTS = 0


def gltf_axes(cloud: GaussianCloud, back: bool = False) -> GaussianCloud:
    """Turned from our world to glTF's (y up, front +z), harmonics included; or back."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.tensor(GLTF_FROM_WORLD, dtype=torch.float64)
    return cloud.transformed(matrix.mT if back else matrix)


def declares_splats(path: Path) -> bool:
    """Whether a GLB names the extension; False for one that cannot be read."""
    try:
        document, _ = split_chunks(path.read_bytes())
    except (InputError, OSError):
        return False
    used = document.get("extensionsUsed")
    return isinstance(used, list) and NAME in used


def write_glb(cloud: GaussianCloud) -> bytes:
    """The file of a cloud in our world."""
    cloud = gltf_axes(cloud.detached())
    builder = Builder()
    turn = torch.nn.functional.normalize(cloud.quaternions, dim=-1).roll(-1, dims=1)
    color = torch.cat([linear_from_srgb(cloud.colors.clamp(0, 1)), cloud.opacities[:, None]], dim=-1)
    attributes = {
        "POSITION": builder.floats(cloud.means, with_bounds=True),
        "COLOR_0": builder.floats(color),
        f"{NAME}:ROTATION": builder.floats(turn),
        f"{NAME}:SCALE": builder.floats(cloud.scales),
        f"{NAME}:OPACITY": builder.floats(cloud.opacities[:, None]),
    }
    for degree in range(cloud.degree + 1):
        for index in range(2 * degree + 1):
            attributes[_coefficient(degree, index)] = builder.floats(cloud.sh[:, degree**2 + index])
    own = {"kernel": "ellipse", "colorSpace": SPACE, "projection": "perspective", "sortingMethod": "cameraDistance"}
    primitive = {"attributes": attributes, "mode": POINTS, "extensions": {NAME: own}}
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "unproject"},
        "extensionsUsed": [NAME],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "name": "splats"}],
        "meshes": [{"primitives": [primitive], "name": "splats"}],
        "accessors": builder.accessors,
    }
    return container(document, builder)


def read_glb(data: bytes, where: str) -> GaussianCloud:
    """All splats of a GLB in our world, moved by their nodes. Raises InputError when there are none."""
    path, clouds = Path(where), []
    try:
        document, blob = split_chunks(data)
        check_required(document, path, {NAME})
        accessors = Accessors(document, blob, path.parent)
        for mesh, matrix in placed_meshes(document, Notes(path)):
            for primitive in document["meshes"][mesh]["primitives"]:
                if NAME in primitive.get("extensions", {}):
                    clouds.append(_cloud(accessors, primitive).transformed(torch.from_numpy(matrix)))
    except InputError as error:
        if where in str(error):
            raise
        raise InputError(f"{where}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{where}: the glTF splats are damaged: {damage(error)}") from error
    if not clouds:
        raise InputError(f"{where} holds no {NAME}; meshes are read with Mesh.load")
    degree = max(cloud.degree for cloud in clouds)
    filled = [cloud.with_degree(degree) for cloud in clouds]
    return gltf_axes(GaussianCloud.cat(filled), back=True)


def _coefficient(degree: int, index: int) -> str:
    return f"{NAME}:SH_DEGREE_{degree}_COEF_{index}"


def _cloud(accessors: Accessors, primitive: dict[str, Any]) -> GaussianCloud:
    """One primitive in its own axes."""
    attributes, own = primitive["attributes"], primitive["extensions"][NAME]
    if own.get("kernel", "ellipse") != "ellipse" or own.get("colorSpace", SPACE) != SPACE:
        raise InputError(f"splats of kernel {own.get('kernel')!r:.80} in {own.get('colorSpace')!r:.80} are not read")
    if own.get("extensions"):
        raise InputError(f"splats with {', '.join(own['extensions'])} are not supported; save them uncompressed")

    def values(name: str) -> Tensor:
        return torch.from_numpy(np.array(accessors.array(attributes[name]), dtype=np.float32))

    degree = max(d for d in range(MAX_DEGREE + 1) if _coefficient(d, 0) in attributes)
    sh = [values(_coefficient(d, i)) for d in range(degree + 1) for i in range(2 * d + 1)]
    counts = {len(part) for part in sh} | {len(values(name)) for name in ("POSITION", f"{NAME}:SCALE")}
    counts |= {len(values(f"{NAME}:{name}")) for name in ("ROTATION", "OPACITY")}
    if len(counts) > 1:
        raise InputError(f"the attributes of its splats have different lengths: {sorted(counts)}")
    rotation, opacity = values(f"{NAME}:ROTATION").roll(1, dims=1), values(f"{NAME}:OPACITY")[:, 0]
    return GaussianCloud.from_values(values("POSITION"), values(f"{NAME}:SCALE"), rotation, opacity, torch.stack(sh, 1))
