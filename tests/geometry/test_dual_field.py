"""Six planes as a field and a shape: where points lie on them, formulas, exact gradients, closed meshes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from unproject.geometry.cameras import Camera
from unproject.geometry.extract import EmptySurfaceError
from unproject.geometry.fields import DualConfig, DualField, FieldConfig, HeadConfig, make_head
from unproject.geometry.fields.dual import lookup, on_planes, pulled
from unproject.geometry.report import signed_volume
from unproject.geometry.representation import MeshConfig
from unproject.geometry.shapes import ShapeConfig, load_shape, make_shape
from unproject.geometry.shapes.dual import DualVolume, surface_lattice
from unproject.geometry.shapes.volume import VolumeShapeConfig
from unproject.geometry.silhouettes import draw_mesh
from unproject.utils.errors import InputError

SMALL = FieldConfig("dual", head=HeadConfig("neus", inverse_std=(60.0,)), dual=DualConfig(16, 6, 12))


def field(seed: int = 0, config: FieldConfig = SMALL, size: float = 1.0) -> DualField:
    rng = torch.Generator().manual_seed(seed)
    made = DualField(config.dual, make_head(config.head), config.half, rng)
    with torch.no_grad():
        made.planes.copy_(size * torch.randn(made.planes.shape, generator=rng))
    return made


def volume(seed: int = 0, size: float = 1.0) -> DualVolume:
    shape = make_shape(ShapeConfig("dual", dual=VolumeShapeConfig(SMALL)), torch.Generator().manual_seed(seed))
    assert isinstance(shape, DualVolume)
    with torch.no_grad():
        shape.planes.planes.copy_(field(seed, size=size).planes)
    return shape


def some_points(count: int = 200, seed: int = 3) -> torch.Tensor:
    return 1.8 * torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) - 0.9


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", [-1, 1])
def test_probes_along_the_axes_land_where_a_drawn_view_has_them(axis, sign):
    """Seen from above x goes down and y right; from +y z goes up and -x right; from +x z goes up and y right."""
    point = torch.zeros(1, 3)
    point[0, axis] = 0.5 * sign
    side, reach = 16, 0.5 * sign * 8
    middle = (side - 1) / 2
    expected = {  # (row, column) on planes 0, 1, 2
        0: ((middle + reach, middle), (middle, middle - reach), (middle, middle)),
        1: ((middle, middle + reach), (middle, middle), (middle, middle + reach)),
        2: ((middle, middle), (middle - reach, middle), (middle - reach, middle)),
    }[axis]
    y, x = torch.meshgrid(torch.arange(side) * 1.0, torch.arange(side) * 1.0, indexing="ij")
    ramps = torch.stack([y, x]).expand(3, 2, side, side)  # what a plane tells is where it was read
    found = lookup(ramps, on_planes(point))[:, 0]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_own_lookup_is_torchs_with_zeros_outside():
    rng = torch.Generator().manual_seed(0)
    planes = torch.randn(3, 5, 7, 9, generator=rng, dtype=torch.float64)
    places = 2.6 * torch.rand(3, 400, 2, generator=rng, dtype=torch.float64) - 1.3
    theirs = torch.nn.functional.grid_sample(planes, places[:, None], align_corners=False)[:, :, 0].mT
    torch.testing.assert_close(lookup(planes, places), theirs)


def test_distance_and_colour_are_the_formulas_of_the_paper():
    one, points = field(), some_points()
    value, color = one.snapshot().value_color(points)
    heads, planes = one.heads, lookup(one.planes, on_planes(points).repeat(2, 1, 1))

    def mlp(net, x):
        for layer in (net.layers[0], net.layers[2]):
            x = (x @ layer.weight.T).clamp_min(0)
        return x @ net.layers[4].weight.T

    summed = planes[0] + planes[1] + planes[2]
    torch.testing.assert_close(value, mlp(heads.sdf_network, summed)[:, 0] + points.norm(dim=-1) - 0.5)
    texture = torch.sigmoid(mlp(heads.feature_network, torch.cat([planes[3], planes[4], planes[5]], -1)))
    torch.testing.assert_close(color, texture * 1.002 - 0.001)
    torch.testing.assert_close(one.distance(points), value)
    torch.testing.assert_close(one.deformation(points), mlp(heads.deformation_network, summed))


def test_the_gradient_is_exact_and_has_one():
    one = field(config=replace(SMALL, dual=DualConfig(8, 3, 8))).double()
    points = some_points(40).double()
    found = one.snapshot().gradient(points)
    h = 1e-6
    for axis in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[axis] = h
        slope = (one.distance(points + step) - one.distance(points - step)) / (2 * h)
        torch.testing.assert_close(found[:, axis], slope, atol=1e-5, rtol=1e-4)  # away from kinks, which are rare
    (grads,) = torch.autograd.grad((found.norm(dim=-1) - 1).square().mean(), [one.planes])
    place = (1, 2, 4, 5)
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            one.planes[place] += sign * 1e-5
            values.append(float((one.snapshot().gradient(points).norm(dim=-1) - 1).square().mean()))
            one.planes[place] -= sign * 1e-5
    assert float(grads[place]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3, abs=1e-8)
    with torch.no_grad():
        assert not one.snapshot().gradient(points).requires_grad


def test_silent_networks_give_the_sphere_they_start_from():
    shape = volume()
    with torch.no_grad():
        shape.planes.heads.sdf_network.layers[4].weight.zero_()
        shape.planes.heads.deformation_network.layers[4].weight.zero_()
    mesh = shape.to_mesh(MeshConfig(resolution=128))
    radius = mesh.vertices.norm(dim=-1)
    assert float(radius.min()) > 0.4995 and float(radius.max()) < 0.5005
    inside = signed_volume(mesh.vertices.double().numpy()[mesh.faces.numpy()])
    assert inside == pytest.approx(4 / 3 * np.pi * 0.5**3, rel=0.01)


def test_a_level_is_how_far_outside_the_mesh_lies():
    """The ball of the start, larger by the level; what the volume shows stays."""
    config = replace(SMALL, dual=replace(SMALL.dual, level=0.1))
    shape = make_shape(ShapeConfig("dual", dual=VolumeShapeConfig(config)), torch.Generator().manual_seed(0))
    assert isinstance(shape, DualVolume)
    with torch.no_grad():
        for layer in shape.planes.heads.parameters():
            layer.zero_()
    far = shape.mesh(33).vertices.detach().norm(dim=-1)
    torch.testing.assert_close(far, torch.full_like(far, 0.6), rtol=0, atol=0.01)
    points = torch.tensor([[0.55, 0.0, 0.0], [0.0, 0.0, 0.62]])
    torch.testing.assert_close(shape.planes.distance(points), torch.tensor([0.05, 0.12]), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="level=-0"):
        DualConfig(level=-0.1)


@pytest.mark.parametrize("size", [0.3, 2.0])
def test_meshes_are_closed_however_wild_the_distance(size):
    for seed in range(3):
        report = volume(seed, size).to_mesh(MeshConfig(resolution=33)).check()
        assert report.watertight and report.winding_consistent


def test_the_search_finds_what_the_whole_lattice_has():
    shape = volume(1, 1.5)
    lattice = surface_lattice(shape.planes, 33)
    axis = torch.linspace(-1, 1, 33)
    everywhere = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
    inside = shape.planes.distance(everywhere.view(-1, 3)).detach().view(33, 33, 33) < 0
    inside[[0, -1]] = inside[:, [0, -1]] = inside[:, :, [0, -1]] = False
    count = torch.nn.functional.avg_pool3d(inside.float()[None], 2, 1)[0]
    assert len(lattice.cells) == 6 * int(((count > 0) & (count < 1)).sum())


def test_meshes_have_gradients_in_planes_and_all_networks_and_corners_stay_in_reach():
    shape = volume(2)
    mesh = shape.mesh(21)
    assert bool(((mesh.vertex_colors >= 0) & (mesh.vertex_colors <= 1)).all())
    (mesh.vertices.square().sum() + mesh.vertex_colors.sum()).backward()
    assert all(float(p.grad.abs().max()) > 0 for p in (shape.planes.planes, *shape.planes.heads.parameters()))


def test_factors_pull_less_and_change_no_value():
    one, points = field(), some_points()
    whole = torch.autograd.grad(one.raw(points).square().sum(), [one.planes])[0]
    value = one.raw(points)
    one.pull = (0.25, 0.5)
    torch.testing.assert_close(one.raw(points), value)
    part = torch.autograd.grad(one.raw(points).square().sum(), [one.planes])[0]
    torch.testing.assert_close(part[:3], 0.25 * whole[:3])
    torch.testing.assert_close(part[3:], 0.5 * whole[3:])
    x = torch.ones(2, requires_grad=True)
    assert pulled(x, 1.0) is x


def test_without_a_surface_there_is_one_to_learn_from_only_where_that_is_wanted():
    shape = volume(0, 0.0)
    tiny = DualVolume(VolumeShapeConfig(SMALL))
    tiny.planes.head.start_shape = lambda points: points.norm(dim=-1) + 0.2  # everything outside
    with pytest.raises(EmptySurfaceError, match="outside"):
        tiny.to_mesh(MeshConfig(resolution=17))
    forced = tiny.mesh(17, forced=True)
    assert len(forced.faces) > 0 and bool((forced.vertices.norm(dim=-1) < 2 / 16 * 1.8).all())
    with torch.no_grad():
        shape.planes.planes.fill_(torch.nan)
    with pytest.raises(InputError, match="not finite"):
        shape.to_mesh(MeshConfig(resolution=17))


def test_the_logistic_head_lets_through_the_quotient_of_its_distribution():
    """A ray head on into a plane: T from f1 to f2 is Phi(f2) / Phi(f1)."""
    head = make_head(HeadConfig("neus", inverse_std=(100.0,)))
    f = torch.linspace(0.05, -0.02, 20_001, dtype=torch.float64)
    density = head.density(f)
    optical = torch.trapezoid(density, -f)
    phi = torch.sigmoid(100 * f)
    assert float(torch.exp(-optical)) == pytest.approx(float(phi[-1] / phi[0]), rel=1e-6)
    with pytest.raises(InputError, match="inverse_std"):
        HeadConfig("neus", inverse_std=(0, 10.0, -1.0, 1))


def test_both_renders_show_the_same_sphere():
    shape = volume(0, 0.0)
    shape.planes.head.inverse_std.fill_(400.0)
    camera = Camera.orbit([20.0, 110.0], 15.0, 3.0, 40.0, 48)
    fine = replace(shape.config.rays, step=0.004)
    shape.config = replace(shape.config, rays=fine)
    with torch.no_grad():
        seen, drawn = shape.render(camera), draw_mesh(shape.mesh(65), camera)
    both = (seen.alpha > 0.99) & (drawn.alpha > 0.99)
    assert float((seen.alpha - drawn.alpha).abs().mean()) < 0.01
    assert float((seen.depth - drawn.depth)[both].abs().mean()) < 0.006  # grazing rays apart
    assert float((seen.normal * drawn.normal).sum(-1)[both[..., 0]].mean()) > 0.99
    assert float((seen.rgb - drawn.rgb)[both.expand_as(seen.rgb)].abs().max()) < 0.02


def test_saved_and_read_again(tmp_path):
    shape = volume(4)
    again = load_shape(shape.save(tmp_path / "shape"))
    assert torch.equal(again.planes.planes, shape.planes.planes)
    with pytest.raises(InputError, match="six planes"):
        DualVolume(VolumeShapeConfig(FieldConfig("grid")))
