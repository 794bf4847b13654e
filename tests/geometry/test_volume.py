"""Volume rendering against closed forms: homogeneous ball, opaque sphere, linear depth, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from unproject.geometry.cameras import Camera
from unproject.geometry.fields import (
    FieldConfig,
    GridConfig,
    GridField,
    HashConfig,
    HeadConfig,
    make_field,
    make_head,
)
from unproject.geometry.volume import (
    Occupancy,
    Room,
    VolumeConfig,
    drop_hidden,
    first_places,
    kept_bytes,
    place_samples,
    render,
    transmittance,
)

RADIUS = 0.5


def sphere(beta: float = 0.004) -> GridField:
    """A hard sphere: signed distance with a steep density."""
    head = make_head(HeadConfig(radius=RADIUS, beta=(beta,), beta_min=beta))
    return GridField(GridConfig(sides=(33,), starts=(0,)), head)


def camera(size: int = 33, azimuth: float = 30.0, elevation: float = 20.0) -> Camera:
    return Camera.orbit(azimuth, elevation, 3.0, 40.0, size)


def analytic_sphere(camera: Camera) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(hit, z-depth, normal) of the sphere, (B, H, W, 1 or 3)."""
    origins, directions = camera.rays()
    a, b = directions.square().sum(-1), (origins * directions).sum(-1)
    c = origins.square().sum(-1) - RADIUS**2
    root = b * b - a * c
    depth = (-b - root.clamp_min(0).sqrt()) / a
    point = origins + depth[..., None] * directions
    return (root > 0)[..., None], depth[..., None], point / RADIUS


def test_homogeneous_ball_opacity_is_one_minus_exp_of_the_chord():
    field = sphere()
    density = 2.0
    field.head.density = lambda value: torch.full_like(value, density)  # type: ignore[method-assign]
    config = VolumeConfig(step=0.005, radius=RADIUS, hidden=0.0)
    view = camera(17)
    out = render(field, view, 0.0, config, normals=False)
    origins, directions = view.rays()
    unit = torch.nn.functional.normalize(directions, dim=-1)
    middle = -(origins * unit).sum(-1)
    chord = 2 * (RADIUS**2 - (origins + middle[..., None] * unit).square().sum(-1)).clamp_min(0).sqrt()
    torch.testing.assert_close(out.alpha[..., 0], 1 - torch.exp(-density * chord), atol=density * config.step, rtol=0)


def test_opaque_sphere_matches_ray_intersection():
    view = camera(48)
    out = render(sphere(), view, 1.0, VolumeConfig(step=0.01))
    hit, depth, normal = analytic_sphere(view)
    core = hit & (out.alpha > 0.999)
    union = (hit | (out.alpha > 0.5)).sum()
    assert float((hit & (out.alpha > 0.5)).sum() / union) > 0.97
    assert float((out.depth - depth)[core].abs().mean()) < 0.01 * RADIUS
    angle = torch.rad2deg(torch.acos((out.normal * normal).sum(-1, keepdim=True).clamp(-1, 1)))
    assert float(angle[core].median()) < 2.0
    assert float(out.depth[~hit & (out.alpha < 1e-3)].abs().max()) == 0.0


def test_background_shows_where_nothing_is():
    background = torch.tensor([[0.1, 0.5, 0.9]])
    out = render(sphere(), camera(), background)
    torch.testing.assert_close(out.rgb[0, 0, 0], background[0])
    assert float(out.alpha[0, 0, 0]) == 0.0


@pytest.mark.parametrize("kind", ["grid", "hash", "triplane"])
def test_occupancy_changes_nothing_visible(kind):
    config = VolumeConfig(occupied=1e-3, hidden=0.0)
    choice = FieldConfig(kind=kind, head=HeadConfig(beta=(0.01,)))
    field = make_field(choice, torch.Generator().manual_seed(0))
    occupancy = Occupancy(config, field.half_side)
    full = render(field, camera(), 1.0, config, occupancy, normals=False)
    occupancy.update(field, torch.Generator().manual_seed(0))
    assert 0.02 < occupancy.share < 0.5
    skipped = render(field, camera(), 1.0, config, occupancy, normals=False)
    torch.testing.assert_close(skipped.rgb, full.rgb, atol=2e-3, rtol=0)


