"""Ray-cast rendering against closed forms, its gradients against finite differences, and pictures around an object."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from unproject.geometry.cameras import Camera
from unproject.geometry.meshes import Mesh
from unproject.geometry.outputs import RenderOutput, over_background
from unproject.geometry.raycast import GREY, Light, RayMesh, interpolate, intersect
from unproject.geometry.turntable import contact_sheet, orbit_around, render_turntable
from unproject.utils.errors import InputError


def square(x: float = 0.0, half: float = 0.5) -> Mesh:
    """A square facing +x at distance x from the origin, coloured by corner."""
    vertices = torch.tensor([[x, -half, -half], [x, half, -half], [x, half, half], [x, -half, half]])
    colors = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    return Mesh(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]), vertex_colors=colors)


@pytest.fixture
def camera() -> Camera:
    return Camera.orbit(0.0, 0.0, 2.0, 40.0, 16)


def test_plane_depth_normal_colour_and_coverage(camera: Camera) -> None:
    output = RayMesh(square()).render(camera, ("albedo", "roughness", "metallic", "face_id"), background=0.25)
    seen = output.alpha[..., 0] > 0
    torch.testing.assert_close(output.depth[seen], torch.full_like(output.depth[seen], 2.0))
    torch.testing.assert_close(output.normal[seen], torch.tensor([1.0, 0, 0]).expand(int(seen.sum()), 3))
    points = camera.unproject(output.depth)[seen]
    expected = torch.stack([points[:, 1] + 0.5, points[:, 2] + 0.5, torch.zeros(len(points))], dim=-1)
    torch.testing.assert_close(output.rgb[seen], expected, atol=1e-5, rtol=0)
    assert bool((output.rgb[~seen] == 0.25).all()) and bool((output.depth[~seen] == 0).all())
    assert bool(((output.extras["face_id"][..., 0] >= 0) == seen).all())
    assert output.albedo is not None and output.roughness is not None and output.metallic is not None
    assert float(output.roughness[seen].min()) == 1.0 and float(output.metallic.max()) == 0.0
    assert output.rgb[0, 4, 8, 1] > output.rgb[0, 11, 8, 1]  # row 0 is the top, where z is large


def test_supersampling_gives_fractional_coverage_and_unmixed_depth(camera: Camera) -> None:
    output = RayMesh(square(half=0.41)).render(camera, supersample=4)
    edge = (output.alpha > 0) & (output.alpha < 1)
    assert bool(edge.any())
    exact = (2 * 0.41 * float(camera.K[0, 0, 0]) / 2.0) ** 2  # pixels covered
    assert float(output.alpha.sum()) == pytest.approx(exact, rel=0.08)
    torch.testing.assert_close(output.depth[edge], torch.full_like(output.depth[edge], 2.0))
    torch.testing.assert_close(output.normal.norm(dim=-1)[edge[..., 0]], torch.ones(int(edge.sum())))


def test_supersampled_channels_are_means_over_what_was_hit(camera: Camera) -> None:
    """The slow twin: a larger picture, averaged block by block over the samples that hit the mesh."""
    factor, scene = (
        3,
        RayMesh(replace(square(half=0.37), vertices=square(half=0.37).vertices * torch.tensor([1, 1, 0.7]))),
    )
    camera = replace(camera, c2w=Camera.orbit(25.0, 10.0, 2.0, 40.0, 16).c2w)
    channels = ("rgb", "depth", "albedo")
    small = scene.render(camera, channels, background=0.25, supersample=factor)
    large = scene.render(camera.resized(16 * factor, 16 * factor), channels, background=0.25)

    def blocks(values: Tensor) -> Tensor:
        return values.reshape(1, 16, factor, 16, factor, -1).transpose(2, 3).flatten(3, 4)

    hit = blocks(large.alpha)  # (1, 16, 16, 9, 1)
    torch.testing.assert_close(small.alpha, hit.mean(3), rtol=0, atol=1e-6)
    for name in ("depth", "albedo"):
        mean = (blocks(getattr(large, name)) * hit).sum(3) / hit.sum(3).clamp(min=1)
        torch.testing.assert_close(getattr(small, name), mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(small.rgb, blocks(large.rgb).mean(3), rtol=0, atol=1e-5)
    assert bool(((small.alpha > 0) & (small.alpha < 1)).any())


def test_near_and_far_planes_cut(camera: Camera) -> None:
    scene = RayMesh(Mesh.from_trimesh(trimesh.creation.box((1, 1, 1))))
    middle = (0, 8, 8, 0)
    assert float(scene.render(camera).depth[middle]) == pytest.approx(1.5)
    assert float(scene.render(replace(camera, near=2.0)).depth[middle]) == pytest.approx(2.5)
    assert float(scene.render(replace(camera, far=1.0)).alpha.sum()) == 0.0


def test_sphere_against_its_closed_form() -> None:
    mesh = Mesh.from_trimesh(trimesh.creation.icosphere(4, radius=0.5)).with_smooth_normals()
    camera = Camera.orbit([10.0, 200.0], [25.0, -50.0], 2.0, 40.0, 32)
    output = RayMesh(mesh).render(camera)
    origins, directions = camera.rays()
    a, b = (directions**2).sum(-1), (origins * directions).sum(-1)
    root = b**2 - a * ((origins**2).sum(-1) - 0.25)
    exact, hit = (-b - root.clamp_min(0).sqrt()) / a, root > 0
    seen = output.alpha[..., 0] > 0
    assert float((seen & hit).sum() / (seen | hit).sum()) > 0.98
    both = seen & (root > 0.02)
    assert float((output.depth[..., 0] - exact)[both].abs().max()) < 0.01 * 0.5
    cosine = (output.normal * torch.nn.functional.normalize(camera.unproject(output.depth), dim=-1)).sum(-1)
    assert float(cosine[both].min()) > np.cos(np.radians(2))


def test_ray_triangle_operator_passes_gradcheck() -> None:
    rng = torch.Generator().manual_seed(0)
    spread = torch.tensor([[0.0, 0, 2], [3, 0, 2], [0, 3, 2]])
    triangles = torch.rand(4, 3, 3, dtype=torch.float64, generator=rng) + spread
    origins = torch.rand(4, 3, dtype=torch.float64, generator=rng).requires_grad_()
    directions = torch.tensor([[0.1, 0.2, 1.0]], dtype=torch.float64).repeat(4, 1).requires_grad_()
    assert torch.autograd.gradcheck(intersect, (origins, directions, triangles.requires_grad_()))
    values = torch.rand(5, 2, dtype=torch.float64, generator=rng).requires_grad_()
    weights = torch.rand(3, 3, dtype=torch.float64, generator=rng).requires_grad_()
    faces = torch.tensor([[0, 1, 2], [2, 3, 4], [0, 2, 4]])
    assert torch.autograd.gradcheck(lambda v, w: interpolate(v, faces, w), (values, weights))


def test_a_four_pixel_render_has_true_gradients() -> None:
    camera = Camera.orbit(0.0, 0.0, 2.0, 20.0, 2)
    camera = replace(camera, c2w=camera.c2w.double(), K=camera.K.double())
    corners = torch.tensor([[0.1, -2.0, -1.5], [-0.1, 2.0, -1.0], [0.05, 0.1, 2.0]], dtype=torch.float64)
    colors = torch.tensor([[0.1, 0.5, 0.9], [0.8, 0.2, 0.4], [0.3, 0.7, 0.6]], dtype=torch.float64)
    triangle = Mesh(corners, torch.tensor([[0, 1, 2]]), vertex_colors=colors)

    def render(vertices: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
        output = RayMesh(replace(triangle, vertices=vertices, vertex_colors=colors)).render(camera)
        return output.rgb, output.depth

    inputs = (corners.clone().requires_grad_(), colors.clone().requires_grad_())
    assert torch.autograd.gradcheck(render, inputs, eps=1e-5)


def test_texture_and_vertex_colours_of_a_ramp_agree(camera: Camera) -> None:
    mesh = square()
    columns = (np.arange(256) + 0.5) / 256
    ramp = np.stack(np.broadcast_arrays(columns[None, :], 1 - columns[:, None], 0.0), axis=-1)
    textured = replace(
        mesh,
        vertex_colors=None,
        uv=mesh.vertices[:, 1:] + 0.5,
        uv_faces=mesh.faces,
        textures={"base_color": (ramp * 255).round().astype(np.uint8)},
    )
    a, b = RayMesh(mesh).render(camera), RayMesh(textured).render(camera)
    torch.testing.assert_close(a.rgb, b.rgb, atol=1 / 255, rtol=0)
    torch.testing.assert_close(textured.with_vertex_colors().vertex_colors, mesh.vertex_colors, atol=0.01, rtol=0)


def test_light_follows_the_camera_and_never_leaves_the_range() -> None:
    ball = Mesh.from_trimesh(trimesh.creation.icosphere(2)).with_smooth_normals()
    camera = orbit_around(ball, 4, 24)
    lit = RayMesh(ball).render(camera, light=Light()).rgb
    assert float(lit.min()) >= 0 and float(lit.max()) <= 1
    assert float((lit.mean(dim=(1, 2)) - lit.mean()).abs().max()) < 0.02  # each side is lit alike
    fixed = RayMesh(ball).render(camera, light=Light(follow=False, azimuth_deg=0.0, elevation_deg=0.0)).rgb
    assert float(fixed[0].mean()) > float(fixed[2].mean()) + 0.02  # front against back
    plain = RayMesh(ball).render(camera)
    assert float(plain.rgb[plain.alpha[..., 0] > 0].sub(GREY).abs().max()) < 1e-6


def test_bad_requests_say_what_is_wrong(camera: Camera) -> None:
    scene = RayMesh(square())
    with pytest.raises(InputError, match="unknown shadow"):
        scene.render(camera, ("rgb", "shadow"))
    with pytest.raises(InputError, match="supersample=0"):
        scene.render(camera, supersample=0)
    with pytest.raises(InputError, match="without faces"):
        RayMesh(Mesh(torch.zeros(3, 3), torch.zeros(0, 3)))


def test_outputs_join_split_and_composite(camera: Camera) -> None:
    scene = RayMesh(square())
    one = scene.render(camera, ("face_id",))
    both = RenderOutput.cat([one, scene.render(camera, ("face_id",))])
    assert both.rgb.shape[0] == 2 and both.extras["face_id"].shape[0] == 2
    assert torch.equal(both[1].depth, one.depth) and both[0:1].extras["face_id"].shape[0] == 1
    background = torch.tensor([[0.2, 0.4, 0.6]])
    empty = torch.zeros(1, 2, 2, 1)
    assert torch.equal(over_background(torch.zeros(1, 2, 2, 3), empty, background)[0, 0, 0], background[0])


def test_turntable_and_contact_sheet_have_their_sizes_and_show_the_object() -> None:
    box = Mesh.from_trimesh(trimesh.creation.box((1, 1, 1)))
    frames = render_turntable(box, frames=3, size=24)
    assert len(frames) == 3 and all(f.shape == (24, 24, 3) and f.dtype == np.uint8 for f in frames)
    assert all(f[0, 0].min() == 255 and f[12, 12].max() < 250 for f in frames)
    sheet = contact_sheet(box, size=16, views=4)
    assert sheet.shape == (64, 64, 3)
    assert sheet[56, 8].min() == 255 and sheet[48, 0].max() == 0  # the alpha row
    camera = orbit_around(box, 1, 64)
    alpha = RayMesh(box).render(camera).alpha
    assert float(alpha[:, [0, -1]].sum() + alpha[:, :, [0, -1]].sum()) == 0  # nothing is cut off
    with pytest.raises(InputError, match="frames=0"):
        render_turntable(box, frames=0)
