"""The binary glTF 2.0 container: one mesh, one material, written so that the Khronos validator has nothing to say.

Layout: 12-byte header, JSON chunk padded with spaces, BIN chunk padded with zeros, every view aligned to 4 bytes.
Positions and normals are turned to y up, front +z; uv origin moves to the top left; COLOR_0 is linear.
"""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..utils.errors import InputError
from .cameras import to_gltf_points
from .colors import linear_from_srgb
from .formats.gltf_data import BIN_CHUNK, JSON_CHUNK, MAGIC, VERSION
from .stored import NO_ORIGIN, StoredMesh

FLOAT, UINT32 = 5126, 5125
ARRAY_BUFFER, ELEMENT_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP, CLAMP, REPEAT = 9729, 9987, 33071, 10497


class Builder:
    """Collects buffer views and accessors of one binary chunk."""

    def __init__(self) -> None:
        self.blob = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, data: bytes, target: int | None = None) -> int:
        self.blob.extend(b"\0" * (-len(self.blob) % 4))
        entry: dict[str, Any] = {"buffer": 0, "byteOffset": len(self.blob), "byteLength": len(data)}
        if target is not None:
            entry["target"] = target
        self.views.append(entry)
        self.blob.extend(data)
        return len(self.views) - 1

    def floats(self, values: Tensor, with_bounds: bool = False) -> int:
        """A float attribute (N, C)."""
        array = np.ascontiguousarray(values.detach().cpu().numpy().astype("<f4"))
        entry: dict[str, Any] = {
            "bufferView": self.view(array.tobytes(), ARRAY_BUFFER),
            "componentType": FLOAT,
            "count": len(array),
            "type": f"VEC{array.shape[1]}" if array.shape[1] > 1 else "SCALAR",
        }
        if with_bounds:
            entry["min"], entry["max"] = array.min(axis=0).tolist(), array.max(axis=0).tolist()
        self.accessors.append(entry)
        return len(self.accessors) - 1

    def indices(self, faces: Tensor) -> int:
        """Triangle indices (F, 3)."""
        array = faces.detach().cpu().numpy().astype("<u4").reshape(-1)
        view = self.view(array.tobytes(), ELEMENT_BUFFER)
        self.accessors.append({"bufferView": view, "componentType": UINT32, "count": len(array), "type": "SCALAR"})
        return len(self.accessors) - 1


def write_glb(mesh: StoredMesh) -> bytes:
    """The GLB file of a mesh as bytes."""
    builder = Builder()
    needs_tangents = mesh.uv is not None and "normal" in mesh.textures
    if needs_tangents and mesh.vertex_normals is None:
        mesh = mesh.with_smooth_normals()
    index, uv_index, faces = mesh.split_seams()
    attributes = {"POSITION": builder.floats(to_gltf_points(mesh.vertices[index]), with_bounds=True)}
    if mesh.vertex_normals is not None:
        attributes["NORMAL"] = builder.floats(_unit(to_gltf_points(mesh.vertex_normals[index])))
    textured = mesh.uv is not None and bool(mesh.textures)
    if textured and mesh.uv is not None:
        attributes["TEXCOORD_0"] = builder.floats(torch.stack([mesh.uv[uv_index, 0], 1 - mesh.uv[uv_index, 1]], dim=-1))
        if needs_tangents and mesh.vertex_normals is not None:
            positions, normals = mesh.vertices[index], mesh.vertex_normals[index]
            tangent = vertex_tangents(positions, normals, mesh.uv[uv_index], faces)
            turned = torch.cat([_unit(to_gltf_points(tangent[:, :3])), tangent[:, 3:]], dim=-1)
            attributes["TANGENT"] = builder.floats(turned)
    elif mesh.vertex_colors is not None:
        attributes["COLOR_0"] = builder.floats(linear_from_srgb(mesh.vertex_colors[index].clamp(0, 1)))
    tiled = mesh.uv is not None and bool(((mesh.uv < 0) | (mesh.uv > 1)).any())
    wrap = REPEAT if tiled else CLAMP
    primitive = {"attributes": attributes, "indices": builder.indices(faces), "material": 0, "mode": 4}
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "unproject"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [_node(mesh)],
        "meshes": [{"primitives": [primitive], "name": "object"}],
        **_material(mesh.textures if textured else {}, builder, wrap),
        "accessors": builder.accessors,
    }
    return container(document, builder)


