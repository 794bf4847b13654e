from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unproject.cli import main
from unproject.geometry.bake import bake
from unproject.geometry.extract import extract_surface, grid_points
from unproject.geometry.meshes import Mesh
from unproject.geometry.points import PointCloud
from unproject.geometry.unwrap import unwrap
from unproject.utils.pictures import load_image, save_image


@pytest.fixture
def tetrahedron() -> Mesh:
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    return Mesh(vertices, torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))


def facts(capsys: pytest.CaptureFixture[str], path: str) -> dict[str, object]:
    capsys.readouterr()
    assert main(["inspect", path, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("suffix", [".obj", ".stl", ".ply", ".glb"])
def test_convert_keeps_the_solid(
    in_tmp: Path, capsys: pytest.CaptureFixture[str], tetrahedron: Mesh, suffix: str
) -> None:
    tetrahedron.save("a.glb")
    assert main(["convert", "a.glb", f"out/b{suffix}"]) == 0
    found = facts(capsys, f"out/b{suffix}")
    assert found["kind"] == "mesh" and found["faces"] == 4 and found["watertight"] is True
    assert found["signed_volume"] == pytest.approx(1 / 6, rel=1e-5)
    outputs = [f"out/b{suffix}", "out/b.report.json"]
    assert json.loads(Path("out/b.run.json").read_text())["outputs"] == outputs


@pytest.mark.parametrize("kind", ["texture", "vertex colours"])
def test_a_simplified_mesh_keeps_its_colours(in_tmp: Path, kind: str) -> None:
    """Red above, blue below."""

    def color(points: torch.Tensor, normals: torch.Tensor) -> torch.Tensor:
        up = (points[:, 2:] > 0).float()
        return torch.cat([up, torch.zeros_like(up), 1 - up], dim=1)

    ball = extract_surface(grid_points(20, 1.0).norm(dim=-1), 0.7, sign=-1)
    if kind == "texture":
        bake(unwrap(ball, 128), color, size=128).save("a.glb")
    else:
        replace(ball, vertex_colors=color(ball.vertices, ball.vertices)).save("a.glb")
    assert main(["convert", "a.glb", "b.glb", "--faces", "300"]) == 0
    mesh = Mesh.load("b.glb")
    assert len(mesh.faces) <= 300 and ("base_color" in mesh.textures) == (kind == "texture")
    colors = mesh.with_vertex_colors().vertex_colors if kind == "texture" else mesh.vertex_colors
    assert colors is not None
    above, below = colors[mesh.vertices[:, 2] > 0.3], colors[mesh.vertices[:, 2] < -0.3]
    torch.testing.assert_close(above.mean(0), torch.tensor([1.0, 0, 0]), atol=0.05, rtol=0)
    torch.testing.assert_close(below.mean(0), torch.tensor([0.0, 0, 1]), atol=0.05, rtol=0)


def test_points_only_become_points(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PointCloud(torch.rand(10, 3, generator=torch.Generator().manual_seed(0))).save("a.ply")
    assert main(["convert", "a.ply", "b.ply"]) == 0
    assert facts(capsys, "b.ply")["points"] == 10
    for name in ("c.glb", "c.obj", "c.xyz"):
        assert main(["convert", "a.ply", name]) == 0
        capsys.readouterr()
        told = facts(capsys, name)
        assert (told["kind"], told["points"]) == ("point cloud", 10)
        assert main(["convert", name, f"{name}.ply"]) == 0
    assert main(["convert", "a.ply", "b.stl"]) == 2
    assert "holds points without triangles" in capsys.readouterr().err
    assert main(["convert", "a.ply", "c.ply", "--faces", "5"]) == 2
    assert "--faces 5 simplifies meshes and a.ply is none" in capsys.readouterr().err
    Path("views").mkdir()
    Path("views/cameras.txt").touch()
    assert main(["convert", "views", "views.json", "--faces", "5"]) == 2
    assert "--faces 5 simplifies meshes and views is none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "destination", "message"),
    [
        ("a.glb", "a.glb", "the same file"),
        ("a.glb", "b.xyz", "cannot write b.xyz"),
        ("a.txt", "b.glb", "cannot read a.txt"),
        ("folder", "b.glb", "cameras become .json or a folder"),
    ],
)
def test_convert_names_what_it_cannot_do(
    in_tmp: Path, capsys: pytest.CaptureFixture[str], source: str, destination: str, message: str
) -> None:
    Path("a.glb").write_bytes(b"")
    Path("a.txt").write_bytes(b"")
    Path("folder").mkdir()
    assert main(["convert", source, destination]) == 2
    assert message in capsys.readouterr().err


def test_inspect_pictures_arrays_runs_and_records(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_image("a.png", np.full((4, 6, 3), 255, np.uint8))
    assert facts(capsys, "a.png") == {
        "command": "inspect",
        "file": "a.png",
        "size": facts(capsys, "a.png")["size"],
        "kind": "picture",
        "width": 6,
        "height": 4,
        "mean_srgb": [1.0, 1.0, 1.0],
    }
    np.savez("a.npz", depth=np.array([1.0, np.nan, 3.0], np.float32), empty=np.zeros(0))
    found = facts(capsys, "a.npz")
    assert found["depth"] == "float32 (3,), 1 to 3"
    Path("run").mkdir()
    Path("run/run.json").write_text('{"command": "x"}')
    assert facts(capsys, "run")["kind"] == "run"


@pytest.mark.parametrize("name", ["a.xyz", "empty", "broken.json", "broken.npz", "broken.glb", "broken.png"])
def test_inspect_refuses_the_rest_by_name(in_tmp: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    Path("empty").mkdir()
    if name != "empty":
        Path(name).write_bytes(b"nothing useful {")
    assert main(["inspect", name]) == 2
    assert name in capsys.readouterr().err


def test_objects_in_array_files_are_never_unpickled(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("a.npy", np.array([{"a": 1}], dtype=object))
    assert main(["inspect", "a.npy"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_toybox_sheet_and_data_set(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["toybox", "--count", "2", "--size", "16", "-o", "sheet.png", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert len(first["captions"]) == 2 and Path("sheet.png").is_file()
    words = ["toybox", "--render", "--groups", "1", "--size", "16", "--workers", "1", "-o", "set", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["shards"] == 1
    assert main([*words, "--kind", "scene"]) == 2
    assert "holds another data set" in capsys.readouterr().err


def test_toybox_shows_rooms_and_looks(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["toybox", "--kind", "room", "--count", "1", "--size", "16", "-o", "room.png"]) == 0
    assert "a furnished room" in capsys.readouterr().out
    assert load_image("room.png").shape[:2] == (16 + 4, 16 + 4)
    assert main(["toybox", "--sheet", "--size", "8", "-o", "looks.png"]) == 0
    assert load_image("looks.png").shape[1] >= 8 * 8


def test_inspect_tells_solids_from_others(in_tmp: Path, capsys: pytest.CaptureFixture[str], tetrahedron: Mesh) -> None:
    tetrahedron.save("a.stl")
    replace(tetrahedron, faces=tetrahedron.faces[1:]).save("open.stl")
    assert main(["inspect", "a.stl", "--strict"]) == 0 and main(["inspect", "open.stl"]) == 0
    assert main(["inspect", "open.stl", "--strict"]) == 1
    assert "open edges: 3" in capsys.readouterr().out
    Path("run.json").write_text("{}")
    assert main(["inspect", "run.json", "--strict"]) == 2
    assert "ask about meshes" in capsys.readouterr().err


def test_repair_writes_a_solid_or_says_why_not(
    in_tmp: Path, capsys: pytest.CaptureFixture[str], tetrahedron: Mesh
) -> None:
    colors = tetrahedron.vertices.clone()
    replace(tetrahedron, faces=tetrahedron.faces[1:], vertex_colors=colors).save("open.glb")
    assert main(["inspect", "open.glb", "--repair", "whole.glb", "--strict", "--json"]) == 0
    assert "closed" in json.loads(capsys.readouterr().out)["steps"][0]
    back = Mesh.load("whole.glb")
    assert back.check().sound and back.vertex_colors is not None
    assert json.loads(Path("whole.report.json").read_text())["solid"] is True
    replace(tetrahedron, faces=tetrahedron.faces[:1]).save("sheet.ply")
    assert main(["inspect", "sheet.ply", "--repair", "b.glb"]) == 2
    assert "sheet.ply: it cannot be made a solid" in capsys.readouterr().err and not Path("b.glb").exists()
    assert main(["inspect", "open.glb", "--repair", "open.glb"]) == 2
    assert "name another one" in capsys.readouterr().err
    assert main(["inspect", "open.glb", "--repair", "b.xyz"]) == 2
    assert "cannot write that" in capsys.readouterr().err


def test_a_report_is_written_beside_what_is_converted(in_tmp: Path, tetrahedron: Mesh) -> None:
    tetrahedron.save("a.glb")
    assert main(["convert", "a.glb", "b.stl"]) == 0
    facts = json.loads(Path("b.report.json").read_text())
    assert facts["file"] == "b.stl" and facts["solid"] is True and facts["bounds"]["unit"] == "metre"
    assert json.loads(Path("b.run.json").read_text())["outputs"] == ["b.stl", "b.report.json"]


@pytest.fixture
def painted(tetrahedron: Mesh, in_tmp: Path) -> Path:
    """A GLB with a texture."""
    return bake(unwrap(tetrahedron, 32), lambda points, normals: points.abs(), size=32).save("painted.glb")


@pytest.mark.parametrize("other", ["b.mtl", "b_base_color.png"])
@pytest.mark.parametrize(
    "words", [("convert", "painted.glb", "b.obj"), ("inspect", "painted.glb", "--repair", "b.obj")]
)
def test_the_library_of_another_obj_is_not_overwritten(
    painted: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], other: str
) -> None:
    Path(other).write_text("precious")
    assert main([*words]) == 2
    choice = "destination" if words[0] == "convert" else "--repair"
    assert f"{other} is already there; choose another {choice}, or --overwrite it" in capsys.readouterr().err
    assert Path(other).read_text() == "precious" and not Path("b.obj").exists()
    assert main([*words, "--overwrite"]) == 0
    assert Path("b.mtl").read_text().startswith("newmtl surface")


def test_the_pictures_of_another_usd_are_not_overwritten(painted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pxr")
    Path("b_base_color.png").write_text("precious")
    assert main(["convert", "painted.glb", "b.usda"]) == 2
    assert "b_base_color.png is already there" in capsys.readouterr().err
    assert Path("b_base_color.png").read_text() == "precious"
    assert main(["convert", "painted.glb", "b.usdz"]) == 0  # a package holds its pictures


def test_what_a_stopped_run_left_beside_an_obj_is_replaced(painted: Path) -> None:
    assert main(["convert", "painted.glb", "b.obj"]) == 0
    Path("b.obj").unlink()
    Path("b.report.json").unlink()
    Path("b_base_color.png").write_bytes(b"cut")
    assert main(["convert", "painted.glb", "b.obj"]) == 0
    assert "base_color" in Mesh.load("b.obj").textures
    told = json.loads(Path("b.run.json").read_text())["outputs"]
    assert told == ["b.obj", "b.report.json", "b.mtl", "b_base_color.png"]


def test_points_have_no_library(in_tmp: Path) -> None:
    PointCloud(torch.rand(4, 3)).save("a.ply")
    Path("b.mtl").write_text("precious")
    assert main(["convert", "a.ply", "b.obj"]) == 0 and Path("b.mtl").read_text() == "precious"


@pytest.mark.parametrize("made", ["", "deep"])
def test_a_refused_conversion_leaves_no_folder(in_tmp: Path, made: str) -> None:
    frame = {"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}
    facts = {"camera_model": "EQUIRECTANGULAR", "w": 4, "h": 2, "fl_x": 1.0, "frames": [frame]}
    Path("a.json").write_text(json.dumps(facts))
    if made:
        Path(made).mkdir()
    assert main(["convert", "a.json", "deep/er/set"]) == 2
    assert [path.name for path in Path().iterdir()] == ["a.json", *([made] if made else [])] or made
    assert not Path("deep/er").exists() and Path("deep").exists() == bool(made)


def test_points_of_a_colmap_model_are_not_overwritten(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = {"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}
    Path("a.json").write_text(json.dumps({"w": 4, "h": 2, "fl_x": 3.0, "frames": [frame]}))
    Path("sparse").mkdir()
    Path("sparse/points3D.txt").write_text("1 0 0 0 9 9 9 0\n")
    assert main(["convert", "a.json", "sparse"]) == 2
    assert "sparse/points3D.txt is already there" in capsys.readouterr().err
    assert Path("sparse/points3D.txt").read_text() == "1 0 0 0 9 9 9 0\n"


def test_one_stem_in_several_formats_keeps_every_record_and_report(in_tmp: Path, tetrahedron: Mesh) -> None:
    tetrahedron.save("a.glb")
    for suffix in (".obj", ".glb", ".stl"):
        assert main(["convert", "a.glb", f"x{suffix}"]) == 0
    for name, suffix in (("x", ".obj"), ("x.glb", ".glb"), ("x.stl", ".stl")):
        assert json.loads(Path(f"{name}.report.json").read_text())["file"] == f"x{suffix}"
        assert json.loads(Path(f"{name}.run.json").read_text())["outputs"] == [f"x{suffix}", f"{name}.report.json"]
    before = Path("x.run.json").read_bytes()
    assert main(["convert", "a.glb", "x.glb"]) == 2  # that one is there
    assert main(["convert", "a.glb", "x.glb", "--overwrite"]) == 0
    assert Path("x.run.json").read_bytes() == before and not Path("x.glb-2.run.json").exists()
    PointCloud(torch.rand(10, 3, generator=torch.Generator().manual_seed(0))).save("a.ply")
    for name in ("p.ply", "p.xyz"):
        assert main(["convert", "a.ply", name]) == 0
    assert json.loads(Path("p.run.json").read_text())["outputs"] == ["p.ply"]
    assert json.loads(Path("p.xyz.run.json").read_text())["outputs"] == ["p.xyz"]
