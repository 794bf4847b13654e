"""Valid meshes, point clouds and splats of every format that is read."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...geometry.meshes import Mesh
from ...geometry.points import PointCloud
from ...geometry.splats.cloud import GaussianCloud
from ...geometry.splats.files import save_splats
from .cases import Sample
from .mutations import glb
from .pictures import texture

CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], np.float32)
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int64)
UV = np.array([[0, 0], [1, 0], [0, 1], [0.5, 0.25]], np.float32)


def body(**more: Any) -> Mesh:
    """A tetrahedron."""
    return Mesh(torch.from_numpy(CORNERS), torch.from_numpy(FACES), **more)


def glbs() -> list[Sample]:
    """GLB and glTF: our own, and one with all that the reader honours."""
    pixels = np.full((4, 4, 3), 90, np.uint8)
    pixels[1, 2] = 7
    uv = {"uv": torch.from_numpy(UV), "uv_faces": torch.from_numpy(FACES)}
    textured = body(**uv, textures={"base_color": pixels, "normal": pixels, "metallic_roughness": pixels})
    tinted = body(vertex_colors=torch.from_numpy(CORNERS / 3))
    document, blob = everything()
    inline = {**document, "buffers": [{**document["buffers"][0], "uri": _address(blob)}]}
    return [
        Sample("textured.glb", saved(textured, ".glb")),
        Sample("tinted.glb", saved(tinted.with_smooth_normals(), ".glb")),
        Sample("everything.glb", glb(json.dumps(document).encode(), blob)),
        Sample("everything.gltf", json.dumps(inline).encode()),
    ]


def everything() -> tuple[dict[str, Any], bytes]:
    """(document, buffer): strips, fans, sparse and normalised accessors, two sets of coordinates, moved textures."""
    parts: list[bytes] = []
    views: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []

    def view(data: bytes, **more: Any) -> int:
        views.append({"buffer": 0, "byteOffset": sum(map(len, parts)), "byteLength": len(data), **more})
        parts.append(data + bytes(-len(data) % 4))
        return len(views) - 1

    def accessor(values: Any, component: int, kind: str, **more: Any) -> int:
        array = np.ascontiguousarray(values)
        accessors.append({"bufferView": view(array.tobytes()), "componentType": component, "type": kind, **more})
        accessors[-1]["count"] = len(array)
        return len(accessors) - 1

    bounds = {"min": CORNERS.min(0).tolist(), "max": CORNERS.max(0).tolist()}
    places = accessor(CORNERS, 5126, "VEC3", **bounds)
    short = accessor((CORNERS * 100).astype("<i2").repeat(1, 0), 5122, "VEC3")
    views[accessors[short]["bufferView"]]["byteStride"] = 8
    parts[-1] = np.pad((CORNERS * 100).astype("<i2"), ((0, 0), (0, 1))).tobytes()
    views[-1]["byteLength"] = len(parts[-1])
    index = accessor(FACES.astype("<u2").ravel(), 5123, "SCALAR")
    strip = accessor(np.array([0, 1, 2, 3], "u1"), 5121, "SCALAR")
    first, second = accessor(UV, 5126, "VEC2"), accessor((UV * 65535).astype("<u2"), 5123, "VEC2", normalized=True)
    color = accessor(np.array([[255, 0, 0, 255], [0, 255, 0, 255], [9, 9, 9, 9], [0, 0, 255, 255]], "u1"), 5121, "VEC4")
    accessors[color]["normalized"] = True
    accessors.append({"componentType": 5126, "type": "VEC3", "count": 4, **bounds})
    accessors[-1]["sparse"] = {
        "count": 2,
        "indices": {"bufferView": view(np.array([1, 3], "<u2").tobytes()), "componentType": 5123},
        "values": {"bufferView": view(CORNERS[[1, 3]].tobytes())},
    }
    moved = {"KHR_texture_transform": {"offset": [0.5, 0.25], "scale": [2, 1], "rotation": 0.5, "texCoord": 1}}
    material = {
        "name": "painted",
        "pbrMetallicRoughness": {
            "baseColorFactor": [1, 0.5, 0.25, 1],
            "baseColorTexture": {"index": 0, "extensions": moved},
        },
        "normalTexture": {"index": 0, "texCoord": 1, "scale": 0.5, "extensions": moved},
        "alphaMode": "MASK",
    }
    specular = {"diffuseFactor": [1, 0, 0, 1], "glossinessFactor": 0.2}
    glossy = {"name": "glossy", "extensions": {"KHR_materials_pbrSpecularGlossiness": specular}}
    coordinates = {"TEXCOORD_0": first, "TEXCOORD_1": second}
    meshes = [
        {"primitives": [{"attributes": {"POSITION": places, **coordinates}, "indices": index, "material": 0}]},
        {"primitives": [{"attributes": {"POSITION": short, "COLOR_0": color}, "indices": strip, "mode": 5}]},
        {
            "primitives": [
                {"attributes": {"POSITION": len(accessors) - 1}, "indices": strip, "mode": 6, "material": 1},
                {"attributes": {"POSITION": places}, "mode": 0},
            ],
        },
    ]
    nodes: list[dict[str, Any]] = [
        {"children": [1, 2, 3], "rotation": [0, 0.6, 0, 0.8], "translation": [1, 2, 3]},
        {"mesh": 0, "scale": [1, -1, 2]},
        {"mesh": 1, "matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 5, 0, 0, 1]},
        {"mesh": 2},
    ]
    picture = view(texture())
    buffer = b"".join(parts)
    used = ["KHR_texture_transform", "KHR_mesh_quantization", "KHR_materials_pbrSpecularGlossiness"]
    document = {
        "asset": {"version": "2.0"},
        "extensionsUsed": used,
        "extensionsRequired": used[:2],
        "scene": 0,
        "scenes": [{"nodes": [0]}, {"nodes": [1]}],
        "nodes": nodes,
        "meshes": meshes,
        "materials": [material, glossy],
        "textures": [{"source": 0, "sampler": 0}],
        "samplers": [{"wrapS": 33648, "wrapT": 33071}],
        "images": [{"bufferView": picture, "mimeType": "image/png"}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(buffer)}],
    }
    return document, buffer


def plain_meshes() -> list[Sample]:
    """STL and OFF."""
    solid = b"solid a\n" + b"".join(
        b"facet normal 0 0 1\nouter loop\n"
        + b"".join(b"vertex %g %g %g\n" % tuple(p) for p in CORNERS[row])
        + b"endloop\n"
        b"endfacet\n"
        for row in FACES
    )
    rows = "\n".join(["OFF # a body", "4 4 0", *(" ".join(map(str, p)) for p in CORNERS.tolist())])
    off = rows + "\n" + "\n".join(f"3 {a} {b} {c}" for a, b, c in FACES.tolist()) + "\n"
    return [
        Sample("binary.stl", saved(body(), ".stl")),
        Sample("text.stl", solid + b"endsolid a\n"),
        Sample("plain.off", off.encode()),
        Sample("coloured.off", off.replace("OFF", "COFF").replace("\n3 0 2 1\n", "\n3 0 2 1 255 0 0\n").encode()),
    ]


def saved(what: Mesh | PointCloud | GaussianCloud, suffix: str) -> bytes:
    """The bytes of a file as we write it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a{suffix}")
        save_splats(what, path) if isinstance(what, GaussianCloud) else what.save(path)
        return path.read_bytes()


