"""Fields: lookups, heads, start shapes, normals, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from unproject.geometry.fields import (
    FieldConfig,
    GridConfig,
    GridField,
    HeadConfig,
    TriplaneConfig,
    make_field,
    make_head,
)
from unproject.geometry.fields.hashgrid import hashed
from unproject.geometry.fields.rows import trilinear, weighted_rows
from unproject.utils.errors import InputError
from unproject.utils.ramps import Moment, Ramp
from unproject.utils.seeds import generator

KINDS = ("grid", "hash", "triplane")


def points(count: int = 64, half: float = 0.9, seed: int = 0) -> torch.Tensor:
    return (2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) - 1) * half


def make(kind: str = "grid", head: str = "sdf", **options) -> torch.nn.Module:
    config = FieldConfig(kind=kind, head=HeadConfig(kind=head, beta=(0.05,)), **options)
    return make_field(config, torch.Generator().manual_seed(1))


def test_trilinear_reproduces_affine_functions():
    side = 5
    axis = torch.linspace(-1, 1, side)
    nodes = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).view(-1, 3)
    affine = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.1, -1.0]])
    table = nodes @ affine.t() + 0.7
    x = points(100, 1.0)
    torch.testing.assert_close(weighted_rows(table, *trilinear(x, side, 1.0)), x @ affine.t() + 0.7)


def test_trilinear_clamps_outside_and_hits_nodes():
    table = torch.arange(27.0)[:, None]
    corner = torch.tensor([[-5.0, -5.0, -5.0], [5.0, 5.0, 5.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 1.0]])
    got = weighted_rows(table, *trilinear(corner, 3, 1.0))[:, 0]
    assert got.tolist() == [0.0, 26.0, 13.0, 0 * 9 + 1 * 3 + 2.0]


def test_weighted_rows_gradient():
    table = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    index = torch.tensor([[0, 1], [1, 1], [7, 3]])
    weight = torch.tensor([[0.2, 0.8], [0.5, 0.5], [1.0, -1.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: weighted_rows(t, index, weight), (table,))


@pytest.mark.parametrize("kind", KINDS)
def test_start_is_a_sphere(kind):
    field, x = make(kind), points(200)
    value, color = field.snapshot().value_color(x)
    tolerance = 0.0 if kind == "grid" else 0.05
    torch.testing.assert_close(value, x.norm(dim=-1) - 0.5, atol=tolerance + 1e-6, rtol=0)
    torch.testing.assert_close(color, torch.full_like(color, 0.5), atol=0.05, rtol=0)
    cosine = (field.snapshot().normal(x) * torch.nn.functional.normalize(x, dim=-1)).sum(-1)
    assert cosine[x.norm(dim=-1) > 0.2].min() > 0.9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["sdf", "density"])
def test_density_is_high_inside_and_low_outside(kind, head):
    field = make(kind, head)
    inside, outside = field.density(points(20, 0.1)), field.density(torch.tensor([[0.9, 0.0, 0.0], [0.0, -0.9, 0.1]]))
    assert inside.min() > 10 > 2 > outside.max()
    assert field.color(points(20)).min() >= 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient(kind):
    field = make(kind)
    density, color = field.snapshot().density_color(points(500, 0.6))
    (density.sum() + color.square().sum() + field.roughness()).backward()
    missing = [name for name, p in field.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    grouped = {id(p) for group in field.param_groups(1.0) for p in group["params"]}
    assert grouped == {id(p) for p in field.parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["sdf", "density"])
def test_normals_point_outward(kind, head):
    field, x = make(kind, head), points(100, 0.4)
    x = x[x.norm(dim=-1) > 0.15]
    cosine = (field.snapshot().normal(x) * torch.nn.functional.normalize(x, dim=-1)).sum(-1)
    assert cosine.min() > 0.9


def test_triplanes_read_their_own_axes():
    """Plane k holds a ramp along each of its two axes; the decoder passes one feature on."""
    field = make("triplane", triplane=TriplaneConfig(side=5, features=1, width=2))
    slopes = [(1.0, 10.0), (100.0, 1000.0), (1e4, 1e5)]  # of (x, y), (x, z), (y, z)
    axis = torch.linspace(-1, 1, 5)
    pass_on = field.decoder.layers[0].weight, field.decoder.layers[1].weight
    with torch.no_grad():
        for plane, (first, second) in zip(field.planes, slopes, strict=True):
            plane.copy_((first * axis[None, :] + second * axis[:, None])[None])
        pass_on[0].copy_(torch.tensor([[1.0], [-1.0]]))  # relu(f) - relu(-f) = f
        pass_on[1].copy_(torch.tensor([[1.0, -1.0]]).expand(4, 2))
    x = points(50)
    expected = x @ torch.tensor([101.0, 10010.0, 101000.0])
    torch.testing.assert_close(field.query()(x)[:, 0], expected, rtol=1e-5, atol=1e-2)


def test_laplace_density_closed_form():
    head = make_head(HeadConfig(beta=(0.1,)))
    value = torch.tensor([-1.0, 0.0, 0.1, 1.0])
    expected = torch.tensor([1 - 0.5 * math.exp(-10), 0.5, 0.5 * math.exp(-1), 0.5 * math.exp(-10)]) / 0.1
    torch.testing.assert_close(head.density(value), expected)


def test_beta_follows_its_ramp_or_is_learnt():
    head = make_head(HeadConfig(beta=(0, 0.1, 0.02, 0.5)))
    head.on_step(Moment(50, 200))
    assert float(head.beta) == pytest.approx(0.06)
    head.on_step(Moment(100, 200))
    assert float(head.beta) == pytest.approx(0.02)
    learnt = make_head(HeadConfig(beta=(0, 0.1, 0.02, 1), learn_beta=True))
    learnt.on_step(Moment(5, 5))
    assert float(learnt.beta) == pytest.approx(0.1)
    learnt.density(torch.zeros(1)).sum().backward()
    assert learnt.log_beta.grad is not None


def test_pyramid_levels_add_up_and_start_late():
    config = GridConfig(sides=(3, 5), starts=(0, 0.1))
    field = GridField(config, make_head(HeadConfig(beta=(0.1,))))
    with torch.no_grad():
        field.geometry[0].fill_(0.25)
        field.geometry[1].fill_(0.5)
    x = points(10)
    base = x.norm(dim=-1) - 0.5
    torch.testing.assert_close(field.snapshot().value_color(x)[0], base + 0.25)
    field.on_step(Moment(9, 100))
    assert field.spacing == 1.0
    field.on_step(Moment(10, 100))
    torch.testing.assert_close(field.snapshot().value_color(x)[0], base + 0.75)
    assert field.spacing == 0.5


def test_roughness_of_affine_grids_is_zero():
    field = GridField(GridConfig(sides=(5,), starts=(0,)), make_head(HeadConfig()))
    with torch.no_grad():
        field.geometry[0].copy_(torch.linspace(-1, 1, 5).view(1, 1, 5, 1, 1).expand(1, 1, 5, 5, 5))
    assert float(field.roughness()) < 1e-10


def test_roughness_is_the_mean_square_of_second_differences():
    field = GridField(GridConfig(sides=(6,), starts=(0,)), make_head(HeadConfig()))
    with torch.no_grad():
        field.geometry[0].copy_(torch.randn(1, 1, 6, 6, 6, generator=generator(0)))
        field.colors[0].copy_(torch.randn(1, 3, 6, 6, 6, generator=generator(1)))
    bends = [[torch.diff(g, n=2, dim=axis) for axis in (2, 3, 4)] for g in (field.geometry[0], field.colors[0])]
    expected = sum((b / field.spacing).square().mean() for b in bends[0]) + sum(b.square().mean() for b in bends[1])
    torch.testing.assert_close(field.roughness(), expected)


@pytest.mark.parametrize("sides", [(5, 9), (5, 8)], ids=["nested", "not nested"])
def test_levels_are_upsampled_trilinearly(sides):
    field = GridField(GridConfig(sides=sides, starts=(0, 0)), make_head(HeadConfig()))
    with torch.no_grad():
        field.colors[0].copy_(torch.randn(1, 3, 5, 5, 5, generator=generator(0)))
    expected = torch.nn.functional.interpolate(field.colors[0], (sides[1],) * 3, mode="trilinear", align_corners=True)
    torch.testing.assert_close(field.summed()[:, 1:], expected)


@pytest.mark.parametrize("kind", ["grid", "hash", "triplane"])
def test_roughness_may_share_the_work_of_a_query(kind):
    field = make_field(FieldConfig(kind=kind), generator(2))
    with torch.no_grad():
        for index, parameter in enumerate(field.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(index)))
    shared = field.roughness(field.snapshot().query)
    torch.testing.assert_close(shared, field.roughness())
    shared.backward()


def test_wrong_configs_name_the_value():
    with pytest.raises(InputError, match="sides"):
        GridConfig(sides=(33, 17), starts=(0, 0))
    with pytest.raises(InputError, match="schedule"):
        Ramp.of([1, 2])
    with pytest.raises(InputError, match="positive"):
        HeadConfig(radius=0.0)


def test_a_hash_grid_keeps_points_and_has_the_gradients_of_its_rows():
    field = make("hash").double()
    with torch.no_grad():
        for index, parameter in enumerate(field.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator(index), dtype=torch.float64), alpha=0.1)
    sources, pull = [points(40).double(), *field.tables], torch.randn(40, 4, generator=generator(9)).double()
    results = []
    for ask in (field.query(), lambda x: field.decoder(torch.cat([rows(field, x, n) for n in range(6)], dim=-1))):
        at, kept = sources[0].clone().requires_grad_(), []

        def keep(tensor, kept=kept):
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = ask(at)
        results.append((torch.autograd.grad((out * pull).sum(), [at, *field.tables]), sum(kept)))
    (grads, few), (expected, many) = results
    torch.testing.assert_close(grads, expected)
    assert few < many - 6 * 40 * 16 + 3 * 40 + 1, "eight rows and weights a level are not kept"


def rows(field: torch.nn.Module, at: torch.Tensor, level: int) -> torch.Tensor:
    """Features of one level by rows that are kept."""
    table = field.tables[level]
    return weighted_rows(table, *hashed(at, field.config.resolutions[level], len(table), field.half_side))
