"""`fit`, `render`, `convert` and `inspect` of splats on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unproject.geometry.camera_files import save_nerfstudio
from unproject.geometry.cameras import Camera
from unproject.geometry.meshes import Mesh
from unproject.geometry.points import PointCloud
from unproject.geometry.splats import GaussianCloud, load_splats, save_splats
from unproject.utils.seeds import generator

Run = Callable[..., tuple[int, str, str]]
QUICK = {
    "steps": 6,
    "sizes": [[0, 1.0]],
    "held_out": 3,
    "splats": {"count": 60, "bounds": 1e9, "degree": 1, "density": {"every": 0, "reset_every": 0}},
}


def cloud(count: int = 60, mode: str = "mip") -> GaussianCloud:
    rng = generator(2)
    made = GaussianCloud.from_values(
        0.2 * torch.randn(count, 3, generator=rng), torch.full((count, 3), 0.06), torch.randn(count, 4, generator=rng),
        torch.full((count,), 0.8), 0.3 * torch.randn(count, 4, 3, generator=rng),
    )  # fmt: skip
    return replace(made, mode=mode)


def test_splats_become_other_splats_points_and_meshes(run: Run) -> None:
    save_splats(cloud(), "a.ply")
    code, out, err = run("convert", "a.ply", "b.splat")
    assert code == 0 and "60 splats" in out and "degree 1 are left out" in err and "render mode mip" in err
    assert run("convert", "a.ply", "b.compressed.ply")[0] == 0 and load_splats("b.compressed.ply").mode == "mip"
    code, out, err = run("convert", "a.ply", "b.glb", "--json")
    assert code == 0 and json.loads(out)["splats"] == 60 and "mip is not said" in err
    assert run("convert", "b.glb", "c.ply")[0] == 0
    torch.testing.assert_close(load_splats("c.ply").means, load_splats("a.ply").means, atol=1e-5, rtol=0)
    code, out, err = run("convert", "a.ply", "points.ply", "--to", "points")
    assert code == 0 and "opacities and harmonics are left out" in err and len(PointCloud.load("points.ply")) == 60
    code, out, _ = run("convert", "a.ply", "mesh.glb", "--to", "mesh", "--faces", "400")
    assert code == 0 and 0 < len(Mesh.load("mesh.glb").faces) <= 400


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("a.ply", "b.stl"), "--to mesh makes a mesh of them"),
        (("a.ply", "b.splat", "--to", "points"), "points become .ply"),
        (("a.ply", "b.xyz"), "cannot be stored as '.xyz'"),
        (("a.ply", "b.ply", "--faces", "5"), "--faces 5 simplifies meshes"),
        (("box.ply", "b.ply", "--to", "points"), "box.ply holds none"),
    ],
)
def test_conversions_that_cannot_be(run: Run, words: tuple[str, ...], told: str) -> None:
    save_splats(cloud(), "a.ply")
    Mesh(torch.eye(3), torch.tensor([[0, 1, 2]])).save("box.ply")
    code, _, err = run("convert", *words)
    assert code == 2 and told in err


def test_splats_are_inspected(run: Run) -> None:
    save_splats(cloud(), "a.glb")
    code, out, _ = run("inspect", "a.glb", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["kind"] == "Gaussian splats" and facts["splats"] == 60 and facts["sh_degree"] == 1
    assert facts["broken"]["splats"] == 0 and facts["opacity"]["median"] == pytest.approx(0.8, rel=1e-3)
    assert run("inspect", "a.glb", "--strict")[0] == 2


def test_what_a_render_writes(run: Run) -> None:
    save_splats(cloud(), "some.cloud.ply")
    small = ("--size", "32", "--frames", "4", "--views", "3")
    assert run("render", "some.cloud.ply", "-o", "all", *small)[0] == 0
    names = {path.name for path in Path("all").iterdir()}
    endings = ("-view.png", "-sheet.png", "-turntable.gif", "-turntable.mp4", ".run.json")
    assert names == {f"some{ending}" for ending in endings}
    view = np.asarray(Image.open("all/some-view.png"))
    assert view.shape == (32, 32, 4) and view[0, 0, 3] == 0 and view[..., 3].max() > 200
    assert run("render", "some.cloud.ply", "-o", "one.png", *small, "--azimuth", "30")[0] == 0
    assert np.array_equal(np.asarray(Image.open("one.png")), view)
    assert run("render", "some.cloud.ply", "-o", "other.png", *small, "--mode", "default")[0] == 0
    assert not np.array_equal(np.asarray(Image.open("other.png")), view)  # the file says mip
    assert run("render", "some.cloud.ply", "-o", "up.png", *small, "--up=-y")[0] == 0
    assert not np.array_equal(np.asarray(Image.open("up.png")), view)
    assert run("render", "some.cloud.ply", "-o", "one.png", *small)[0] == 2  # there already


def test_cameras_of_a_file_take_the_pictures(run: Run) -> None:
    Mesh(
        torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]]),
        torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]),
    ).save("m.ply")
    cameras = Camera.orbit([0.0, 90.0], 20.0, 400.0, 0.5, 24, 16)
    save_nerfstudio("cams.json", cameras, ["images/left.png", "images/right.png"])
    assert run("render", "m.ply", "--cameras", "cams.json", "-o", "out")[0] == 0
    left, right = (np.asarray(Image.open(f"out/m-images-{name}.png")) for name in ("left", "right"))
    assert left.shape == (16, 24, 4) and left[..., 3].any() and not np.array_equal(left, right)
    code, _, err = run("render", "m.ply", "--cameras", "cams.json", "-o", "a.png")
    assert code == 2 and "asks for several" in err
    assert run("render", "m.txt")[0] == 2 and run("render", "cams.json")[0] == 2


def test_a_toy_is_fitted_and_goes_on(run: Run) -> None:
    Path("quick.json").write_text("{}")
    from unproject.utils.configs import to_yaml

    Path("quick.yaml").write_text(to_yaml(QUICK))
    words = ("fit", "toybox:a red chair", "--recipe", "quick.yaml", "--views", "9", "--size", "24", "--frames", "2")
    code, out, err = run(*words, "-o", "chair.ply")
    assert code == 0 and "3 pictures held out: PSNR" in out, err
    assert (
        len(load_splats("chair.ply")) == 60
        and Path("chair-sheet.png").is_file()
        and Path("chair-turntable.gif").is_file()
    )
    record = json.loads(Path("chair.run.json").read_text())
    assert record["notes"]["metrics"]["splats"] == 60 and len(record["notes"]["pictures"]) == 3
    assert record["config"]["source"] == "toybox:a red chair" and not Path(".chair.work").exists()
    assert run(*words, "-o", "chair.ply")[0] == 2
    code, out, _ = run(*words, "-o", "b.glb", "--work", "work", "--refine-poses", "--steps", "4", "--degree", "0")
    assert code == 0 and Path("b-cameras.json").is_file() and Path("work/ckpt-4").is_dir()
    code, _, err = run(*words, "-o", "c.ply", "--work", "work", "--steps", "5", "--degree", "0", "--refine-poses")
    assert code == 2 and "made with another steps (4)" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("fit", "nothing.json"), "give pictures with cameras"),
        (("fit", "toybox:a red chair and a blue dog", "--dry-run"), ""),
        (("fit", "toybox:x", "--degree", "5"), "--degree must lie between 0 and 3"),
        (("fit", "toybox:x", "--recipe", "none"), "no packaged config 'fit/none'"),
        (("fit", "toybox:x", "-o", "x.ply", "--mesh", "x.ply"), "x.ply would be written twice"),
        (("fit", "toybox:two red chairs", "--views", "2"), "more than one object"),
        (("fit", "box.ply", "-o", "box.ply", "--overwrite"), "would overwrite box.ply, the mesh itself"),
        (("fit", "box.ply", "-o", "a.ply", "--mesh", "./box.ply", "--overwrite"), "overwrite box.ply, the mesh itself"),
    ],
)
def test_fits_that_cannot_be(run: Run, words: tuple[str, ...], told: str) -> None:
    Mesh(torch.eye(3), torch.tensor([[0, 1, 2]])).save("box.ply")
    code, _, err = run(*words)
    assert (code == 2 and told in err) or not told