def test_occupied_cells_are_those_with_density():
    """A bar far from the middle, of another length along each axis."""
    config, half = VolumeConfig(cells=16, step=0.05), 1.0
    low, high = torch.tensor([-0.9, 0.1, 0.4]), torch.tensor([-0.6, 0.9, 0.6])
    field = sphere()
    distance = lambda p: torch.maximum(low - p, p - high).amax(-1)  # noqa: E731
    field.head.start_shape = distance  # type: ignore[method-assign]
    occupancy = Occupancy(config, half)
    points = 2 * torch.rand(20_000, 3, generator=torch.Generator().manual_seed(1)) - 1
    assert bool(occupancy.at(points).all()) and occupancy.share == 1
    occupancy.update(field, torch.Generator().manual_seed(0))
    occupied, away = occupancy.at(points), distance(points)
    assert bool(occupied[away < 0].all())
    assert not bool(occupied[away > 3 * 2 * half / 16].any())
    assert 0.02 < occupancy.share < 0.12


def test_hidden_samples_carry_no_weight():
    kept = render(sphere(0.02), camera(), 1.0, VolumeConfig(hidden=0.0), normals=False)
    dropped = render(sphere(0.02), camera(), 1.0, VolumeConfig(hidden=1e-3), normals=False)
    torch.testing.assert_close(dropped.alpha, kept.alpha, atol=1.1e-3, rtol=0)


def test_jitter_follows_the_generator():
    def shot(seed: int) -> torch.Tensor:
        return render(sphere(0.05), camera(), generator=torch.Generator().manual_seed(seed), normals=False).alpha

    torch.testing.assert_close(shot(1), shot(1), atol=0, rtol=0)
    assert float((shot(1) - shot(2)).abs().max()) > 1e-4


def test_spread_is_small_for_surfaces_and_large_for_fog():
    surface = render(sphere(0.005), camera(), normals=False).extras["spread"]
    fog = render(sphere(0.3), camera(), normals=False).extras["spread"]
    middle = camera().height // 2
    assert float(surface[0, middle, middle]) < 1e-3 < 1e-2 < float(fog[0, middle, middle])


def test_gradient_matches_finite_differences():
    field = GridField(GridConfig(sides=(5,), starts=(0,)), make_head(HeadConfig(beta=(0.2,)))).double()
    view = Camera.orbit(10.0, 5.0, 3.0, 40.0, 2)
    view = type(view)(view.c2w.double(), view.K.double(), 2, 2)

    def loss() -> torch.Tensor:
        return render(field, view, 0.3, VolumeConfig(hidden=0.0), normals=False).rgb.square().sum()

    loss().backward()
    for name, place in (("geometry", (0, 0, 3, 2, 2)), ("colors", (0, 1, 2, 2, 3))):
        parameter, step = getattr(field, name)[0], 1e-5
        with torch.no_grad():
            parameter[place] += step
            up = loss()
            parameter[place] -= 2 * step
            down = loss()
            parameter[place] += step
        expected = (up - down) / (2 * step)
        assert math.isclose(float(parameter.grad[place]), float(expected), rel_tol=1e-5, abs_tol=1e-9)


def test_camera_inside_the_ball_sees_only_what_is_ahead():
    view = Camera.orbit(0.0, 0.0, 0.7, 30.0, 9)
    away = type(view)(view.c2w * view.c2w.new_tensor([-1.0, 1.0, -1.0, 1.0]), view.K, 9, 9)
    assert float(render(sphere(), view, normals=False).alpha[0, 4, 4]) > 0.99
    assert float(render(sphere(), away, normals=False).alpha[0, 4, 4]) < 1e-3


