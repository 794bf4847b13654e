"""Every representation passes the same test: bodies with known rays, gradients, meshes, colours, files, state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh
from torch import Tensor

from unproject.geometry.cameras import Camera, quaternion_from_rotation
from unproject.geometry.extract import EmptySurfaceError
from unproject.geometry.fields import FieldConfig, GridConfig, HeadConfig
from unproject.geometry.meshes import Mesh
from unproject.geometry.outputs import RenderOutput
from unproject.geometry.rasterisers import RASTERISERS
from unproject.geometry.representation import MeshConfig, Representation
from unproject.geometry.shapes import (
    GaussianConfig,
    Gaussians,
    ShapeConfig,
    Tetrahedra,
    TetrahedraConfig,
    TriangleConfig,
    Triangles,
    Volume,
    VolumeShapeConfig,
    load_shape,
    make_shape,
)
from unproject.geometry.splats import GaussianCloud
from unproject.geometry.splats.harmonics import C0
from unproject.geometry.volume import VolumeConfig
from unproject.utils.errors import InputError
from unproject.utils.ramps import Moment
from unproject.utils.seeds import generator

KINDS = ("grid", "hash", "triplane", "triangles", "tetrahedra", "gaussians")
EXPLICIT = ("triangles", "tetrahedra")
DRAWN = [*KINDS, *(f"{kind} by {name}" for kind in EXPLICIT for name in RASTERISERS)]
STORED = ("grid", "triangles", "tetrahedra", "gaussians")  # hold the colours of the body
RADIUS, SHARP = 0.5, 0.0005  # metres; a density of that width is nearly a surface
BODIES = {  # an ellipsoid A (x - c): the sphere, and one whose axes, size and place are all different
    "sphere": (torch.eye(3) / RADIUS, torch.zeros(3)),
    "body": (
        torch.diag(1 / torch.tensor([0.55, 0.4, 0.3])) @ torch.linalg.qr(torch.randn(3, 3, generator=generator(4)))[0],
        torch.tensor([0.11, -0.07, 0.16]),
    ),
}


def distance(points: Tensor, body: str) -> Tensor:
    """k (k - 1) / |A^T A (x - c)|, k = |A (x - c)|: the distance from the ellipsoid to first order."""
    matrix, centre = (t.to(points) for t in BODIES[body])
    local = (points - centre) @ matrix.mT
    k = local.norm(dim=-1)
    return k * (k - 1) / (local @ matrix).norm(dim=-1).clamp_min(1e-9)


def hit(camera: Camera, body: str) -> tuple[Tensor, Tensor, Tensor]:
    """(seen, z-depth, normal) of the ellipsoid along the rays of a camera, (B, H, W, 1 or 3)."""
    matrix, centre = BODIES[body]
    origins, directions = ((t @ matrix.mT) for t in (camera.centres[:, None, None] - centre, camera.rays()[1]))
    a, b, c = directions.square().sum(-1), (origins * directions).sum(-1), origins.square().sum(-1) - 1
    root = b * b - a * c
    depth = ((-b - root.clamp_min(0).sqrt()) / a)[..., None]
    normal = torch.nn.functional.normalize((origins + depth * directions) @ matrix, dim=-1)
    return (root > 0)[..., None], depth, normal


def colour(points: Tensor) -> Tensor:
    """An sRGB colour that differs in every direction."""
    return 0.5 + points * points.new_tensor([0.4, 0.5, -0.45]) + 0.1 * points.roll(1, dims=-1)


def discs(body: str, level: int = 6) -> Gaussians:
    """Flat Gaussians all over a body: round discs on the unit sphere, mapped to the body as it is."""
    matrix, centre = BODIES[body]
    ball = torch.from_numpy(trimesh.creation.icosphere(level).vertices).float()
    shape = torch.linalg.inv(matrix)
    across = torch.eye(3) - ball[:, :, None] * ball[:, None]  # onto the tangent plane
    values, axes = torch.linalg.eigh((shape @ across @ shape.mT).double())  # of a disc of radius one
    scales = (0.83 / 2**level * values.clamp_min(0).sqrt()).clamp_min(1e-4)
    turn = quaternion_from_rotation(axes * torch.linalg.det(axes)[:, None, None])
    points = ball @ shape.mT + centre
    sh = ((colour(points) - 0.5) / C0)[:, None]
    cloud = GaussianCloud.from_values(points, scales.float(), turn.float(), torch.full((len(points),), 0.999), sh)
    return Gaussians.from_cloud(cloud, GaussianConfig(count=2, antialiased=True))


def shape_of(kind: str, body: str, sharp: float = 0.01) -> Representation:
    """A body in each representation: what a grid and triangles store, and what the others begin with."""
    if kind == "gaussians":
        return discs(body)
    if kind == "tetrahedra":
        cells = Tetrahedra(TetrahedraConfig(resolution=40))
        with torch.no_grad():
            cells.distance.copy_(distance(cells.corners, body))
            cells.color_logits.copy_(torch.logit(colour(cells.corners).clamp(0.01, 0.99)))
        return cells
    if kind == "triangles":
        ball = Mesh.from_trimesh(trimesh.creation.icosphere(4))
        matrix, centre = BODIES[body]
        vertices = ball.vertices @ torch.linalg.inv(matrix).mT + centre
        faces = ball.faces if torch.linalg.det(matrix) > 0 else ball.faces[:, [0, 2, 1]]
        return Triangles.from_mesh(Mesh(vertices, faces, vertex_colors=colour(vertices)))
    head = HeadConfig(beta=(sharp,), beta_min=sharp)
    field = FieldConfig(kind=kind, head=head, grid=GridConfig(sides=(65,), starts=(0,)))
    volume = Volume(VolumeShapeConfig(field, VolumeConfig(step=4 * sharp)), generator(0))
    start = volume.field.head.start_shape
    if kind == "grid":
        axis = torch.linspace(-1, 1, 65)
        nodes = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
        with torch.no_grad():
            volume.field.geometry[0].copy_(
                (distance(nodes, body) - start(nodes.view(-1, 3)).view(65, 65, 65))[None, None]
            )
            volume.field.colors[0].copy_(torch.logit(colour(nodes).clamp(0.01, 0.99)).movedim(-1, 0)[None])
    else:
        for parameter in volume.field.decoder.parameters():
            parameter.data.zero_()
        volume.field.head.start_shape = lambda points: distance(points, body)  # type: ignore[method-assign]
    volume.on_step(Moment(1, 1), generator(1))
    return volume


def told(drawn: str) -> tuple[str, str]:
    """(kind, renderer) of an entry of DRAWN; skips where a package, or the device it draws on, is absent."""
    kind, _, renderer = drawn.partition(" by ")
    if renderer:
        pytest.importorskip(RASTERISERS[renderer].module, reason=f"{renderer} is not installed")
        if "cpu" not in RASTERISERS[renderer].devices and not torch.cuda.is_available():
            pytest.skip(f"{renderer} draws on CUDA")
    return kind, renderer or "auto"


def looked_at(shape: Representation, renderer: str, view: Camera, *asked: Any, **how: Any) -> RenderOutput:
    """What a shape's render is, by a renderer, back on the CPU; gradients reach the shape and the camera."""
    if renderer != "auto":
        shape.config = replace(shape.config, renderer=renderer)
        if "cpu" not in RASTERISERS[renderer].devices:
            shape = shape.to("cuda")
    return shape.render(view.to(shape.device), *asked, **how).to("cpu")


