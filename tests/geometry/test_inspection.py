"""report.json: known boxes and charts in numbers; three programs see the same solid in a GLB."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import open3d
import pytest
import torch
import trimesh

from unproject.geometry.bake import bake
from unproject.geometry.extract import extract_surface, grid_points
from unproject.geometry.inspection import inspect_mesh, write_report
from unproject.geometry.meshes import Mesh
from unproject.geometry.solid import solid_surface
from unproject.geometry.unwrap import unwrap
from unproject.geometry.validate import validate_glb, validator_modules


def textured() -> Mesh:
    points = grid_points(20, 1.0)
    body = (points / torch.tensor([0.8, 0.5, 0.6])).norm(dim=-1) + 0.2 * torch.sin(4 * points[..., 0])
    mesh = solid_surface(extract_surface(body, 1.0, sign=-1), 0.02, 600)
    return bake(unwrap(mesh, 128), lambda p, n: (p + 1) / 2, 128)


def test_a_box_in_numbers() -> None:
    mesh = Mesh.from_trimesh(trimesh.creation.box((1.0, 2.0, 3.0)))
    facts = inspect_mesh(mesh, ".stl")
    assert facts["solid"] is True and facts["faults"] == [] and facts["faces"] == 12 and facts["texture"] is None
    assert facts["bounds"]["size"] == [1.0, 2.0, 3.0] and "names no unit" in facts["bounds"]["scale_from"]
    assert facts["up"]["in_the_file"].startswith("+z") and inspect_mesh(mesh, ".GLB")["up"]["in_the_file"] == "+y"
    assert facts["shells"]["count"] == 1 and facts["shells"]["largest"][0]["volume"] == pytest.approx(6.0)
    assert facts["thickness"]["least"] == pytest.approx(1.0) and facts["thickness"]["share_below_limit"] == 0.0
    thin = replace(mesh, vertices=mesh.vertices * torch.tensor([0.01, 1.0, 1.0]))
    assert inspect_mesh(thin)["thickness"]["share_below_limit"] == pytest.approx(12 / (12 + 0.01 * 10), abs=1e-3)


def test_charts_and_texels_in_numbers() -> None:
    """Two triangles of a 2 x 1 m sheet: one chart of 64 x 32 texels, one of 16 x 16 that is half as fine along x."""
    vertices = torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, 1, 0], [2, 1, 0]])
    uv = torch.tensor([[0.0, 0], [0.5, 0], [0, 0.25], [0.75, 0.75], [0.75, 0.875], [0.625, 0.875]])
    mesh = Mesh(vertices, torch.tensor([[0, 1, 2], [1, 3, 2]]), uv=uv, uv_faces=torch.tensor([[0, 1, 2], [3, 4, 5]]))
    mesh.textures["base_color"] = np.zeros((128, 128, 3), dtype=np.uint8)
    facts = inspect_mesh(mesh)["texture"]
    assert facts["charts"] == 2 and facts["faces_without_texels"] == 0
    assert facts["use"] == pytest.approx(0.5 * (0.5 * 0.25 + 0.125**2))
    assert facts["texel_metres"]["least"] == pytest.approx((2 / (64 * 32)) ** 0.5)
    assert facts["texel_metres"]["most"] == pytest.approx((2 / (16 * 16)) ** 0.5)


def test_a_report_stands_beside_the_mesh(tmp_path: Path) -> None:
    mesh = textured()
    path = write_report(mesh, mesh.save(tmp_path / "body.glb"), "a ruler")
    facts = json.loads(path.read_text())
    assert path.name == "body.report.json" and facts["file"] == "body.glb" and facts["solid"] is True
    assert facts["bounds"]["scale_from"] == "a ruler" and facts["texture"]["charts"] >= 1
    back = inspect_mesh(Mesh.load(tmp_path / "body.glb"), ".glb", "a ruler")
    assert back["texture"]["charts"] == facts["texture"]["charts"] and back["faces"] == facts["faces"]


def test_three_programs_see_the_same_solid_in_a_glb(tmp_path: Path) -> None:
    mesh = textured()
    path = mesh.save(tmp_path / "body.glb")
    report = mesh.check()
    assert len(mesh.split_seams()[0]) > report.vertices  # charts split vertices in the file
    ours = Mesh.load(path).check()
    theirs = trimesh.load(path, force="mesh", process=False)
    theirs.merge_vertices(merge_tex=True, merge_norm=True)
    other = open3d.io.read_triangle_mesh(str(path))
    other.remove_duplicated_vertices()
    assert ours.sound and theirs.is_volume and other.is_watertight() and other.is_orientable()
    counts = {(report.vertices, report.faces), (ours.vertices, ours.faces)}
    counts |= {(len(theirs.vertices), len(theirs.faces)), (len(other.vertices), len(other.triangles))}
    assert len(counts) == 1
    for volume in (ours.signed_volume, float(theirs.volume), other.get_volume()):
        assert volume == pytest.approx(report.signed_volume, rel=1e-5)
    if shutil.which("node") and validator_modules() is not None:
        assert validate_glb(path) == {"errors": 0, "warnings": 0, "infos": 0, "messages": []}
