"""Surface extraction against closed forms: volume, area, closedness, orientation; decimation and charts keep them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import trimesh
from torch import Tensor

from unproject.geometry.extract import (
    decimate,
    extract_surface,
    grid_points,
    keep_largest,
    remesh,
    repair,
    select_faces,
)
from unproject.geometry.meshes import Mesh, join_meshes
from unproject.geometry.unwrap import unwrap
from unproject.utils.errors import InputError

RADIUS = 0.7
VOLUME, AREA = 4 / 3 * math.pi * RADIUS**3, 4 * math.pi * RADIUS**2


@pytest.fixture(scope="module")
def distance() -> Tensor:
    return grid_points(48, 1.0).norm(dim=-1) - RADIUS


@pytest.fixture(scope="module")
def ball(distance: Tensor) -> Mesh:
    return extract_surface(distance, 0.0, 1.0, sign=-1)


def assert_closed(mesh: Mesh) -> None:
    report = mesh.check()
    assert report.watertight and report.winding_consistent and report.signed_volume > 0, report


@pytest.mark.parametrize("kind", ["signed distance", "density"])
def test_sphere_volume_area_and_normals(kind: str, distance: Tensor) -> None:
    if kind == "density":
        mesh = extract_surface(torch.exp(-4 * distance), 1.0, 1.0, sign=1)
    else:
        mesh = extract_surface(distance, 0.0, 1.0, sign=-1)
    report = mesh.check()
    assert_closed(mesh)
    assert report.euler == 2 and report.components == 1
    assert report.signed_volume == pytest.approx(VOLUME, rel=0.01) and report.area == pytest.approx(AREA, rel=0.01)
    outward = torch.nn.functional.normalize(mesh.vertices, dim=-1)
    assert float((mesh.vertex_normals * outward).sum(dim=-1).min()) > math.cos(math.radians(3))


def test_axes_and_bounds_are_not_mixed_up() -> None:
    bounds = torch.tensor([[-1.0, 0.0, 2.0], [1.0, 3.0, 4.0]])
    points = grid_points(40, bounds)
    centre, size = torch.tensor([0.2, 1.0, 3.0]), torch.tensor([0.3, 0.6, 0.5])
    mesh = extract_surface(((points - centre) / size).norm(dim=-1), 1.0, bounds, sign=-1)
    torch.testing.assert_close(mesh.bounds, torch.stack([centre - size, centre + size]), atol=0.02, rtol=0)


def test_a_surface_that_leaves_the_bounds_is_closed_there(distance: Tensor) -> None:
    mesh = extract_surface(distance, 0.5, 1.0, sign=-1)  # radius 1.2 in a cube of half-width 1
    assert_closed(mesh)
    torch.testing.assert_close(mesh.bounds.abs(), torch.ones(2, 3), atol=2e-3, rtol=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_is_closed_too(seed: int) -> None:
    values = torch.randn(12, 12, 12, generator=torch.Generator().manual_seed(seed))
    values[values.abs() < 0.3] = 0.0  # many samples exactly on the level
    assert_closed(extract_surface(values, 0.0))


def test_empty_and_full_fields_name_level_and_range(distance: Tensor) -> None:
    with pytest.raises(InputError, match=r"empty at level=5.*use a level inside"):
        extract_surface(distance, 5.0, sign=1)
    with pytest.raises(InputError, match="full at level=5"):
        extract_surface(distance, 5.0, sign=-1)
    with pytest.raises(InputError, match="NaN"):
        extract_surface(distance * float("nan"), 0.0)
    with pytest.raises(InputError, match="Nx, Ny, Nz"):
        extract_surface(distance[0], 0.0)
    with pytest.raises(InputError, match="sign=0"):
        extract_surface(distance, 0.0, sign=0)


def test_pieces_are_chosen_by_area() -> None:
    points = grid_points(40, 1.0)
    big = (points - torch.tensor([0.4, 0.0, 0.0])).norm(dim=-1) - 0.4
    small = (points + torch.tensor([0.6, 0.0, 0.0])).norm(dim=-1) - 0.2
    field = torch.minimum(big, small)
    assert extract_surface(field, 0.0, sign=-1).check().components == 1
    assert extract_surface(field, 0.0, sign=-1, keep="parts").check().components == 2
    largest = extract_surface(field, 0.0, sign=-1)
    assert largest.check().signed_volume == pytest.approx(4 / 3 * math.pi * 0.4**3, rel=0.03)
    crumb = select_faces(largest, torch.arange(len(largest.faces)) < 2)
    crumb = replace(crumb, vertices=crumb.vertices + 3)
    assert keep_largest(join_meshes([largest, crumb]), share=0.01).check().watertight


def test_decimation_keeps_the_surface_closed_and_in_place(ball: Mesh) -> None:
    light = decimate(ball, 1500)
    assert_closed(light)
    assert len(light.faces) <= 1500
    assert light.check().signed_volume == pytest.approx(VOLUME, rel=0.01)
    assert decimate(light, 2000) is light
    with pytest.raises(InputError, match="faces=2"):
        decimate(ball, 2)


def test_decimation_of_a_tangle_stays_closed() -> None:
    values = torch.randn(12, 12, 12, generator=torch.Generator().manual_seed(3))
    tangle = extract_surface(values, 0.2)
    light = decimate(tangle, len(tangle.faces) // 3)
    assert_closed(light)
    assert len(light.faces) < len(tangle.faces) // 2


def test_repair_welds_orients_and_closes(ball: Mesh) -> None:
    soup = Mesh(ball.vertices[ball.faces].reshape(-1, 3), torch.arange(3 * len(ball.faces)).reshape(-1, 3))
    assert_closed(repair(soup))
    assert_closed(repair(replace(ball, faces=ball.faces.flip(1))))
    assert_closed(repair(replace(ball, faces=ball.faces[1:])))
    collapsed = torch.cat([ball.faces, ball.faces[:1, [0, 0, 1]]])
    assert len(repair(replace(ball, faces=collapsed)).faces) == len(ball.faces)


def test_remesh_closes_what_cannot_be_repaired() -> None:
    box = Mesh.from_trimesh(trimesh.creation.box((1.0, 1.0, 1.0)))
    overlapping = join_meshes([box, replace(box, vertices=box.vertices * 0.5 + 0.4)])
    assert_closed(remesh(overlapping, 32))


@pytest.mark.parametrize("method", ["xatlas", "triangles"])
def test_charts_cover_the_mesh_without_overlap(method: str, ball: Mesh) -> None:
    light = decimate(ball, 500)
    mesh = unwrap(light, size=256, method=method)
    assert torch.equal(mesh.vertices, light.vertices) and mesh.check().watertight
    assert float(mesh.uv.min()) >= 0 and float(mesh.uv.max()) <= 1
    a, b, c = mesh.uv[mesh.uv_faces].double().unbind(1)
    areas = 0.5 * ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).abs()
    assert float(areas.min()) > 0 and 0.25 < float(areas.sum()) < 1.0
    same = torch.sort(mesh.faces, dim=1).values.unique(dim=0)
    assert torch.equal(same, torch.sort(light.faces, dim=1).values.unique(dim=0))


def test_unwrap_rejects_what_it_cannot_do(ball: Mesh) -> None:
    with pytest.raises(InputError, match="method='magic'"):
        unwrap(ball, method="magic")
    with pytest.raises(InputError, match="without faces"):
        unwrap(Mesh(torch.zeros(3, 3), torch.zeros(0, 3)))
