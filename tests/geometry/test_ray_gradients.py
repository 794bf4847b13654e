"""Gradients of volume rendering with respect to rays, camera poses and lenses, against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unproject.geometry.cameras import Camera, intrinsics_from_fov, orbit_pose
from unproject.geometry.fields import Field, FieldConfig, GridConfig, HashConfig, HeadConfig, make_field
from unproject.geometry.fields.rows import weighted_rows
from unproject.geometry.volume import VolumeConfig, render
from unproject.utils.seeds import generator

KINDS = ("grid", "hash", "triplane")


def field(kind: str) -> Field:
    """A fog without symmetry."""
    choice = FieldConfig(
        kind=kind,
        head=HeadConfig(beta=(0.2,)),
        grid=GridConfig(sides=(7,), starts=(0,)),
        hash=HashConfig(levels=3, coarse=3, fine=7),
    )
    made = make_field(choice, generator(0)).double()
    with torch.no_grad():
        for index, parameter in enumerate(made.parameters()):
            noise = torch.randn(parameter.shape, generator=generator(index), dtype=torch.float64)
            parameter.add_(noise, alpha=0.0 if parameter is getattr(made.head, "log_beta", None) else 0.1)
    return made


class Bundle:
    """Four rays, one of which misses the ball."""

    def __init__(self, origins: Tensor, directions: Tensor) -> None:
        self.origins, self.directions = origins, directions

    def rays(self) -> tuple[Tensor, Tensor]:
        return self.origins[None, None], self.directions[None, None]


def seen(made: Field, rays: Camera | Bundle, pull: Tensor) -> Tensor:
    out = render(made, rays, 0.3, VolumeConfig(step=0.07, hidden=0.0), normals=False)
    return (torch.cat([out.rgb, out.alpha, out.depth], dim=-1).reshape(-1, 5) * pull).sum()


def differences(function, values: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a scalar function of values, by each of them."""
    slopes = torch.zeros_like(values)
    for place in range(values.numel()):
        offset = torch.zeros_like(values).view(-1)
        offset[place] = step
        offset = offset.view_as(values)
        with torch.no_grad():
            slopes.view(-1)[place] = (function(values + offset) - function(values - offset)) / (2 * step)
    return slopes


@pytest.mark.parametrize("kind", KINDS)
def test_rays(kind: str) -> None:
    made = field(kind)
    pull = torch.randn(4, 5, generator=generator(5), dtype=torch.float64)
    origins = torch.tensor([[2.0, 0.3, -0.2], [1.5, -1.0, 0.4], [0.1, 0.2, 0.3], [2.0, 2.0, 2.0]]).double()
    aims = torch.tensor([[-1.0, -0.1, 0.2], [-0.9, 0.8, -0.1], [0.4, 1.0, -0.3], [1.0, 0.0, 0.0]]).double()
    values = torch.stack([origins, aims]).requires_grad_()
    seen(made, Bundle(*values), pull).backward()
    expected = differences(lambda v: seen(made, Bundle(*v), pull), values.detach())
    assert float(expected[:, :3].abs().min()) > 1e-6 and float(expected[:, 3].abs().max()) == 0
    torch.testing.assert_close(values.grad, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_pose_and_lens(kind: str) -> None:
    """c2w exp(motion) with a motion of six numbers, and the focal length and principal point."""
    made, start = field(kind), Camera.orbit(25.0, 15.0, 2.5, 40.0, 2)
    pull = torch.randn(4, 5, generator=generator(6), dtype=torch.float64)

    def view(values: Tensor) -> Camera:
        turn, move, lens = values.split(3)
        x, y, z = turn
        zero = torch.zeros_like(x)
        skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)
        rigid = torch.cat([skew, move[:, None]], dim=1)
        motion = torch.matrix_exp(torch.cat([rigid, torch.zeros(1, 4, dtype=torch.float64)]))
        f, cx, cy = lens
        shift = torch.stack([f, zero, cx, zero, f, cy, zero, zero, zero]).view(1, 3, 3)
        return Camera(start.c2w.double() @ motion, start.K.double() + shift, 2, 2)

    values = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    seen(made, view(values), pull).backward()
    expected = differences(lambda v: seen(made, view(v), pull), values.detach())
    assert float(expected.abs().min()) > 1e-4
    torch.testing.assert_close(values.grad, expected, atol=1e-6, rtol=1e-5)


def test_weights_of_rows() -> None:
    table = torch.randn(8, 3, dtype=torch.float64, generator=generator(0)).requires_grad_()
    index = torch.tensor([[0, 1], [1, 1], [7, 3]])
    weight = torch.tensor([[0.2, 0.8], [0.5, 0.5], [1.0, -1.0]], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, w: weighted_rows(t, index, w), (table, weight))
    assert torch.autograd.gradcheck(lambda w: weighted_rows(table.detach(), index, w), (weight,))


def test_a_pose_is_found_again() -> None:
    """Descent on two numbers of a pose brings a render back."""
    made = field("grid").float()
    with torch.no_grad():
        truth = render(made, Camera.orbit(30.0, 20.0, 2.5, 40.0, 8), normals=False).rgb
    values = torch.tensor([0.58, 0.29], requires_grad=True)  # radians, of 0.5236 and 0.3491
    optimizer = torch.optim.Adam([values], lr=0.01)
    lens = intrinsics_from_fov(torch.deg2rad(torch.tensor([40.0])), 8, 8)
    for _ in range(60):
        optimizer.zero_grad()
        pose = orbit_pose(values[:1], values[1:], torch.tensor([2.5]))
        (render(made, Camera(pose, lens, 8, 8), normals=False).rgb - truth).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(values.detach(), torch.deg2rad(torch.tensor([30.0, 20.0])), atol=0.01, rtol=0)
