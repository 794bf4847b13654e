"""`text-to-splats` and `--rule` from the command line: what is written, told and refused, without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unproject.generate import finish
from unproject.geometry.splats import GaussianCloud, load_splats
from unproject.geometry.splats.facts import facts_of
from unproject.pipelines import text_to_splats
from unproject.pipelines.text_to_shape import REAL_BACKBONES
from unproject.pipelines.text_to_splats import TextToSplatsOutput
from unproject.utils.pictures import save_image
from unproject.utils.seeds import generator

Run = Callable[..., tuple[int, str, str]]
CLOUD = GaussianCloud.from_points(torch.randn(20, 3, generator=generator(0)), opacity=0.5)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A pipeline that makes twenty splats."""
    calls: list[dict[str, Any]] = []

    class Fake:
        prior = SimpleNamespace(name="fake")

        @classmethod
        def from_pretrained(cls, prior: str, recipe: str, **options: Any) -> Fake:
            calls.append({"recipe": recipe, **options})
            return cls()

        def __call__(self, prompt: str, negative: str | None, **options: Any) -> TextToSplatsOutput:
            calls.append({"prompt": prompt, "negative": negative, **options})
            values = dict.fromkeys(TextToSplatsOutput.__dataclass_fields__)
            values |= {"splats": CLOUD, "report": facts_of(CLOUD), "nfe": 3, "seconds": {}, "history": []}
            return TextToSplatsOutput(**values)

    def pictures(thing: object, place: Callable[[str], Path], frames: int, size: int) -> list[Path]:
        ends = ("sheet.png", *(("turntable.mp4", "turntable.gif") if frames else ()))
        return [save_image(place(e).with_suffix(".png"), np.zeros((4, 4, 3))).rename(place(e)) for e in ends]

    monkeypatch.setattr(text_to_splats, "TextToSplats", Fake)
    monkeypatch.setattr(finish, "write_views", pictures)
    return calls


def test_splats_their_report_and_pictures_are_written(run: Run, asked: list[dict[str, Any]]) -> None:
    words = ("text-to-splats", "a red chair", "-o", "out/chair.splat", "--rule", "asd", "--steps", "7", "--json")
    code, out, _ = run(*words, "--frames", "0", "--negative", "fog", "--diagnostics", "looks")
    assert code == 0 and json.loads(out)["splats"]["splats"] == 20
    assert asked[0]["rule"] == "asd" and asked[1]["negative"] == "fog" and asked[1]["num_inference_steps"] == 7
    assert asked[1]["diagnostics"].folder == Path("looks") and asked[1]["out"] == Path("out/.chair.work")
    names = {path.name for path in Path("out").iterdir()}
    assert names == {"chair.splat", "chair.report.json", "chair-sheet.png", "chair.run.json"}
    assert len(load_splats("out/chair.splat")) == 20
    assert json.loads(Path("out/chair.report.json").read_text())["splats"] == 20
    code, _, err = run("text-to-splats", "a red chair", "-o", "out/chair.splat")
    assert code == 2 and "was made with --negative fog, --rule asd" in err


