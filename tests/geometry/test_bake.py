"""Baking: texels land where they should, the texture shows the field again, and no chart border samples black."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unproject.geometry import bake as bake_module
from unproject.geometry import seen as seen_module
from unproject.geometry.bake import bake, bake_views, carry_colors, dilate_charts, rasterise_uv
from unproject.geometry.cameras import Camera
from unproject.geometry.extract import decimate, extract_surface, grid_points
from unproject.geometry.inspection import inspect_mesh
from unproject.geometry.meshes import Mesh
from unproject.geometry.raycast import RayMesh
from unproject.geometry.seen import diffused, view_weights
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


def test_bands_of_rows_make_the_whole_texture(charted: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rasterise_uv(charted, 64)
    monkeypatch.setattr(bake_module, "BAND", 64 * 7)  # the last band has one row
    parts = rasterise_uv(charted, 64)
    for name in ("mask", "faces", "weights", "points", "normals"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))


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


def pictured(mesh: Mesh, cameras: Camera) -> Tensor:
    """What the cameras see of field_color on the mesh, over black."""
    seen = RayMesh(mesh).render(cameras)
    return field_color(cameras.unproject(seen.depth), seen.normal) * seen.alpha


def psnr(found: Tensor, wanted: Tensor) -> float:
    return -10 * float(torch.log10((found - wanted).square().mean()))


def test_a_known_texture_comes_back_from_its_pictures(charted: Mesh) -> None:
    cameras = Camera.orbit([0, 72, 144, 216, 288, 0, 0], [10, -20, 10, -20, 10, 85, -85], 2.6, 40.0, 128)
    mesh = bake_views(charted, pictured(charted, cameras), cameras, 256)
    assert mesh.notes["unseen_share"] < 0.01
    texels = rasterise_uv(mesh, 256)
    found = torch.from_numpy(mesh.textures["base_color"]).float()[texels.mask] / 255
    assert psnr(found, field_color(texels.points, texels.normals)) > 35
    # both sides of a seam show the same: energy of the jumps against that of the colours
    corners, keys = mesh.faces.reshape(-1), mesh.uv_faces.reshape(-1)
    image = torch.from_numpy(mesh.textures["base_color"]).float() / 255
    place = (mesh.uv[keys] * torch.tensor([256.0, -256.0]) + torch.tensor([0.0, 256.0])).long().clamp(0, 255)
    color = image[place[:, 1], place[:, 0]]
    mean = torch.zeros_like(mesh.vertices).index_add(0, corners, color)
    mean /= torch.bincount(corners, minlength=len(mean))[:, None]
    assert float((color - mean[corners]).square().mean()) < 1e-3 * float(color.var(0).mean() + 1)


def test_what_no_view_shows_is_filled_and_told(charted: Mesh) -> None:
    above = Camera.orbit([0, 120, 240], 35.0, 2.6, 40.0, 96)
    plain = torch.tensor([0.2, 0.5, 0.7]).expand(3, 96, 96, 3)
    mesh = bake_views(charted, plain, above, 128)
    assert 0.1 < mesh.notes["unseen_share"] < 0.5
    assert inspect_mesh(mesh)["texture"]["unseen_share"] == mesh.notes["unseen_share"]
    assert np.abs(mesh.textures["base_color"].astype(int) - [51, 128, 178]).max() <= 1  # nowhere grey or black
    grey = bake(charted, lambda p, n: torch.where(n[:, 2:] < -0.6, 0.5, torch.tensor([0.9, 0.1, 0.1])), 128)
    filled = bake(charted, lambda p, n: torch.where(n[:, 2:] < -0.6, 0.5, torch.tensor([0.9, 0.1, 0.1])), 128,
                  seen_from=above)  # fmt: skip
    stains = [(np.abs(m.textures["base_color"].astype(int) - 128).max(-1) < 3).mean() for m in (grey, filled)]
    assert stains[0] > 0.05 and stains[1] < 0.2 * stains[0] and filled.notes["unseen_share"] > 0.1


def test_views_weigh_by_their_angle_and_what_hides_them() -> None:
    plate = quad()  # in the plane x = 0, seen from +x
    camera = Camera.orbit([0.0], [0.0], 3.0, 60.0, 200)
    points = torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.01, 0.5]])
    normals = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]])
    weight, pixel = view_weights(RayMesh(plate), points, normals, camera)
    cosine = 3 / (9 + 0.5) ** 0.5
    assert float(weight[0]) == pytest.approx(cosine**4, rel=1e-3) and float(weight[1]) < 0.5
    assert pixel[0].tolist() == pytest.approx(
        [100 + 0.5 * float(camera.K[0, 0, 0]) / 3] * 1 + [100 - 0.5 * float(camera.K[0, 0, 0]) / 3]
    )
    assert float(view_weights(RayMesh(plate), points, -normals, camera)[0].max()) == 0
    wall = Mesh(
        torch.cat([plate.vertices, plate.vertices + torch.tensor([1.0, 0, 0])]),
        torch.cat([plate.faces, plate.faces + 4]),
    )
    assert float(view_weights(RayMesh(wall), points, normals, camera)[0].max()) == 0


def test_diffusion_is_linear_on_a_line_and_keeps_what_is_known() -> None:
    points = np.stack([np.arange(40.0), np.zeros(40), np.zeros(40)], axis=1).astype(np.float32)
    wanted = np.stack([np.arange(40.0), 3 - 0.5 * np.arange(40.0)], axis=1).astype(np.float32)
    known = np.zeros(40, dtype=bool)
    known[[0, 1, 2, 3, 36, 37, 38, 39]] = True
    values = np.where(known[:, None], wanted, 77.0).astype(np.float32)
    filled = diffused(values, known, points)
    np.testing.assert_allclose(filled, wanted, atol=0.6)
    np.testing.assert_array_equal(filled[known], wanted[known])
    assert np.all(np.diff(filled[:, 0]) > 0)
    np.testing.assert_array_equal(diffused(values, known & False, points), values)


def test_large_gaps_are_filled_from_coarse_to_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Across a bent sheet between its known ends: the same solution in fewer steps than at once."""
    rng = np.random.default_rng(3)
    across, up = (rng.random(9000) * side for side in (18.0, 1.0))
    points = np.stack([across, up, np.sin(across)], axis=1).astype(np.float32)
    known = (across < 0.2) | (across > 17.8)
    values = np.stack([across, up], axis=1).astype(np.float32)
    steps, solve = [], seen_module.cg

    def counted(*given: Any, **how: Any) -> Any:
        return solve(*given, **how, callback=lambda x: steps.append(len(x)))

    def filled(tolerance: float, many: int) -> tuple[np.ndarray, int]:
        monkeypatch.setattr(seen_module, "TOLERANCE", tolerance)
        monkeypatch.setattr(seen_module, "MANY", many)
        steps.clear()
        made = diffused(values, known, points)
        return made, steps.count(int((~known).sum()))

    monkeypatch.setattr(seen_module, "cg", counted)
    exact, (plain, slow), (coarse, fast) = filled(1e-9, 10**9)[0], filled(3e-4, 10**9), filled(3e-4, 300)
    off = [np.abs(one - exact).mean(axis=0) / values.max(axis=0) for one in (plain, coarse)]
    assert fast < 0.6 * slow and off[0].max() < 0.03 and off[1].max() < 0.015
    assert coarse.dtype == np.float32 and np.array_equal(coarse[known], values[known])
    known[:] = np.arange(len(known)) == 1  # which is not among those picked first
    assert np.abs(diffused(values, known, points) - values[1]).max() < 1e-3


