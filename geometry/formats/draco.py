"""Triangles that a glTF holds in Draco's compression (KHR_draco_mesh_compression), by the package DracoPy, an extra."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...utils.errors import InputError
from .gltf_data import Accessors

DRACO = "KHR_draco_mesh_compression"


def draco() -> Any | None:
    """The package DracoPy, None without it."""
    try:
        import DracoPy
    except ImportError:
        return None
    return DracoPy


def unpack(accessors: Accessors, primitive: dict[str, Any]) -> dict[str, Any]:
    """The primitive as triangles; its accessors then hold what the Draco buffer does. Raises InputError for damage."""
    packed, package = primitive["extensions"][DRACO], draco()
    assert package is not None
    try:
        mesh = package.decode(accessors.view(packed["bufferView"]))
        columns = {name: mesh.get_attribute_by_unique_id(number) for name, number in packed["attributes"].items()}
        faces = np.asarray(mesh.faces)
    except InputError:
        raise
    except Exception as error:  # of any kind: the decoder is not ours
        raise InputError(f"its Draco data cannot be decoded: {error or type(error).__name__}") from error
    for name, column in columns.items():
        if column is None or name not in primitive["attributes"]:
            raise InputError(f"its Draco data lacks the attribute {name}")
        accessors.give(primitive["attributes"][name], np.asarray(column["data"]))
    if "indices" not in primitive:
        raise InputError("triangles in Draco's compression have no indices")
    accessors.give(primitive["indices"], faces.reshape(-1, 1))
    return {**primitive, "mode": 4}