def camera(size: int = 96, views: int = 2) -> Camera:
    return Camera.orbit([25.0, 190.0, 100.0][:views], [20.0, -35.0, 70.0][:views], 3.0, 34.0, size)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("drawn", DRAWN)
def test_renders_are_those_of_the_body(drawn: str, body: str) -> None:
    kind, renderer = told(drawn)
    size = 512 if kind == "gaussians" else 96 if kind in EXPLICIT else 44  # outlines are blurred by half a pixel
    view, shape = camera(size), shape_of(kind, body, SHARP)
    with torch.no_grad():
        seen = looked_at(shape, renderer, view, background=0.3)
    inside, depth, normal = hit(view, body)
    solid = seen.alpha > 0.5
    assert float((solid & inside).sum() / (solid | inside).sum()) > 0.98
    core = inside & (seen.alpha > 0.999)
    assert float(core.sum() / inside.sum()) > 0.9
    assert float((seen.depth - depth)[core].abs().mean()) < 0.01 * RADIUS
    angle = torch.rad2deg(torch.acos((seen.normal * normal).sum(-1, keepdim=True).clamp(-1, 1)))
    assert float(angle[core].mean()) < 2.0
    if kind in STORED:
        expected = colour(view.unproject(depth))
        assert float((seen.rgb - expected).abs()[core[..., 0]].mean()) < 0.02
    outside = seen.alpha[..., 0] == 0
    assert bool((seen.rgb[outside] == 0.3).all()) and bool((seen.depth[outside] == 0).all())


