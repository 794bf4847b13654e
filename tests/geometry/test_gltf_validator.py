"""Every kind of GLB we write passes the Khronos validator without a single finding."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unproject.geometry.bake import bake
from unproject.geometry.extract import extract_surface, grid_points
from unproject.geometry.meshes import Mesh
from unproject.geometry.unwrap import unwrap
from unproject.geometry.validate import validate_glb, validator_modules
from unproject.utils.errors import InputError

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def ball() -> Mesh:
    return extract_surface(grid_points(16, 1.0).norm(dim=-1), 0.7, sign=-1)


def make(kind: str) -> Mesh:
    mesh = ball()
    if kind == "flat":
        return replace(mesh, vertex_normals=None)
    if kind == "colored":
        return replace(mesh, vertex_colors=(mesh.vertices + 1) / 2)
    if kind in ("textured", "tiled", "everything"):
        mesh = bake(unwrap(mesh, size=64), lambda p, n: (p + 1) / 2, size=64)
    if kind == "tiled" and mesh.uv is not None:
        return replace(mesh, uv=mesh.uv * 3)
    if kind == "everything":
        bumps = np.full((64, 64, 3), (128, 128, 255), dtype=np.uint8)
        return replace(mesh, textures={**mesh.textures, "metallic_roughness": bumps, "normal": bumps})
    if kind == "collapsed":
        return replace(mesh, faces=torch.cat([mesh.faces, mesh.faces[:1, [0, 0, 1]]]))
    return mesh


@needs_node
@pytest.mark.parametrize("kind", ["plain", "flat", "colored", "textured", "tiled", "everything", "collapsed"])
def test_no_findings(kind: str, tmp_path: Path) -> None:
    assert validator_modules() is not None, "run `make setup`, or point UNPROJECT_NODE at a folder with node_modules"
    report = validate_glb(make(kind).save(tmp_path / f"{kind}.glb"))
    assert report == {"errors": 0, "warnings": 0, "infos": 0, "messages": []}


@needs_node
def test_the_validator_finds_damage(tmp_path: Path) -> None:
    path = ball().save(tmp_path / "ball.glb")
    path.write_bytes(path.read_bytes()[:-200])
    report = validate_glb(path)
    assert report is not None and report["errors"] > 0
    (tmp_path / "noise.glb").write_bytes(b"noise")
    report = validate_glb(tmp_path / "noise.glb")
    assert report is not None and report["errors"] > 0


def test_without_node_there_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ball().save(tmp_path / "ball.glb")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert validate_glb(path) is None
    with pytest.raises(InputError, match="does not exist"):
        validate_glb(tmp_path / "none.glb")
