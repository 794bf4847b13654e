"""`unproject distill` and what text-to-image does with its students."""

from __future__ import annotations

import json
import shutil

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def short() -> list[str]:
    return [
        *("--set", "pairs.count=2", "pairs.steps=2", "stages.adapter.trainer.steps=1"),
        *("stages.adapter.trainer.batch=2", "stages.adapter.trainer.warmup=0"),
    ]


def test_a_student_is_made_and_drawn_with(run, tiny_prior_folder, in_tmp, short):
    (in_tmp / "words.txt").write_text("a dog\na red chair\n")
    line = [
        "distill",
        "lora-distillation",
        "--prior",
        str(tiny_prior_folder),
        "--prompts",
        "words.txt",
        "--out",
        "made",
    ]
    code, out, err = run(*line, *short, "--pairs", "pairs", "--json")
    assert code == 0, err
    export = json.loads(out)["export"]
    assert export == "made/export" and (in_tmp / "made/export/distill.json").is_file()
    assert list((in_tmp / "pairs").glob("*/pairs.json"))
    code, _, err = run(
        "text-to-image", "a dog", "--student", export, "--prior", str(tiny_prior_folder), "-o", "dog.png"
    )
    assert code == 0, err
    record = json.loads((in_tmp / "dog.run.json").read_text())
    assert record["notes"]["plan"]["guidance"] == 1.0 and record["nfe"]["denoiser"] == 20


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["distill", "magic"], "magic"),
        (["distill", "lcm", "--set", "pairs.count"], "must look like KEY=VALUE"),
        (["distill", "lcm", "--prompts", "none.txt"], "--prompts none.txt does not exist"),
        (["text-to-image", "a dog", "--student", "nobody"], "no folder with distill.json"),
    ],
)
def test_wrong_lines_say_what_is_wrong(run, words, told):
    code, _, err = run(*words)
    assert code == 2 and told in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["depth", "a.png", "--student", "fast"], "of kind lora, made to draw from words"),
        (["normals", "a.png", "--student", "nobody"], "no folder with distill.json"),
        (["depth", "a.png", "--head", "primedepth", "--student", "fast"], "serves plain heads, not --head primedepth"),
        (["text-to-image", "a dog", "--kernels", "int8"], "--kernels int8 belongs to --student of few bits"),
        (["text-to-mesh", "a dog", "--student", "fast", "--lora", "x.safetensors"], "change the network both"),
    ],
)
def test_students_in_other_places_are_checked_before_anything_is_loaded(run, in_tmp, words, told):
    (in_tmp / "fast").mkdir()
    (in_tmp / "fast" / "distill.json").write_text(json.dumps({"kind": "lora", "settings": {}}))
    for name in ("a.png", "x.safetensors"):
        (in_tmp / name).write_bytes(b"")
    code, _, err = run(*words)
    assert code == 2 and told in err


def test_a_prior_of_the_open_world_needs_prompts(run, tiny_prior_folder, in_tmp, short):
    shutil.copytree(tiny_prior_folder, in_tmp / "open")
    (in_tmp / "open" / "vocabulary.json").unlink()
    code, _, err = run("distill", "lora-distillation", "--prior", "./open", *short)
    assert code == 2 and "needs --prompts FILE" in err
