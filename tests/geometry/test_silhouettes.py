"""Outlines: exact coverage of slanted edges, gradients against finite differences, what is hidden stays hidden."""

from __future__ import annotations

import math

import pytest
import torch
import trimesh
from torch import Tensor

from unproject.geometry.cameras import Camera
from unproject.geometry.meshes import Mesh
from unproject.geometry.silhouettes import draw_mesh, outline, silhouette_edges
from unproject.utils.seeds import generator


def facing(size: int, model: str = "ortho", pixels: float = 10.0) -> Camera:
    """A camera on +x at 3 m that looks at the origin, `pixels` a metre at the origin's distance."""
    pose = Camera.orbit(0.0, 0.0, 3.0, 40.0, size).c2w
    focal = pixels * (1.0 if model == "ortho" else 3.0)
    K = torch.tensor([[focal, 0, 0.5 * size], [0, focal, 0.5 * size], [0, 0, 1.0]])
    return Camera(pose, K[None], size, size, model=model)


def triangle(corners: list[tuple[float, float]], x: float = 0.0) -> Mesh:
    """Corners (y, z) in the plane of this x, seen from +x counter-clockwise."""
    points = torch.tensor([[x, *c] for c in corners])
    return Mesh(points, torch.arange(len(corners)).view(-1, 3))


@pytest.mark.parametrize("slope", [0.0, 0.3, -0.7, 1.6])
def test_a_straight_edge_covers_exact_areas(slope: float) -> None:
    """Below z = 0.137 + slope y; away from the other sides each pixel has the area of its column (or row) below."""
    lower = triangle([(-40.0, 0.137 - 40 * slope), (0.0, -90.0), (40.0, 0.137 + 40 * slope)])
    view = facing(20)
    alpha = draw_mesh(lower, view).alpha[0, ..., 0]
    y = (torch.arange(20) + 0.5 - 10) / 10  # the picture's right is +y here, its rows go down
    height = 0.137 + slope * y[None] - (-(torch.arange(20) + 0.5 - 10) / 10)[:, None]  # of the edge above the centre
    steep = abs(slope) > 1
    expected = (0.5 + 10 * height / (abs(slope) if steep else 1.0)).clamp(0, 1)
    torch.testing.assert_close(alpha[2:-2, 2:-2], expected[2:-2, 2:-2], atol=1e-4, rtol=0)


def test_outlines_are_where_front_meets_back() -> None:
    ball = Mesh.from_trimesh(trimesh.creation.icosphere(3, 0.5))
    view = facing(32, "pinhole")
    screen, z = view.project(ball.vertices)
    _, ends, third = silhouette_edges(ball.faces, screen, z)
    middle = ball.vertices[ends].mean(1)
    assert float((middle[:, 0] - 0.25 / 3).abs().max()) < 0.12  # the circle in which the tangent cone touches
    assert len(ends) > 30 and bool((torch.sort(ends, 1).values[:, :1] != third[:, None]).all())


@pytest.mark.parametrize("model", ["ortho", "pinhole"])
def test_the_area_of_a_ball_and_its_gradient(model: str) -> None:
    """pi f^2 r^2 pixels for parallel rays; r^2 / (d^2 - r^2) instead of r^2 / d^2 through a pinhole."""
    ball = Mesh.from_trimesh(trimesh.creation.icosphere(5, 1.0))
    radius = torch.tensor(0.6, requires_grad=True)
    view = facing(40, model, 20.0)
    area = draw_mesh(Mesh(ball.vertices * radius, ball.faces), view).alpha.sum()
    (slope,) = torch.autograd.grad(area, radius)
    f, d, r = (20.0, 3.0, 0.6) if model == "ortho" else (60.0, 3.0, 0.6)
    wanted = math.pi * f**2 * r**2 if model == "ortho" else math.pi * f**2 * r**2 / (d**2 - r**2)
    turned = 2 * wanted / r if model == "ortho" else 2 * math.pi * f**2 * r * d**2 / (d**2 - r**2) ** 2
    assert float(area.detach()) == pytest.approx(wanted, rel=0.01)
    assert float(slope) == pytest.approx(turned, rel=0.06)  # the outline of a polyhedron zigzags in depth


def test_gradients_match_finite_differences() -> None:
    """Every coordinate of a few vertices of a bent ball, and the pose, in float64: values and coverage of outlines."""
    ball = trimesh.creation.icosphere(1, 0.55)
    start = torch.from_numpy(ball.vertices) + 0.08 * torch.randn(42, 3, generator=generator(3), dtype=torch.float64)
    faces, view = torch.from_numpy(ball.faces), facing(14, "pinhole", 11.0)
    colors = torch.rand(42, 3, generator=generator(4), dtype=torch.float64)
    pull = torch.randn(1, 14, 14, 7, generator=generator(5), dtype=torch.float64)

    def loss(vertices: Tensor, pose: Tensor) -> Tensor:
        camera = Camera(pose, view.K.double(), 14, 14)
        seen = draw_mesh(Mesh(vertices, faces, vertex_colors=colors).with_smooth_normals(), camera, background=0.2)
        maps = torch.cat([seen.rgb, seen.alpha, seen.extras["normals"]], dim=-1)
        return (maps * pull).sum()

    given = [start.clone().requires_grad_(True), view.c2w.double().requires_grad_(True)]
    gradients = torch.autograd.grad(loss(*given), given)
    wrong, asked, step = 0, 0, 1e-6
    for which, places in ((0, range(0, 126, 4)), (1, (3, 7, 11))):
        for place in places:
            values = []
            for sign in (1, -1):
                moved = [t.detach().clone() for t in given]
                moved[which].view(-1)[place] += sign * step
                values.append(float(loss(*moved)))
            expected = (values[0] - values[1]) / (2 * step)
            asked += 1
            wrong += abs(float(gradients[which].reshape(-1)[place]) - expected) > 1e-3 * (1 + abs(expected))
    assert asked == 35 and wrong <= 1  # a pixel centre may lie on an edge


def test_what_is_hidden_draws_no_outline() -> None:
    near = triangle([(-3.0, -3.0), (3.0, -3.0), (0.0, 4.0)], x=0.5)
    far = triangle([(-0.4, -0.5), (0.5, -0.4), (0.1, 0.6)])
    both = Mesh(torch.cat([near.vertices, far.vertices]), torch.arange(6).view(2, 3))
    view = facing(16)
    seen, alone = draw_mesh(both, view), draw_mesh(near, view)
    assert torch.equal(seen.alpha, alone.alpha) and torch.equal(seen.depth, alone.depth)
    turned = Mesh(both.vertices * torch.tensor([-1.0, 1.0, 1.0]), both.faces)  # now the small one is in front
    depth = draw_mesh(turned, view).depth[0, ..., 0]
    mixed = (depth > 3.0 + 1e-3) & (depth < 3.5 - 1e-3)
    assert 0 < int(mixed.sum()) < 30 and float(draw_mesh(turned, view).alpha.min()) == 1.0


def test_weights_never_exceed_what_a_pixel_has() -> None:
    noise = torch.rand(30, 3, generator=generator(7)) - 0.5
    soup = Mesh(noise, torch.arange(30).view(-1, 3))
    view = facing(12)
    seen = draw_mesh(soup, view)
    assert float(seen.alpha.min()) >= -1e-6 and float(seen.alpha.max()) <= 1 + 1e-6
    depth = seen.depth.clone()
    blend = outline(soup, view, torch.zeros(1, 12, 12, dtype=torch.int64) - 1, depth)
    assert len(blend.weight) == 0  # nothing is seen: no inner pixel
