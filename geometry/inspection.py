"""What a person who prints, engraves or ships a mesh wants to know of it: the contents of report.json."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..utils.companions import report_of
from ..utils.files import write_json
from .extract import mesh_arrays
from .meshes import Mesh
from .report import edge_table, face_components, merge_positions
from .seams import seam_jumps
from .solid import examine
from .winding import Caster, shells_of

LISTED = 20  # shells told one by one
THIN = 0.01  # of the diagonal
FORMAT_AXES = {".glb": "+y", ".gltf": "+y"}
FORMAT_UNITS = {".glb": "glTF lengths are metres", ".gltf": "glTF lengths are metres"}


def inspect_mesh(mesh: Mesh, suffix: str = "", scale_from: str | None = None) -> dict[str, Any]:
    """Plain values about a mesh, for JSON.

    suffix: of the file it comes from or goes to; axes and unit follow from it. scale_from: where the size comes from,
    when more is known than the format says.
    """
    verdict = examine(mesh)
    facts: dict[str, Any] = {"solid": not verdict.faults, "faults": verdict.faults, **verdict.report.to_dict()}
    facts |= {"meeting_faces": verdict.meeting, "misplaced_share": verdict.misplaced}
    facts["shells"] = _shells(mesh)
    facts["thickness"] = _thickness(mesh)
    facts["texture"] = _texture(mesh)
    low, high = mesh.world_bounds
    suffix = suffix.lower()
    facts["bounds"] = {
        "low": low.tolist(),
        "high": high.tolist(),
        "size": (high - low).tolist(),
        "unit": "metre",
        "scale_from": scale_from
        or FORMAT_UNITS.get(suffix, "the format names no unit; its numbers are read as metres"),
    }
    facts["up"] = {"here": "+z", "in_the_file": FORMAT_AXES.get(suffix, "+z, as the format names none")}
    return facts


def write_report(mesh: Mesh, path: str | Path, scale_from: str | None = None) -> Path:
    """Writes NAME.report.json beside the mesh file `path`, about `mesh`, read back from there or equal to it; where
    that is of a mesh in another format, NAME.glb.report.json."""
    path = Path(path)
    facts = {"file": path.name, **inspect_mesh(mesh, path.suffix, scale_from)}
    return write_json(report_of(path), facts)


def _shells(mesh: Mesh) -> dict[str, Any]:
    """How many pieces, how many inside others, and the largest of them."""
    shells = shells_of(*mesh_arrays(mesh))[1]
    total = max(sum(shell.area for shell in shells), 1e-30)
    order = sorted(range(len(shells)), key=lambda i: -shells[i].area)
    place: dict[int | None, int] = {shell: rank for rank, shell in enumerate(order)}
    listed = [
        {
            "faces": shells[i].faces,
            "share": shells[i].area / total,
            "area": shells[i].area,
            "volume": shells[i].volume,
            "inside": None if (outer := shells[i].inside) is None else place[outer],
        }
        for i in order[:LISTED]
    ]
    return {"count": len(shells), "nested": sum(s.inside is not None for s in shells), "largest": listed}


def _thickness(mesh: Mesh) -> dict[str, float] | None:
    """Metres to the opposite wall, measured against the normals at faces drawn; None for open sheets."""
    distances, areas = Caster(*merge_positions(*mesh_arrays(mesh))).thickness()
    if not len(distances):
        return None
    limit = THIN * mesh.diagonal
    order = np.argsort(distances)
    share = np.cumsum(areas[order]) / areas.sum()
    return {
        "least": float(distances.min()),
        "percentile_5": float(distances[order][min(int(np.searchsorted(share, 0.05)), len(order) - 1)]),
        "median": float(distances[order][min(int(np.searchsorted(share, 0.5)), len(order) - 1)]),
        "limit": limit,
        "share_below_limit": float(areas[distances < limit].sum() / areas.sum()),
    }


def _jump(mesh: Mesh) -> dict[str, float] | None:
    """Change of the base colour across borders of charts, in [0, 1]: mean, and what 95 % stay below."""
    jumps = seam_jumps(mesh).mean(dim=-1)
    if not len(jumps):
        return None
    return {"mean": float(jumps.mean()), "percentile_95": float(np.percentile(jumps.numpy(), 95))}


def _texture(mesh: Mesh) -> dict[str, Any] | None:
    """Charts, how large their texels are on the surface, the share of the picture they use, and that of texels which no

    view showed (null where nobody noted it); None without charts.
    """
    if mesh.uv is None or mesh.uv_faces is None:
        return None
    uv, index = mesh.uv.detach().cpu().double().numpy(), mesh.uv_faces.cpu().numpy()
    welded = np.unique(uv[index].reshape(-1, 2), axis=0, return_inverse=True)[1].reshape(-1, 3)
    labels = face_components(edge_table(welded, int(welded.max()) + 1)[0], len(welded))
    corners = torch.from_numpy(uv[index])
    a, b = (corners[:, 1] - corners[:, 0]), (corners[:, 2] - corners[:, 0])
    flat = (0.5 * (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).abs()).numpy()
    positions, faces = mesh_arrays(mesh)
    triangles = positions[faces]
    areas = 0.5 * np.linalg.norm(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1)
    facts: dict[str, Any] = {
        "charts": int(labels.max()) + 1,
        "use": float(flat.sum()),
        "faces_without_texels": int((flat <= 0).sum()),
        "unseen_share": mesh.notes.get("unseen_share"),
        "maps": {name: list(image.shape) for name, image in mesh.textures.items()},
    }
    if mesh.textures:
        facts["seam_jump"] = _jump(mesh)
        height, width = next(iter(mesh.textures.values())).shape[:2]
        per_chart = [np.bincount(labels, weights=weights) for weights in (areas, flat * height * width)]
        drawn = per_chart[1] > 0  # charts without texels are counted above
        sizes = np.sqrt(per_chart[0][drawn] / per_chart[1][drawn]) if drawn.any() else np.array([math.inf])
        whole = math.sqrt(areas.sum() / max(flat.sum() * height * width, 1e-30))
        facts["texel_metres"] = {"least": float(sizes.min()), "mean": whole, "most": float(sizes.max())}
    return facts
