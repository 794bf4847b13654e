"""Clouds in every format come back as they were; parts agree with the whole; odd files are told."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unproject.geometry import point_parts
from unproject.geometry.formats.gltf_data import split_chunks
from unproject.geometry.glb import container_head
from unproject.geometry.point_files import READABLE, WRITABLE
from unproject.geometry.points import PointCloud
from unproject.geometry.validate import validate_glb
from unproject.utils.errors import InputError, UnprojectError

FAR = (448262.0, 5411932.0, 250.0)


def cloud(count: int = 7, colors: bool = True, normals: bool = True) -> PointCloud:
    generator = torch.Generator().manual_seed(count)
    points = torch.randn(count, 3, generator=generator) * torch.tensor([1.0, 2.0, 0.3])
    unit = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    rgb = (torch.rand(count, 3, generator=generator) * 255).round() / 255
    return PointCloud(points, rgb if colors else None, unit if normals else None)


@pytest.mark.parametrize("suffix", READABLE)
@pytest.mark.parametrize(("colors", "normals"), [(True, True), (True, False), (False, True), (False, False)])
def test_round_trip(tmp_path: Path, suffix: str, colors: bool, normals: bool) -> None:
    made = cloud(7, colors, normals)
    back = PointCloud.load(made.save(tmp_path / f"a{suffix}"))
    torch.testing.assert_close(back.points, made.points, atol=1e-6, rtol=0)
    for name in ("colors", "normals"):
        one, other = getattr(made, name), getattr(back, name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(other, one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("suffix", READABLE)
def test_map_coordinates_survive(tmp_path: Path, suffix: str) -> None:
    made = cloud()
    made.origin = FAR
    back = PointCloud.load(made.save(tmp_path / f"a{suffix}"))
    world = [c.points.double() + torch.tensor(c.origin, dtype=torch.float64) for c in (made, back)]
    torch.testing.assert_close(world[1], world[0], atol=1e-6 if suffix == ".ply" else 1e-5, rtol=0)


@pytest.mark.parametrize("suffix", READABLE)
def test_parts_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    whole = cloud().save(tmp_path / f"a{suffix}").read_bytes()
    monkeypatch.setattr(point_parts, "PART", 3)
    monkeypatch.setattr(point_parts, "LINES", 2)
    assert cloud().save(tmp_path / f"b{suffix}").read_bytes() == whole


def test_a_file_that_reads_back_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that gives other bytes back than it got, of the same number."""
    real = open

    def failing(path: Path, mode: str) -> Any:
        if mode == "rb":
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            return io.BytesIO(bytes(data))
        return real(path, mode)

    monkeypatch.setattr(point_parts, "open", failing, raising=False)
    with pytest.raises(UnprojectError, match="read back differently"):
        cloud().save(tmp_path / "a.ply")
    assert list(tmp_path.iterdir()) == []


def test_a_glb_of_more_than_four_gigabytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds 4 GB at most, this would take 4\.3 GB; choose another format"):
        container_head({"asset": {"version": "2.0"}}, (1 << 32) - 20)


def test_points_of_a_glb_are_what_the_validator_takes(tmp_path: Path) -> None:
    path = cloud().save(tmp_path / "a.glb")
    document, _ = split_chunks(path.read_bytes())
    low = document["accessors"][0]["min"]
    np.testing.assert_allclose(low, cloud().points.amin(0)[[1, 2, 0]], rtol=1e-6)
    found = validate_glb(path)
    if found is not None:
        assert (found["errors"], found["warnings"]) == (0, 0)


def test_what_is_no_cloud_is_told(tmp_path: Path) -> None:
    for name, text, message in (
        ("a.xyz", "1 2 3 4\n", "hold 4 numbers"),
        ("a.xyz", "1 2 3 400 0 0\n", "neither colours"),
        ("a.xyz", "1 2 three\n", "no table of numbers"),
        ("a.obj", "f 1 2 3\n", "no vertices"),
        ("a.obj", "v 1 2 3 4 5\n", "have 5 numbers"),
        ("a.obj", "v 1 2 nan\n", "not finite"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=message):
            PointCloud.load(tmp_path / name)
    with pytest.raises(InputError, match=r"use one of \.ply, \.glb"):
        cloud().save(tmp_path / "a.stl")
    with pytest.raises(InputError, match="is empty"):
        PointCloud(torch.zeros(0, 3)).save(tmp_path / "a.ply")
    assert set(READABLE) < set(WRITABLE)


def test_columns_of_text_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("# x y z nx ny nz\n1 2 3 0 0 1\n4 5 6 1 0 0\n")
    found = PointCloud.load(tmp_path / "a.xyz")
    assert found.colors is None and found.normals is not None and found.normals[0].tolist() == [0, 0, 1]
    (tmp_path / "a.xyz").write_text("1 2 3 255 0 51\n")
    found = PointCloud.load(tmp_path / "a.xyz")
    assert found.colors is not None and found.colors[0].tolist() == pytest.approx([1, 0, 0.2])


@pytest.mark.parametrize("suffix", [".usda", ".usdc", ".usdz"])
def test_usd_holds_points_normals_and_colours_with_y_up(tmp_path: Path, suffix: str) -> None:
    usd = pytest.importorskip("pxr.Usd")
    from pxr import UsdGeom

    made = cloud()
    stage = usd.Stage.Open(str(made.save(tmp_path / f"a{suffix}")))
    shape = UsdGeom.Points(stage.GetPrimAtPath("/Object/Shape"))
    np.testing.assert_allclose(np.array(shape.GetPointsAttr().Get()), made.points[:, [1, 2, 0]], atol=1e-6)
    assert made.normals is not None
    np.testing.assert_allclose(np.array(shape.GetNormalsAttr().Get()), made.normals[:, [1, 2, 0]], atol=1e-6)
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1
    assert len(shape.GetDisplayColorPrimvar().Get()) == 7


def test_a_record_names_what_a_cloud_lost(tmp_path: Path) -> None:
    (tmp_path / "a.obj").write_text("v 0 0 0\nv 1 0 0\nvn 0 0 1\nl 1 2\n")
    with pytest.warns(UserWarning, match="not kept: lines l; normals of another number than points"):
        assert len(PointCloud.load(tmp_path / "a.obj")) == 2
