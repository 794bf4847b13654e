"""`unproject image-to-views` and `image-to-mesh`: files in and out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unproject.cli.views import USUAL_FRAMES
from unproject.core.priors import MultiViewPrior, load_prior
from unproject.core.priors.multiview import FRAMES, inflate
from unproject.core.priors.orbits import OrbitPrior
from unproject.core.priors.temporal import TemporalConfig
from unproject.pipelines import image_to_mesh
from unproject.pipelines.image_to_views import ImageToViews
from unproject.scripts.random_backbones import tiny_sd, write_folder


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """A tiny prior, weights of orbits that have learnt nothing, and pictures with and without background."""
    root = tmp_path_factory.mktemp("views")
    write_folder(tiny_sd("v_prediction", block_out_channels=(32, 64)), root / "prior")
    base = load_prior(root / "prior")
    OrbitPrior(base, TemporalConfig(share=0.25, rank=0), 4).save_adapter(root / "orbit", "prior")
    rgba = np.random.default_rng(0).integers(0, 256, (24, 40, 4), dtype=np.uint8)
    rgba[..., 3] = 0
    rgba[4:20, 10:30, 3] = 255
    Image.fromarray(rgba).save(root / "cut.png")
    Image.fromarray(rgba[..., :3]).save(root / "full.png")
    Image.fromarray(rgba[..., 3]).save(root / "mask.png")
    return {name: str(root / name) for name in ("prior", "orbit", "cut.png", "full.png", "mask.png")}


def given(files, picture="cut.png"):
    return files[picture], "--prior", files["prior"], "--orbit", files["orbit"], "--steps", "1", "--frames", "3"


def test_views_sheet_cameras_and_record(run, files, tmp_path: Path) -> None:
    code, out, err = run("image-to-views", *given(files), "-o", str(tmp_path / "new"))
    assert code == 0, err
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {*(f"cut-views-0{k}.png" for k in range(3)), "cut-views-sheet.png", "transforms.json",
                     "cut-views.run.json"}  # fmt: skip
    told = json.loads((tmp_path / "new" / "cut-views.run.json").read_text())
    assert told["nfe"] == {"denoiser": 6} and told["notes"]["cut_by"] == "transparency" and "transparency" in out
    assert len(json.loads((tmp_path / "new" / "transforms.json").read_text())["frames"]) == 3
    again = run("image-to-views", *given(files), "-o", str(tmp_path / "new"))
    assert again[0] == 2 and "--overwrite" in again[2]
    assert run("image-to-views", *given(files), "--overwrite", "-o", str(tmp_path / "new"))[0] == 0
    masked = run("image-to-views", *given(files, "full.png"), "--mask", files["mask.png"], "-o", str(tmp_path / "m"))
    assert masked[0] == 0 and "by mask" in masked[1]
    one, other = (
        np.asarray(Image.open(tmp_path / folder)) for folder in ("new/cut-views-00.png", "m/full-views-00.png")
    )
    assert np.abs(one.astype(int) - other)[..., 3].max() <= 1


def test_a_prior_of_several_views_says_what_it_was_told(run, files, tmp_path: Path) -> None:
    pipe = tiny_sd("v_prediction", block_out_channels=(32, 64))
    MultiViewPrior(pipe, inflate(pipe.unet), "tiny-mv").save(tmp_path / "mv")
    words = ("image-to-views", files["cut.png"], "--prior", str(tmp_path / "mv"), "--steps", "1", "--azimuth", "30")
    code, _, err = run(*words, "-o", str(tmp_path / "new"))
    assert code == 2 and "say what the picture shows" in err
    code, out, err = run(*words, "--prompt", "a red cup", "-o", str(tmp_path / "new"))
    assert code == 0 and 'drawn as "a red cup", seen from 30 degrees' in out, err
    told = json.loads((tmp_path / "new" / "cut-views.run.json").read_text())["notes"]["views"]
    assert told["prompt"] == "a red cup" and told["azimuth_deg"] == 30 and told["frames"] == 4


def test_an_interrupted_command_goes_on_from_its_views(run, files, tmp_path: Path, monkeypatch) -> None:
    """Views are kept when what follows is stopped."""
    words = ("image-to-mesh", *given(files), "--turntable", "0", "--view-size", "16", "-o", str(tmp_path / "cup.glb"))
    work = tmp_path / ".cup.work"

    def fails(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_to_mesh.ImageToMesh, "normals_of", fails)
    drawn, whole = [], ImageToViews._drawn
    monkeypatch.setattr(ImageToViews, "_drawn", lambda *args: drawn.append(1) or whole(*args))
    assert run(*words)[0] == 130
    assert (work / "views.json").is_file() and not (tmp_path / "cup.glb").exists() and drawn == [1]
    assert run(*words)[0] == 130 and drawn == [1]
    assert run(*words, "--overwrite")[0] == 130 and drawn == [1, 1]


def test_a_dry_run_names_what_would_be_done(run, files, tmp_path: Path) -> None:
    code, out, _ = run("image-to-views", *given(files), "--dry-run", "-o", str(tmp_path / "new"))
    assert code == 0 and "would draw 3 views around" in out and not (tmp_path / "new").exists()
    code, out, _ = run("image-to-mesh", *given(files), "--dry-run", "-o", str(tmp_path / "cup.glb"))
    assert code == 0 and "would make a mesh of" in out and "cup.glb" in out
    assert USUAL_FRAMES == FRAMES
    code, out, _ = run(
        "image-to-views", files["cut.png"], "--prompt", "a red cup", "--dry-run", "-o", str(tmp_path / "v")
    )
    assert code == 0 and "would draw views around" in out


def test_what_is_refused(run, files, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    cut, full = files["cut.png"], files["full.png"]
    cases = {
        ("image-to-views", "gone.png"): "does not exist",
        ("image-to-views", full): "has no transparency, so nothing says what the object is",
        ("image-to-views", full, "--plain", "--subject", "cup"): "--plain and --subject both say",
        ("image-to-views", full, "--subject", " "): "--subject is empty",
        ("image-to-views", cut, "--mask", "gone.png"): "--mask gone.png does not exist",
        ("image-to-views", cut, "--elevation", "100"): "--elevation must lie between",
        ("image-to-views", cut, "--azimuth", "400"): "--azimuth must lie between",
        ("image-to-views", cut, "--prompt", " "): "--prompt is empty",
        ("image-to-views", *given(files)[0:], "--prompt", "a cup"): "told the picture alone",
        ("image-to-views", cut, "--frames", "1"): "--frames must lie between",
        ("image-to-views", cut, "--orbit", "gone"): "--orbit gone is no folder",
        ("image-to-views", cut, "--prior", files["prior"]): "unproject train orbits",
        ("image-to-views", cut, "--prior", files["prior"], "--orbit", str(tmp_path)): "holds no orbit.json",
        ("image-to-mesh", cut, "--texture", "4"): "--texture must lie between",
        ("image-to-mesh", cut, "--prior", files["prior"]): "unproject train orbits",
        ("image-to-mesh", cut, "-o", str(tmp_path / "cup.gif")): "writes a folder or .glb",
    }
    for words, message in cases.items():
        code, _, err = run(*words, *(() if "-o" in words else ("-o", str(tmp_path / "new"))))
        assert code == 2, (words, err)
        assert message in err, (words, err)


def test_a_dry_run_refuses_what_no_prior_draws_or_shows_no_object(run, files, in_tmp: Path) -> None:
    Image.new("RGBA", (24, 24), (200, 40, 40, 0)).save("nothing.png")
    Image.new("RGB", (24, 24), (200, 40, 40)).save("even.png")
    for command in ("image-to-views", "image-to-mesh"):
        for words, told in (
            (("nothing.png",), "the object (transparency) is 0.00% of the picture"),
            (("nothing.png", "--subject", "a cup"), "the object (transparency) is 0.00% of the picture"),
            (("even.png", "--plain"), "the object (a plain background) is 0.00% of the picture"),
            ((files["full.png"], "--plain", "--prior", "toybox-dit"), "nothing that draws views of a picture comes"),
        ):
            for how in ((), ("--dry-run",)):
                code, _, err = run(command, *words, *how)
                assert code == 2 and told in err
        for prior in (("--prior", "owner/prior"), ("--prior", "mvdream"), given(files)[1:5]):
            assert run(command, files["cut.png"], *prior, "--dry-run")[0] == 0
