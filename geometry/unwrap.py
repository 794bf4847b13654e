"""UV charts: xatlas for surfaces, one cell a triangle pair when a chart atlas would take too long."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import xatlas

from ..utils.errors import InputError
from .meshes import Mesh

XATLAS_MAX_FACES = 100_000  # its cost explodes beyond


def unwrap(mesh: Mesh, size: int = 1024, padding: int = 4, method: str = "auto") -> Mesh:
    """The mesh with `uv` and `uv_faces` for a texture of `size` texels; vertices and faces stay as they are.

    padding: texels between charts. method: "auto" uses "xatlas" up to 100 000 faces, else "triangles".
    """
    if method not in ("auto", "xatlas", "triangles"):
        raise InputError(f"method={method!r}; use auto, xatlas or triangles")
    if not len(mesh.faces):
        raise InputError("a mesh without faces cannot be unwrapped")
    if method == "triangles" or (method == "auto" and len(mesh.faces) > XATLAS_MAX_FACES):
        return _triangle_cells(mesh, size, padding)
    return _charts(mesh, size, padding)


def _charts(mesh: Mesh, size: int, padding: int) -> Mesh:
    """Charts cut and packed by xatlas into one square atlas."""
    faces = mesh.faces.cpu().numpy()
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices.detach().cpu().float().numpy(), faces.astype(np.uint32))
    pack = xatlas.PackOptions()
    pack.padding, pack.resolution, pack.bilinear, pack.create_image = padding, size, True, False
    chart = xatlas.ChartOptions()
    chart.max_iterations, chart.max_cost = 1, 1.0  # half the time of the default cost of 2, and fewer charts
    atlas.generate(chart_options=chart, pack_options=pack)
    if atlas.atlas_count != 1:  # charts did not fit at the estimated scale: let xatlas choose the size
        pack.resolution = 0
        atlas.generate(chart_options=chart, pack_options=pack)
    mapping, index, uv = atlas.get_mesh(0)
    device = mesh.vertices.device
    return replace(
        mesh,
        faces=torch.from_numpy(mapping.astype(np.int64)[index]).to(device),
        uv=torch.from_numpy(np.ascontiguousarray(uv, dtype=np.float32)).to(device),
        uv_faces=torch.from_numpy(index.astype(np.int64)).to(device),
    )


def _triangle_cells(mesh: Mesh, size: int, padding: int) -> Mesh:
    """Two right triangles in each cell of a square grid, `padding` texels apart."""
    count = len(mesh.faces)
    columns = math.ceil(math.sqrt(math.ceil(count / 2)))
    cell = 1.0 / columns
    gap = min(0.5 * padding / size, 0.2 * cell)
    face = torch.arange(count)
    corner = torch.stack([(face // 2) % columns, (face // 2) // columns], dim=-1).float() * cell  # (F, 2)
    near, far = gap, cell - gap
    lower = torch.tensor([[near, near], [far - gap, near], [near, far - gap]])
    upper = torch.tensor([[far, far], [near + gap, far], [far, near + gap]])
    local = torch.where((face % 2 == 0)[:, None, None], lower, upper)  # (F, 3, 2)
    uv = (corner[:, None] + local).reshape(-1, 2)
    device = mesh.vertices.device
    return replace(mesh, uv=uv.to(device), uv_faces=torch.arange(3 * count, device=device).reshape(-1, 3))
