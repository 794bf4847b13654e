"""Baking: texels land where they should, the texture shows the field again, and no chart border samples black."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from unproject.geometry.bake import bake, carry_colors, dilate_charts, rasterise_uv
from unproject.geometry.extract import decimate, extract_surface, grid_points
from unproject.geometry.meshes import Mesh
from unproject.geometry.raycast import RayMesh
from unproject.geometry.turntable import orbit_around
from unproject.geometry.unwrap import unwrap
from unproject.utils.errors import InputError


def field_color(points: Tensor, normals: Tensor) -> Tensor:
    """A smooth colour field in [0, 1]."""
    return 0.5 + 0.5 * torch.sin(5 * points + torch.tensor([0.0, 1.0, 2.0]))


@pytest.fixture(scope="module")
def charted() -> Mesh:
    points = grid_points(20, 1.0)
    return unwrap(extract_surface(points.norm(dim=-1), 0.7, sign=-1), size=256)


def quad() -> Mesh:
    """The unit square in the y-z plane, uv = (y, z)."""
    vertices = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    return Mesh(vertices, faces, uv=vertices[:, 1:].clone(), uv_faces=faces.clone())


def test_texels_lie_at_their_centres() -> None:
    texels = rasterise_uv(quad(), 8)
    assert bool(texels.mask.all())
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    expected = torch.stack([(columns + 0.5) / 8, 1 - (rows + 0.5) / 8], dim=-1).reshape(-1, 2)  # row 0 is v = 1
    torch.testing.assert_close(texels.points[:, 1:], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(texels.normals, torch.tensor([1.0, 0, 0]).expand(64, 3))
    torch.testing.assert_close(texels.weights.sum(dim=1), torch.ones(64))


@pytest.mark.parametrize("method", ["xatlas", "triangles"])
def test_the_texture_shows_the_field_again(method: str, charted: Mesh) -> None:
    mesh = charted if method == "xatlas" else unwrap(charted, size=512, method="triangles")
    mesh = bake(mesh, field_color, size=256 if method == "xatlas" else 512)
    camera = orbit_around(mesh, 3, 64)
    output = RayMesh(mesh).render(camera)
    wanted = field_color(camera.unproject(output.depth), output.normal)
    error = (output.rgb - wanted)[output.alpha[..., 0] > 0]
    assert -10 * float(torch.log10((error**2).mean())) > 28  # dB


def test_the_margin_repeats_the_border(charted: Mesh) -> None:
    white = bake(charted, lambda p, n: torch.ones_like(p), size=128, dilate=4)
    assert int(white.textures["base_color"].min()) == 255
    image, mask = np.zeros((9, 9, 1), dtype=np.float32), np.zeros((9, 9), dtype=bool)
    mask[4, :4] = True
    image[4, :4, 0] = [0.2, 0.2, 0.2, 0.8]
    filled = dilate_charts(image, mask, 2)[..., 0]
    assert filled[4, 5] == pytest.approx(0.8) and filled[2, 0] == pytest.approx(0.2)
    assert filled[0, 8] == pytest.approx(image[mask].mean())


def test_chunks_do_not_change_the_texture_and_maps_have_names(charted: Mesh) -> None:
    whole = bake(charted, field_color, size=64)
    parts = bake(whole, field_color, size=64, chunk=100, name="metallic_roughness")
    assert np.array_equal(parts.textures["base_color"], parts.textures["metallic_roughness"])


def test_colours_are_carried_to_a_simplified_mesh(charted: Mesh) -> None:
    source = bake(bake(charted, field_color, size=256), field_color, size=256, name="metallic_roughness")
    mesh = carry_colors(source, decimate(source, 300))
    assert len(mesh.faces) <= 300 and set(mesh.textures) == {"base_color", "metallic_roughness"}
    camera = orbit_around(mesh, 3, 48)
    output = RayMesh(mesh).render(camera, channels=("roughness",))
    wanted = field_color(camera.unproject(output.depth), output.normal)
    seen = output.alpha[..., 0] > 0
    assert float((output.rgb - wanted)[seen].abs().mean()) < 0.03  # the surface itself has moved by a few hundredths
    assert output.roughness is not None
    assert float((output.roughness[..., 0] - wanted[..., 1])[seen].abs().mean()) < 0.03


def test_vertex_colours_stay_vertex_colours_and_nothing_stays_nothing(charted: Mesh) -> None:
    bare = Mesh(charted.vertices, charted.faces)
    source = replace(bare, vertex_colors=field_color(bare.vertices, bare.vertices))
    light = decimate(source, 300)
    mesh = carry_colors(source, light)
    assert mesh.vertex_colors is not None and not mesh.textures
    assert float((mesh.vertex_colors - field_color(mesh.vertices, mesh.vertices)).abs().mean()) < 0.03
    assert carry_colors(bare, light) is light


def test_a_normal_map_is_left_out_with_a_warning(charted: Mesh) -> None:
    source = replace(charted, textures={"normal": np.full((8, 8, 3), 128, np.uint8)})
    with pytest.warns(UserWarning, match="the normal map belongs to the old triangles"):
        assert not carry_colors(source, charted).textures


def test_bad_requests_say_what_is_wrong(charted: Mesh) -> None:
    bare = Mesh(charted.vertices, charted.faces)
    with pytest.raises(InputError, match="unwrap"):
        bake(bare, field_color)
    with pytest.raises(InputError, match=r"expected \(N, 3\)"):
        bake(charted, lambda p, n: p[:, :1], size=64)
    with pytest.raises(InputError, match="size=2"):
        bake(charted, field_color, size=2)