def test_roughness_and_metallic_have_their_slots(charted: Mesh) -> None:
    cameras = Camera.orbit([0, 90, 180, 270], [30, -30, 30, -30], 2.6, 40.0, 48)
    rough, metal = torch.full((4, 48, 48, 1), 0.3), torch.full((4, 48, 48, 1), 0.8)
    mesh = bake_views(charted, torch.full((4, 48, 48, 3), 0.4), cameras, 64, roughness=rough, metallic=metal)
    assert np.abs(mesh.textures["metallic_roughness"].astype(int) - [255, 76, 204]).max() <= 1
    dull = bake_views(charted, torch.full((4, 48, 48, 3), 0.4), cameras, 64, roughness=rough)
    assert dull.textures["metallic_roughness"][..., 2].max() == 0
    with pytest.raises(InputError, match="metallic has shape"):
        bake_views(charted, torch.full((4, 48, 48, 3), 0.4), cameras, 64, metallic=metal[:2])
    with pytest.raises(InputError, match="no view shows the mesh"):
        away = Camera(
            cameras.c2w + torch.nn.functional.pad(torch.full((4, 3, 1), 90.0), (3, 0, 0, 1)), cameras.K, 48, 48
        )
        bake_views(charted, torch.zeros(4, 48, 48, 3), away, 64)


def test_bad_requests_say_what_is_wrong(charted: Mesh) -> None:
    bare = Mesh(charted.vertices, charted.faces)
    with pytest.raises(InputError, match="unwrap"):
        bake(bare, field_color)
    with pytest.raises(InputError, match=r"expected \(N, 3\)"):
        bake(charted, lambda p, n: p[:, :1], size=64)
    with pytest.raises(InputError, match="size=2"):
        bake(charted, field_color, size=2)
