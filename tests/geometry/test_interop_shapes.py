"""Meshes and points of other libraries: there and back, and the same picture where they draw or write themselves."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import open3d
import pytest
import torch

from unproject.geometry import interop_shapes as shapes
from unproject.geometry.cameras import Camera
from unproject.geometry.meshes import Mesh
from unproject.geometry.points import PointCloud
from unproject.geometry.raycast import RayMesh
from unproject.utils.errors import InputError


def painted() -> Mesh:
    """Two triangles of different charts with a texture that no turn or mirror leaves as it is."""
    vertices = torch.tensor([[0.0, -0.5, -0.5], [0.0, 0.6, -0.5], [0.0, 0.6, 0.7], [0.0, -0.5, 0.7]])
    uv = torch.tensor([[0.05, 0.1], [0.45, 0.1], [0.45, 0.9], [0.55, 0.2], [0.95, 0.8], [0.55, 0.8]])
    ramp = np.linspace(0, 255, 16, dtype=np.uint8)
    texture = np.stack([np.tile(ramp, (12, 1)), np.tile(ramp[:12, None], (1, 16)), np.full((12, 16), 90, np.uint8)], -1)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    uv_faces = torch.arange(6).view(2, 3)
    return Mesh(vertices, faces, uv=uv, uv_faces=uv_faces, textures={"base_color": np.ascontiguousarray(texture)})


def pictures(mesh: Mesh) -> torch.Tensor:
    return RayMesh(mesh).render(Camera.orbit([10.0, -25.0], [20.0, -10.0], 2.5, 40.0, 24), supersample=1).rgb


class Theirs(SimpleNamespace):
    """Holds what pytorch3d's structures are given, and gives it back by their methods."""

    def __getattr__(self, name: str) -> Any:
        given = {"verts_list": "verts", "faces_list": "faces", "points_list": "points", "features_list": "features",
                 "normals_list": "normals", "verts_features_list": "verts_features", "verts_uvs_list": "verts_uvs",
                 "faces_uvs_list": "faces_uvs", "maps_padded": "maps"}  # fmt: skip
        if name in given and given[name] in vars(self):
            return lambda: vars(self)[given[name]]
        raise AttributeError(name)


@pytest.fixture
def pytorch3d(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kinds in (("structures", ("Meshes", "Pointclouds")), ("renderer", ("TexturesUV", "TexturesVertex"))):
        module = ModuleType(f"pytorch3d.{name}")
        vars(module).update(dict.fromkeys(kinds, Theirs))
        monkeypatch.setitem(sys.modules, f"pytorch3d.{name}", module)
    monkeypatch.setitem(sys.modules, "pytorch3d", ModuleType("pytorch3d"))


@pytest.mark.usefixtures("pytorch3d")
def test_meshes_of_pytorch3d_there_and_back() -> None:
    theirs = shapes.to_pytorch3d_meshes(painted())
    assert theirs.textures.align_corners is False and theirs.textures.maps.shape == (1, 12, 16, 3)
    (back,) = shapes.from_pytorch3d_meshes(theirs)
    assert torch.equal(pictures(back), pictures(painted()))
    vertices = painted().vertices.clone().requires_grad_()
    colored = Mesh(vertices, painted().faces, vertex_colors=0.1 + 0.2 * painted().vertices.abs())
    (again,) = shapes.from_pytorch3d_meshes(shapes.to_pytorch3d_meshes(colored))
    assert torch.equal(pictures(again), pictures(colored)) and again.vertices is vertices
    with pytest.raises(InputError, match="kind SimpleNamespace"):
        shapes.from_pytorch3d_meshes(Theirs(verts=[vertices], faces=[colored.faces], textures=SimpleNamespace()))
    with pytest.raises(InputError, match=r"relative to \(1.0, 0.0, 0.0\)"):
        shapes.to_pytorch3d_meshes(replace(painted(), origin=(1.0, 0.0, 0.0)))


@pytest.mark.usefixtures("pytorch3d")
def test_points_of_pytorch3d_there_and_back() -> None:
    place = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    (back,) = shapes.from_pytorch3d_points(shapes.to_pytorch3d_points(PointCloud(place, place.flip(1))))
    assert torch.equal(back.points, place) and torch.equal(back.colors, place.flip(1)) and back.normals is None


def test_open3d_itself_writes_what_it_was_given(tmp_path: Path) -> None:
    """Its OBJ, which it writes from its own idea of where a texture begins, shows the same here."""
    theirs = shapes.to_open3d_mesh(painted())
    assert open3d.io.write_triangle_mesh(str(tmp_path / "a.obj"), theirs)
    read = Mesh.load(tmp_path / "a.obj")
    assert float((pictures(read) - pictures(painted())).abs().max()) < 0.02
    mirrored = replace(painted(), textures={"base_color": painted().textures["base_color"][::-1]})
    assert float((pictures(read) - pictures(mirrored)).abs().max()) > 0.2
    back = shapes.from_open3d_mesh(theirs)
    assert torch.equal(pictures(back), pictures(painted()))
    theirs.textures = [theirs.textures[0]] * 2
    with pytest.raises(InputError, match="2 textures"):
        shapes.from_open3d_mesh(theirs)


def test_open3d_there_and_back() -> None:
    plain = painted()
    normals = torch.nn.functional.normalize(torch.rand(4, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    mesh = Mesh(plain.vertices, plain.faces, vertex_normals=normals, vertex_colors=plain.vertices.abs())
    back = shapes.from_open3d_mesh(shapes.to_open3d_mesh(mesh))
    for name in ("vertices", "faces", "vertex_normals", "vertex_colors"):
        torch.testing.assert_close(getattr(back, name), getattr(mesh, name))
    far = shapes.to_open3d_mesh(replace(mesh, origin=(1e6, 0.0, 0.0)))
    assert np.asarray(far.vertices)[1].tolist() == pytest.approx([1e6, 0.6, -0.5])
    cloud = PointCloud(mesh.vertices, mesh.vertex_colors, normals)
    again = shapes.from_open3d_points(shapes.to_open3d_points(cloud))
    for name in ("points", "colors", "normals"):
        torch.testing.assert_close(getattr(again, name), getattr(cloud, name))