def plys() -> list[Sample]:
    """Meshes in PLY: our own, text, big-endian, polygons, strips, textures."""
    text = (
        "ply\nformat ascii 1.0\ncomment TextureFile a.png\nelement vertex 4\nproperty double x\nproperty double y\n"
        "property double z\nproperty uchar red\nproperty uchar green\nproperty uchar blue\nproperty uchar alpha\n"
        "property float s\nproperty float t\nelement face 2\nproperty list uchar int vertex_indices\nend_header\n"
        "0 0 0 255 0 0 255 0 0\n1 0 0 0 255 0 255 1 0\n0 2 0 0 0 255 128 0 1\n0 0 3 9 9 9 255 1 1\n3 0 1 2\n4 0 1 2 3\n"
    )
    head = "ply\nformat binary_big_endian 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    big = (head + "element tristrips 1\nproperty list int int vertex_indices\nend_header\n").encode()
    big += CORNERS.astype(">f4").tobytes() + struct.pack(">6i", 5, 0, 1, 2, -1, 3)
    return [
        Sample("ours.ply", saved(body(vertex_colors=torch.from_numpy(CORNERS / 3)).with_smooth_normals(), ".ply")),
        Sample("text.ply", text.encode()),
        Sample("big.ply", big),
    ]


def clouds() -> list[Sample]:
    """Point clouds in PLY: our own, deep colours in text, a file of splats."""
    points, colors = torch.from_numpy(CORNERS), torch.from_numpy(CORNERS / 3)
    deep = (
        "ply\nformat ascii 1.0\nobj_info made here\nelement vertex 2\nproperty float x\nproperty float y\n"
        "property float z\nproperty ushort red\nproperty ushort green\nproperty ushort blue\nproperty float nx\n"
        "property float ny\nproperty float nz\nproperty int label\nelement camera 1\nproperty float fov\nend_header\n"
        "0 0 0 0 32768 0 0 0 1 5\n1 2 3 65535 0 0 1 0 0 6\n45\n"
    )
    return [
        Sample("ours.ply", saved(PointCloud(points, colors, torch.nn.functional.normalize(points + 1, dim=1)), ".ply")),
        Sample("deep.ply", deep.encode()),
        Sample("splats.ply", saved(splats(1), ".ply")),
    ]


