"""glTF 2.0 (.glb, .gltf) to pieces in our axes: what a file requires is honoured or the file is refused by its name."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...utils.errors import InputError
from .draco import DRACO, draco, unpack
from .gltf_data import Accessors, parse_document, split_chunks
from .gltf_materials import CLAMP, GLOSSY, REPEAT, WRAPS, Mapped, Materials
from .piece import Floats, Ints, Notes, Piece, colored

HONOURED = {"KHR_texture_transform", "KHR_mesh_quantization", "EXT_texture_webp", GLOSSY}
ADVICE = {
    DRACO: "pip install 'unproject[draco]', or export it without Draco compression",
    "EXT_meshopt_compression": "export it without meshopt compression",
    "KHR_meshopt_compression": "export it without meshopt compression",
    "KHR_texture_basisu": "export its textures as PNG, JPEG or WebP",
    "KHR_gaussian_splatting": "it holds Gaussian splats, no triangles; export it as a mesh",
}
MODES = {0: "points", 1: "lines", 2: "a line loop", 3: "a line strip"}
STRIP, FAN = 5, 6
SPLATS = "KHR_gaussian_splatting"
PACKED = (DRACO, "EXT_meshopt_compression", "KHR_meshopt_compression")
READ_ATTRIBUTES = ("POSITION", "NORMAL", "TANGENT", "COLOR_0", "TEXCOORD_", "JOINTS_", "WEIGHTS_")  # or named otherwise
FROM_GLTF = [2, 0, 1]  # columns: our (x, y, z) are glTF's (z, x, y)
DEEPEST = 500  # levels of nodes


def read_gltf(data: bytes, path: Path, notes: Notes) -> list[Piece]:
    """All triangles of the default scene. Raises InputError for what the file requires and this reader cannot do."""
    document, blob = split_chunks(data) if path.suffix.lower() == ".glb" else (parse_document(data), b"")
    check_required(document, path)
    accessors = Accessors(document, blob, path.parent)
    materials = Materials(accessors, notes)
    pieces = []
    for mesh, matrix in placed_meshes(document, notes):
        for primitive in document["meshes"][mesh].get("primitives", []):
            piece = _primitive(primitive, accessors, materials, notes, path)
            if piece is not None:
                pieces.append(_placed(piece, matrix))
    _name_losses(document, notes)
    if any(piece.colors is not None or piece.textures for piece in pieces):
        for piece in pieces:  # a material without a colour is white
            if piece.colors is None and "base_color" not in piece.textures:
                piece.colors = np.ones_like(piece.positions)
    return pieces


def check_required(document: dict[str, Any], path: Path, honoured: Collection[str] = HONOURED) -> None:
    """Raises InputError when the file requires an extension that is not honoured."""
    for name in document.get("extensionsRequired", []):
        if name not in honoured and not (name == DRACO and draco()):
            advice = ADVICE.get(str(name), "export it without that extension")
            raise InputError(f"{path} requires {str(name)[:80]}, which is not read; {advice}")


def placed_meshes(document: dict[str, Any], notes: Notes) -> Iterator[tuple[int, Floats]]:
    """(mesh, its world matrix (4, 4)) of each node of the default scene."""
    nodes, scenes = document.get("nodes", []), document.get("scenes", [])
    if len(scenes) > 1:
        notes.add(f"{len(scenes) - 1} other scenes")
    inner = {child for node in nodes for child in node.get("children", [])}
    if scenes:
        roots = scenes[document.get("scene", 0)].get("nodes", [])
    else:
        roots = [i for i in range(len(nodes)) if i not in inner]
    stack = [(root, np.eye(4), 0) for root in reversed(roots)]
    while stack:
        index, above, depth = stack.pop()
        if depth > DEEPEST:
            raise InputError("the nodes of the glTF form a circle")
        node = nodes[index]
        matrix = above @ _local(node)
        if "mesh" in node:
            if "skin" in node:
                notes.add("the skin (the mesh stands as it was bound)")
            if any(node.get("weights", ())):
                notes.add("the morph targets of a node")
            yield node["mesh"], matrix
        stack += [(child, matrix, depth + 1) for child in reversed(node.get("children", []))]


def _local(node: dict[str, Any]) -> Floats:
    """Translation x rotation x scale, or the matrix, column by column."""
    if "matrix" in node:
        return np.asarray(node["matrix"], dtype=np.float64).reshape(4, 4).T
    x, y, z, w = np.asarray(node.get("rotation", (0, 0, 0, 1)), dtype=np.float64)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * np.asarray(node.get("scale", (1, 1, 1)), dtype=np.float64)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def _primitive(
    primitive: dict[str, Any], accessors: Accessors, materials: Materials, notes: Notes, path: Path
) -> Piece | None:
    """A primitive's triangles, None for points and lines, which are named."""
    extensions, mode = primitive.get("extensions", {}), primitive.get("mode", 4)
    if SPLATS in extensions:
        raise InputError(f"{path} uses {SPLATS}; {ADVICE[SPLATS]}")
    attributes = primitive.get("attributes", {})
    packed = next((name for name in PACKED if name in extensions), None)
    if packed and "bufferView" not in accessors.document["accessors"][attributes["POSITION"]]:
        if packed == DRACO and draco():
            return _primitive(_unpacked(unpack(accessors, primitive)), accessors, materials, notes, path)
        raise InputError(f"{path} holds its triangles in {packed} only, which is not read; {ADVICE[packed]}")
    if mode in MODES:
        notes.add(f"{MODES[mode]} (only triangles are read)")
        return None
    positions = accessors.array(attributes["POSITION"]).astype(np.float64)
    if "indices" in primitive:
        index = accessors.array(primitive["indices"])[:, 0].astype(np.int64)
    else:
        index = np.arange(len(positions))
    normals = accessors.array(attributes["NORMAL"]).astype(np.float64) if "NORMAL" in attributes else None
    piece = Piece(positions, _triangles(index, mode), normals)
    if primitive.get("targets"):
        notes.add("morph targets")
    others = [name for name in attributes if not name.startswith(READ_ATTRIBUTES)]
    if others:
        notes.add(f"attributes {', '.join(others)[:120]}")
    surface = materials.surface(primitive.get("material"))
    piece = _textured(piece, surface.textures, attributes, accessors, notes)
    vertex = None
    if "COLOR_0" in attributes:
        rgba = accessors.array(attributes["COLOR_0"], colors=True).astype(np.float64)
        vertex = rgba[:, :3]
        if rgba.shape[1] == 4 and rgba[:, 3].min(initial=1.0) < 1:
            notes.add("the transparency of vertex colours")
    return colored(piece, surface.factor, vertex, notes)


