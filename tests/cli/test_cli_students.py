"""What a command tells of a student by its distill.json: refused, warned of, told how to do without."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from unproject.cli import shapes, students
from unproject.cli.shapes import TextToMesh
from unproject.cli.text import TextToImage
from unproject.utils.errors import InputError

STEPS = {"distilled": True, "guidance": 1.0, "solver": "lcm", "step_counts": [1, 4]}
FEW = {"kind": "lora", "settings": {}, "prior": "toybox", "sampling": STEPS}
BITS = {**FEW, "kind": "quantised", "sampling": {"distilled": False, "guidance": 3.0, "solver": "ddim"}}


@pytest.fixture
def made(tmp_path: Path):
    def make(values: object) -> str:
        (tmp_path / "s").mkdir(exist_ok=True)
        (tmp_path / "s" / "distill.json").write_text(json.dumps(values))
        return str(tmp_path / "s")

    return make


def told(student: str, **settings: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        students.warn_of_settings(student, **settings)  # type: ignore[arg-type]
    return [str(one.message).partition(":")[0] for one in caught]


def test_what_a_student_of_few_steps_does_not_heed_is_warned_of(made) -> None:
    name = made(FEW)
    assert told(name, guidance=5.0, solver="ddim", negative="blue", quality="best") == [
        "--guidance 5",
        "--solver ddim",
        "--negative",
        "--quality best",
    ]
    assert told(name, guidance=1.0, solver="lcm") == []
    assert told(made({**FEW, "kind": "negative"}), negative="blue") == []
    assert told(made(BITS), guidance=5.0, solver="dpm++", negative="blue", quality="best") == []


def test_steps_and_precision_are_checked_before_anything_is_loaded(made) -> None:
    name = made(FEW)
    with pytest.raises(InputError, match=r"--steps 3: the student .* was distilled to 1, 4; give one of these"):
        TextToImage(prompt=("a red chair",), student=name, steps=3).check()
    TextToImage(prompt=("a red chair",), student=name, steps=4, dtype="bfloat16").check()
    with pytest.raises(InputError, match="--cache deep:3: a student of few steps has nothing to reuse"):
        TextToImage(prompt=("a red chair",), student=name, cache="deep:3").check()
    with pytest.raises(InputError, match="--steps 5"):
        TextToMesh(prompt=("a red chair",), student=name, steps=5, method="direct25").check()
    name = made(BITS)
    TextToImage(prompt=("a red chair",), student=name, steps=3, cache="deep:3").check()
    with pytest.raises(InputError, match=r"--dtype bfloat16: a student of few bits .* computes in float32"):
        TextToImage(prompt=("a red chair",), student=name, dtype="bfloat16").check()


def test_none_is_the_prior_itself() -> None:
    assert TextToImage(prompt=("a red chair",), student="none").chosen_student is None
    assert TextToMesh(prompt=("a red chair",), student="none").usual_student is None


@pytest.mark.parametrize("method", ["direct25", "optimise"])
def test_a_mesh_is_warned_of_what_its_student_does_not_heed(made, monkeypatch, method: str) -> None:
    monkeypatch.setattr(shapes, "loaded", lambda command: "a pipeline")
    options = {"student": made(FEW), "guidance": 2.0, "quality": "best", "method": method}
    asked = TextToMesh(prompt="a red chair", **options)
    wanted = ["--guidance 2", "--quality best"] if method == "direct25" else ["--guidance 2"]
    for ask in (asked.forewarn, asked.load):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ask()
        assert [str(one.message).partition(":")[0] for one in caught] == wanted
    quiet = TextToMesh(prompt="a red chair", student=made(FEW), guidance=1.0, steps=4, method=method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet.load()
        TextToMesh(prompt="a red chair", student="none", guidance=2.0, quality="best").load()


def test_a_dry_run_says_who_draws_the_maps() -> None:
    usual = TextToMesh(prompt=("a red chair",))
    assert usual.usual_student == "toybox-lcm" and usual.how == "normal maps by toybox-lcm, fused and painted"
    for told_how in ({"steps": 20}, {"guidance": 2.0}, {"lora": ("x",)}, {"method": "optimise"}):
        assert TextToMesh(prompt=("a red chair",), **told_how).usual_student is None
    assert TextToMesh(prompt=("a red chair",), steps=20).how == "normal maps, fused and painted"


def test_damage_of_a_student_that_nobody_named_says_how_to_do_without() -> None:
    def fails() -> None:
        raise InputError("weights/toybox-lcm/x.safetensors is no safetensors file")

    with pytest.raises(InputError, match="no safetensors file; --student none leaves the normal maps to the prior"):
        students.loaded_with("toybox-lcm", fails)
    for other in (None, "another"):
        with pytest.raises(InputError, match=r"no safetensors file$"):
            students.loaded_with(other, fails)
    assert students.loaded_with("toybox-lcm", lambda: 3) == 3


def test_a_student_on_another_prior_says_whose_it_is(made) -> None:
    name, error = made(FEW), InputError("it does not fit")
    assert "was made for the prior toybox: leave --prior out, or distill one of sd15" in str(
        students.of_another(error, name, "sd15")
    )
    assert students.of_another(error, name, "toybox") is error
