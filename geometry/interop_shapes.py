"""Meshes and point clouds of pytorch3d and Open3D, both ways; the world stays as it is.

Texture coordinates begin at the bottom left in all three. pytorch3d takes a picture with its top row first, as here,
but samples between the middles of its outer texels unless it is told not to; Open3D takes it with its bottom row first.
What reads pytorch3d looks at methods alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import InputError
from .interop import imported
from .meshes import Mesh
from .points import PointCloud
from .stored import NO_ORIGIN

COLOR = "base_color"


def to_pytorch3d_meshes(mesh: Mesh) -> Any:
    """pytorch3d's Meshes of one mesh: TexturesUV of the base colour, else TexturesVertex of vertex colours, else none.

    Differentiable in vertices and vertex colours. Raises InputError for positions relative to an origin.
    """
    structures, renderer = imported("pytorch3d.structures", "pytorch3d"), imported("pytorch3d.renderer", "pytorch3d")
    _check_origin(mesh.origin)
    textures = None
    if COLOR in mesh.textures and mesh.uv is not None and mesh.uv_faces is not None:
        picture = torch.from_numpy(mesh.textures[COLOR][..., :3].astype(np.float32) / 255).to(mesh.vertices)
        textures = renderer.TexturesUV(
            maps=picture[None],
            faces_uvs=[mesh.uv_faces],
            verts_uvs=[mesh.uv.to(mesh.vertices)],
            padding_mode="border",
            align_corners=False,  # texel centres as everywhere else
        )
    elif mesh.vertex_colors is not None:
        textures = renderer.TexturesVertex(verts_features=[mesh.vertex_colors])
    normals = None if mesh.vertex_normals is None else [mesh.vertex_normals]
    return structures.Meshes(verts=[mesh.vertices], faces=[mesh.faces], textures=textures, verts_normals=normals)


def from_pytorch3d_meshes(meshes: Any) -> list[Mesh]:
    """Every mesh of pytorch3d's Meshes, with vertex colours or a base colour. Raises InputError for other textures."""
    found = [Mesh(v, f) for v, f in zip(meshes.verts_list(), meshes.faces_list(), strict=True)]
    textures = meshes.textures
    if textures is None:
        return found
    if hasattr(textures, "verts_features_list"):
        colors = textures.verts_features_list()
        return [replace(mesh, vertex_colors=color[:, :3]) for mesh, color in zip(found, colors, strict=True)]
    if not hasattr(textures, "verts_uvs_list"):
        raise InputError(f"textures of the kind {type(textures).__name__} are not read; give TexturesUV or Vertex")
    parts = zip(found, textures.verts_uvs_list(), textures.faces_uvs_list(), textures.maps_padded(), strict=True)
    return [
        replace(mesh, uv=uv.detach(), uv_faces=faces, textures={COLOR: _bytes(picture)})
        for mesh, uv, faces, picture in parts
    ]


def to_pytorch3d_points(points: PointCloud) -> Any:
    """pytorch3d's Pointclouds of one cloud, colours as features. Raises InputError for an origin."""
    structures = imported("pytorch3d.structures", "pytorch3d")
    _check_origin(points.origin)
    colors, normals = (None if value is None else [value] for value in (points.colors, points.normals))
    return structures.Pointclouds(points=[points.points], normals=normals, features=colors)


def from_pytorch3d_points(clouds: Any) -> list[PointCloud]:
    """Every cloud of pytorch3d's Pointclouds; its first three features are colours."""
    count = len(clouds.points_list())
    colors, normals = (value or [None] * count for value in (clouds.features_list(), clouds.normals_list()))
    kept = [None if color is None else color[:, :3] for color in colors]
    return [PointCloud(*parts) for parts in zip(clouds.points_list(), kept, normals, strict=True)]


def to_open3d_mesh(mesh: Mesh) -> Any:
    """Open3D's geometry.TriangleMesh with normals, vertex colours and base colour; positions in the world."""
    o3d = imported("open3d", "open3d")
    vector, index = o3d.utility.Vector3dVector, o3d.utility.Vector3iVector
    made = o3d.geometry.TriangleMesh(
        vector(_doubles(mesh.vertices) + np.array(mesh.origin)), index(mesh.faces.cpu().numpy().astype(np.int32))
    )
    for name, value in (("vertex_normals", mesh.vertex_normals), ("vertex_colors", mesh.vertex_colors)):
        if value is not None:
            setattr(made, name, vector(_doubles(value)))
    if COLOR in mesh.textures and mesh.uv is not None and mesh.uv_faces is not None:
        made.triangle_uvs = o3d.utility.Vector2dVector(_doubles(mesh.uv[mesh.uv_faces].reshape(-1, 2)))
        made.textures = [o3d.geometry.Image(np.ascontiguousarray(mesh.textures[COLOR][::-1, :, :3]))]
        made.triangle_material_ids = o3d.utility.IntVector(np.zeros(len(mesh.faces), np.int32))
    return made


def from_open3d_mesh(theirs: Any) -> Mesh:
    """The mesh of Open3D's geometry.TriangleMesh, with its first texture. Raises InputError for several textures."""
    mesh = Mesh(_floats(theirs.vertices), torch.from_numpy(np.asarray(theirs.triangles).astype(np.int64)))
    if theirs.has_vertex_normals():
        mesh = replace(mesh, vertex_normals=_floats(theirs.vertex_normals))
    if theirs.has_vertex_colors():
        mesh = replace(mesh, vertex_colors=_floats(theirs.vertex_colors))
    pictures = [np.asarray(picture) for picture in theirs.textures if not picture.is_empty()]
    if len(pictures) > 1:
        raise InputError(f"the mesh has {len(pictures)} textures; write it to a file, which joins them on reading")
    if pictures and theirs.has_triangle_uvs():
        uv, index = np.unique(np.asarray(theirs.triangle_uvs), axis=0, return_inverse=True)
        texture = np.ascontiguousarray(pictures[0][::-1, :, :3])
        faces = torch.from_numpy(index.reshape(-1, 3).astype(np.int64))
        mesh = replace(mesh, uv=torch.from_numpy(uv).float(), uv_faces=faces, textures={COLOR: texture})
    return mesh


def to_open3d_points(points: PointCloud) -> Any:
    """Open3D's geometry.PointCloud with colours and normals; positions in the world."""
    o3d = imported("open3d", "open3d")
    vector = o3d.utility.Vector3dVector
    made = o3d.geometry.PointCloud(vector(_doubles(points.points) + np.array(points.origin)))
    for name, value in (("colors", points.colors), ("normals", points.normals)):
        if value is not None:
            setattr(made, name, vector(_doubles(value)))
    return made


def from_open3d_points(theirs: Any) -> PointCloud:
    """The points of Open3D's geometry.PointCloud."""
    colors = _floats(theirs.colors) if theirs.has_colors() else None
    return PointCloud(_floats(theirs.points), colors, _floats(theirs.normals) if theirs.has_normals() else None)


def _check_origin(origin: tuple[float, float, float]) -> None:
    if origin != NO_ORIGIN:
        raise InputError(
            f"positions are relative to {origin}, which float32 cannot hold; move them to the origin first"
        )


def _doubles(values: Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()


def _floats(values: Any) -> Tensor:
    return torch.from_numpy(np.asarray(values)).float()


def _bytes(picture: Tensor) -> np.ndarray:
    return (picture[..., :3].detach().cpu().float().clamp(0, 1) * 255).round().numpy().astype(np.uint8)