@pytest.mark.parametrize("drawn", DRAWN)
def test_gradients_match_finite_differences(drawn: str) -> None:
    """Four pixels in float64, inside the body; the weights of a volume's normals have no gradient."""
    kind, renderer = told(drawn)
    if kind == "triangles":
        shape: Representation = Triangles(TriangleConfig(subdivisions=1)).double()
    elif kind == "tetrahedra":
        shape = Tetrahedra(TetrahedraConfig(resolution=6)).double()
    elif kind == "gaussians":
        shape = Gaussians(GaussianConfig(count=12, degree=2, opacity=0.6), generator(2)).double()
    else:
        field = FieldConfig(kind=kind, head=HeadConfig(beta=(0.2,)), grid=GridConfig(sides=(5,), starts=(0,)))
        shape = Volume(VolumeShapeConfig(field, VolumeConfig(hidden=0.0)), generator(0)).double()
    with torch.no_grad():
        for index, parameter in enumerate(shape.parameters()):
            parameter.add_(1e-2 * torch.randn(parameter.shape, generator=generator(index), dtype=torch.float64))
    view = camera(2, views=1)
    view = Camera(view.c2w.double(), (view.K * view.K.new_tensor([[4.0], [4.0], [1.0]])).double(), 2, 2)
    view = Camera(view.c2w, view.K - view.K.new_tensor([[0, 0, 3.0], [0, 0, 3.0], [0, 0, 0]]), 2, 2)
    pull = torch.randn(1, 2, 2, 7, generator=generator(9), dtype=torch.float64)

    def loss() -> Tensor:
        seen = looked_at(shape, renderer, view, background=0.3)
        maps = [seen.rgb, seen.depth, *([seen.normal] if kind in (*EXPLICIT, "gaussians") else [])]
        return sum((m * w).sum() for m, w in zip(maps, pull.split((3, 1, 3), dim=-1), strict=False))

    loss().backward()
    for group in shape.param_groups(1.0):
        for parameter in group["params"]:
            if parameter.grad is None or not bool(parameter.grad.any()):
                continue
            place, step = int(parameter.grad.abs().argmax()), 1e-6
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[place] += sign * step
                    values.append(float(loss()))
                    parameter.view(-1)[place] -= sign * step
            expected = (values[0] - values[1]) / (2 * step)
            assert float(parameter.grad.view(-1)[place]) == pytest.approx(expected, rel=2e-3, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_meshes_are_closed_and_coloured(kind: str) -> None:
    shape, config = shape_of(kind, "body"), MeshConfig(resolution=64, smooth=0.0, visibility_views=0)
    mesh = shape.to_mesh(config)
    report = mesh.check()
    matrix, centre = BODIES["body"]
    volume = 4 / 3 * torch.pi / float(torch.linalg.det(matrix).abs())
    assert report.watertight and report.signed_volume == pytest.approx(volume, rel=0.02)
    assert float(distance(mesh.vertices, "body").abs().max()) < 0.01
    outward = ((mesh.vertices - centre) @ matrix.mT @ matrix * mesh.vertex_normals).sum(-1)
    assert bool((outward > 0).all())
    if kind in STORED:
        found = shape.surface_color(mesh.vertices, mesh.vertex_normals, config)
        assert float((found - colour(mesh.vertices)).abs().mean()) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_files_bring_back_the_same_renders(kind: str, tmp_path: Path) -> None:
    made = make_shape(
        ShapeConfig(kind)
        if kind in (*EXPLICIT, "gaussians")
        else ShapeConfig("volume", VolumeShapeConfig(FieldConfig(kind, grid=GridConfig((9, 17), (0, 0.5))))),
        generator(3),
    )
    with torch.no_grad():
        for index, parameter in enumerate(made.parameters()):
            parameter.add_(1e-2 * torch.randn(parameter.shape, generator=generator(index)))
    made.on_step(Moment(3, 3), generator(0))
    back = load_shape(made.save(tmp_path))
    assert back.kind == made.kind and back.config == made.config
    view = camera(24)
    for before, after in ((made, back),):
        seen, again = before.render(view), after.render(view)
        assert torch.equal(seen.rgb, again.rgb) and torch.equal(seen.normal, again.normal)
    groups = [p for group in made.param_groups(1.0) for p in group["params"]]
    assert {id(p) for p in groups} == {id(p) for p in made.parameters() if p.requires_grad}


def test_triangles_of_any_number_come_back(tmp_path: Path) -> None:
    made = shape_of("triangles", "body")
    back = load_shape(made.save(tmp_path))
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in made.state_dict().items())


