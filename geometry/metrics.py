"""Geometric errors between point sets and meshes, always in one shared frame: nothing is aligned silently."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from ..utils.errors import InputError
from .meshes import Mesh
from .raycast import RayMesh, interpolate

SAMPLES = 100_000  # points a mesh for published numbers


def sample_surface(mesh: Mesh, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Points (N, 3) uniform over the area, their unit face normals (N, 3) and faces (N,)."""
    corners = mesh.vertices.detach().double()[mesh.faces]
    areas = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=-1)
    total = areas.cumsum(dim=0)
    if not len(total) or float(total[-1]) <= 0:
        raise InputError("the mesh has no area to sample points on")
    draw = torch.rand(count, 3, generator=generator, dtype=torch.float64).to(areas.device)
    face = torch.searchsorted(total, draw[:, 0].contiguous() * total[-1]).clamp_max(len(total) - 1)
    root = draw[:, 1].sqrt()
    weights = torch.stack([1 - root, root * (1 - draw[:, 2]), root * draw[:, 2]], dim=-1).to(mesh.vertices.dtype)
    points = interpolate(mesh.vertices, mesh.faces[face], weights)
    return points, mesh.face_normals()[face], face


def chamfer(a: Tensor, b: Tensor, squared: bool = False) -> float:
    """Mean nearest distance (metres, or metres^2 if squared) from a to b plus from b to a, points (N, 3) and (M, 3)."""
    forward, backward = nearest_distances(a, b), nearest_distances(b, a)
    power = 2 if squared else 1
    return float((forward**power).mean() + (backward**power).mean())


def f_score(a: Tensor, b: Tensor, tau: float | None = None) -> float:
    """2 P R / (P + R) in [0, 1]: P is the share of a within tau of b, R of b within tau of a.

    tau: metres; default 1 % of the bounding-box diagonal of b, the reference.
    """
    return _f_score(nearest_distances(a, b), nearest_distances(b, a), _tau(b) if tau is None else tau)


def _tau(reference: Tensor) -> float:
    return 0.01 * float((reference.amax(dim=0) - reference.amin(dim=0)).norm())


def _f_score(forward: NDArray[np.float64], backward: NDArray[np.float64], tau: float) -> float:
    precision, recall = float((forward <= tau).mean()), float((backward <= tau).mean())
    return 2 * precision * recall / max(precision + recall, 1e-12)


def nearest_distances(a: Tensor, b: Tensor) -> NDArray[np.float64]:
    """Distance (N,) in metres from each point of a (N, 3) to the nearest of b (M, 3)."""
    for name, points in (("a", a), ("b", b)):
        if points.ndim != 2 or points.shape[1] != 3 or not len(points):
            raise InputError(f"{name} has shape {tuple(points.shape)}, expected (N, 3) with N > 0")
    tree = cKDTree(b.detach().cpu().double().numpy())
    return tree.query(a.detach().cpu().double().numpy())[0]


def hausdorff(a: Mesh, b: Mesh, samples: int = 20_000, generator: torch.Generator | None = None) -> float:
    """Metres to the other surface from the farthest point of either: of its vertices and of `samples` points on it.

    Distances go to the surfaces themselves, so that equal meshes have 0 but for rounding (float32 of the coordinates).
    """
    return max(_farthest(a, b, samples, generator), _farthest(b, a, samples, generator))


def _farthest(mesh: Mesh, other: Mesh, samples: int, generator: torch.Generator | None) -> float:
    used = mesh.vertices.detach()[mesh.faces.unique()]
    points = torch.cat([used, sample_surface(mesh, samples, generator)[0]])
    scene = RayMesh(other)
    face, weights = scene.closest(points)
    return float((points - interpolate(other.vertices.detach(), other.faces[face], weights)).norm(dim=-1).max())


def compare_meshes(
    mesh: Mesh, reference: Mesh, samples: int = SAMPLES, generator: torch.Generator | None = None
) -> dict[str, float]:
    """Chamfer distance (metres, not squared), F-score at 1 % of the reference diagonal and normal consistency."""
    points, normals, _ = sample_surface(mesh, samples, generator)
    wanted, wanted_normals, _ = sample_surface(reference, samples, generator)
    tree = cKDTree(wanted.detach().cpu().double().numpy())
    forward, index = tree.query(points.detach().cpu().double().numpy())
    backward = nearest_distances(wanted, points)
    agreement = (normals.cpu() * wanted_normals.cpu()[torch.from_numpy(index)]).sum(dim=-1)
    return {
        "chamfer": float(forward.mean() + backward.mean()),
        "f_score": _f_score(forward, backward, _tau(wanted)),
        "normal_consistency": float(agreement.mean()),
        "samples": float(samples),
    }
