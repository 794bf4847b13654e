"""The line that `calibrate-solver` and `search-solver` print about their file works as it stands."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from unproject.cli import main
from unproject.cli.calibrate import CalibrateSolver
from unproject.utils.errors import InputError
from unproject.utils.pictures import save_image

CALIBRATE = ("calibrate-solver", "--prompts", "prompts.txt", "--sample-steps", "2", "--samples", "2")
SEARCH = ("search-solver", "--prompts", "prompts.txt", "--nfe", "3", "--images", "1", "--reference-steps", "4")
OTHER = ("--guidance", "2.5", "--size", "16")


@pytest.mark.parametrize(
    "made_with",
    [
        (*CALIBRATE, "--what", "statistics", "--cells", "2", *OTHER),
        (*CALIBRATE, "--what", "gaussian", *OTHER),
        (*CALIBRATE, "--what", "gaussian", *OTHER, "--negative", "a red cube"),
        (*CALIBRATE, "--what", "boundary", "--candidates", "2", "--steps", "3", "--solver", "ddim", *OTHER),
        (*CALIBRATE, "--what", "time-remap", *OTHER),
        (*CALIBRATE, "--what", "error-curve"),
        (*CALIBRATE, "--what", "error-curve", *OTHER),
        (*SEARCH, "--budget", "32", *OTHER),
    ],
    ids=[
        "statistics",
        "gaussian",
        "gaussian-negative",
        "boundary",
        "time-remap",
        "error-curve",
        "error-curve-elsewhere",
        "solver",
    ],
)
def test_what_is_printed_works(
    tiny_prior_folder: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str], made_with: tuple[str, ...]
) -> None:
    Path("prompts.txt").write_text("a red chair\na blue dog\n")
    here = ("--device", "cpu", "-o")
    assert main([*made_with, "--prior", str(tiny_prior_folder), *here, "a file.safetensors"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("use it: "))
    words = shlex.split(line.removeprefix("use it: "))
    if "error-curve" in made_with:
        assert words[:3] == ["unproject", "restore", "..."]
        save_image("photo.png", np.full((4, 3, 3), 0.4))
        words = ["restore", "photo.png", "--task", "super-resolution:4", "--steps", "1", *words[3:]]
    else:
        told = "--steps" in words or "usf:" in line  # a searched solver has its own number
        steps = [] if told else ["--steps", "6"]
        words = ["text-to-image", "a red chair", *steps, *words]
    assert main([*words, *here, "used.png"]) == 0
    assert Path("used.png").is_file()


def test_an_error_curve_takes_no_negative_prompt() -> None:
    with pytest.raises(InputError, match="--negative 'blurry'"):
        CalibrateSolver(what="error-curve", negative="blurry").check()