@pytest.mark.parametrize("drawn", [one for one in DRAWN if one not in ("hash", "triplane")])
def test_gradients_reach_cameras(drawn: str) -> None:
    """d sum(alpha u) / d shift of the camera to the right, where u is the pixel's column: the picture moves."""
    kind, renderer = told(drawn)
    shape = shape_of(kind, "body", 0.03) if kind != "gaussians" else Gaussians(GaussianConfig(200), generator(1))
    view = camera(48, views=1)
    columns = torch.arange(48.0)[None, None, :, None] / 48

    def seen(shift: Tensor) -> Tensor:
        pose = view.c2w + shift * torch.nn.functional.pad(view.c2w[:, :, :1], (3, 0))
        return (looked_at(shape, renderer, Camera(pose, view.K, 48, 48), ("alpha",)).alpha * columns).mean()

    shift = torch.zeros((), requires_grad=True)
    (gradient,) = torch.autograd.grad(seen(shift), shift)
    with torch.no_grad():
        expected = (seen(torch.tensor(0.02)) - seen(torch.tensor(-0.02))) / 0.04
    slack = 0.2 if kind == "gaussians" else 0.1  # Gaussians end at 1/255 of opacity, which only differences see
    assert float(expected) < -0.01 and float(gradient) == pytest.approx(float(expected), rel=slack)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_shape(tmp_path)
    folder = Triangles(TriangleConfig(subdivisions=1)).save(tmp_path / "a")
    document = (folder / "representation.json").read_text()
    (folder / "representation.json").write_text(document.replace("triangles", "clouds"))
    with pytest.raises(InputError, match="kind 'clouds'; have volume, dual, triangles, gaussians"):
        load_shape(folder)
    volume = Volume(VolumeShapeConfig()).save(tmp_path / "b")
    (folder / "representation.json").write_text((volume / "representation.json").read_text())
    with pytest.raises(InputError, match="names differ"):
        load_shape(folder)


def test_surfaces_that_are_not_there() -> None:
    bent = shape_of("triangles", "sphere")
    with torch.no_grad():
        bent.vertices[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        bent.to_mesh(MeshConfig())
    empty = shape_of("grid", "sphere")
    with torch.no_grad():
        empty.field.geometry[0].fill_(9.0)
    with pytest.raises(EmptySurfaceError):
        empty.to_mesh(MeshConfig(resolution=16, visibility_views=0))


def test_own_regularisers_have_closed_forms() -> None:
    ball = Triangles(TriangleConfig(subdivisions=2))
    seen = ball.render(camera(4))
    smooth = ball.regularisers(seen, {"smooth": 1.0}, generator(0))["smooth"]
    with torch.no_grad():
        ball.vertices.mul_(3.0)
    torch.testing.assert_close(ball.regularisers(seen, {"smooth": 1.0}, generator(0))["smooth"], smooth)
    with torch.no_grad():
        ball.vertices.add_(0.2 * torch.randn(ball.vertices.shape, generator=generator(1)))
    assert float(ball.regularisers(seen, ["smooth"], generator(0))["smooth"]) > 2 * float(smooth)
    assert ball.regularisers(seen, ["opacity"], generator(0)) == {}
    volume = shape_of("grid", "sphere")
    seen = volume.render(camera(4))
    found = volume.regularisers(seen, ["eikonal", "smooth", "spread"], generator(0))
    assert float(found["eikonal"]) < 0.05 and float(found["spread"]) < 1e-3
    torch.testing.assert_close(found["smooth"], volume.field.roughness())
    with torch.no_grad():
        volume.field.geometry[0].add_(volume.field.geometry[0].clone())
    assert volume.kind == "volume" and set(found) == set(volume.terms)
