"""Files of others on the command line: exit codes, and the small inputs that once went wrong where they are at hand."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from unproject.geometry.far import world_positions
from unproject.geometry.meshes import Mesh
from unproject.geometry.points import PointCloud
from unproject.pipelines.picture_inputs import hidden_pixels, pictures
from unproject.utils.pictures import load_image

Run = Callable[..., tuple[int, str, str]]
INPUTS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "bug-inputs"
at_hand = pytest.mark.skipif(not INPUTS.is_dir(), reason="the inputs are not beside the checkout")


def test_a_required_extension_ends_with_two_and_nothing_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    text = json.dumps({"asset": {"version": "2.0"}, "extensionsRequired": ["KHR_draco_mesh_compression"]}).encode()
    text += b" " * (-len(text) % 4)
    Path("a.glb").write_bytes(struct.pack("<4sIIII", b"glTF", 2, 20 + len(text), len(text), 0x4E4F534A) + text)
    for words in (("convert", "a.glb", "b.ply"), ("inspect", "a.glb")):
        code, _, err = run(*words)
        assert code == 2 and "a.glb requires KHR_draco_mesh_compression, which is not read" in err
    assert not Path("b.ply").exists()


def test_far_bounds_splats_and_losses_are_told(run: Run) -> None:
    Path("a.obj").write_text("v 500000.1 0 0\nv 500000.2 0 0\nv 500000.1 0.1 0\nf 1 2 3\n")
    code, out, _ = run("inspect", "a.obj", "--json")
    found = json.loads(out)
    assert code == 0 and found["origin"] == [500000.0, 0.0, 0.0]
    assert found["bounds"]["high"] == pytest.approx([500000.2, 0.1, 0.0])
    code, _, err = run("convert", "a.obj", "b.stl")
    assert code == 0 and "relative to (500000, 0, 0)" in err
    assert json.loads(Path("b.run.json").read_text())["warnings"] == [
        "b.stl: STL holds float32: positions are written relative to (500000, 0, 0)"
    ]
    names = ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "rot_0")
    head = "ply\nformat ascii 1.0\nelement vertex 1\n" + "".join(f"property float {name}\n" for name in names)
    Path("s.ply").write_text(head + "end_header\n0 0 0 0 0 0 1 1 1\n")
    code, out, err = run("inspect", "s.ply", "--json")
    assert json.loads(out)["kind"] == "Gaussian splats" and "Gaussian splats" in err
    code, _, err = run("convert", "s.ply", "t.ply")
    assert code == 0 and "columns of vertex: opacity, scale_0, rot_0" in err


def green(path: str) -> list[list[int]]:
    """sRGB of the vertices whose y (glTF's x) is largest."""
    mesh = Mesh.load(path)
    colors = (mesh.with_vertex_colors() if mesh.textures else mesh).vertex_colors
    last = mesh.vertices[:, 1] > mesh.vertices[:, 1].max() - 0.5
    return np.unique((colors[last] * 255).round().int().tolist(), axis=0).tolist()


@at_hand
@pytest.mark.parametrize("suffix", [".ply", ".glb"])
@pytest.mark.parametrize(
    ("name", "color"),
    [
        ("tint.glb", [0, 128, 0]),
        ("colormul.glb", [0, 128, 0]),
        ("tex_and_tinted.glb", [0, 128, 0]),
        ("texxform.glb", [0, 0, 255]),
        ("texxform_req.glb", [0, 0, 255]),
    ],
)
def test_given_colours(run: Run, name: str, color: list[int], suffix: str) -> None:
    assert run("convert", str(INPUTS / "meshes" / name), f"b{suffix}")[0] == 0
    assert green(f"b{suffix}") == [color]


@at_hand
@pytest.mark.parametrize("name", ["draco.glb", "part_draco.glb"])
def test_given_compressed_meshes(run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    for words in (("inspect",), ("convert", "b.glb")):
        code, _, err = run(words[0], str(INPUTS / "meshes" / name), *words[1:])
        assert code == 2 and "requires KHR_draco_mesh_compression" in err


@at_hand
@pytest.mark.parametrize("suffix", [".obj", ".glb", ".ply"])
def test_given_map_coordinates(run: Run, suffix: str) -> None:
    assert run("convert", str(INPUTS / "meshes" / "utm_mesh.obj"), f"b{suffix}")[0] == 0
    mesh = Mesh.load(f"b{suffix}")
    assert len(mesh.vertices) == 4 and len(mesh.faces) == 2
    places = world_positions(mesh.vertices, mesh.origin)
    np.testing.assert_allclose(places.min(axis=0), [448262, 5411932, 120], atol=1e-6)
    np.testing.assert_allclose(places.max(axis=0), [448262.1, 5411932.1, 120.05], atol=1e-6)


@at_hand
def test_given_texture_options(run: Run) -> None:
    for name in ("opts.obj", "opts.mtl", "tex.png"):
        shutil.copy(INPUTS / "meshes" / name, name)
    assert run("convert", "opts.obj", "b.glb")[0] == 0
    assert np.array_equal(Mesh.load("b.glb").textures["base_color"][0, 0], [255, 0, 0])
    Path("tex.png").unlink()
    code, _, err = run("convert", "opts.obj", "c.glb")
    assert code == 0 and "texture tex.png of material 'a', which is not there" in err


@at_hand
def test_given_points(run: Run) -> None:
    assert run("convert", str(INPUTS / "points" / "rgb16.ply"), "b.ply")[0] == 0
    colors = PointCloud.load("b.ply").colors
    torch.testing.assert_close(colors[[1, 3]], torch.tensor([[0, 0.5, 0], [0.25, 0.25, 0.25]]), atol=1 / 255, rtol=0)
    code, _, err = run("convert", str(INPUTS / "points" / "splat.ply"), "c.ply")
    assert code == 2 and "no splats with finite numbers" in err  # its quaternions are 0
    code, _, err = run("convert", str(INPUTS / "points" / "splat.ply"), "c.ply", "--to", "points")
    assert code == 0 and "opacities" in err
    assert float(PointCloud.load("c.ply").colors[0, 0]) == pytest.approx(0.5 + 0.28209479, abs=1 / 255)


@at_hand
def test_given_cameras(run: Run) -> None:
    code, _, err = run("convert", str(INPUTS / "cameras" / "equirect.json"), "b")
    assert code == 2 and "EQUIRECTANGULAR" in err
    code, _, err = run("convert", str(INPUTS / "cameras" / "blender.json"), "b")
    assert code == 2 and 'add "w" and "h"' in err
    shutil.copy(INPUTS / "cameras" / "blender.json", "blender.json")
    Path("images").mkdir()
    shutil.copy(INPUTS / "pictures" / "pic64.png", "images/0.png")
    shutil.copy(INPUTS / "pictures" / "pic64.png", "images/1.png")
    assert run("convert", "blender.json", "b")[0] == 0
    assert " 64 64 " in Path("b/cameras.txt").read_text().splitlines()[1]


@at_hand
def test_given_pictures() -> None:
    assert np.rint(load_image(INPUTS / "pictures" / "p3.png")[0, 0] * 255) == pytest.approx([230, 60, 40], abs=1.5)
    picture = pictures(INPUTS / "pictures" / "pic64.png")
    for name in ("m_red.png", "m_layer.png", "m_L.png"):
        assert int(hidden_pixels(INPUTS / "pictures" / name, picture).sum()) == 400
