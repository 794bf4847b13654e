"""Mesh and point files: what is written comes back; damaged or hostile files end in InputError."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from unproject.geometry.cameras import Camera
from unproject.geometry.colors import linear_from_srgb, sample_texture, srgb_from_linear
from unproject.geometry.files import WRITABLE
from unproject.geometry.formats.gltf_data import split_chunks
from unproject.geometry.meshes import Mesh, join_meshes
from unproject.geometry.points import PointCloud
from unproject.utils.errors import InputError


@pytest.fixture
def ball() -> Mesh:
    mesh = Mesh.from_trimesh(trimesh.creation.icosphere(2, radius=0.6)).with_smooth_normals()
    return replace(mesh, vertex_colors=(mesh.vertices / 0.6 + 1) / 2)


@pytest.fixture
def textured() -> Mesh:
    """A box with one chart a face of the box and a random texture."""
    mesh = Mesh.from_trimesh(trimesh.creation.box((1.0, 2.0, 3.0))).with_smooth_normals()
    count = len(mesh.faces)
    uv = torch.rand(3 * count, 2, generator=torch.Generator().manual_seed(0))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    textures = {"base_color": pixels, "metallic_roughness": pixels[::-1].copy()}
    return replace(mesh, uv=uv, uv_faces=torch.arange(3 * count).reshape(-1, 3), textures=textures)


def corners(mesh: Mesh) -> torch.Tensor:
    """Face corners as a sorted set of rows (position of corner 0, 1, 2 from the smallest), for comparison."""
    triangles = mesh.vertices[mesh.faces]
    first = (triangles @ torch.tensor([1.0, 1.7, 2.9])).argmin(dim=1)
    order = (first[:, None] + torch.arange(3)) % 3
    rows = torch.gather(triangles, 1, order[..., None].expand(-1, 3, 3)).flatten(1)
    return rows[np.lexsort(rows.round(decimals=4).numpy().T)]


@pytest.mark.parametrize("suffix", WRITABLE)
def test_geometry_and_winding_survive(suffix: str, ball: Mesh, tmp_path: Path) -> None:
    back = Mesh.load(ball.save(tmp_path / f"ball{suffix}"))
    torch.testing.assert_close(corners(back), corners(ball), atol=1e-6, rtol=0)
    report = back.check()
    assert report.watertight and report.winding_consistent and report.signed_volume > 0
    assert not list(tmp_path.glob("*.tmp*"))


@pytest.mark.parametrize(("suffix", "tolerance"), [(".glb", 1e-5), (".obj", 0.003), (".ply", 0.003)])
def test_vertex_colors_survive(suffix: str, tolerance: float, ball: Mesh, tmp_path: Path) -> None:
    back = Mesh.load(ball.save(tmp_path / f"ball{suffix}"))
    assert back.vertex_colors is not None
    torch.testing.assert_close(back.vertex_colors, (back.vertices / 0.6 + 1) / 2, atol=tolerance, rtol=0)


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_smooth_normals_survive(suffix: str, ball: Mesh, tmp_path: Path) -> None:
    back = Mesh.load(ball.save(tmp_path / f"ball{suffix}"))
    assert back.vertex_normals is not None
    cosine = (back.vertex_normals * torch.nn.functional.normalize(back.vertices, dim=-1)).sum(-1)
    assert float(cosine.min()) > 0.999


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_textures_and_seams_survive(suffix: str, textured: Mesh, tmp_path: Path) -> None:
    back = Mesh.load(textured.save(tmp_path / f"box{suffix}"))
    assert back.uv is not None and back.check().watertight  # welded again across the seams
    assert np.array_equal(back.textures["base_color"], textured.textures["base_color"])
    key = torch.cat([textured.vertices[textured.faces], textured.uv[textured.uv_faces]], dim=-1).reshape(-1, 5)
    seen = torch.cat([back.vertices[back.faces], back.uv[back.uv_faces]], dim=-1).reshape(-1, 5)
    assert float(torch.cdist(seen.double(), key.double()).amin(dim=1).max()) < 1e-5


def test_glb_stands_on_y_with_its_front_towards_z(tmp_path: Path) -> None:
    box = trimesh.creation.box((0.2, 0.4, 0.6))
    box.apply_translation((5.0, 0.0, 7.0))  # front by 5, up by 7
    path = Mesh.from_trimesh(box).save(tmp_path / "box.glb")
    raw = trimesh.load_scene(path).to_mesh()
    np.testing.assert_allclose(raw.bounds.mean(axis=0), [0.0, 7.0, 5.0], atol=1e-6)
    np.testing.assert_allclose(np.ptp(raw.bounds, axis=0), [0.4, 0.6, 0.2], atol=1e-6)
    assert raw.volume > 0
    np.testing.assert_allclose(Mesh.load(path).bounds.mean(dim=0), [5.0, 0.0, 7.0], atol=1e-6)


def test_glb_layout_follows_the_specification(ball: Mesh, tmp_path: Path) -> None:
    data = ball.save(tmp_path / "ball.glb").read_bytes()
    magic, version, total = struct.unpack_from("<4sII", data)
    assert (magic, version, total) == (b"glTF", 2, len(data)) and len(data) % 4 == 0
    document, blob = split_chunks(data)
    assert all(view["byteOffset"] % 4 == 0 for view in document["bufferViews"])
    assert document["buffers"][0]["byteLength"] == len(blob)
    position = document["accessors"][document["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]
    assert len(position["min"]) == len(position["max"]) == 3
    material = document["materials"][0]["pbrMetallicRoughness"]
    assert material["metallicFactor"] == 0.0 and material["roughnessFactor"] == 1.0


def test_stl_and_ply_of_a_textured_mesh_keep_shape_and_colour(textured: Mesh, tmp_path: Path) -> None:
    assert Mesh.load(textured.save(tmp_path / "box.stl")).check().watertight
    back = Mesh.load(textured.save(tmp_path / "box.ply"))
    assert back.vertex_colors is not None and back.check().watertight


@pytest.mark.parametrize("extras", [(), ("colors",), ("normals",), ("colors", "normals")])
def test_point_clouds_survive(extras: tuple[str, ...], tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    cloud = PointCloud(torch.randn(50, 3, generator=rng))
    if "colors" in extras:
        cloud.colors = torch.rand(50, 3, generator=rng)
    if "normals" in extras:
        cloud.normals = torch.nn.functional.normalize(torch.randn(50, 3, generator=rng), dim=-1)
    back = PointCloud.load(cloud.save(tmp_path / "cloud.ply"))
    assert torch.equal(back.points, cloud.points)
    assert (back.colors is None) == ("colors" not in extras) and (back.normals is None) == ("normals" not in extras)
    if cloud.colors is not None and back.colors is not None:
        torch.testing.assert_close(back.colors, cloud.colors, atol=0.5 / 255 + 1e-6, rtol=0)
    if cloud.normals is not None and back.normals is not None:
        assert torch.equal(back.normals, cloud.normals)


def test_points_from_depth_lie_on_the_plane_and_skip_holes() -> None:
    camera = Camera.orbit(0.0, 0.0, 2.0, 60.0, 6, 4)
    depth = torch.full((1, 4, 6), 2.0)
    depth[0, 0, 0], depth[0, 1, 1] = 0.0, float("nan")
    cloud = PointCloud.from_depth(depth, torch.rand(1, 4, 6, 3), camera)
    assert len(cloud) == 22 and float(cloud.points[:, 0].abs().max()) < 1e-6
    with pytest.raises(InputError, match=r"camera\.resized"):
        PointCloud.from_depth(torch.ones(1, 3, 3), None, camera)


HOSTILE = {
    "empty.glb": b"",
    "noise.glb": bytes(range(256)) * 8,
    "header.glb": struct.pack("<4sII", b"glTF", 2, 4096),
    "lying.glb": struct.pack("<4sIIII", b"glTF", 2, 40, 2**31, 0x4E4F534A) + b"{}" * 10,
    "nested.glb": struct.pack("<4sIIII", b"glTF", 2, 4020, 4000, 0x4E4F534A) + b"[" * 4000,
    "noise.stl": b"solid \xff\xfe" + bytes(100),
    "short.ply": b"ply\nformat binary_little_endian 1.0\nelement vertex 1000000\nproperty float x\nend_header\n\0\0",
    "words.obj": b"f 1 2 3\nv one two three\n",
    "range.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n",
    "nan.obj": b"v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n",
    "points.obj": b"v 0 0 0\nv 1 0 0\n",
    "picture.png": b"\x89PNG",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_input_errors(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    with pytest.raises(InputError):
        Mesh.load(path)
    if path.suffix == ".ply":
        with pytest.raises(InputError):
            PointCloud.load(path)


def test_truncated_files_are_input_errors(ball: Mesh, tmp_path: Path) -> None:
    for suffix in (".glb", ".stl", ".ply"):
        data = ball.save(tmp_path / f"whole{suffix}").read_bytes()
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(data[: len(data) // 2])
        with pytest.raises(InputError):
            Mesh.load(cut)


def test_missing_folders_and_bad_meshes_say_what_is_wrong(ball: Mesh, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Mesh.load(tmp_path / "none.glb")
    (tmp_path / "folder.glb").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        Mesh.load(tmp_path / "folder.glb")
    with pytest.raises(InputError, match="use one of"):
        ball.save(tmp_path / "ball.fbx")
    with pytest.raises(InputError, match="no faces"):
        Mesh(torch.zeros(3, 3), torch.zeros(0, 3)).save(tmp_path / "a.glb")
    with pytest.raises(InputError, match="NaN"):
        replace(ball, vertices=ball.vertices * float("nan")).save(tmp_path / "a.glb")
    with pytest.raises(InputError, match="which do not exist"):
        replace(ball, faces=ball.faces + 1000).save(tmp_path / "a.glb")
    with pytest.raises(InputError, match="belong together"):
        replace(ball, uv=torch.zeros(1, 2))


def test_report_of_known_shapes() -> None:
    box = Mesh.from_trimesh(trimesh.creation.box((1, 2, 3)))
    report = box.check()
    assert report.watertight and report.euler == 2 and report.components == 1 and report.degenerate_faces == 0
    assert report.signed_volume == pytest.approx(6.0) and report.area == pytest.approx(22.0)
    torus = Mesh.from_trimesh(trimesh.creation.torus(1.0, 0.3)).check()
    assert torus.watertight and torus.euler == 0
    opened = replace(box, faces=box.faces[1:]).check()
    assert opened.boundary_edges == 3 and not opened.watertight
    flipped = replace(box, faces=torch.cat([box.faces[:1].flip(1), box.faces[1:]])).check()
    assert flipped.watertight and not flipped.winding_consistent
    fin = torch.cat([box.faces, torch.tensor([[int(box.faces[0, 0]), int(box.faces[0, 1]), 7]])])
    assert replace(box, faces=fin).check().nonmanifold_edges >= 1
    far = box.transformed(torch.tensor([[2.0, 0, 0, 9], [0, 2, 0, 9], [0, 0, 2, 9], [0, 0, 0, 1]]))
    both = join_meshes([box, far]).check()
    assert both.components == 2 and both.largest_component_share == pytest.approx(0.8) and both.euler == 4


def test_mirroring_keeps_the_outside_outside() -> None:
    box = Mesh.from_trimesh(trimesh.creation.box((1, 2, 3))).with_smooth_normals()
    mirrored = box.transformed(torch.diag(torch.tensor([-1.0, 1, 1, 1])))
    assert mirrored.check().signed_volume == pytest.approx(6.0)
    outward = (mirrored.vertex_normals * mirrored.vertices).sum(dim=-1)
    assert bool((outward > 0).all())


def test_colour_curve_and_texture_lookup() -> None:
    ramp = torch.linspace(0, 1, 33, dtype=torch.float64)
    torch.testing.assert_close(srgb_from_linear(linear_from_srgb(ramp)), ramp)
    assert float(linear_from_srgb(torch.tensor(0.5))) == pytest.approx(0.21404, abs=1e-5)
    image = torch.arange(12.0).reshape(2, 2, 3)
    uv = torch.tensor([[0.25, 0.75], [0.75, 0.75], [0.25, 0.25], [0.5, 0.5]])  # top-left texel first
    rows = torch.stack([image[0, 0], image[0, 1], image[1, 0], image.mean(dim=(0, 1))])
    torch.testing.assert_close(sample_texture(image, uv), rows)