def splats(degree: int, count: int = 5) -> GaussianCloud:
    """Some Gaussians."""
    rng = torch.Generator().manual_seed(degree)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    turn = torch.nn.functional.normalize(draw(count, 4), dim=1)
    return GaussianCloud(draw(count, 3), draw(count, 3) - 3, turn, draw(count), 0.3 * draw(count, (degree + 1) ** 2, 3))


def splat_files() -> list[Sample]:
    """Splats in every format, SPZ also as versions 2 and 3 with one gzip stream."""
    cloud = splats(1)
    kinds = (".ply", ".compressed.ply", ".splat", ".spz", ".glb")
    found = [Sample(f"splats{suffix}", saved(cloud, suffix)) for suffix in kinds]
    for version, turn in ((2, 3), (3, 4)):
        head = struct.pack("<IIIBBBB", 0x5053474E, version, 3, 0, 12, 0, 0)
        old = head + np.random.default_rng(version).integers(0, 256, 3 * (9 + 1 + 3 + 3 + turn), np.uint8).tobytes()
        found.append(Sample(f"version{version}.spz", gzip.compress(old, mtime=0)))
    return found


def _address(data: bytes) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()


OBJ = b"""# a body
mtllib a.mtl
o thing
v 0 0 0 1 0 0
v 1 0 0 0 1 0
v 0 2 0 0 0 1
v 0 0 3 0.5 0.5 0.5
vt 0 0
vt 1 0
vt 0 1
vn 0 0 1
usemtl painted
f 1/1/1 2/2/1 3/3/1
s off
f 1/1 3/3 \\
4/2
usemtl plain
f -4 -2 -1 -3
f 1//1 2//1 4//1
l 1 2
"""
MTL = b"""newmtl painted
Ka 0 0 0
Kd 0.5 1 0.25
d 0.5
illum 2
map_Kd -s 2 1 1 -o 0.5 0 0 a.png
map_Pr -imfchan r a.png
norm a.png
newmtl plain
Kd 1 0 0
Ke 0 0 1
Pr 0.3
"""
