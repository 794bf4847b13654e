"""Solids: what is told of a mesh, what finishing keeps and drops, what repair makes; faults in known numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import open3d
import pytest
import torch
import trimesh
from torch import Tensor

from unproject.geometry.collapse import collapse
from unproject.geometry.contacts import meeting_faces
from unproject.geometry.extract import decimate, extract_surface, grid_points, keep_largest, mesh_arrays, mesh_from
from unproject.geometry.meshes import Mesh, join_meshes
from unproject.geometry.solid import examine, faults, make_solid, solid_surface, without_hidden
from unproject.geometry.winding import Caster, misplaced_share, shells_of
from unproject.utils.errors import InputError


def box(sides: tuple[float, float, float] = (1.0, 2.0, 3.0), at: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Mesh:
    mesh = Mesh.from_trimesh(trimesh.creation.box(sides))
    return replace(mesh, vertices=mesh.vertices + torch.tensor(at))


def closed_for_open3d(mesh: Mesh) -> bool:
    """Edge manifold, vertex manifold and free of self-intersections, as Open3D sees it."""
    positions, faces = mesh_arrays(mesh)
    made = open3d.geometry.TriangleMesh(open3d.utility.Vector3dVector(positions), open3d.utility.Vector3iVector(faces))
    return bool(made.is_watertight())


def ball(points: Tensor, centre: tuple[float, float, float], radius: float) -> Tensor:
    return (points - torch.tensor(centre)).norm(dim=-1) - radius


def field(kind: str, n: int = 40) -> Tensor:
    """Signed distances that provoke a fault each."""
    p = grid_points(n, 1.0).float()
    if kind == "touching":  # corner samples of the two cubes are neighbours across a vertex
        first = (p - torch.tensor([-0.3, -0.28, -0.3])).abs().amax(-1) - 0.3
        second = (p - torch.tensor([0.3, 0.3, 0.3])).abs().amax(-1) - 0.27
        return torch.minimum(first, second)
    if kind == "wall":  # a sheet thinner than a cell, bent
        height = 0.2 * torch.sin(4 * p[..., 0]) - 0.1 * p[..., 1]
        return torch.maximum((p[..., 2] - height).abs() - 0.03, ball(p, (0.1, 0.0, 0.0), 0.8))
    if kind == "crumbs":
        small = torch.minimum(ball(p, (0.7, 0.1, 0.6), 0.1), ball(p, (-0.7, 0.3, -0.5), 0.15))
        return torch.minimum(ball(p, (0.0, -0.1, 0.0), 0.55), small)
    if kind == "shells":  # a ball in a hollow ball
        hollow = torch.maximum(ball(p, (0.05, 0.0, 0.0), 0.8), -ball(p, (0.0, 0.1, 0.0), 0.5))
        return torch.minimum(hollow, ball(p, (0.0, 0.1, 0.05), 0.25))
    noise = torch.randn(n // 3, n // 3, n // 3, generator=torch.Generator().manual_seed(4))
    up = torch.nn.functional.interpolate(noise[None, None], size=(n, n, n), mode="trilinear")[0, 0]
    return torch.maximum(0.3 * up, ball(p, (0.0, 0.0, 0.0), 0.9))


@pytest.mark.parametrize("kind", ["touching", "wall", "crumbs", "shells", "noise"])
@pytest.mark.parametrize("faces", [900, 400])
def test_finished_surfaces_are_solids_within_the_budget(kind: str, faces: int) -> None:
    lattice = extract_surface(field(kind, 24), 0.0, 1.0, sign=-1, keep="all")
    mesh = solid_surface(lattice, 0.02, faces)
    report = mesh.check()
    assert len(mesh.faces) <= faces and faults(mesh) == [] and closed_for_open3d(mesh)
    assert report.euler % 2 == 0 and report.sound and mesh.vertex_normals is not None
    shells = shells_of(*mesh_arrays(mesh))[1]
    assert min(s.area for s in shells) > 0.02 * report.area and all(s.inside is None for s in shells)


def test_what_is_dropped_is_what_nobody_sees() -> None:
    lattice = extract_surface(field("shells"), 0.0, 1.0, sign=-1, keep="all")
    assert lattice.check().components == 3
    mesh = solid_surface(lattice, 0.02, 3000)
    assert mesh.check().components == 1
    assert mesh.check().signed_volume == pytest.approx(4 / 3 * np.pi * 0.8**3, rel=0.01)
    crumbs = solid_surface(extract_surface(field("crumbs"), 0.0, 1.0, sign=-1, keep="all"), 0.04, 3000)
    assert crumbs.check().components == 2  # 0.1 m is 3 % of the area, 0.15 m is 6 %


@pytest.mark.parametrize("keep_apart", [True, False])
def test_collapse_keeps_pieces_and_handles(keep_apart: bool) -> None:
    values = torch.randn(10, 10, 10, generator=torch.Generator().manual_seed(0))
    tangle = extract_surface(values, 0.0, keep="all")
    before = tangle.check()
    assert not meeting_faces(*mesh_arrays(tangle)).any()
    light = mesh_from(*collapse(*mesh_arrays(tangle), len(tangle.faces) // 4, keep_apart))
    after = light.check()
    assert (after.euler, after.components) == (before.euler, before.components)
    assert after.watertight and after.winding_consistent and len(light.faces) <= len(tangle.faces) // 4
    if keep_apart:  # without the check the sheets of the tangle run through each other
        assert after.nonmanifold_vertices == 0
    assert bool(meeting_faces(*mesh_arrays(light)).any()) != keep_apart


def test_collapse_spends_triangles_where_it_bends() -> None:
    """A cut box is flat almost everywhere: few triangles describe it to a thousandth of its size."""
    p = grid_points(30, 1.0)
    body = ((p - torch.tensor([0.05, 0.0, -0.1])).abs() - torch.tensor([0.5, 0.7, 0.6])).amax(-1)
    lattice = extract_surface(body, 0.0, 1.0, sign=-1)
    light = decimate(lattice, 200)
    assert len(light.faces) <= 200
    assert light.check().signed_volume == pytest.approx(lattice.check().signed_volume, rel=2e-3)
    light_scene = trimesh.Trimesh(*mesh_arrays(light), process=False)
    assert abs(light_scene.bounds - lattice.bounds.numpy()).max() < 0.02


def test_collapse_is_the_same_far_away_and_rounds_to_float32() -> None:
    mesh = extract_surface(field("noise", 20), 0.0, 1.0, sign=-1)
    positions, faces = mesh_arrays(mesh)
    light, index = collapse(positions, faces, 500)
    assert np.array_equal(light.astype(np.float32).astype(np.float64), light)
    again, index_again = collapse(positions, faces, 500)
    assert np.array_equal(light, again) and np.array_equal(index, index_again)


def test_a_budget_below_every_handle_takes_a_simpler_surface() -> None:
    values = torch.randn(12, 12, 12, generator=torch.Generator().manual_seed(3))
    tangle = extract_surface(values, 0.2, keep="all")
    light = decimate(tangle, 60)
    assert len(light.faces) <= 60 and light.check().sound


def test_open_surfaces_keep_to_the_budget() -> None:
    sheet = Mesh.from_trimesh(trimesh.creation.icosphere(3))
    sheet = replace(sheet, faces=sheet.faces[sheet.vertices[sheet.faces].amin(dim=1)[:, 2] > -0.3])
    assert len(decimate(sheet, 100).faces) <= 100
    fine = Mesh.from_trimesh(trimesh.creation.icosphere(1))
    crowd = join_meshes([replace(fine, vertices=fine.vertices + 3.0 * i, faces=fine.faces[:60]) for i in range(9)])
    assert len(decimate(crowd, 300).faces) <= 300
    assert 0 < len(decimate(crowd, 4).faces) <= 4


def test_pieces_that_shrink_below_the_share_go_after_decimation() -> None:
    """A rough crumb has 2.1 % of the area on the lattice and loses its spikes with its triangles."""
    spiky = Mesh.from_trimesh(trimesh.creation.icosphere(3, radius=0.1))
    way = torch.where(torch.arange(len(spiky.vertices)) % 2 == 0, 1.4, 0.8)[:, None]
    spiky = replace(spiky, vertices=spiky.vertices * way + torch.tensor([2.0, 0.0, 0.0]))
    body = Mesh.from_trimesh(trimesh.creation.icosphere(4, radius=1.0))
    share = spiky.check().area / (spiky.check().area + body.check().area)
    pair = join_meshes([body, spiky])
    assert keep_largest(pair, 0.98 * share).check().components == 2
    assert solid_surface(pair, 0.98 * share, 500).check().components == 1


@pytest.mark.parametrize(
    ("shift", "meet"),
    [
        ((0.3, 0.4, 0.5), True),  # through each other
        ((1.0, 0.0, 0.0), True),  # face on face
        ((1.001, 0.0, 0.0), False),
        ((0.0, 0.0, 0.0), True),  # the same twice
        ((0.999, 1.999, 2.999), True),  # a corner inside
    ],
)
def test_meeting_boxes(shift: tuple[float, float, float], meet: bool) -> None:
    first, second = box(), box((1.0, 2.0, 3.0), shift)
    positions = torch.cat([first.vertices, second.vertices]).double().numpy()
    faces = torch.cat([first.faces, second.faces + 8]).numpy()
    assert bool(meeting_faces(positions, faces).any()) == meet
    assert not meeting_faces(*mesh_arrays(first)).any()


def test_meeting_agrees_with_a_slow_twin() -> None:
    """Random triangles without common corners against an exhaustive search with separating axes."""
    rng = np.random.default_rng(1)
    points = (rng.random((60, 1, 3)) + 0.25 * rng.standard_normal((60, 3, 3))).reshape(-1, 3)
    faces = np.arange(180).reshape(-1, 3)
    triangles = points[faces]
    slow = np.zeros(60, dtype=bool)
    for i in range(60):
        for j in range(i):
            slow[[i, j]] |= not _separated(triangles[i], triangles[j])
    assert 5 < slow.sum() < 58
    assert np.array_equal(meeting_faces(points, faces), slow)


def _separated(a: np.ndarray, b: np.ndarray) -> bool:
    ea, eb = np.roll(a, -1, 0) - a, np.roll(b, -1, 0) - b
    na, nb = np.cross(ea[0], ea[1]), np.cross(eb[0], eb[1])
    axes = [na, nb, *np.cross(ea[:, None], eb[None]).reshape(-1, 3)]
    return any((a @ x).max() < (b @ x).min() or (b @ x).max() < (a @ x).min() for x in axes)


def test_folds_and_twins_meet() -> None:
    points = np.array([[0.0, 0, 0], [1, 0, 0], [0.2, 1, 0], [0.4, 0.7, 0], [0.3, -1, 0.2]])
    assert meeting_faces(points, np.array([[0, 1, 2], [1, 0, 3]])).all()  # folded onto its neighbour
    assert not meeting_faces(points, np.array([[0, 1, 2], [1, 0, 4]])).any()
    assert meeting_faces(points, np.array([[0, 1, 2], [2, 1, 0]])).all()


def test_fans_are_counted() -> None:
    touching = join_meshes([box(), box((1.0, 1.0, 1.0), (1.0, 1.5, 2.0))])  # (0.5, 1, 1.5) is a corner of both
    assert touching.check().nonmanifold_vertices == 1 and touching.check().watertight
    assert box().check().nonmanifold_vertices == 0
    assert replace(box(), faces=box().faces[:5]).check().nonmanifold_vertices == 0  # an open fan is one fan
    assert not touching.check().sound and faults(touching) == ["vertices where surfaces touch in a point: 1"]


def test_winding_numbers_of_nested_boxes() -> None:
    inner = box((0.2, 0.4, 0.6))
    hollow = box((0.5, 1.0, 1.5))
    hollow = replace(hollow, faces=hollow.faces.flip(1))
    full = join_meshes([box(), hollow, inner])
    points = np.array([[0.0, 0.01, 0.02], [0.2, 0.02, 0.1], [0.4, 0.1, 0.2], [0.6, 0.1, 0.2]])
    assert Caster(*mesh_arrays(full)).winding(points).tolist() == [1, 0, 1, 0]
    shells = shells_of(*mesh_arrays(full))[1]
    assert [round(s.volume, 4) for s in shells] == [6.0, -0.75, 0.048]
    assert shells[0].inside is None and shells[1].inside == 0 and shells[2].inside in (0, 1)
    assert faults(full) == [] and without_hidden(full).check().signed_volume == pytest.approx(6.0)
    lattice = grid_points(9, 0.8).numpy() + 0.003
    expected = Caster(*mesh_arrays(full)).winding(lattice.reshape(-1, 3)).reshape(9, 9, 9)
    assert np.array_equal(Caster(*mesh_arrays(full)).columns(lattice), expected)
    twice = join_meshes([box(), replace(inner, faces=inner.faces)])  # matter in matter
    assert misplaced_share(*mesh_arrays(twice)) == 0.5
    assert "winding numbers" in faults(twice)[0]


def test_thickness_of_a_box() -> None:
    distances, areas = Caster(*mesh_arrays(box())).thickness()
    assert areas.sum() == pytest.approx(22.0)
    assert sorted(set(distances.round(4).tolist())) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("kind", ["solid", "corner", "edge", "overlap", "hole", "crossing"])
def test_repair_makes_a_solid_of_the_same_volume(kind: str) -> None:
    if kind == "crossing":  # one piece that runs through itself: a box with a corner pushed out on the other side
        mesh, volume = box((1.0, 1.0, 1.0)), None
        vertices = mesh.vertices.clone()
        vertices[0] = torch.tensor([0.9, 0.7, 0.8])
        mesh = replace(mesh, vertices=vertices)
    else:
        other = {"corner": (1.0, 2.0, 3.0), "edge": (1.0, 2.0, 0.0), "overlap": (0.3, 0.4, 0.5)}.get(kind)
        mesh = box() if other is None else join_meshes([box(), box(at=other)])
        mesh = replace(mesh, faces=mesh.faces[1:]) if kind == "hole" else mesh
        volume = {"corner": 12.0, "edge": 12.0, "overlap": 12 - 0.7 * 1.6 * 2.5}.get(kind, 6.0)
    assert (faults(mesh) == []) == (kind == "solid")
    solid, steps = make_solid(mesh)
    assert faults(solid) == [] and (steps == []) == (kind == "solid")
    if volume is not None:
        assert solid.check().signed_volume == pytest.approx(volume, rel=2e-3)


def test_repair_says_why_not() -> None:
    sheet = Mesh(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]), torch.tensor([[0, 1, 2], [1, 3, 2]]))
    with pytest.raises(InputError, match="encloses next to no space"):
        make_solid(sheet)


def test_a_verdict_in_numbers() -> None:
    verdict = examine(replace(box(), faces=box().faces[2:]))
    assert verdict.misplaced is None and verdict.faults == [f"open edges: {verdict.report.boundary_edges}"]
