"""What a mesh is taken from: hidden space of a hollow body, and the colour of the outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from unproject.geometry.extract import grid_points
from unproject.geometry.fields import FieldConfig, GridConfig, HeadConfig
from unproject.geometry.representation import MeshConfig
from unproject.geometry.shapes import TriangleConfig, Triangles, Volume, VolumeShapeConfig
from unproject.geometry.shapes.surface import unseen
from unproject.geometry.volume import VolumeConfig
from unproject.utils.ramps import Moment
from unproject.utils.seeds import generator

SIDE = 33


def volume(kind: str = "sdf") -> Volume:
    head = HeadConfig(kind=kind, beta=(0.01,), scale=40.0)
    field = FieldConfig("grid", head=head, grid=GridConfig(sides=(SIDE,), starts=(0,)))
    return Volume(VolumeShapeConfig(field, VolumeConfig(step=0.03)))


def hollow(kind: str = "sdf") -> Volume:
    """A thick shell between radii 0.35 and 0.6 around a point off the middle."""
    made = volume(kind)

    def shell(points: Tensor) -> Tensor:
        r = (points - points.new_tensor([-0.15, 0.1, 0.0])).norm(dim=-1)
        return torch.maximum(r - 0.6, 0.35 - r)

    sign = 1.0 if kind == "sdf" else -60.0
    made.field.head.start_shape = lambda points: sign * shell(points)  # type: ignore[method-assign]
    made.on_step(Moment(1, 1), generator(0))
    return made


@pytest.mark.parametrize("kind", ["sdf", "density"])
def test_the_unseen_space_is_the_cavity(kind: str) -> None:
    made = hollow(kind)
    points = grid_points(SIDE, 1.0).float()
    r = (points - torch.tensor([-0.15, 0.1, 0.0])).norm(dim=-1).numpy()
    empty = (r < 0.35) | (r > 0.6)
    hidden = unseen(made, empty, 1.0, made.field.spacing, views=16)
    assert bool(hidden[r < 0.33].all()) and not bool(hidden[r > 0.62].any())
    assert not bool(unseen(made, empty, 1.0, made.field.spacing, views=0).any())
    mesh = made.to_mesh(MeshConfig(resolution=SIDE, smooth=0.0, visibility_views=16))
    assert mesh.check().components == 1
    assert mesh.check().signed_volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.03)


def test_a_dent_is_seen() -> None:
    """Space that some direction looks into stays empty, whatever represents the body."""
    ball = Triangles(TriangleConfig(subdivisions=3))
    with torch.no_grad():  # the top is pushed down to a bowl
        top = ball.vertices[:, 2] > 0.1
        ball.vertices[:, 2] = torch.where(top, 0.2 - ball.vertices[:, 2], ball.vertices[:, 2])
    points = grid_points(SIDE, 1.0).float()
    inside = (points.norm(dim=-1) < 0.5) & (points[..., 2] < 0.2)
    bowl = (points[..., 2] > 0.0) & (points[..., :2].norm(dim=-1) < 0.2) & inside
    hidden = unseen(ball, np.ones((SIDE,) * 3, dtype=bool), 1.0, 2 / 32, views=48)
    assert not bool(hidden[bowl.numpy()].any())
    wall = (points[..., :2].norm(dim=-1) < 0.01) & (points[..., 2] < -0.37) & (points[..., 2] > -0.44)
    assert bool(wall.any()) and bool(hidden[wall.numpy()].all())


def test_the_colour_is_that_of_the_outside() -> None:
    """Opaque red over blue: a viewer sees red."""
    made = volume()
    made.field.head.density = lambda value: torch.full_like(value, 400.0)  # type: ignore[method-assign]
    axis = torch.linspace(-1, 1, SIDE)
    x = axis.view(-1, 1, 1).expand(SIDE, SIDE, SIDE)
    with torch.no_grad():
        made.field.colors[0][0, 0] = torch.where(x > 0.5, 6.0, -6.0)
        made.field.colors[0][0, 1] = -6.0
        made.field.colors[0][0, 2] = torch.where(x > 0.5, -6.0, 6.0)
    points, normals = torch.tensor([[0.5, 0.1, -0.2]]), torch.tensor([[1.0, 0.0, 0.0]])
    seen = made.surface_color(points, normals, MeshConfig(depth_samples=16))
    torch.testing.assert_close(seen, torch.tensor([[1.0, 0.0, 0.0]]), atol=0.02, rtol=0)
    behind = made.surface_color(points, -normals, MeshConfig(depth_samples=16))
    torch.testing.assert_close(behind, torch.tensor([[0.0, 0.0, 1.0]]), atol=0.02, rtol=0)
