"""Triangles and tetrahedra that are optimised through the one loop: remeshed on the way, closed, seen from outside."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from unproject.core.training.loop import Loop
from unproject.core.training.loss import LossOut
from unproject.core.training.players import Player, Turn, named_groups
from unproject.geometry.cameras import Camera
from unproject.geometry.representation import Representation
from unproject.geometry.shapes import Tetrahedra, TetrahedraConfig, TriangleConfig, Triangles
from unproject.utils.ramps import Moment
from unproject.utils.seeds import generator

STEPS = 24


def shrunk(shape: Representation, ema: float | None = None, rate: float = 1.0) -> Player:
    """Follows the silhouettes of a ball of 0.4 m around (0.05, 0, 0)."""
    camera = Camera.orbit([0.0, 90.0, 200.0], [0.0, 30.0, -60.0], 2.4, 40.0, 32)
    ball = Triangles(TriangleConfig(subdivisions=3, radius=0.4))
    with torch.no_grad():
        ball.vertices += torch.tensor([0.05, 0.0, 0.0])
        wanted = ball.render(camera).alpha

    def loss(turn: Turn) -> LossOut:
        return LossOut((shape.render(camera).alpha - wanted).square().mean(), {})

    player = Player(
        "shape", lambda: named_groups(shape, shape.param_groups(rate)), partial(torch.optim.Adam, betas=(0.8, 0.9)),
        ema=ema, grows=shape.grows, after_step=lambda turn: shape.after_step(Moment(turn.step + 1, STEPS)),
    )  # fmt: skip
    Loop([player], {"shape": loss}).run(STEPS)
    return player


def test_triangles_follow_and_are_remeshed_with_their_moments() -> None:
    shape = Triangles(TriangleConfig(subdivisions=3, radius=0.5, vertex_lr=0.01, remesh_every=3, edge=0.09))
    before = len(shape.vertices)
    player = shrunk(shape, ema=0.9)
    report = shape.mesh.check()
    assert report.sound and report.euler == 2 and len(shape.vertices) != before
    assert player.named["vertices"] is shape.vertices and len(shape.vertices) == len(shape.color_logits)
    slots = player.optimizer.state[shape.vertices]
    assert slots["exp_avg"].shape == shape.vertices.shape and float(slots["exp_avg"].abs().amax()) > 0
    assert player.average["vertices"].shape == shape.vertices.shape
    off = (shape.vertices.detach() - torch.tensor([0.05, 0.0, 0.0])).norm(dim=-1) - 0.4
    assert float(off.abs().mean()) < 0.04  # it began 0.1 m outside
    sides = (shape.vertices[shape.faces.roll(-1, 1)] - shape.vertices[shape.faces]).norm(dim=-1)
    assert float(((sides > 0.04) & (sides < 0.14)).float().mean()) > 0.95


def test_without_remeshing_the_connectivity_stays() -> None:
    shape = Triangles(TriangleConfig(subdivisions=1))
    faces = shape.faces.clone()
    assert shape.after_step(Moment(3, 9)) is None and torch.equal(shape.faces, faces)


def test_tetrahedra_change_how_they_hang_together() -> None:
    """Two balls that are moved into each other by their distances become one, and the surface stays closed."""
    shape = Tetrahedra(TetrahedraConfig(resolution=24))
    for gap, pieces in ((0.12, 2), (-0.1, 1)):
        centres = torch.tensor([[0.4 + gap, 0.0, 0.0], [-0.4 - gap, 0.02, 0.0]])
        with torch.no_grad():
            shape.distance.copy_((shape.corners[:, None] - centres).norm(dim=-1).amin(dim=1) - 0.42)
        report = shape.mesh.check()
        assert report.sound and report.components == pieces
    assert shrunk(Tetrahedra(TetrahedraConfig(resolution=16, distance_lr=0.01))).name == "shape"


def test_tetrahedra_fill_the_cube_and_close_at_the_rim() -> None:
    shape = Tetrahedra(TetrahedraConfig(resolution=10))
    with torch.no_grad():
        shape.distance.fill_(-1.0)  # full: closed where the lattice ends
        shape.moves.copy_(9 * torch.randn(shape.moves.shape, generator=generator(1)))
    report = shape.mesh.check()
    assert report.watertight and report.signed_volume == pytest.approx(8.0, rel=0.35)
    corners = shape.corners + 0.45 * shape.spacing * torch.tanh(shape.moves) * ~shape.rim[:, None]
    a, b, c, d = corners[shape.cells].unbind(1)
    volume = ((b - a) * torch.linalg.cross(c - a, d - a)).sum(-1) / 6
    start = shape.corners[shape.cells]
    still = (
        (start[:, 1] - start[:, 0]) * torch.linalg.cross(start[:, 2] - start[:, 0], start[:, 3] - start[:, 0])
    ).sum(-1)
    assert float(still.min()) > 0 and float(volume.detach().sum()) == pytest.approx(8.0, rel=1e-5)
    found = shape.regularisers(shape.render(Camera.orbit(0.0, 0.0, 4.0, 40.0, 8)), {"sign", "smooth"}, generator(0))
    assert set(found) == {"sign", "smooth"} and all(float(v.detach()) > 0 for v in found.values())


def test_signs_of_a_flat_field_have_a_closed_form() -> None:
    """All distances +-a spacings: every crossed edge costs softplus(a) at both ends."""
    shape = Tetrahedra(TetrahedraConfig(resolution=9))
    with torch.no_grad():
        shape.distance.copy_(torch.where(shape.corners[:, 0] < 0.1, -0.7, 0.7) * shape.spacing)
        shape.distance.copy_(torch.where(shape.rim, 0.7 * shape.spacing, shape.distance))
    found = shape.regularisers(shape.render(Camera.orbit(0.0, 0.0, 4.0, 40.0, 4)), ["sign"], generator(0))["sign"]
    assert float(found.detach()) == pytest.approx(float(torch.nn.functional.softplus(torch.tensor(0.7))), rel=1e-5)
