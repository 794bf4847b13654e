"""What files need of a mesh and of a point cloud: formats know these, not the classes that load and save themselves."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Image8 = NDArray[np.uint8]
Origin = tuple[float, float, float]  # of positions, in the world; double precision
NO_ORIGIN: Origin = (0.0, 0.0, 0.0)
TEXTURES = ("base_color", "metallic_roughness", "normal")


class StoredMesh(Protocol):
    """A triangle mesh as a file holds it; see meshes.Mesh for shapes and units."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    vertices: Tensor
    faces: Tensor
    vertex_normals: Tensor | None
    uv: Tensor | None
    uv_faces: Tensor | None
    textures: dict[str, Image8]
    vertex_colors: Tensor | None
    origin: Origin

    @property
    def bounds(self) -> Tensor:
        """(2, 3) corners in metres."""
        ...

    @property
    def world_bounds(self) -> Tensor:
        """(2, 3) float64 corners with the origin added."""
        ...

    @property
    def diagonal(self) -> float:
        """Length of the bounding-box diagonal in metres."""
        ...

    def split_seams(self) -> tuple[Tensor, Tensor, Tensor]:
        """(vertex index (N,), uv index (N,), faces (F, 3)) with one index a vertex-uv pair."""
        ...

    def with_smooth_normals(self) -> StoredMesh:
        """The same mesh with vertex normals."""
        ...

    def with_vertex_colors(self) -> StoredMesh:
        """The same mesh with the texture's colours at its vertices."""
        ...

    def to_trimesh(self) -> Any:
        """The same mesh for trimesh."""
        ...


class StoredPoints(Protocol):
    """N points with colours and normals; see points.PointCloud."""

    points: Tensor
    colors: Tensor | None
    normals: Tensor | None
    origin: Origin
