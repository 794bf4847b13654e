"""The experiment on meshes of others, on a box that is written here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trimesh

from unproject.bench import real_meshes
from unproject.bench.runner import Context
from unproject.geometry.meshes import Mesh
from unproject.geometry.metrics import hausdorff
from unproject.utils.errors import InputError

SMALL = replace(real_meshes.QUICK, views=9, size=24, steps=2, texture=64, samples=50)


def box(shift: float = 0.0) -> Mesh:
    solid = trimesh.creation.box((1.0, 2.0, 3.0))
    vertices = torch.from_numpy(solid.vertices.copy()).float()
    vertices[:, 0] += shift
    return Mesh(vertices, torch.from_numpy(solid.faces.copy()))


def test_a_mesh_goes_through_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNPROJECT_REAL", str(tmp_path))
    monkeypatch.setattr(real_meshes, "QUICK", SMALL)
    with pytest.raises(InputError, match="UNPROJECT_REAL"):
        real_meshes.run(Context("real-meshes", quick=True, out=tmp_path))
    open_box = box()
    (tmp_path / "meshes").mkdir()
    Mesh(open_box.vertices, open_box.faces[2:]).save(tmp_path / "meshes" / "open.stl")
    (row,) = real_meshes.run(Context("real-meshes", quick=True, out=tmp_path))["table"]
    assert (tmp_path / "real-meshes.png").exists()
    assert row["faces"] == 10 and not row["solid"] and row["repaired"] and row["files_hausdorff"] < 1e-6
    assert row["charts"] >= 1 and row["bake_psnr"] > 15 and row["fit_psnr"] > 3 and row["splats"] > 100


def test_hausdorff_is_the_largest_distance_either_way() -> None:
    assert hausdorff(box(), box(0.25), 500) == pytest.approx(0.25, abs=1e-6)
    assert hausdorff(box(), box(), 500) < 1e-6
    far = Mesh(torch.tensor([[0.5, 1.0, 1.5], [0.5, 1.0, 4.5], [0.5, 0.9, 1.5]]), torch.tensor([[0, 1, 2]]))
    both = Mesh(torch.cat([box().vertices, far.vertices]), torch.cat([box().faces, far.faces + 8]))
    assert hausdorff(both, box(), 10) == hausdorff(box(), both, 10) == pytest.approx(3.0, abs=1e-5)


def test_open_surfaces_whose_borders_hold_more_have_no_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = trimesh.creation.box((1.0, 2.0, 3.0)).subdivide()
    whole = Mesh(torch.from_numpy(fine.vertices.copy()).float(), torch.from_numpy(fine.faces.copy()))
    made = real_meshes.quarter(whole)
    assert made is not None and len(made.faces) == len(whole.faces) // 4
    assert real_meshes.quarter(box()) is None  # three triangles are no box

    def refused(mesh: Mesh, faces: int) -> Mesh:
        raise InputError(f"faces={faces}; this open surface cannot go below 9 triangles")

    monkeypatch.setattr(real_meshes, "decimate", refused)
    assert real_meshes.quarter(whole) is None
