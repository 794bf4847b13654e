"""`unproject inverse-render` and `relight`: files in and out, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unproject.bench.materialfusion import ball
from unproject.geometry.environment import Environment


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """A mesh with materials and a light."""
    root = tmp_path_factory.mktemp("relight")
    light = torch.full((8, 16, 3), 0.2)
    light[1, 3] = 20.0
    return ball("test", 1, 16).save(root / "ball.glb"), Environment(light).save(root / "sky.hdr")


def test_a_mesh_under_a_light(run, files, tmp_path: Path) -> None:
    mesh, light = map(str, files)
    code, _, err = run("relight", mesh, "--light", light, "--size", "24", "-o", str(tmp_path / "a.png"))
    assert code == 0, err
    code, _, err = run(
        "relight", mesh, "--light", light, "--size", "24", "--turn", "120", "-o", str(tmp_path / "b.png")
    )
    assert code == 0, err
    one, other = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in "ab")
    assert one.shape == (24, 24, 4)
    assert (one[..., 3] == other[..., 3]).all()
    assert np.abs(one - other)[..., :3].max() > 10


def test_materials_and_light_of_a_mesh(run, files, tmp_path: Path) -> None:
    words = (
        "inverse-render",
        str(files[0]),
        "--mesh",
        str(files[0]),
        "--prior",
        "none",
        "--views",
        "2",
        "--size",
        "16",
    )
    out = str(tmp_path / "found.glb")
    code, _, err = run(*words, "--steps", "2", "--texture", "16", "-o", out)
    assert code == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {"found.glb", "found-light.hdr", "found.run.json"}
    assert Environment.load(tmp_path / "found-light.hdr").radiance.shape == (8, 16, 3)
    assert run(*words, "-o", out)[0] == 2


def test_what_is_refused(run, files, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    mesh, light = map(str, files)
    (tmp_path / "no.hdr").write_bytes(b"nothing")
    cases = {
        ("relight", mesh, "--light", str(tmp_path / "gone.hdr")): "does not exist",
        ("relight", mesh, "--light", mesh): "save it as .hdr",
        ("relight", light, "--light", light): "cannot relight",
        ("relight", mesh, "--light", str(tmp_path / "no.hdr")): "no Radiance picture",
        ("relight", mesh, "--light", light, "-o", str(tmp_path / "a.mp4")): "--frames is 0",
        ("inverse-render", "gone"): "does not exist",
        ("inverse-render", mesh, "--mesh", "gone.glb"): "--mesh gone.glb does not exist",
        ("inverse-render", mesh, "--size", "16", "--views", "2"): "unproject train intrinsic-head",
    }
    for words, message in cases.items():
        code, _, err = run(*words, *(() if "-o" in words else ("-o", str(tmp_path / "new"))))
        assert code == 2, err
        assert message in err
