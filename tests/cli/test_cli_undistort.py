"""`convert --undistort`: sets of bent lenses become pinholes with straight pictures; others are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unproject.geometry.camera_files import load_colmap, load_nerfstudio
from unproject.geometry.intrinsics import DistortedLens, undistorted
from unproject.utils.pictures import load_image, save_image

Run = Callable[..., tuple[int, str, str]]
RADIAL = {"k1": -0.3, "k2": 0.05, "p1": 0.003}
K = [[20.0, 0, 13], [0, 19.0, 8], [0, 0, 1]]
POSE = [[1.0, 0, 0, 1], [0, 0, -1, 2], [0, 1, 0, 3], [0, 0, 0, 1]]


@pytest.fixture
def picture() -> np.ndarray:
    """Of both views of bent.json."""
    made = np.random.default_rng(0).integers(20, 256, (18, 24, 3), np.uint8)
    frames = [{"file_path": f"shots/{name}", "transform_matrix": POSE} for name in ("a.png", "b.png")]
    for frame in frames:
        save_image(str(frame["file_path"]), made)
    lens = {"fl_x": 20, "fl_y": 19, "cx": 13, "cy": 8, "w": 24, "h": 18, **RADIAL}
    Path("bent.json").write_text(json.dumps({**lens, "frames": frames}))
    return made


@pytest.mark.parametrize("wanted", ["straight.json", "model"])
def test_distortion_goes_out_of_the_pictures_on_request(run: Run, picture: np.ndarray, wanted: str) -> None:
    code, _, err = run("convert", "bent.json", wanted)
    assert code == 2 and "'k1': -0.3" in err and "convert --undistort takes it out of the images" in err
    code, out, err = run("convert", "bent.json", wanted, "--undistort", "--json")
    assert code == 0 and json.loads(out)["views"] == 2
    camera, names = (load_nerfstudio if wanted.endswith(".json") else load_colmap)(Path(wanted))
    assert camera.model == "pinhole" and camera.K[0].tolist() == K
    folder = Path() if wanted.endswith(".json") else Path(wanted, "images")
    straight, inside = undistorted(picture / np.float32(255), DistortedLens(np.array(K), RADIAL))
    np.testing.assert_allclose(load_image(folder / names[1]), straight, atol=0.6 / 255)
    assert inside.all() or "lies outside of what its lens saw" in err
    code, _, err = run("convert", "bent.json", wanted, "--undistort")
    assert code == 2 and "already there" in err


def test_undistort_is_refused_where_it_means_nothing(run: Run, picture: np.ndarray) -> None:
    Path("a.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    code, _, err = run("convert", "a.obj", "b.ply", "--undistort")
    assert code == 2 and "--undistort is of cameras and a.obj holds none" in err
    assert run("convert", "bent.json", "s.json", "--undistort")[0] == 0
    code, _, err = run("convert", "s.json", "t.json", "--undistort")
    assert code == 2 and "s.json has no lens distortion that --undistort could take out" in err
    Path("shots/b.png").unlink()
    code, _, err = run("convert", "bent.json", "u.json", "--undistort", "--dry-run")
    assert code == 2 and "shots/b.png is not there" in err and not Path("u-images").exists()