def _unpacked(primitive: dict[str, Any]) -> dict[str, Any]:
    """A primitive whose accessors have been given what was compressed."""
    return {**primitive, "extensions": {k: v for k, v in primitive["extensions"].items() if k != DRACO}}


def _triangles(index: Ints, mode: int) -> Ints:
    """(F, 3) of a list, a strip or a fan of vertices."""
    if mode == STRIP:
        rows = np.stack([index[:-2], index[1:-1], index[2:]], axis=1)
        rows[1::2] = rows[1::2, [1, 0, 2]]
        return rows
    if mode == FAN:
        return np.stack([np.full(len(index) - 2, index[0]), index[1:-1], index[2:]], axis=1)
    if len(index) % 3:
        raise InputError(f"{len(index)} indices are no whole number of triangles")
    return index.reshape(-1, 3)


def _textured(
    piece: Piece, textures: dict[str, Mapped], attributes: dict[str, int], accessors: Accessors, notes: Notes
) -> Piece:
    """The piece with the textures that share the coordinates of the first, moved as their transform says."""
    if not textures:
        return piece
    lead = next(iter(textures.values()))
    attribute = f"TEXCOORD_{lead.coordinates}"
    if attribute not in attributes:
        notes.add(f"textures of a piece without {attribute}")
        return piece
    for name, one in textures.items():
        if one.coordinates != lead.coordinates or not np.array_equal(one.matrix, lead.matrix):
            notes.add(f"the {name.replace('_', ' ')} texture, which has coordinates of its own")
        else:
            piece.textures[name] = one.image
    raw: NDArray[Any] = accessors.array(attributes[attribute]).astype(np.float64)
    uv = raw @ lead.matrix[:, :2].T + lead.matrix[:, 2]
    for axis, wrap in enumerate(lead.wraps):
        outside = uv[:, axis].min(initial=0) < -1e-4 or uv[:, axis].max(initial=0) > 1 + 1e-4
        if wrap != REPEAT and outside:
            notes.add(f"the wrap mode {WRAPS.get(wrap, wrap)} (the texture repeats instead)")
        elif wrap == CLAMP:
            uv[:, axis] = uv[:, axis].clip(0, 1)
    piece.uv = np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)
    piece.uv_faces = piece.faces.copy()
    return piece


def _placed(piece: Piece, matrix: Floats) -> Piece:
    """In the world and in our axes, in double precision; a mirroring matrix turns the winding."""
    linear = matrix[:3, :3]
    piece.positions = (piece.positions @ linear.T + matrix[:3, 3])[:, FROM_GLTF]
    if np.linalg.det(linear) < 0:
        piece.faces = piece.faces[:, ::-1]
        piece.uv_faces = None if piece.uv_faces is None else piece.uv_faces[:, ::-1]
    if piece.normals is not None:
        try:
            piece.normals = (piece.normals @ np.linalg.inv(linear))[:, FROM_GLTF]
        except np.linalg.LinAlgError:  # flattened by a scale of 0
            piece.normals = None
    return piece


def _name_losses(document: dict[str, Any], notes: Notes) -> None:
    for key in ("animations", "cameras"):
        if document.get(key):
            notes.add(f"{len(document[key])} {key}")
    decoded = {DRACO} if draco() else set()
    required = set(document.get("extensionsRequired", ()))
    named = [*document.get("extensionsUsed", ()), *_extensions(document)]
    others = [str(name) for name in dict.fromkeys(named) if name not in HONOURED | required | decoded]
    if others:
        notes.add(f"the extensions {', '.join(others)}")


def _extensions(document: dict[str, Any]) -> list[str]:
    """The extensions that stand anywhere in a document, also where `extensionsUsed` is silent about them."""
    found, waiting = [], list[Any]([document])
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            inner = value.get("extensions")
            found += list(inner) if isinstance(inner, dict) else []
            waiting += [item for key, item in value.items() if key != "extras"]
        elif isinstance(value, list):
            waiting += value
    return found