def test_packed_splats_have_the_companions_that_are_looked_for(run: Run, asked: list[dict[str, Any]]) -> None:
    words = ("text-to-splats", "a red chair", "-o", "x.compressed.ply", "--frames", "0")
    assert run(*words)[0] == 0
    names = {path.name for path in Path().iterdir()}
    assert names == {f"x.compressed{ending}" for ending in (".ply", ".report.json", "-sheet.png", ".run.json")}
    told = json.loads(Path("x.compressed.run.json").read_text())["outputs"]
    assert set(told) == names - {"x.compressed.run.json"}
    assert len(asked) == 2
    code, _, err = run(*words)  # what is there is known by its names: nothing is made again
    assert code == 2 and "x.compressed.ply" in err and "already there" in err and len(asked) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("text-to-splats", "a cup", "-o", "cup.obj"), "text-to-splats writes a folder or .ply, .spz, .glb, .splat"),
        (("text-to-splats", "a cup", "--rule", "adsd"), "no packaged config 'rules/adsd'"),
        (("text-to-mesh", "a cup", "--rule", "vds"), "did you mean 'rules/vsd'"),
        (("text-to-splats", "a cup", "--recipe", "toybocks"), "did you mean 'text-to-splats/toybox'"),
        (("text-to-splats", "a cup", "--mesh", "cup.splat"), "cannot write that; use .glb"),
        (("text-to-splats", "a cup", "-o", "cup.ply", "--mesh", "x/../cup.ply"), "x/../cup.ply would be written twice"),
        (("text-to-splats", " "), "the prompt is empty"),
        (("text-to-splats", "a cup", "--texture", "512"), "--texture 512 is that of a mesh; give --mesh too"),
        (("text-to-splats", "a cup", "--mesh", "cup.glb", "--texture", "99"), "--texture must lie between 256 and"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(run: Run, words: tuple[str, ...], message: str) -> None:
    code, _, err = run(*words)
    assert code == 2 and message in err


def test_several_prompts_cannot_share_a_folder_of_one(run: Run, asked: list[dict[str, Any]], in_tmp: Path) -> None:
    Path("p.txt").write_text("a cup\na dog\n")
    for option in ("--diagnostics", "--work"):
        code, _, err = run("text-to-splats", "--prompts", "p.txt", option, "w")
        assert code == 2 and f"{option} w is the folder of one set of splats" in err
    assert not asked
    code, out, _ = run("text-to-splats", "--prompts", "p.txt", "--dry-run", "--rule", "sdi")
    assert code == 0 and "would make a set of splats of 'a dog' with recipe default and rule sdi" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "turbo", "--steps", "3"), "--steps belongs to --method optimise or direct25"),
        (("--method", "turbo", "--recipe", "toybox"), "--recipe belongs to --method optimise"),
        (("--method", "turbo", "--student", "fast"), "--student belongs to --method optimise or direct25"),
        (("--student", "nobody"), "student 'nobody': no folder with distill.json"),
        (("--refine", "3"), "--refine belongs to --method turbo or amortised"),
        (("--amortised", "w"), "--amortised belongs to --method amortised"),
        (("--method", "turbo", "--quality", "fast"), "--quality belongs to --method optimise or direct25"),
        (("--method", "amortised", "--turbo", "w"), "--turbo belongs to --method turbo"),
        (("--method", "amortised", "--rule", "asd"), "--rule belongs to --method optimise"),
        (("--method", "amortised", "--amortised", "none"), "do not exist"),
        (("--turbo", "weights"), "--turbo belongs to --method turbo"),
        (("--method", "turbo", "--turbo", "none"), "do not exist"),
        (("--method", "turbo", "--prior", "toybox-dit"), "no weights of turbo come with the prior 'toybox-dit' yet"),
        (("--method", "amortised"), "no weights of amortised come with the prior 'toybox' yet; train some with"),
        (("--direct25", "weights"), "direct25 weights weights do not exist"),
        (("--method", "turbo", "--second-ring", "30"), "--second-ring belongs to --method direct25"),
        (("--method", "direct25", "--rule", "sds"), "--rule belongs to --method optimise"),
        (("--method", "direct25", "--second-ring", "120"), "--second-ring must lie between -89 and 89, got 120"),
        (("--method", "direct25", "--direct25", "none"), "do not exist"),
    ],
)
def test_options_of_the_other_method_are_refused(run: Run, words: tuple[str, ...], message: str) -> None:
    for how in ((), ("--dry-run",)):
        code, _, err = run("text-to-mesh", "a red chair", *words, *how)
        assert code == 2 and message in err


def test_a_dry_run_says_that_planes_make_the_mesh(run: Run) -> None:
    code, out, err = run("text-to-mesh", "a red chair", "--method", "turbo", "--refine", "4", "--dry-run")
    assert code == 0 and "planes and 4 steps of score distillation" in out + err
    Path("made").mkdir()
    amortised = ("--method", "amortised", "--amortised", "made")
    code, out, err = run("text-to-mesh", "a red chair", *amortised, "--dry-run")
    assert code == 0 and "with one pass of a network" in out + err
    code, out, err = run("text-to-mesh", "a red chair", "--method", "direct25", "--steps", "9", "--dry-run")
    assert code == 0 and "a mesh of 'a red chair' with normal maps, fused and painted" in out + err


def test_a_dry_run_names_the_files_and_the_backbones_of_shapes(run: Run) -> None:
    code, out, err = run("text-to-mesh", "a purple xylophone", "--method", "turbo", "--dry-run")
    assert code == 0 and err.count(f"--prior {REAL_BACKBONES}") == 1
    assert "would write to outputs/text-to-mesh/a-purple-xylophone: a-purple-xylophone-seed0.glb, " in out
    code, out, err = run("text-to-splats", "a purple xylophone", "--dry-run", "--seed", "3", "-o", "new/place")
    assert code == 0 and f"--prior {REAL_BACKBONES}" in err
    assert "would write to new/place: a-purple-xylophone-seed3.ply, " in out
    assert "would write to new/cup.glb\n" in run("text-to-mesh", "a red cup", "--dry-run", "-o", "new/cup.glb")[1]
    assert "--prior sd15, sdxl, sd3 or flux-dev" in run("text-to-image", "a purple xylophone", "--dry-run")[2]
    Path("p.txt").write_text("a cup\na dog\n")
    out = run("text-to-mesh", "--prompts", "p.txt", "--dry-run")[1]
    assert "a-cup-seed0-sheet.png and 5 more\n" in out


@pytest.mark.parametrize(
    ("words", "how"),
    [
        ((), "normal maps, fused and painted"),
        (("--steps", "9", "--guidance", "3"), "normal maps, fused and painted"),
        (("--second-ring", "30"), "normal maps, fused and painted"),
        (("--method", "optimise"), "recipe default"),
        (("--rule", "sds"), "recipe default and rule sds"),
        (("--quality", "fast"), "normal maps, fused and painted"),
        (("--recipe", "toybox-pulled"), "recipe toybox-pulled"),
        (("--prior", "sd15"), "recipe default"),
    ],
)
def test_maps_are_drawn_where_something_paints_them_and_nothing_asks_for_more(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], how: str
) -> None:
    for file in ("toybox/model_index.json", "toybox-mv/mv.json", "toybox-direct25/direct25.json"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text("{}")
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    code, out, err = run("text-to-mesh", "a red chair", *words, "--dry-run")
    assert code == 0 and f"of 'a red chair' with {how}\n" in out + err
