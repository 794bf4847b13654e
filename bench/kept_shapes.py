"""How much of a mesh is still there in another one: silhouettes, surfaces, pieces and handles."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..geometry.extract import mesh_arrays
from ..geometry.meshes import Mesh
from ..geometry.metrics import compare_meshes
from ..geometry.raycast import RayMesh
from ..geometry.winding import shells_of
from ..utils.seeds import generator
from .intervals import share, spread
from .text_to_mesh import MeshBench, cameras


def kept(mesh: Mesh | None, reference: Mesh, samples: int, size: int) -> dict[str, float]:
    """How much of the reference's shape is there: silhouettes' overlap, distance of surfaces, pieces and handles that
    came or went. Where there is no mesh nothing is kept, at the largest distance of the ball.

    samples: points of a surface. size: px of silhouettes.
    """
    if mesh is None:
        return {"iou": 0.0, "chamfer": 2.0, "f_score": 0.0, "pieces": 1.0, "euler": 2.0}
    found = compare_meshes(mesh, reference, samples, generator(0))
    one, other = pieces(mesh), pieces(reference)
    return {
        "iou": overlap(silhouettes(mesh, size), silhouettes(reference, size)),
        "chamfer": found["chamfer"],
        "f_score": found["f_score"],
        "pieces": float(abs(one - other)),
        "euler": float(abs(mesh.check().euler - reference.check().euler)),
    }


def pieces(mesh: Mesh) -> int:
    """Shells of a mesh."""
    return len(shells_of(*mesh_arrays(mesh))[1])


def silhouettes(mesh: Mesh, size: int) -> Tensor:
    """(8, H, W) bool from eight sides."""
    return RayMesh(mesh).render(cameras(MeshBench(view_size=size)), ("alpha",)).alpha[..., 0] > 0.5


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union."""
    return float((a & b).sum() / (a | b).sum().clamp_min(1))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of a table, of records with "right", "nfe", "seconds" and, where there was a mesh, what `kept` says."""
    measured = [row for row in rows if "iou" in row]
    columns = ("iou", "chamfer", "f_score", "pieces", "euler") if measured else ()
    return {
        "right": share([row["right"] for row in rows]),
        **{column: spread([row[column] for row in measured]) for column in columns},
        "nfe": spread([row["nfe"] for row in rows]),
        "seconds": spread([row["seconds"] for row in rows]),
    }
