"""Triangle meshes: positions, normals, colours, UV charts and textures, in our world (z up, front +x, metres)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from torch import Tensor

from ..utils.errors import InputError
from .colors import srgb_from_linear, texture_at_vertices
from .far import near_origin
from .files import read_mesh, save_mesh
from .report import MeshReport, mesh_report
from .stored import NO_ORIGIN, TEXTURES, Image8, Origin


@dataclass
class Mesh:
    """A triangle mesh; counter-clockwise faces seen from outside. Vertices stay welded across UV seams."""

    vertices: Tensor  # (V, 3) float32, metres
    faces: Tensor  # (F, 3) int64
    vertex_normals: Tensor | None = None  # (V, 3) unit; None means flat shading
    uv: Tensor | None = None  # (Vt, 2), origin bottom-left
    uv_faces: Tensor | None = None  # (F, 3) int64 into uv
    textures: dict[str, Image8] = field(default_factory=dict)  # (T, T, 3) uint8, row 0 on top; keys: TEXTURES
    vertex_colors: Tensor | None = None  # (V, 3) sRGB in [0, 1]
    origin: Origin = NO_ORIGIN  # what to add to vertices for positions of the world, where float32 cannot hold those
    notes: dict[str, float] = field(default_factory=dict)  # what its making told, for the report; not in files

    def __post_init__(self) -> None:
        self.faces = self.faces.long()
        for name, value, columns in (("vertices", self.vertices, 3), ("faces", self.faces, 3), ("uv", self.uv, 2)):
            if value is not None and (value.ndim != 2 or value.shape[1] != columns):
                raise InputError(f"{name} has shape {tuple(value.shape)}, expected (N, {columns})")
        for name in ("vertex_normals", "vertex_colors"):
            value = getattr(self, name)
            if value is not None and value.shape != self.vertices.shape:
                raise InputError(f"{name} has shape {tuple(value.shape)}, expected {tuple(self.vertices.shape)}")
        if (self.uv is None) != (self.uv_faces is None):
            raise InputError("uv and uv_faces belong together; give both or neither")
        if self.uv_faces is not None and self.uv_faces.shape != self.faces.shape:
            raise InputError(f"uv_faces has shape {tuple(self.uv_faces.shape)}, expected {tuple(self.faces.shape)}")

    @property
    def bounds(self) -> Tensor:
        """(2, 3) smallest and largest corner in metres."""
        return torch.stack([self.vertices.amin(dim=0), self.vertices.amax(dim=0)])

    @property
    def world_bounds(self) -> Tensor:
        """(2, 3) float64 corners in the world: bounds plus origin."""
        return self.bounds.double() + torch.tensor(self.origin, dtype=torch.float64)

    @property
    def diagonal(self) -> float:
        """Length of the bounding-box diagonal in metres."""
        low, high = self.bounds
        return float((high - low).norm())

    def to(self, device: torch.device | str) -> Mesh:
        """The same mesh with tensors on another device."""
        names = ("vertices", "faces", "vertex_normals", "uv", "uv_faces", "vertex_colors")
        moved: dict[str, Any] = {n: None if getattr(self, n) is None else getattr(self, n).to(device) for n in names}
        return replace(self, **moved)

    def check(self) -> MeshReport:
        """Connectivity report; vertices are merged by position first, so UV seams do not count as holes."""
        return mesh_report(_numpy(self.vertices).astype(np.float64), _numpy(self.faces))

    def save(self, path: str | Path) -> Path:
        """Writes .glb, .obj (with .mtl and textures), .stl or .ply, then re-opens and checks the file."""
        return save_mesh(self, path, Mesh.load)

    @classmethod
    def load(cls, path: str | Path) -> Mesh:
        """Reads .glb, .gltf, .obj, .stl, .ply or .off; all pieces become one mesh. Raises InputError if unusable.

        What the file holds beyond a mesh is named in a warning. Positions that float32 cannot hold get an `origin`.
        """
        piece = read_mesh(path)
        positions, origin = near_origin(piece.positions, str(path))
        faces = torch.from_numpy(np.ascontiguousarray(piece.faces))
        uv, colors = _optional(piece.uv), _optional(piece.colors)
        mesh = weld_corners(positions, faces, _optional(piece.normals), uv, piece.textures, colors)
        if piece.uv_faces is not None:
            mesh.uv_faces = torch.from_numpy(np.ascontiguousarray(piece.uv_faces))
        return replace(mesh, origin=origin)

    def face_normals(self) -> Tensor:
        """Unit normals (F, 3); differentiable in the vertices."""
        a, b, c = self.vertices[self.faces].unbind(1)
        return torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1, eps=1e-20)

    def with_smooth_normals(self) -> Mesh:
        """Vertex normals from the area-weighted mean of face normals; differentiable in the vertices."""
        a, b, c = self.vertices[self.faces].unbind(1)
        weighted = torch.linalg.cross(b - a, c - a)  # length = 2 area
        total = torch.zeros_like(self.vertices).index_add(0, self.faces.reshape(-1), weighted.repeat_interleave(3, 0))
        unit = torch.nn.functional.normalize(total, dim=-1, eps=1e-20)
        lost = unit.norm(dim=-1, keepdim=True) < 0.5
        return replace(self, vertex_normals=torch.where(lost, unit.new_tensor([0.0, 0.0, 1.0]), unit))

    def with_vertex_colors(self) -> Mesh:
        """Vertex colours looked up in the base colour texture (mean over the corners of a vertex); textures dropped."""
        if self.uv is None or self.uv_faces is None or "base_color" not in self.textures:
            return replace(self, uv=None, uv_faces=None, textures={})
        image = torch.from_numpy(self.textures["base_color"][..., :3].astype(np.float32) / 255)
        image = image.to(self.uv.device)
        colors = texture_at_vertices(image, self.uv, self.uv_faces, self.faces, len(self.vertices)).to(self.vertices)
        return replace(self, vertex_colors=colors, uv=None, uv_faces=None, textures={})

    def transformed(self, matrix: Tensor) -> Mesh:
        """Positions moved by a (4, 4) similarity and normals turned with it; mirrored matrices flip the winding.

        The origin turns along: positions in the world are those moved by the matrix.
        """
        linear, offset = matrix[:3, :3].to(self.vertices), matrix[:3, 3].to(self.vertices)
        mirrored = bool(torch.linalg.det(linear) < 0)
        normals = self.vertex_normals
        if normals is not None:
            normals = torch.nn.functional.normalize(normals @ torch.linalg.inv(linear), dim=-1)
        flip = [0, 2, 1] if mirrored else [0, 1, 2]
        return replace(
            self,
            vertices=self.vertices @ linear.mT + offset,
            vertex_normals=normals,
            faces=self.faces[:, flip],
            uv_faces=None if self.uv_faces is None else self.uv_faces[:, flip],
            origin=_turned(self.origin, matrix),
        )

    def split_seams(self) -> tuple[Tensor, Tensor, Tensor]:
        """One index a vertex-uv pair, as files need: (vertex index (N,), uv index (N,), faces (F, 3))."""
        if self.uv is None or self.uv_faces is None:
            index = torch.arange(len(self.vertices), device=self.faces.device)
            return index, index, self.faces
        key = self.faces * len(self.uv) + self.uv_faces
        unique, inverse = torch.unique(key, return_inverse=True)
        return unique // len(self.uv), unique % len(self.uv), inverse

    def to_trimesh(self) -> trimesh.Trimesh:
        """The same mesh for trimesh, in the same axes; split along UV seams when textured."""
        index, uv_index, faces = self.split_seams()
        mesh = trimesh.Trimesh(
            vertices=_numpy(self.vertices[index]),
            faces=_numpy(faces),
            vertex_normals=None if self.vertex_normals is None else _numpy(self.vertex_normals[index]),
            process=False,
        )
        if self.uv is not None:
            mesh.visual = trimesh.visual.TextureVisuals(uv=_numpy(self.uv[uv_index]), material=self._material())
        elif self.vertex_colors is not None:
            rgb = (_numpy(self.vertex_colors[index]).clip(0, 1) * 255).round().astype(np.uint8)
            mesh.visual.vertex_colors = np.concatenate([rgb, np.full_like(rgb[:, :1], 255)], axis=1)
        return mesh

    @classmethod
    def from_trimesh(cls, mesh: trimesh.Trimesh, colors: Tensor | None = None) -> Mesh:
        """Our mesh from trimesh's, in the same axes; duplicated vertices (seams, soups) are welded where colours agree.

        colors: (V, 3) sRGB in [0, 1] to use instead of the 8-bit ones of `mesh`.
        """
        raw = torch.from_numpy(np.array(mesh.vertices, dtype=np.float32))
        faces = torch.from_numpy(np.array(mesh.faces, dtype=np.int64))
        normals = mesh._cache.cache.get("vertex_normals")  # only what the file held; the property would compute
        uv, textures, own_colors = _read_visual(mesh)
        colors = _optional(own_colors) if colors is None else colors
        return weld_corners(raw, faces, _optional(normals), _optional(uv), textures, colors)

    def _material(self) -> trimesh.visual.material.PBRMaterial:
        from PIL import Image

        images = {name: Image.fromarray(self.textures[name]) for name in TEXTURES if name in self.textures}
        metallic_roughness = images.get("metallic_roughness")
        return trimesh.visual.material.PBRMaterial(
            baseColorTexture=images.get("base_color"),
            metallicRoughnessTexture=metallic_roughness,
            normalTexture=images.get("normal"),
            metallicFactor=0.0 if metallic_roughness is None else 1.0,
            roughnessFactor=1.0,
        )


def weld_corners(
    vertices: Tensor,
    faces: Tensor,
    normals: Tensor | None,
    uv: Tensor | None,
    textures: dict[str, Image8],
    colors: Tensor | None,
) -> Mesh:
    """Merges file vertices of equal position (and colour) into a welded mesh; uv keep their own index.

    Normals survive only if they agree wherever vertices merge; otherwise the file meant hard edges: flat shading.
    """
    key = vertices if colors is None else torch.cat([vertices, colors], dim=1)
    unique, inverse = torch.unique(key + 0.0, dim=0, return_inverse=True)
    merged_normals = None
    if normals is not None and len(normals) == len(vertices) and bool(torch.isfinite(normals).all()):
        normals = torch.nn.functional.normalize(normals, dim=-1)
        total = torch.zeros(len(unique), 3).index_add(0, inverse, normals)
        mean = torch.nn.functional.normalize(total, dim=-1)
        agrees = ((mean[inverse] * normals).sum(dim=-1) > 0.999).all()
        merged_normals = mean if bool(agrees) else None
    return Mesh(
        vertices=unique[:, :3].contiguous(),
        faces=inverse[faces],
        vertex_normals=merged_normals,
        uv=uv,
        uv_faces=None if uv is None else faces.clone(),
        textures=textures,
        vertex_colors=None if colors is None else unique[:, 3:].contiguous(),
    )


def join_meshes(meshes: list[Mesh]) -> Mesh:
    """One mesh of several; colours and normals are kept when any or all have them, textures only of a single mesh."""
    if len(meshes) == 1:
        return meshes[0]
    plain = [m.with_vertex_colors() for m in meshes]
    plain = [plain[0], *(_around(m, plain[0].origin) for m in plain[1:])]
    offsets = np.cumsum([0] + [len(m.vertices) for m in plain[:-1]]).tolist()
    colors = None
    if any(m.vertex_colors is not None for m in plain):
        grey = [torch.full_like(m.vertices, 0.8) for m in plain]
        own = [m.vertex_colors for m in plain]
        colors = torch.cat([g if c is None else c for c, g in zip(own, grey, strict=True)])
    normals = [m.vertex_normals for m in plain if m.vertex_normals is not None]
    return Mesh(
        vertices=torch.cat([m.vertices for m in plain]),
        faces=torch.cat([m.faces + offset for m, offset in zip(plain, offsets, strict=True)]),
        vertex_normals=torch.cat(normals) if len(normals) == len(plain) else None,
        vertex_colors=colors,
        origin=plain[0].origin,
    )


def _turned(origin: Origin, matrix: Tensor) -> Origin:
    if origin == NO_ORIGIN:
        return origin
    x, y, z = (matrix[:3, :3].double().cpu() @ torch.tensor(origin, dtype=torch.float64)).tolist()
    return (x, y, z)


def _around(mesh: Mesh, origin: Origin) -> Mesh:
    """The same mesh with another origin."""
    if mesh.origin == origin:
        return mesh
    shift = torch.tensor(mesh.origin, dtype=torch.float64) - torch.tensor(origin, dtype=torch.float64)
    moved = (mesh.vertices.double() + shift.to(mesh.vertices.device)).to(mesh.vertices.dtype)
    return replace(mesh, vertices=moved, origin=origin)


def _read_visual(mesh: trimesh.Trimesh) -> tuple[Any, dict[str, Image8], Any]:
    """(uv | None, textures, sRGB vertex colours | None) of a trimesh visual."""
    visual = mesh.visual
    if visual.kind in ("vertex", "face"):
        return None, {}, np.asarray(visual.vertex_colors)[:, :3].astype(np.float32) / 255
    if visual.kind != "texture":
        return None, {}, None
    material = visual.material
    sources = {
        "base_color": getattr(material, "baseColorTexture", None) or getattr(material, "image", None),
        "metallic_roughness": getattr(material, "metallicRoughnessTexture", None),
        "normal": getattr(material, "normalTexture", None),
    }
    textures = {name: np.asarray(image.convert("RGB")) for name, image in sources.items() if image is not None}
    if visual.uv is not None and len(visual.uv) == len(mesh.vertices) and textures:
        return np.asarray(visual.uv)[:, :2].astype(np.float32), textures, None
    return None, {}, _flat_color(material, len(mesh.vertices))


def _flat_color(material: Any, count: int) -> NDArray[np.float32] | None:
    """One sRGB colour a vertex from an untextured material: glTF factors are linear, OBJ diffuse is sRGB."""
    factor = getattr(material, "baseColorFactor", None)
    diffuse = getattr(material, "diffuse", None)
    value = factor if factor is not None else diffuse
    if value is None:
        return None
    rgb = torch.as_tensor(np.asarray(value)[:3].astype(np.float32))
    rgb = rgb / 255 if np.asarray(value).dtype == np.uint8 else rgb
    if factor is not None:
        rgb = srgb_from_linear(rgb.clamp(0, 1))
    return np.tile(rgb.numpy(), (count, 1))


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()


def _optional(array: Any) -> Tensor | None:
    return None if array is None else torch.from_numpy(np.array(array, dtype=np.float32))
