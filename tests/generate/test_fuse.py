"""Hulls and fused normal maps against bodies whose pictures are known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
import trimesh
from torch import Tensor

from unproject.generate.fuse import FuseConfig, Fusion, fuse_normals
from unproject.geometry.cameras import Camera
from unproject.geometry.extract import EmptySurfaceError
from unproject.geometry.hull import hull_cube, visual_hull
from unproject.geometry.meshes import Mesh
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

AXES = (0.5, 0.32, 0.4)  # metres
CENTRE = torch.tensor([0.06, -0.04, 0.05])


def around(size: int, views: int = 4) -> Camera:
    """Views of Direct2.5: all from the height of the origin."""
    return Camera.orbit([360.0 * i / views + 20 for i in range(views)], 0.0, 2.2, 40.0, size)


def maps(camera: Camera, axes: tuple[float, float, float], centre: Tensor) -> tuple[Tensor, Tensor]:
    """World normals (B, H, W, 3) and coverage (B, H, W) of an ellipsoid."""
    scale = torch.tensor(axes)

    def cast(camera: Camera) -> tuple[Tensor, Tensor]:
        origins, directions = ((t / scale) for t in (camera.centres[:, None, None] - centre, camera.rays()[1]))
        a, b, c = directions.square().sum(-1), (origins * directions).sum(-1), origins.square().sum(-1) - 1
        root = b * b - a * c
        t = (-b - root.clamp_min(0).sqrt()) / a
        return torch.nn.functional.normalize((origins + t[..., None] * directions) / scale, dim=-1), (root > 0).float()

    fine = cast(camera.resized(4 * camera.width, 4 * camera.height))[1]
    return cast(camera)[0], torch.nn.functional.avg_pool2d(fine[:, None], 4)[:, 0]


def misfit(mesh: Mesh, axes: tuple[float, float, float], centre: Tensor) -> Tensor:
    """Distance (V,) of the vertices from the ellipsoid to first order, metres."""
    local = (mesh.vertices - centre) / torch.tensor(axes)
    k = local.norm(dim=-1)
    return (k * (k - 1) / (local / torch.tensor(axes)).norm(dim=-1)).abs()


def test_the_hull_of_a_ball_is_what_four_cones_have_in_common() -> None:
    camera, radius = around(96), 0.4
    _, masks = maps(camera, (radius,) * 3, torch.zeros(3))
    hull = visual_hull(masks, camera, 48)
    assert hull.check().sound
    assert float(hull.vertices.norm(dim=-1).min()) > radius - 0.01  # half a pixel is 0.008 m
    draws = (torch.rand(200_000, 3, generator=generator(0)) - 0.5) * 1.2
    away = draws[:, None] - camera.centres
    axis = torch.nn.functional.normalize(-camera.centres, dim=-1)
    cosine = (torch.nn.functional.normalize(away, dim=-1) * axis).sum(-1)
    inside = (cosine > math.sqrt(1 - (radius / 2.2) ** 2)).all(dim=1)
    assert hull.check().signed_volume == pytest.approx(float(inside.float().mean()) * 1.2**3, rel=0.03)


def test_the_cube_holds_the_object_wherever_it_is() -> None:
    camera = around(64)
    moved = Camera(camera.c2w.clone(), camera.K, 64, 64)
    moved.c2w[:, :3, 3] += torch.tensor([3.0, -2.0, 5.0])
    _, masks = maps(camera, AXES, CENTRE)
    here, there = hull_cube(masks, camera), hull_cube(masks, moved)
    torch.testing.assert_close(there[0] - here[0], torch.tensor([3.0, -2.0, 5.0]), atol=1e-4, rtol=0)
    assert there[1] == pytest.approx(here[1], rel=1e-4) and 0.5 < here[1] < 0.75
    torch.testing.assert_close(
        visual_hull(masks, moved, 24).bounds - visual_hull(masks, camera, 24).bounds,
        torch.tensor([3.0, -2.0, 5.0]).expand(2, 3), atol=1e-3, rtol=0,
    )  # fmt: skip


def test_a_ball_shrinks_to_the_one_that_is_seen() -> None:
    """Direct2.5's exact check: from 0.5 m to 0.4 m, closed after every step, the moments with their vertices."""
    camera = around(48)
    normals, masks = maps(camera, (0.4,) * 3, torch.zeros(3))
    start = Mesh.from_trimesh(trimesh.creation.icosphere(2, 0.5))
    work = Fusion(start, normals, masks, camera, 0.5, FuseConfig(edge=(0.12, 0.23)))
    for step in range(60):
        work.step()
        if step % 10 == 0:
            report = work.mesh.check()
            assert report.sound and report.euler == 2
    count = len(work.vertices)
    assert all(len(value) == count for value in (work.first, work.second, work.speed, work.lengths))
    assert float((work.vertices.norm(dim=-1) - 0.4).abs().mean()) < 0.008


def test_fused_maps_are_nearer_than_their_hull() -> None:
    camera = around(40)
    normals, masks = maps(camera, AXES, CENTRE)
    config = FuseConfig(hull=24, steps=50, edge=(0.08, 0.23), faces=2000)
    losses: list[float] = []
    mesh = fuse_normals(3.0 * normals, masks[..., None], camera, config, lambda step, mesh, loss: losses.append(loss))
    hull = visual_hull(masks, camera, 24)
    assert mesh.check().sound and len(losses) == 50 and losses[-1] < 0.7 * losses[0]
    fused, first = misfit(mesh, AXES, CENTRE).mean(), misfit(hull, AXES, CENTRE).mean()
    assert float(fused) < 0.5 * float(first)


def test_bad_maps_are_refused_with_the_reason() -> None:
    camera = around(16)
    normals, masks = maps(camera, AXES, CENTRE)
    with pytest.raises(InputError, match="do not fit the cameras"):
        fuse_normals(normals[:, :8], masks, camera)
    with pytest.raises(InputError, match="must be finite"):
        fuse_normals(torch.full_like(normals, math.nan), masks, camera)
    with pytest.raises(InputError, match="a mask is empty"):
        fuse_normals(normals, masks * 0, camera)
    with pytest.raises(InputError, match="along one axis"):
        hull_cube(masks[:1], camera[0])
    apart = masks.clone()
    apart[0, 8:], apart[1, :8] = 0, 0
    with pytest.raises(EmptySurfaceError, match="no point lies inside all masks"):
        visual_hull(apart, camera, 12)


def test_steps_add_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    camera, seen = around(16), list[bool]()
    loss = Fusion.loss

    def watched(work: Fusion, vertices: Tensor) -> Tensor:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return loss(work, vertices)

    monkeypatch.setattr(Fusion, "loss", watched)
    fuse_normals(*maps(camera, AXES, CENTRE), camera, FuseConfig(hull=12, steps=2, edge=(0.1, 0.3)))
    assert seen == [True, True] and not torch.are_deterministic_algorithms_enabled()
