"""Meshes painted by views: what is read is what is shown, backgrounds stay, and a second ring paints what is new."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import trimesh

from unproject.generate.view_normals import NormalCode, Ring
from unproject.generate.view_paint import FRINGE, PaintConfig, Painter, unseen_pixels, without_fringe
from unproject.geometry.meshes import Mesh
from unproject.geometry.raycast import RayMesh
from unproject.geometry.seen import inside_px
from unproject.geometry.unwrap import unwrap
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator


def shown(mesh: Mesh, elevation: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(colours, normals, what lies well inside) from cameras between those that painted."""
    camera = Ring().camera(8, 48, elevation)[[1, 3, 5, 7]]
    seen = RayMesh(mesh).render(camera, ("rgb", "normal"))
    away = torch.nn.functional.normalize(camera.centres, dim=-1)[:, None, None]
    return seen.rgb, seen.normal, (seen.alpha[..., 0] > 0) & ((seen.normal * away).sum(-1) > 0.8)


def box() -> Mesh:
    """A box that shows two sides to each camera of the ring, flat shaded."""
    made = trimesh.creation.box((0.9, 0.7, 0.6))
    made.apply_transform(trimesh.transformations.rotation_matrix(0.5, [0, 0, 1]))
    return Mesh.from_trimesh(made)


def test_normals_that_are_read_land_where_they_are(view_priors: ModuleType) -> None:
    """A network that paints the maps it reads makes every point the colour of its own normal."""
    bare = unwrap(Mesh(view_priors.egg().vertices, view_priors.egg().faces).with_smooth_normals(), 128)
    code = NormalCode((1, 2, 0))
    prior = view_priors.KnownViews(view_priors.egg(), paints="normals")
    painted = Painter(prior, True, PaintConfig(code=code, texture=128))(bare, "a red egg", generator(0))
    rgb, normals, inside = shown(painted.mesh)
    expected = code.encode(normals, torch.ones_like(normals[..., :1])).permute(0, 2, 3, 1)
    assert float((rgb - expected).abs()[inside].mean()) < 0.03 and int(inside.sum()) > 500
    assert painted.views.shape == (4, 32, 32, 3) and 0 < painted.mesh.notes["unseen_share"] < 0.6
    assert all("concat" in rows for rows in prior.asked)


def test_without_such_a_network_views_are_redrawn_inside_the_outlines(view_priors: ModuleType) -> None:
    egg = view_priors.egg()
    bare = unwrap(Mesh(egg.vertices, egg.faces).with_smooth_normals(), 128)
    prior = view_priors.KnownViews(egg, paints=0.2)
    config = PaintConfig(texture=128, background=0.6, redrawn=1.0)
    painted = Painter(prior, False, config)(bare, "a red egg", generator(0))
    alpha = RayMesh(bare).render(painted.cameras, ("rgb",), supersample=2).alpha[..., 0]
    assert float((painted.views[alpha > 0] - 0.2).abs().max()) < 1e-5
    assert float((painted.views[alpha == 0] - 0.6).abs().max()) < 0.05
    assert not any("concat" in rows for rows in prior.asked)
    begun = Painter(view_priors.KnownViews(egg), False, PaintConfig(texture=64, redrawn=0.5))
    assert begun(bare, "a red egg", generator(0)) is not None and begun.prior.nfe == 8  # one of two steps


def test_what_no_camera_of_the_ring_shows_is_new() -> None:
    scene, ring, other = RayMesh(box()), Ring().camera(4, 96), Ring().camera(4, 48, 40.0)
    seen = scene.render(other, ("rgb", "normal", "depth"))
    new = unseen_pixels(scene, seen, ring, other)[..., 0]
    top, hit = seen.normal[..., 2] > 0.9, seen.alpha[..., 0] > 0.5
    assert bool(new[top].all()) and float(new[hit & ~top].float().mean()) < 0.2 and not bool(new[~hit].any())