@pytest.mark.parametrize("kind", ["grid", "hash", "triplane"])
def test_rays_in_parts_have_the_same_picture_and_gradients(kind):
    """With jitter, occupied cells, hidden samples and normals; of the field and of the rays."""
    field = make_field(FieldConfig(kind=kind, head=HeadConfig(beta=(0.05,))), torch.Generator().manual_seed(0)).double()
    config = VolumeConfig(step=0.05)
    occupancy = Occupancy(config, field.half_side)
    occupancy.update(field.float(), torch.Generator().manual_seed(0))
    field.double()
    view = Camera.orbit(10.0, 5.0, 3.0, 40.0, 9)
    view = type(view)(view.c2w.double(), view.K.double(), 9, 9)
    pull = torch.randn(1, 9, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found = []
    for at_once in (None, 7):
        pose = view.c2w.clone().requires_grad_()
        seen = render(
            field,
            type(view)(pose, view.K, 9, 9),
            0.3,
            config,
            occupancy,
            torch.Generator().manual_seed(3),
            rays_at_once=at_once,
        )
        maps = torch.cat([seen.rgb, seen.alpha, seen.normal, seen.extras["spread"]], dim=-1)
        learnt = [p for p in field.parameters() if p.requires_grad]
        grads = torch.autograd.grad((maps * pull).sum(), [pose, *learnt], allow_unused=True)
        found.append([maps.detach(), *(grad for grad in grads if grad is not None)])
    assert len(found[0]) > 3 and float(found[0][0][..., 4:7].abs().sum()) > 1
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_first_places_of_a_mask():
    mask = torch.tensor([False, True, True, False, True])
    assert [first_places(mask, count).tolist() for count in (0, 2, 3, 5)] == [[], [1, 2], [1, 2, 4], [1, 2, 4, 5, 5]]
    assert first_places(torch.zeros(0, dtype=torch.bool), 0).tolist() == []


def test_normals_are_asked_where_the_weight_counts():
    view, field = camera(17), sphere(0.05)
    origins, directions = view.rays()
    rays = origins.reshape(-1, 3), torch.nn.functional.normalize(directions, dim=-1).reshape(-1, 3)
    config = VolumeConfig()
    samples, count = place_samples(*rays, torch.full((17 * 17,), 0.5), config, None)
    kept, weighty, counted = drop_hidden(field.snapshot(), samples, config, count)
    optical = field.density(kept.points) * config.step
    weight = transmittance(optical, kept) * -torch.expm1(-optical)
    assert 0 < len(weighty) < len(kept.index) < len(samples.index) == counted
    assert torch.equal(weighty, (weight > 0.01).nonzero()[:, 0])


@pytest.mark.parametrize("extra", [-40, -1, 0, 1, 300])
def test_room_for_more_or_fewer_samples_changes_nothing(extra, monkeypatch):
    """As on an accelerator, which guesses their number from the call before."""
    field, view, config = sphere(0.05), camera(9), VolumeConfig(step=0.06)
    occupancy = Occupancy(config, field.half_side)
    occupancy.update(field, torch.Generator().manual_seed(0))
    exact = render(field, view, 0.2, config, occupancy)
    given: list[int | None] = []

    def guess(room: Room, device: torch.device) -> int | None:
        given.append(room._most + (extra if len(given) == 1 else 0) if room._most else None)
        return given[-1]

    monkeypatch.setattr(Room, "on", guess)
    room = Room()
    for _ in range(2):
        found = render(field, view, 0.2, config, occupancy, room=room)
        torch.testing.assert_close(
            [found.rgb, found.alpha, found.depth, found.normal], [exact.rgb, exact.alpha, exact.depth, exact.normal]
        )
    assert len(given) == (3 if extra < 0 else 2), "what had no room is placed again"


@pytest.mark.parametrize("kind", ["grid", "hash", "triplane"])
@pytest.mark.parametrize("head", ["sdf", "density"])
def test_what_autograd_keeps_of_rays_is_what_is_said(kind, head, monkeypatch):
    """Within 10 % where numbers count, from counts of samples and normals."""
    options = {"grid": GridConfig(sides=(9,), starts=(0,)), "hash": HashConfig(levels=4, log2_rows=9)}
    choice = FieldConfig(kind=kind, head=HeadConfig(kind=head), **options)
    field = make_field(choice, torch.Generator().manual_seed(0))
    own = {p.untyped_storage()._cdata for p in field.parameters()}
    found: list[tuple[int, int]] = []

    def counting(*given):
        samples, weighty, count = drop_hidden(*given)
        found.append((len(samples.index), len(weighty)))
        return samples, weighty, count

    monkeypatch.setattr("unproject.geometry.volume.drop_hidden", counting)
    for normals in (False, True):
        kept: dict[int, tuple[torch.UntypedStorage, int]] = {}

        def keep(tensor, kept=kept):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = (storage, storage.nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            render(field, camera(24), 1.0, VolumeConfig(step=0.05), None, torch.Generator().manual_seed(0), normals)
        size = sum(size for key, (_, size) in kept.items() if key not in own)
        samples, weighty = found[-1]
        assert kept_bytes(field, samples, weighty * normals) == pytest.approx(size, rel=0.1)
        assert weighty > 100
