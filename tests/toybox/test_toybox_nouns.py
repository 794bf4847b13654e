"""Every noun: closed solids, outward winding, keypoints on the surface, painted mostly in its colour, a clear front."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import open3d as o3d
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from unproject.toybox.catalogue import NOUNS
from unproject.toybox.materials import FINISHES, PATTERNS
from unproject.toybox.objects import RADIUS, build
from unproject.toybox.parts import (
    SLOTS,
    Part,
    arc,
    bar,
    box,
    capsule,
    carve,
    cone,
    cylinder,
    ellipsoid,
    lathe,
    mirror_y,
    prism,
    sphere,
    torus,
    tube,
)
from unproject.toybox.programs import ObjectProgram
from unproject.toybox.render import Renderer
from unproject.toybox.scenes import Placed, Scene
from unproject.toybox.sheet import _studio_light
from unproject.toybox.solid import Solid

FAMILIES = sorted({noun.family for noun in NOUNS.values()})
Camera = Callable[..., tuple[np.ndarray, np.ndarray]]


def members(family: str) -> list[str]:
    return [name for name, noun in NOUNS.items() if noun.family == family]


def check_closed(part: Part | Solid, what: str) -> None:
    """Every directed edge has its reverse as often, and every connected piece a positive volume."""
    vertices, faces = part.vertices, part.faces
    cells = np.round((vertices - vertices.min(0)) / max(np.ptp(vertices, axis=0).max(), 1e-9) * 1e5).astype(np.int64)
    merged = np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)[faces]
    edges = np.concatenate([merged[:, [0, 1]], merged[:, [1, 2]], merged[:, [2, 0]]])
    edges = edges[edges[:, 0] != edges[:, 1]]
    size = int(merged.max()) + 1
    forth = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(size, size)).tocsr()
    assert abs(forth - forth.T).max() == 0, f"{what} is open or twisted"
    piece = connected_components(forth, directed=False)[1][merged[:, 0]]
    a, b, c = (vertices[faces[:, i]] - vertices.mean(0) for i in range(3))
    volumes = np.bincount(piece, np.einsum("ij,ij->i", a, np.cross(b, c)) / 6)
    assert (volumes > -1e-9).all(), f"{what} has pieces turned inside out"
    assert volumes.sum() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_solids_are_closed_and_face_outwards(family: str) -> None:
    for name in members(family):
        for seed in (0, 1):
            blueprint = NOUNS[name].build(np.random.default_rng(seed))
            for part in blueprint.parts:
                check_closed(part, f"{part.name} of {name} {seed}")
            assert sum(len(part.faces) for part in blueprint.parts) <= 8000, name


@pytest.mark.parametrize("family", FAMILIES)
def test_keypoints_lie_on_the_surface(family: str) -> None:
    for name in members(family):
        toy = build(ObjectProgram(name, "red", seed=3, shape="tall"))
        assert 6 <= len(toy.keypoints) <= 12, name
        scene = o3d.t.geometry.RaycastingScene(nthreads=1)
        scene.add_triangles(o3d.core.Tensor(toy.vertices), o3d.core.Tensor(toy.faces.astype(np.uint32)))
        points = np.stack(list(toy.keypoints.values())).astype(np.float32)
        distance = scene.compute_distance(o3d.core.Tensor(points)).numpy()
        far = {k: round(float(d), 4) for k, d in zip(toy.keypoints, distance) if d > 0.03 * RADIUS}
        assert not far, f"{name}: {far}"
        assert np.linalg.norm(toy.vertices, axis=1).max() == pytest.approx(RADIUS, abs=1e-5)
        np.testing.assert_allclose(np.linalg.norm(toy.corner_normals, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_colour_dominates_and_the_front_is_not_the_back(family: str, orbit: Camera) -> None:
    for name in members(family):
        toy = build(ObjectProgram(name, "red", seed=5))
        renderer = Renderer(Scene(toy.program, (Placed(toy, np.eye(4)),), _studio_light(), np.ones(3)))
        views = {azimuth: renderer.render(*orbit(azimuth), 48, 1) for azimuth in (0, 40, 140, 180)}
        slots = np.array([toy.face_slot[toy.face_part == part][0] for part in range(len(toy.part_names))])
        painted = [SLOTS.index("body"), SLOTS.index("trim")]
        shares = []
        for view in views.values():
            assert view.part_id is not None
            seen = view.part_id[view.part_id >= 0]
            shares.append(np.isin(slots[seen], painted).mean())
        assert np.mean(shares) >= 0.55, f"{name}: only {np.mean(shares):.2f} of the pixels have its colour"
        front, back = views[0], views[180]
        assert front.albedo is not None and back.albedo is not None
        outline = (front.alpha + back.alpha[:, ::-1])[..., 0] > 0.5
        differs = np.abs(front.albedo - back.albedo[:, ::-1]).max(-1)[outline] > 0.05
        assert differs.mean() > 0.06, f"{name} looks alike from front and back ({differs.mean():.3f})"


@pytest.mark.parametrize("name", ["chair", "owl", "train"])
def test_building_is_a_pure_function(name: str) -> None:
    program = ObjectProgram(name, "blue", seed=11)
    one = build(program)
    build.cache_clear()
    two = build(program)
    assert one is not two
    np.testing.assert_array_equal(one.vertices, two.vertices)
    np.testing.assert_array_equal(one.corner_normals, two.corner_normals)
    assert one.looks == two.looks


@pytest.mark.parametrize(
    ("solid", "volume"),
    [
        (box((1, 2, 3), (4, 5, 6), (10, 20, 30)), 6.0),
        (cylinder(0.5, 2.0, sides=400), np.pi * 0.5),
        (cone(0.5, 3.0, sides=400), np.pi * 0.25),
        (cone(1.0, 3.0, top=0.5, sides=400), np.pi * (1 + 0.5 + 0.25)),
        (sphere(0.7, (1, 2, 3), detail=5), 4 / 3 * np.pi * 0.343),
        (ellipsoid((1, 2, 0.5), rotate=(30, 40, 50), detail=5), 4 / 3 * np.pi),
        (bar((0, 0, 0), (0, 3, 4), 0.1, sides=400), np.pi * 0.01 * 5),
        (lathe([(0, 0), (1, 0), (1, 2), (0, 2)], sides=400), np.pi * 2),
        (lathe([(0, 2), (1, 2), (1, 0), (0, 0)], sides=400), np.pi * 2),
        (prism([(0, 0), (0, 1), (1, 0)], 2.0), 1.0),
        (carve(box((2, 2, 2)), box((1, 1, 3))), 6.0),
    ],
)
def test_solids_have_their_volume(solid: Solid, volume: float) -> None:
    check_closed(solid, "solid")
    assert solid.volume == pytest.approx(volume, rel=3e-3)


def test_round_solids_and_their_mirror_images_are_closed() -> None:
    pipe = tube(arc((0, 0, 0), 1.0, 0, 120), 0.1)
    for solid in (capsule((0, 0, 0), (1, 1, 1), 0.3), torus(1.0, 0.2), pipe, *mirror_y(pipe)):
        check_closed(solid, "solid")
    ring = torus(1.0, 0.2).volume
    assert ring == pytest.approx(2 * np.pi**2 * 0.04, rel=0.05)  # 36 x 14 facets


def test_every_attribute_changes_the_look() -> None:
    plain = build(ObjectProgram("cube", "red", seed=2)).looks["body"]
    for pattern in PATTERNS[1:]:
        assert build(ObjectProgram("cube", "red", pattern, seed=2)).looks["body"].pattern == pattern
    looks = {build(ObjectProgram("cube", "red", finish=f, seed=2)).looks["body"] for f in FINISHES}
    assert len(looks) == len(FINISHES)
    assert plain in looks
