"""One representation out of another: the body stays where it is, and what makes no sense is refused by name."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import trimesh
from torch import Tensor

from unproject.geometry.fields import FieldConfig, GridConfig, HeadConfig
from unproject.geometry.meshes import Mesh
from unproject.geometry.representation import MeshConfig
from unproject.geometry.shapes import (
    GaussianConfig,
    Gaussians,
    ShapeConfig,
    TetrahedraConfig,
    Triangles,
    VolumeShapeConfig,
    convert,
)
from unproject.geometry.volume import VolumeConfig
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

SHARP = HeadConfig(beta=(0.01,), beta_min=0.01)
TARGETS = {
    "triangles": ShapeConfig("triangles"),
    "grid": ShapeConfig(
        "volume",
        VolumeShapeConfig(FieldConfig("grid", head=SHARP, grid=GridConfig((17, 33), (0, 0))), VolumeConfig(0.04)),
    ),
    "tetrahedra": ShapeConfig("tetrahedra", tetrahedra=TetrahedraConfig(resolution=28)),
    "gaussians": ShapeConfig("gaussians", gaussians=GaussianConfig(count=6000)),
}
SMALL = MeshConfig(resolution=40, smooth=0.0, visibility_views=24)
MATRIX = torch.linalg.inv(
    torch.linalg.qr(torch.randn(3, 3, generator=generator(4)))[0] @ torch.diag(torch.tensor([0.5, 0.35, 0.42]))
)
CENTRE = torch.tensor([0.11, -0.07, 0.16])


def distance(points: Tensor) -> Tensor:
    local = (points - CENTRE) @ MATRIX.mT
    k = local.norm(dim=-1)
    return k * (k - 1) / (local @ MATRIX).norm(dim=-1).clamp_min(1e-9)


def colour(points: Tensor) -> Tensor:
    return 0.5 + points * points.new_tensor([0.4, 0.5, -0.45])


def body() -> Mesh:
    ball = Mesh.from_trimesh(trimesh.creation.icosphere(4))
    vertices = ball.vertices @ torch.linalg.inv(MATRIX).mT + CENTRE
    faces = ball.faces if torch.linalg.det(MATRIX) > 0 else ball.faces[:, [0, 2, 1]]
    return Mesh(vertices, faces, vertex_colors=colour(vertices))


@pytest.mark.parametrize("kind", TARGETS)
def test_a_mesh_becomes_everything_and_comes_back(kind: str) -> None:
    made = convert(body(), TARGETS[kind])
    assert made.kind == TARGETS[kind].kind
    fine = replace(SMALL, resolution=64, visibility_views=0)
    back = convert(made, TARGETS["triangles"], fine if kind == "gaussians" else SMALL)
    assert isinstance(back, Triangles)
    off = distance(back.vertices.detach()).abs()
    assert float(off.mean()) < (0.012 if kind == "gaussians" else 0.004)
    seen = torch.sigmoid(back.color_logits.detach())
    assert float((seen - colour(back.vertices.detach())).abs().mean()) < 0.03
    volume = 4 / 3 * torch.pi / float(torch.linalg.det(MATRIX).abs())
    assert back.mesh.check().signed_volume == pytest.approx(volume, rel=0.1 if kind == "gaussians" else 0.02)


@pytest.mark.parametrize("field", ["hash", "triplane"])
def test_fields_without_nodes_are_fitted(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FIT_STEPS", 60), ("FIT_POINTS", 2048)):
        monkeypatch.setattr(sys.modules[convert.__module__], name, value)
    made = convert(body(), ShapeConfig("volume", VolumeShapeConfig(FieldConfig(field, head=SHARP), VolumeConfig(0.04))))
    points = body().vertices[::7]
    value = made.field.snapshot().value_color(points)[0]
    assert float(value.detach().abs().mean()) < 0.02


def test_a_cloud_of_gaussians_is_a_source_too() -> None:
    cloud = convert(body(), TARGETS["gaussians"])
    assert isinstance(cloud, Gaussians)
    back = convert(cloud.cloud, TARGETS["tetrahedra"], replace(SMALL, resolution=32))
    assert float(distance(back.to_mesh(SMALL).vertices).abs().mean()) < 0.02


def test_the_same_seed_gives_the_same_gaussians() -> None:
    one, other = (convert(body(), TARGETS["gaussians"], generator=generator(5)) for _ in range(2))
    assert torch.equal(one.means, other.means)
    assert not torch.equal(one.means, convert(body(), TARGETS["gaussians"]).means)


def test_what_makes_no_sense_is_refused_by_name() -> None:
    sheet = replace(body(), faces=body().faces[5:])
    for kind in ("grid", "tetrahedra"):
        with pytest.raises(InputError, match="the mesh is open"):
            convert(sheet, TARGETS[kind])
    assert convert(sheet, TARGETS["triangles"]).kind == "triangles"
    density: Any = ShapeConfig("volume", VolumeShapeConfig(FieldConfig("grid", head=HeadConfig("density"))))
    with pytest.raises(InputError, match="how dense its inside is"):
        convert(body(), density)
    large = replace(body(), vertices=3 * body().vertices)
    with pytest.raises(InputError, match=r"but the triangles end at 0\.95 m"):
        convert(large, TARGETS["triangles"])
    thin = replace(body(), vertices=body().vertices * torch.tensor([1.0, 1.0, 0.002]) + 0.01)
    with pytest.raises(InputError, match="slips between the corners"):
        convert(thin, TARGETS["tetrahedra"])