def _node(mesh: StoredMesh) -> dict[str, Any]:
    """The node of the mesh; its translation keeps an origin that float32 positions cannot hold."""
    x, y, z = mesh.origin
    placed = {} if mesh.origin == NO_ORIGIN else {"translation": [y, z, x]}
    return {"mesh": 0, "name": "object", **placed}


def _material(textures: dict[str, NDArray[np.uint8]], builder: Builder, wrap: int) -> dict[str, Any]:
    """The material, texture, sampler and image entries; roughness 1 and metallic 0 unless a texture says otherwise."""
    images = []
    places: dict[str, int] = {}
    for name, pixels in textures.items():
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, format="PNG")
        images.append({"bufferView": builder.view(stream.getvalue()), "mimeType": "image/png", "name": name})
        places[name] = len(images) - 1
    metallic = 1.0 if "metallic_roughness" in places else 0.0
    physical: dict[str, Any] = {"metallicFactor": metallic, "roughnessFactor": 1.0}
    if "base_color" in places:
        physical["baseColorTexture"] = {"index": places["base_color"]}
    if "metallic_roughness" in places:
        physical["metallicRoughnessTexture"] = {"index": places["metallic_roughness"]}
    material: dict[str, Any] = {"name": "surface", "pbrMetallicRoughness": physical}
    if "normal" in places:
        material["normalTexture"] = {"index": places["normal"]}
    if not images:
        return {"materials": [material]}
    sampler = {"magFilter": LINEAR, "minFilter": LINEAR_MIPMAP, "wrapS": wrap, "wrapT": wrap}
    return {
        "materials": [material],
        "textures": [{"source": i, "sampler": 0} for i in range(len(images))],
        "samplers": [sampler],
        "images": images,
    }


def container(document: dict[str, Any], builder: Builder) -> bytes:
    """GLB bytes of a document and what its builder collected."""
    blob = bytes(builder.blob) + b"\0" * (-len(builder.blob) % 4)
    return container_head({**document, "bufferViews": builder.views}, len(blob)) + blob


def container_head(document: dict[str, Any], length: int) -> bytes:
    """What stands in a GLB before a binary chunk of so many bytes, a multiple of four. Raises InputError above 4 GB."""
    document = {**document, "buffers": [{"byteLength": length}]}
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + 8 + length
    if total >= 1 << 32:
        raise InputError(f"a GLB holds 4 GB at most, this would take {total / 1e9:.1f} GB; choose another format")
    head = struct.pack("<III", MAGIC, VERSION, total)
    return head + struct.pack("<II", len(text), JSON_CHUNK) + text + struct.pack("<II", length, BIN_CHUNK)


def vertex_tangents(positions: Tensor, normals: Tensor, uv: Tensor, faces: Tensor) -> Tensor:
    """Tangents (N, 4) from the charts: unit direction of growing u in the surface, and the sign of the bitangent n x t.

    positions, normals (N, 3), uv (N, 2) with v up, faces (F, 3), all split along seams.
    """
    p, t = positions.double()[faces], uv.double()[faces]
    edge1, edge2 = p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]
    du, dv = t[:, 1:, 0] - t[:, :1, 0], t[:, 1:, 1] - t[:, :1, 1]  # (F, 2) each
    area = (du[:, 0] * dv[:, 1] - du[:, 1] * dv[:, 0])[:, None]  # signed, twice the chart's
    along = (edge1 * dv[:, 1:] - edge2 * dv[:, :1]) * torch.sign(area)
    index = faces.reshape(-1)
    total = torch.zeros(len(positions), 3, dtype=torch.float64).index_add(0, index, along.repeat_interleave(3, 0))
    sign = torch.zeros(len(positions), dtype=torch.float64).index_add(0, index, area[:, 0].repeat_interleave(3))
    unit = _unit(normals).double()
    flat = total - unit * (total * unit).sum(dim=-1, keepdim=True)
    axis = torch.nn.functional.one_hot(unit.abs().argmin(dim=-1), 3).double()
    spare = torch.linalg.cross(unit, axis)  # where the charts give no direction
    tangent = torch.where(flat.norm(dim=-1, keepdim=True) < 1e-12, spare, flat)
    handed = torch.where(sign < 0, -1.0, 1.0)[:, None]
    return torch.cat([_unit(tangent), handed.float()], dim=-1)


def _unit(normals: Tensor) -> Tensor:
    """Unit normals in float64 precision; zero ones become +y so that the file stays valid."""
    length = normals.double().norm(dim=-1, keepdim=True)
    fallback = normals.new_tensor([0.0, 1.0, 0.0]).double()
    return torch.where(length < 1e-12, fallback, normals.double() / length.clamp_min(1e-30)).float()
