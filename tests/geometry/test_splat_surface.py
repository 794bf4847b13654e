"""Meshes of splats, what is drawn of them, and what is told of them, on a body without symmetry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unproject.geometry.cameras import Camera
from unproject.geometry.meshes import Mesh
from unproject.geometry.solid import faults
from unproject.geometry.splats import GaussianCloud, load_splats, save_splats
from unproject.geometry.splats.drawing import SplatView, ball_of, draw
from unproject.geometry.splats.facts import facts_of
from unproject.geometry.splats.files import is_splat_file, losses, read_splats
from unproject.geometry.splats.surface import (
    SurfaceConfig,
    denser,
    level_surface,
    opacity_lattice,
    surface_of,
    tsdf_surface,
)
from unproject.geometry.turntable import contact_sheet, cut_out, orbit_around, render_turntable
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

AXES = torch.tensor([0.5, 0.35, 0.25])
CENTRE = torch.tensor([0.3, -0.2, 0.1])


def shell(count: int = 1200, size: float = 0.03) -> GaussianCloud:
    """Opaque flat splats on an ellipsoid, red on one side and blue on the other."""
    rng = generator(1)
    on_ball = torch.nn.functional.normalize(torch.randn(count, 3, generator=rng), dim=-1)
    normal = torch.nn.functional.normalize(on_ball / AXES, dim=-1)
    z = torch.tensor([0.0, 0.0, 1.0])
    turn = torch.cat([1 + normal[:, 2:], torch.linalg.cross(z.expand_as(normal), normal)], dim=-1)
    colors = torch.where(on_ball[:, :1] > 0, torch.tensor([0.9, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.9]))
    return GaussianCloud.from_values(
        CENTRE + on_ball * AXES, torch.tensor([size, size, 0.002]).expand(count, 3), turn,
        torch.full((count,), 0.95), ((colors - 0.5) / 0.28209479)[:, None],
    )  # fmt: skip


def offsets(mesh: Mesh) -> torch.Tensor:
    """About how far vertices (V,) lie outside the ellipsoid."""
    local = (mesh.vertices - CENTRE) / AXES
    return (local.norm(dim=-1) - 1) / (local / AXES).norm(dim=-1) * local.norm(dim=-1)


@pytest.mark.parametrize("method", ["tsdf", "levels"])
def test_the_surface_is_a_solid_where_the_splats_are(method: str) -> None:
    config = SurfaceConfig(method, resolution=48, level=0.5, views=20, size=72, faces=1500)  # type: ignore[arg-type]
    mesh = surface_of(shell(3000, 0.024), config)
    spacing = 2 * ball_of(shell())[1] / 48
    assert not faults(mesh) and len(mesh.faces) <= 1500
    apart = offsets(mesh)
    assert float(apart.abs().mean()) < 1.5 * spacing and float(apart.abs().max()) < 4 * spacing
    assert mesh.vertex_colors is not None
    right = mesh.vertices[:, 0] > CENTRE[0] + 0.1
    assert float(mesh.vertex_colors[right, 0].mean()) > 0.7 and float(mesh.vertex_colors[right, 2].mean()) < 0.3
    volume = float(mesh.check().signed_volume)
    assert volume == pytest.approx(4 / 3 * np.pi * float(AXES.prod()), rel=0.4)


def test_denser_splats_have_more_extinction() -> None:
    """Three equal ones behind each other are as opaque as one of three times the extinction."""
    cloud = shell(9)
    more = denser(cloud, 3.0)
    torch.testing.assert_close(1 - more.opacities, (1 - cloud.opacities) ** 3, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(denser(cloud, 1.0).logits, cloud.logits)
    assert bool(torch.isfinite(denser(replace(cloud, logits=cloud.logits + 60), 8.0).logits).all())


def test_levels_are_sums_of_gaussians() -> None:
    """At every lattice point within three deviations, with half a spacing more of size."""
    rng = generator(3)
    cloud = GaussianCloud.from_values(
        0.2 * torch.randn(5, 3, generator=rng), 0.1 + 0.1 * torch.rand(5, 3, generator=rng),
        torch.randn(5, 4, generator=rng), torch.rand(5, generator=rng), torch.randn(5, 1, 3, generator=rng),
    )  # fmt: skip
    lattice, low, spacing = opacity_lattice(cloud, torch.tensor([0.05, 0.0, -0.1]), 0.8, 9)
    from unproject.geometry.splats.cloud import rotation_matrices

    index = np.stack(np.meshgrid(*[np.arange(9)] * 3, indexing="ij"), -1)
    apart = torch.from_numpy(low + spacing * index).view(-1, 1, 3) - cloud.means.double()
    axes = rotation_matrices(cloud.quaternions.double())
    local = torch.einsum("nji,pnj->pni", axes, apart) / (cloud.scales.double() ** 2 + 0.25 * spacing**2).sqrt()
    far = local.square().sum(-1)
    weight = cloud.opacities.double() * torch.exp(-0.5 * far) * (far <= 9)
    np.testing.assert_allclose(lattice.reshape(-1), weight.sum(1), atol=1e-5)


def test_hollows_are_filled_and_settings_are_checked() -> None:
    mesh = level_surface(shell(), *ball_of(shell()), 40, 0.5)
    assert mesh.check().components == 1
    with pytest.raises(InputError, match="cannot be fused"):
        flat = Camera(torch.eye(4)[None], torch.eye(3)[None], 8, 8, model="ortho")
        tsdf_surface(shell(), flat, CENTRE, 0.6, 8)
    with pytest.raises(InputError, match="resolution >= 8"):
        SurfaceConfig(resolution=4)


def test_strays_do_not_count_for_the_ball() -> None:
    cloud = shell()
    means = cloud.means.clone()
    means[:5] = torch.tensor([50.0, 0.0, 0.0])
    centre, radius = ball_of(replace(cloud, means=means))
    torch.testing.assert_close(centre, CENTRE, atol=0.05, rtol=0)
    assert 0.45 < radius < 0.65
    assert facts_of(replace(cloud, means=means))["strays"] == pytest.approx(5 / 1200)


def test_the_render_mode_of_a_file_is_honoured(tmp_path: Path) -> None:
    small = shell(200)
    small = replace(small, log_scales=small.log_scales - 3, mode="mip")
    back = load_splats(save_splats(small, tmp_path / "a.ply"))
    camera = orbit_around(SplatView(small), 1, 32)
    said, plain, smooth = (SplatView(back, mode).look(camera).alpha for mode in (None, False, True))
    assert torch.equal(said, smooth) and float((said - plain).abs().mean()) > 1e-3
    assert not torch.equal(SplatView(replace(back, mode="default")).look(camera).alpha, said)


def test_pictures_of_splats_from_all_sides() -> None:
    view = SplatView(shell(400))
    assert contact_sheet(view, size=16, views=3).shape == (64, 48, 3)
    frames = render_turntable(view, frames=4, size=24)
    assert len(frames) == 4 and not np.array_equal(frames[0], frames[2])
    camera = orbit_around(view, 1, 32, azimuth_deg=0.0)
    layers = cut_out(SplatView(shell()), camera)
    assert layers.shape == (32, 32, 4) and layers[0, 0, 3] == 0 and layers[16, 16, 3] > 200
    assert layers[16, 16, 0] > 180 > 100 > layers[16, 16, 2]  # the red side is in front
    over = draw(shell(), camera, ("rgb",), 0.5)[0]
    alpha = layers[..., 3:].astype(float) / 255
    mixed = layers[..., :3] / 255 * alpha + 0.5 * (1 - alpha)
    assert float(np.abs(mixed - over.rgb[0].numpy()).max()) < 0.02


def test_facts_name_what_is_broken(tmp_path: Path) -> None:
    cloud = shell(300)
    means, turns, logits = cloud.means.clone(), cloud.quaternions.clone(), cloud.logits.clone()
    means[3, 1], turns[4:6], logits[6], logits[7:10] = torch.nan, 0.0, torch.nan, -9.0
    broken = replace(cloud, means=means, quaternions=turns, logits=logits, mode="mip")
    from unproject.geometry.splats.ply import write_ply

    (tmp_path / "a.ply").write_bytes(write_ply(broken))
    facts = facts_of(read_splats(tmp_path / "a.ply"))
    assert facts["splats"] == 300 and facts["render_mode"] == "mip" and facts["sh_degree"] == 0
    wanted = {"splats": 4, "positions": 1, "scales": 0, "rotations": 2, "opacities": 1, "harmonics": 0}
    assert facts["broken"] == wanted and facts["opacity"]["faint"] == pytest.approx(3 / 296)
    assert facts["scale"]["median"] == pytest.approx(0.03, rel=1e-4) and facts["scale"]["needles"] == 0
    assert facts["opacity"]["median"] == pytest.approx(0.95, rel=1e-4)
    assert "bounds_low" not in facts_of(replace(cloud, means=torch.full_like(means, torch.inf)))


def test_formats_say_what_they_lose() -> None:
    cloud = replace(shell(50).with_degree(2), mode="mip")
    assert losses(cloud, ".ply") == []
    assert losses(cloud, ".glb") == ["the render mode mip is not said"]
    assert any("degree 2 are left out" in text for text in losses(cloud, ".splat"))
    assert any("24 bits" in text for text in losses(replace(cloud, mode="default"), ".spz"))
    assert len(losses(replace(cloud, mode="2dgs"), ".compressed.ply")) == 1
    assert losses(replace(cloud, mode="2dgs"), ".glb")[1] == "flat splats become thin ones"


@pytest.mark.parametrize("name", ["a.ply", "a.compressed.ply", "a.splat", "a.glb"])
def test_files_of_splats_are_told_from_others(tmp_path: Path, name: str) -> None:
    assert is_splat_file(save_splats(shell(20), tmp_path / name))
    if name in ("a.ply", "a.glb"):
        box = Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]))
        assert not is_splat_file(box.save(tmp_path / f"mesh{name[1:]}"))
        (tmp_path / name).write_bytes(b"nothing of the kind")
        assert not is_splat_file(tmp_path / name)