def test_a_second_ring_paints_what_is_new_and_keeps_the_rest(view_priors: ModuleType) -> None:
    prior = view_priors.KnownViews(view_priors.egg(), paints=0.3)
    mesh = unwrap(box(), 128)
    first = Painter(prior, False, PaintConfig(texture=128, redrawn=1.0))(mesh, "a red egg", generator(0))
    config = PaintConfig(texture=128, redrawn=1.0, second_deg=40.0)

    class Changing(Painter):
        def _completed(self, *given):  # type: ignore[no-untyped-def]
            prior.paints = 0.9
            return super()._completed(*given)

    both = Changing(prior, False, config)(mesh, "a red egg", generator(0))
    rgb, normals, inside = shown(both.mesh, 60.0)
    top = normals[..., 2] > 0.9
    assert float(rgb[top & inside].mean()) > 0.75
    sides, _, middle = shown(both.mesh)
    assert float((sides[middle] - 0.3).abs().mean()) < 0.08
    assert len(both.views) == 8 and both.cameras.batch == 8
    assert both.mesh.notes["unseen_share"] < first.mesh.notes["unseen_share"] - 0.1


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"redrawn in \(0, 1\]"):
        PaintConfig(redrawn=0.0)
    with pytest.raises(InputError, match="second_deg=90"):
        PaintConfig(second_deg=90.0)


def test_what_a_codec_mixes_at_outlines_is_replaced_by_what_lies_further_in() -> None:
    """Blurred views of a box whose sides differ keep the colours of the sides, up to the outline."""
    scene, ring = RayMesh(box()), Ring().camera(4, 64)
    seen = scene.render(ring, ("normal",))
    hit = seen.alpha[..., 0] > 0.5
    clean = torch.where(hit[..., None], 0.5 * seen.normal + 0.5, torch.tensor([0.9, 0.9, 0.1]))
    mixed = torch.nn.functional.avg_pool2d(clean.permute(0, 3, 1, 2), 3, 1, 1, count_include_pad=False)
    mixed = mixed.permute(0, 2, 3, 1)
    inside = torch.stack([inside_px(scene, ring[view]) for view in range(4)])
    better = without_fringe(mixed, inside)
    edge = hit & (inside < 1)
    before, after = ((one - clean).abs()[edge].mean() for one in (mixed, better))
    assert float(after) < 0.35 * float(before) and float(before) > 0.05
    deep = inside >= FRINGE
    assert torch.equal(better[deep], mixed[deep]) and int(deep.sum()) > 1000


def test_thin_parts_keep_the_colour_of_their_ridge() -> None:
    inside = torch.zeros(1, 5, 9)
    inside[0, 2] = 1.0  # a bar of three rows
    views = torch.full((1, 5, 9, 3), 0.8)
    views[0, 2] = torch.linspace(0, 0.4, 9)[:, None]
    found = without_fringe(views, inside, 2)
    torch.testing.assert_close(found[0, 2], views[0, 2])
    assert float(found[0, [1, 3]].max()) <= 0.4 and torch.equal(found[0, 0, 0], found[0, 4, 0])


def test_pixels_are_counted_from_outlines_and_from_jumps_of_depth() -> None:
    far, near = trimesh.creation.box((0.02, 1.0, 0.8)), trimesh.creation.box((0.02, 0.5, 0.2))
    near.apply_translation((0.3, 0.1, 0.05))
    scene = RayMesh(Mesh.from_trimesh(trimesh.util.concatenate([far, near])))
    camera = Ring().camera(1, 64)
    inside, depth = inside_px(scene, camera), scene.render(camera, ("depth",)).depth[0, ..., 0]
    hit = depth > 0
    assert float(inside[~hit].max()) == 0
    front = hit & (depth < depth[hit].min() + 0.1)
    widths = front.any(0).sum(), front.any(1).sum()  # of the nearer box
    assert abs(float(inside[front].max()) - (int(min(widths)) - 1) / 2) <= 1
    assert float(inside[hit & ~front].max()) > float(inside[front].max())
