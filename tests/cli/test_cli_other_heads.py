"""`depth --head` and `normals --refine`: what is loaded, and what is said where weights are absent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unproject.cli.maps import MAP_COMMANDS
from unproject.core.priors import StableDiffusionPrior, load_prior
from unproject.tasks.codecs.metric import MetresCodec
from unproject.tasks.geometry_head import GeometryHead, HeadConfig
from unproject.tasks.metric_head import MetricConfig, MetricHead
from unproject.tasks.preimage_head import PreimageConfig, PreimageHead
from unproject.tasks.refine import RefineConfig, RefinedHead
from unproject.tasks.refiner import RefinerConfig
from unproject.utils.pictures import save_image

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def picture(in_tmp: Path) -> None:
    save_image("a.png", np.random.default_rng(0).random((24, 32, 3)))


@pytest.fixture
def heads(tiny_prior_folder: Path, tmp_path: Path) -> Path:
    """A reader and a refiner on the tiny prior, with what they name beside them."""
    prior = load_prior(tiny_prior_folder)
    assert isinstance(prior, StableDiffusionPrior)
    prior.save(tmp_path / "tiny")
    first = GeometryHead.from_prior(prior, HeadConfig(processing_resolution=32))
    first.save(tmp_path / "tiny-geometry", "tiny")
    PreimageHead(prior, PreimageConfig(refiner=RefinerConfig(out_channels=8))).save(tmp_path / "reader", "tiny")
    RefinedHead(first, RefineConfig(steps=2)).save(tmp_path / "refiner", "tiny-geometry")
    return tmp_path


def test_a_reader_writes_depth_and_a_refiner_normals(picture: None, run: Run, heads: Path) -> None:
    code, _, err = run("depth", "a.png", "--head", str(heads / "reader"), "--device", "cpu", "-o", "d.npz")
    assert code == 0, err
    with np.load("d.npz") as stored:
        assert stored["depth"].shape == (24, 32)
    refiner = ("--refine", "--refiner", str(heads / "refiner"))
    code, _, err = run("normals", "a.png", *refiner, "--device", "cpu", "-o", "n.npz")
    assert code == 0, err
    with np.load("n.npz") as stored:
        assert np.allclose(np.linalg.norm(stored["normals"], axis=-1), 1, atol=1e-3)


def test_a_head_of_metres_tells_them_through_the_camera(picture: None, run: Run, heads: Path) -> None:
    prior = load_prior(heads / "tiny")
    assert isinstance(prior, StableDiffusionPrior)
    MetricHead(prior, MetricConfig(MetresCodec(6.0), processing_resolution=32)).save(heads / "metres", "tiny")
    asked = ("depth", "a.png", "--metric", "--head", str(heads / "metres"), "--fov", "60", "--device", "cpu")
    code, _, err = run(*asked, "-o", "m.npz")
    assert code == 0, err
    with np.load("m.npz") as stored:
        free = stored["depth"]
        assert free.shape == (24, 32) and 0 < free.min() <= free.max() <= 6
        assert (str(stored["scale"]), str(stored["unit"])) == ("the head's own", "m")
    code, _, err = run(*asked, "--known-distance", "16.5,12.5,3", "-o", "k.npz")
    assert code == 0, err
    with np.load("k.npz") as stored:
        assert "measured: 3 m" in str(stored["scale"])
        np.testing.assert_allclose(stored["depth"] / free, stored["depth"][12, 16] / free[12, 16], rtol=1e-3)
        assert np.median(stored["depth"][11:14, 15:18]) == pytest.approx(3, rel=0.01)
        assert stored["valid"].all()
    save_image("grey.png", np.full((24, 32, 3), 0.5))
    code, _, err = run("depth", "grey.png", *asked[2:], "-o", "g.npz")
    assert code == 0 and "grey.png is of one colour everywhere" in err
    with np.load("g.npz") as stored:
        assert stored["depth"].min() > 0 and not stored["valid"].any()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("depth", "a.png", "--head", "primedepth"), "unproject train primedepth"),
        (("normals", "a.png", "--refine"), "the weights of 'refiner' are not in"),
        (
            ("normals", "a.png", "--refine"),
            "`unproject train normals-refine --out runs/normals-refine` and give --refiner runs/normals-refine/export",
        ),
        (("normals", "a.png", "--refine", "--refiner", "/nope"), "head '/nope' is neither a folder nor one of"),
        (("normals", "a.png", "--refine", "--refiner", "."), "holds no head of these kinds"),
        (("normals", "a.png", "--refine", "--steps", "3"), "--steps 3: the steps of --refine are the refiner's own"),
        (("depth", "a.png", "--head", "primedepth", "--steps", "3"), "the steps of --head primedepth are its own"),
        (("normals", "a.png", "--refiner", "x"), "--refiner x is of --refine"),
        (("normals", "a.png", "--head", "one-step"), "unproject train normals-one-step"),
        (("normals", "a.png", "--head", "one-step", "--refine"), "--head one-step and --refine are two heads"),
        (
            ("depth", "a.png", "--head", "primedepth", "--prior", "marigold-depth"),
            "--head primedepth names its own prior",
        ),
        (
            ("depth", "a.png", "--head", "primedepth", "--metric"),
            "--metric needs the normals too, which --head primedepth",
        ),
        (("depth", "a.png", "--head", "nowhere"), "neither a folder nor one of primedepth"),
    ],
)
def test_what_is_absent_or_at_odds_is_said(
    picture: None, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    for how in ((), ("--dry-run",)):
        code, _, err = run(*words, *how)
        assert code == 2 and told in " ".join(err.split())


def test_a_run_knows_before_anything_is_loaded_what_is_absent(
    picture: None, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    for name in ("depth", "normals"):
        monkeypatch.setattr(MAP_COMMANDS[name], "load", lambda self: pytest.fail("a network is loaded"))
    assert run("normals", "a.png", "--refine")[0] == 2 and run("depth", "a.png", "--head", "nope")[0] == 2


def test_heads_that_loading_would_fetch_or_find_pass_a_dry_run(picture: None, run: Run, heads: Path) -> None:
    for words in (
        ("depth", "--head", "primedepth-sd21"),
        ("normals", "--head", "yoso-normal"),
        ("depth", "--metric", "--head", "dm-calib"),
        ("depth", "--head", str(heads / "reader")),
        ("normals", "--refine", "--refiner", str(heads / "refiner")),
        ("normals", "--prior", "owner/head"),
    ):
        code, _, err = run(words[0], "a.png", *words[1:], "--dry-run")
        assert code == 0, err


@pytest.mark.parametrize(("name", "words"), [("depth", ("--head",)), ("normals", ("--refine", "--refiner"))])
def test_the_folder_of_a_training_is_told_from_its_export(
    picture: None, run: Run, heads: Path, name: str, words: tuple[str, ...]
) -> None:
    Path("training").mkdir()
    (heads / ("reader" if name == "depth" else "refiner")).rename("training/export")
    code, _, err = run(name, "a.png", *words, "training", "--dry-run")
    assert code == 2 and "training is the folder of a training; give training/export" in err


def test_a_dry_run_counts_the_calls_of_a_refinement(picture: None, run: Run, heads: Path) -> None:
    asked = ("normals", "a.png", "--device", "cpu", "--dry-run")
    assert "would take about 1 s on one core" in run(*asked)[1]
    refined = RefinedHead.load(heads / "refiner", GeometryHead.load(heads / "tiny-geometry"))
    refined.with_settings(steps=10).save(heads / "ten", "tiny-geometry")
    assert "would take about 5 s on one core" in run(*asked, "--refine", "--refiner", str(heads / "ten"))[1]
    assert "would take about 2 s on one core" in run(*asked, "--refine", "--refiner", str(heads / "refiner"))[1]


def test_options_are_where_a_tasks_file_gives_them_a_meaning() -> None:
    fields = {name: set(kind.__dataclass_fields__) for name, kind in MAP_COMMANDS.items()}
    assert {"head", "colormap"} <= fields["depth"] and "refine" not in fields["depth"]
    assert {"refine", "refiner", "head"} <= fields["normals"] and "colormap" not in fields["normals"]
