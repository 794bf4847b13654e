"""Options of sampling on the command line: what goes together, files made and used, pictures edited and restored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from diffusers import DDPMScheduler

from unproject.cli import main
from unproject.cli.calibrate import CalibrateSolver, SearchSolver
from unproject.core.sampling import NoiseSchedule
from unproject.core.sampling.solvers import PATTERNS, SOLVERS, make_solver
from unproject.utils.errors import InputError
from unproject.utils.pictures import load_image, save_image

TinyRun = Callable[..., tuple[int, str]]
DRAW = ("text-to-image", "a red chair", "--steps", "3")
CALIBRATE = ("calibrate-solver", "--prompts", "prompts.txt", "--sample-steps", "2", "--samples", "2")


def test_help_of_solver_names_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["text-to-image", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    about = text[text.index("--solver") : text.index("--eta")]
    assert f"{', '.join(SOLVERS)}, or one of the patterns {', '.join(PATTERNS)} (default" in about


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--solver", "dpm-v3:2"), "--solver dpm-v3:2 needs --statistics FILE"),
        (("--statistics", "s"), "--statistics s does not exist; make it: unproject calibrate-solver --what statistics"),
        (("--statistics", "here"), "--statistics serves --solver dpm-v3 or usf:FILE, not the default"),
        (("--statistics", "here", "--solver", "ddim"), "not ddim"),
        (("--solver", "usf:nowhere"), "--solver usf:nowhere: nowhere does not exist; make it: unproject search-solver"),
        (("--teleport", "0.2"), "--teleport needs --gaussian FILE too"),
        (("--gaussian", "here"), "--gaussian needs --teleport F too"),
        (("--gaussian", "here", "--teleport", "1"), "--teleport 1 must lie in [0, 1)"),
        (("--gaussian", "g", "--teleport", "0.2"), "--gaussian g does not exist"),
        (("--boundary", "b"), "--boundary b does not exist"),
        (("--boundary", "here", "--eta", "0.5"), "--eta 0.5 adds some"),
        (("--boundary", "here", "--count", "3"), "all 3 images would be the same"),
        (("--time-remap", "r"), "calibrate-solver --what time-remap"),
        (("--cache", "deep:x"), "cache 'deep:x' is unknown; write none, deep:INTERVAL"),
        (("--control", "focuss"), "control 'focuss' is unknown; write focus[:STRENGTH]"),
        (("--control", "focus", "--cache", "deep:3"), "--control focus does not go with --cache deep:3"),
        (("--control", "focus", "--model-schedule", "toybox:0.5"), "does not go with --model-schedule toybox:0.5"),
        (("--subjects", "chair"), "--subjects 'chair' are those of --control"),
        (("--model-schedule", "toybox"), "--model-schedule 'toybox' must be NAME:SHARE"),
        (("--model-schedule", "toybox:1.5"), "with a share in [0, 1]"),
        (("--model-schedule", "toyboks:0.5"), "--model-schedule toyboks:0.5: 'toyboks' is unknown; have toybox"),
        (("--model-schedule", "toybox:0.5", "--cache", "deep:3"), "no single network to cache"),
        (("--model-schedule", "toybox:0.5", "--time-remap", "here"), "takes no calibrated files"),
        (("--model-schedule", "toybox:0.5", "--solver", "usf:here"), "takes no calibrated files"),
    ],
)
def test_what_does_not_go_together(
    in_tmp: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    Path("here").write_text("")
    assert main([*DRAW, *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("calibrate-solver", "--what", "gaussian", "--prior", "sd15"), "--prior sd15 has no grammar"),
        (("calibrate-solver", "--what", "time-remap"), "--what time-remap needs --size PX"),
        (("calibrate-solver", "--what", "gaussian", "--steps", "3"), "belong to --what boundary"),
        (("calibrate-solver", "--what", "gaussian", "--samples", "1"), "--samples must lie between 2"),
        (("calibrate-solver", "--what", "gaussian", "--prompts", "no.txt"), "--prompts no.txt does not exist"),
        (("search-solver", "--nfe", "1"), "--nfe must lie between 2 and 50"),
        (("search-solver", "-o", "solver.yaml"), "search-solver writes a folder or .safetensors"),
        (("edit", "no.png", "--source", "a cup", "--target", "a jug"), "image no.png does not exist"),
        (("edit", "p.png", "--source", " ", "--target", "a jug"), "the prompt is empty"),
        (("edit", "p.png", "--source", "a cup", "--target", "a jug", "--strength", "0"), "--strength must lie above 0"),
        (("edit", "p.png", "--source", "a cup", "--target", "a jug", "-o", "p.png"), "would overwrite p.png"),
        (("restore", "p.png", "--task", "sharpen"), "write super-resolution:FACTOR, inpaint, deblur:STD"),
        (("restore", "p.png", "--task", "super-resolution:1.5"), "task 'super-resolution:1.5' is unknown"),
        (
            ("restore", "p.png", "--task", "super-resolution:1000"),
            "leaves nothing of a result of 64 px; lower the factor",
        ),
        (("restore", "p.png", "--task", "super-resolution:40", "--size", "32"), "leaves nothing of a result of 32 px"),
        (("restore", "p.png", "--task", "inpaint"), "--mask is what --task inpaint fills in"),
        (("restore", "p.png", "--task", "inpaint", "--mask", "m.png"), "--mask m.png does not exist"),
        (("restore", "p.png", "--task", "deblur:1", "--curve", "c"), "--curve c does not exist"),
    ],
)
def test_bad_input_of_the_new_commands(
    in_tmp: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    save_image("p.png", np.zeros((8, 8, 3)))
    assert main([*words, "--dry-run"]) == 2  # before anything is loaded
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (
            ("text-to-image", "a flumox chair", "--size", "256"),
            ("never seen 'flumox'", "256 x 256 px is far from the 64"),
        ),
        (("text-to-image", "a red chair", "--negative", "blurry flumox"), ("'flumox' of the negative prompt",)),
        (("text-to-image", "a red chair", "--size", "96", "--prior", "toybox-dit"), ()),
        (("text-to-image", "a red chair" + " and a blue chair" * 40), ("longer than the text encoder",)),
        (("text-to-mesh", "a flumox", "--prior", "toybox-mv"), ("never seen 'flumox'",)),
        (("edit", "p.png", "--source", "a chair", "--target", "a flumox"), ("never seen 'flumox'",)),
        (("restore", "p.png", "--task", "deblur:1", "--prompt", "a flumox"), ("never seen 'flumox'",)),
        (("restore", "p.png", "--task", "deblur:1"), ()),
    ],
)
def test_a_dry_run_warns_of_what_the_run_would_warn_of(
    in_tmp: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], messages: tuple[str, ...]
) -> None:
    save_image("p.png", np.zeros((8, 8, 3)))
    assert main([*words, "--dry-run", "--json"]) == 0
    told = capsys.readouterr()
    warned = json.loads(told.out)["warnings"]
    assert len(warned) == len(messages) and all(m in " ".join(warned) and m in told.err for m in messages)


def test_prompts_come_from_the_toybox_or_a_file(in_tmp: Path) -> None:
    drawn = CalibrateSolver(what="gaussian").chosen_prompts(4)
    assert drawn == CalibrateSolver(what="gaussian").chosen_prompts(6)[:4]
    assert len(set(drawn)) > 1 and all(text.startswith("a") for text in drawn)
    Path("p.txt").write_text("a cat\n\n  a dog \n")
    assert SearchSolver(prompts=Path("p.txt")).chosen_prompts(3) == ["a cat", "a dog", "a cat"]
    Path("p.txt").write_text("\n")
    with pytest.raises(InputError, match="holds no prompt"):
        SearchSolver(prompts=Path("p.txt")).chosen_prompts(3)


@pytest.mark.parametrize(
    ("what", "made_with", "used_with"),
    [
        ("statistics", ("--cells", "2"), ("--solver", "dpm-v3:2", "--statistics", "made.safetensors")),
        ("gaussian", (), ("--teleport", "0.34", "--gaussian", "made.safetensors")),
        ("boundary", ("--steps", "3", "--candidates", "2"), ("--boundary", "made.safetensors")),
        ("time-remap", ("--size", "16"), ("--size", "16", "--time-remap", "made.safetensors")),
    ],
)
def test_a_calibration_is_made_used_and_refused(
    tiny_run: TinyRun, what: str, made_with: tuple[str, ...], used_with: tuple[str, ...]
) -> None:
    code, out = tiny_run(*CALIBRATE, "--what", what, *made_with, "-o", "made.safetensors")
    assert code == 0, out
    assert f"--{what} made.safetensors" in out
    assert sorted(p.name for p in Path().iterdir()) == ["made.run.json", "made.safetensors", "prompts.txt"]
    code, out = tiny_run(*DRAW, *used_with, "-o", "used.png")
    assert code == 0, out
    calls = json.loads(Path("used.run.json").read_text())["nfe"]["denoiser"]
    assert calls == (4 if what == "gaussian" else 6)
    code, out = tiny_run(*DRAW, *used_with, "--size", "24", "-o", "other.png")
    assert code == 2
    assert "made.safetensors was made for latent shape" in out and "(now (4, 6, 6)): calibrate again" in out
    code, out = tiny_run(*DRAW, *used_with, "--guidance", "5", "-o", "other.png")
    assert code == (0 if what == "time-remap" else 2)
    assert ("guidance 4 (now 5)" in out) == (what != "time-remap")


def test_a_chosen_noise_belongs_to_its_solver_and_steps(tiny_run: TinyRun) -> None:
    made = (*CALIBRATE, "--what", "boundary", "--steps", "3", "--candidates", "2", "-o", "noise.safetensors")
    assert tiny_run(*made)[0] == 0
    code, out = tiny_run(*DRAW, "--boundary", "noise.safetensors", "--solver", "dpm++")
    assert (code, "chosen for the solver unipc, not dpm++" in out) == (2, True)
    code, out = tiny_run("text-to-image", "a dog", "--steps", "4", "--boundary", "noise.safetensors")
    assert (code, "chosen for 3 steps, not 4" in out) == (2, True)


def test_a_file_of_another_kind_is_refused(tiny_run: TinyRun) -> None:
    assert tiny_run(*CALIBRATE, "--what", "gaussian", "-o", "g.safetensors")[0] == 0
    code, out = tiny_run(*DRAW, "--boundary", "g.safetensors")
    assert (code, "g.safetensors holds a gaussian calibration, expected boundary-noise" in out) == (2, True)


def test_a_searched_solver_needs_nothing_but_its_file(tiny_run: TinyRun) -> None:
    search = ("search-solver", "--prompts", "prompts.txt", "--nfe", "3", "--images", "1", "--reference-steps", "4")
    code, out = tiny_run(*search, "--budget", "3")
    assert (code, "the known solvers that are tried first" in out) == (2, True)
    code, out = tiny_run(*search, "--budget", "32", "-o", "solver.safetensors", "--json")
    assert code == 0, out
    told = json.loads(out)
    assert told["score"] <= told["fixed_score"]
    assert not [p.name for p in Path().iterdir() if "work" in p.name]
    use = ("text-to-image", "a red chair", "--solver", "usf:solver.safetensors")
    assert tiny_run(*use, "-o", "a.png")[0] == 0
    assert json.loads(Path("a.run.json").read_text())["nfe"]["denoiser"] == 6
    code, out = tiny_run(*use, "--spacing", "karras")
    assert (code, "spacing=karras: this solver brings levels of its own" in out) == (2, True)
    code, out = tiny_run(*use, "--steps", "8")
    grid = make_solver("usf:solver.safetensors").own_grid(
        NoiseSchedule.from_config(dict(DDPMScheduler(clip_sample=False).config))
    )
    made_for = len(grid or ()) - 1
    assert (code, f"8 steps: this solver was made for {made_for}; leave the number out" in out) == (2, True)
    code, out = tiny_run(*use, "--guidance", "1.5")
    assert (code, "solver.safetensors was made for guidance 4 (now 1.5)" in out) == (2, True)


def test_control_of_two_subjects(tiny_run: TinyRun) -> None:
    draw = ("text-to-image", "a red chair behind a dog", "--steps", "2")
    assert tiny_run(*draw, "-o", "plain.png")[0] == 0
    assert tiny_run(*draw, "--control", "focus:0", "-o", "off.png")[0] == 0
    assert np.array_equal(load_image("off.png"), load_image("plain.png"))
    assert tiny_run(*draw, "--control", "focus:50", "-o", "read.png")[0] == 0
    assert tiny_run(*draw, "--control", "focus:50", "--subjects", "red chair; dog", "-o", "named.png")[0] == 0
    assert np.array_equal(load_image("named.png"), load_image("read.png"))
    assert not np.array_equal(load_image("read.png"), load_image("plain.png"))
    code, out = tiny_run(*DRAW, "--control", "focus")
    assert (code, "only ['red chair'] was found in the prompt" in out) == (2, True)


def test_cache_and_a_second_model(tiny_run: TinyRun, tiny_prior_folder: Path) -> None:
    draw = ("text-to-image", "a red chair", "--steps", "10")
    assert tiny_run(*draw, "-o", "plain.png")[0] == 0
    assert tiny_run(*draw, "--model-schedule", f"{tiny_prior_folder}:0.5", "-o", "both.png")[0] == 0
    assert np.array_equal(load_image("both.png"), load_image("plain.png"))
    assert tiny_run(*draw, "--cache", "deep:3", "-o", "cached.png")[0] == 0
    assert not np.array_equal(load_image("cached.png"), load_image("plain.png"))
    code, out = tiny_run(*draw, "--cache", "regions:0.5")
    assert (code, "regions" in out) == (2, True)
    code, out = tiny_run("text-to-image", "a red chair", "--steps", "4", "--cache", "deep:3")
    assert (code, "the cache is off: in a run of 4 calls" in out) == (0, True), out


def test_a_picture_is_edited(tiny_run: TinyRun) -> None:
    save_image("photo.png", np.random.default_rng(0).random((20, 30, 3)))
    words = ("edit", "photo.png", "--source", "a red chair", "--target", "a blue chair", "--steps", "3")
    code, out = tiny_run(*words, "-o", "out.png")
    assert code == 0, out
    assert load_image("out.png").shape == (21, 32, 3)
    assert json.loads(Path("out.run.json").read_text())["nfe"]["denoiser"] == 2 * 2 * 2 * 2
    code, out = tiny_run(*words, "--dry-run")
    assert "would edit photo.png from 'a red chair' to 'a blue chair'" in out


@pytest.mark.parametrize("task", ["super-resolution:4", "inpaint", "deblur:1.5"])
def test_a_picture_is_restored(tiny_run: TinyRun, task: str) -> None:
    small = task.startswith("super")
    save_image("photo.png", np.random.default_rng(0).random((6, 8, 3) if small else (24, 32, 3)))
    mask = np.zeros((24, 32))
    mask[8:16, 8:20] = 1
    save_image("mask.png", mask)
    words = ("restore", "photo.png", "--task", task, "--steps", "2", *(["--mask", "mask.png"] if "inp" in task else []))
    code, out = tiny_run(*words, "-o", "out.png")
    assert code == 0, out
    assert "damaged again, the result differs from the picture by" in out
    assert load_image("out.png").shape == (24, 32, 3)


def test_an_error_curve_belongs_to_its_guidance(tiny_run: TinyRun) -> None:
    save_image("photo.png", np.full((8, 8, 3), 0.4))
    code, out = tiny_run(*CALIBRATE, "--what", "error-curve", "--guidance", "2", "-o", "curve.safetensors")
    assert code == 0, out
    words = ("restore", "photo.png", "--task", "super-resolution:4", "--steps", "1", "--curve", "curve.safetensors")
    assert tiny_run(*words, "-o", "out.png")[0] == 0
    code, out = tiny_run(*words, "--guidance", "3")
    assert (code, "curve.safetensors was made for guidance 2 (now 3)" in out) == (2, True)
