"""Recipes end to end on tiny models: every family, stages that go on, exports that stock classes load in a clean
process, students that say how they want to be asked."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from unproject.core.distillation import distil as distil_module
from unproject.core.distillation.distil import DistillRecipe, distil
from unproject.core.distillation.export import About, export, kind_of, load_student
from unproject.core.distillation.kinds import Full, Lora, Told
from unproject.core.distillation.student import Student
from unproject.core.priors import load_prior
from unproject.core.priors.base import Recommended
from unproject.pipelines.text_to_image import TextToImage
from unproject.utils.configs import CONFIGS, load_config
from unproject.utils.errors import InputError

TEXTS = ["a dog", "a red chair", "the blue wagon"]
NAMES = sorted(path.stem for path in (CONFIGS / "distill").glob("*.yaml"))


FITTING: dict[str, dict] = {  # students that tiny networks have the layers for
    "koala": {"kind": "pruned", "mid": False},
    "asdm": {"kind": "slim", "removed": ["mid_block.resnets.1"]},
    "quest": {"kind": "quantised", "times": 2, "runs": 2, "prompts": ["a dog", ""]},
}


def small(name: str, steps: int = 1, **more) -> DistillRecipe:
    """A packaged recipe with next to no work in it."""
    recipe = load_config(DistillRecipe, f"distill/{name}")
    pairs = replace(recipe.pairs, count=3, steps=2, solver="ddim", batch=3)
    stages = {}
    for key, stage in recipe.stages.items():
        trainer = replace(stage.trainer, steps=steps, batch=2, warmup=0, **more)
        method = {**stage.method, **({"grid": 4, "phases": 2} if "phases" in stage.method else {})}
        own = None if stage.pairs is None else replace(stage.pairs, count=2, steps=2)
        stage = replace(stage, student=FITTING.get(name, stage.student))
        stages[key] = replace(stage, trainer=trainer, method=method, pairs=own)
    return replace(recipe, pairs=pairs, stages=stages)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_says_how_its_student_draws(name):
    recipe = load_config(DistillRecipe, f"distill/{name}")
    if recipe.sampling.step_counts:
        assert recipe.sampling.steps in recipe.sampling.step_counts


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("lora-distillation", "sdxl"),
        ("lora-distillation", "sd3"),
        ("lora-distillation", "flux"),
        ("lcm-lora", "sd"),
        ("lcm-lora", "flux"),
        ("lcm", "sd-v"),
        ("scott", "sd"),
        ("instaflow", "sd"),
        ("rectified-diffusion", "sd3"),
        ("phased-diffusion", "sd"),
        ("guided-distillation", "toybox"),
        ("speedupnet", "sd-v"),
        ("arcflow", "sd-v"),
        ("koala", "sd"),
        ("asdm", "sd"),
        ("quest", "sd"),
    ],
)
def test_a_recipe_runs_and_its_student_draws(tiny_folders, tmp_path, name, family):
    prior = load_prior(tiny_folders[family])
    before = prior_weights(prior)
    ended = distil(small(name), prior, TEXTS, tmp_path / "run", name, device="cpu")
    assert ended.folder is not None and ended.result.reason == "done"
    assert all(torch.equal(value, before[key]) for key, value in prior_weights(prior).items())
    about = json.loads((ended.folder / "distill.json").read_text())
    assert about["method"] == name and len(about["teacher"]) == 16 and 0 < about["trained_share"] <= 1
    stock = kind_of(about["kind"], about["settings"]).stock
    student = load_student(ended.folder, None if stock else tiny_folders[family])
    assert student.recommended.solver == about["sampling"]["solver"]
    out = TextToImage(student, "native")("a dog", seed=1, output_type="latent")
    rows = 1 if student.guidance_embedded or about["sampling"]["guidance"] == 1 else 2
    assert out.nfe == rows * about["sampling"]["steps"] and bool(torch.isfinite(out.latents).all())
    if family == "toybox":
        assert student.vocabulary == prior.vocabulary


def prior_weights(prior) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in prior.network.state_dict().items()}


def test_an_interrupted_distillation_goes_on_to_the_same_bits(tiny_folders, tmp_path):
    prior = load_prior(tiny_folders["sd"])
    whole = distil(small("instaflow", 2, save_every=1), prior, TEXTS, tmp_path / "whole", device="cpu")
    stopped = distil(
        small("instaflow", 2, save_every=1, max_minutes=0.0), prior, TEXTS, tmp_path / "parts", device="cpu"
    )
    assert stopped.folder is None and stopped.stage == "reflow" and stopped.result.step == 1
    rest = distil(small("instaflow", 2, save_every=1), prior, TEXTS, tmp_path / "parts", device="cpu", resume=True)
    assert rest.stage == "one-step"
    first, second = (load_student(one.folder).network.state_dict() for one in (whole, rest))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_steps_caches_and_guidance_of_a_student(tiny_folders, tmp_path):
    prior = load_prior(tiny_folders["sd"])
    sampling = Recommended(3.0, 4, solver="lcm", distilled=True, step_counts=(1, 2, 4))
    folder = export(
        Student(prior, Told()),
        tmp_path / "s",
        About("lcm", prior.name, "0" * 16, sampling),
        {"_class_name": "LCMScheduler", "original_inference_steps": 50},
    )
    pipe = TextToImage(load_student(folder), "native")
    made = pipe("a dog", seed=0, output_type="latent")
    assert made.nfe == 4 and made.plan.solver == "lcm" and made.plan.guidance == 3.0
    with pytest.raises(InputError, match=r"steps=3: .*was distilled to 1, 2, 4; take one"):
        pipe("a dog", num_inference_steps=3)
    with pytest.warns(UserWarning, match="the cache is off: in a run of 4 calls"):
        cached = pipe("a dog", seed=0, output_type="latent", cache="deep:2")
    assert torch.equal(cached.images, made.images)
    with pytest.raises(InputError, match="leave the prior"):
        load_student(folder, tiny_folders["sd-v"])
    with pytest.raises(InputError, match=r"no folder with distill\.json"):
        load_student(tmp_path)
    with pytest.raises(InputError, match="student kind 'half' is unknown"):
        kind_of("half", {})


def test_an_adapter_on_another_network_is_told_by_name(tiny_folders, tmp_path, recwarn):
    folder = tiny_folders["sd"]
    student = Student(load_prior(folder), Lora(2, 2))
    about = About("lora-distillation", str(folder), student.base, Recommended())
    export(student, tmp_path / "mine", about)
    load_student(tmp_path / "mine")
    load_student(tmp_path / "mine", folder, dtype=torch.float16)
    assert not [one for one in recwarn if "another network" in str(one.message)]
    other = load_prior(folder)
    with torch.no_grad():
        next(other.network.parameters()).add_(0.1)
    other.save(tmp_path / "tuned")
    with pytest.warns(UserWarning, match=r"the student .*mine was made for another network than .*tuned"):
        load_student(tmp_path / "mine", tmp_path / "tuned")


def test_recipes_that_make_no_sense_are_refused():
    stage = {"objective": "guidance"}
    for values, words in (
        ({"stages": {}}, "at least one stage"),
        ({"stages": {"a": {"objective": "magic"}}}, "objective='magic' is unknown"),
        ({"stages": {"a": {**stage, "teacher": "previous"}}}, "none before it"),
    ):
        with pytest.raises(InputError, match=words):
            load_config(DistillRecipe, values)


@pytest.mark.parametrize(
    ("student", "method", "words"),
    [
        ({"kind": "slim", "removed": ["up_blocks.9.resnets.0"]}, {}, "up_blocks.9.resnets.0' is no unit"),
        ({"kind": "pruned-lora", "removed": ["mid_block.resnets.7"]}, {}, "mid_block.resnets.7' is no unit"),
        ({"kind": "pruned-lora", "mid": False, "removed": ["mid_block.resnets.0"]}, {}, "is no unit"),
        ({"kind": "pruned", "layers": 9}, {}, "layers=9"),
        ({"kind": "half"}, {}, "student kind 'half' is unknown"),
        ({"kind": "lora"}, {"magic": 1}, "magic"),
    ],
)
def test_what_does_not_fit_is_told_before_pairs_are_drawn(tiny_folders, tmp_path, monkeypatch, student, method, words):
    monkeypatch.setattr(distil_module, "make_pairs", lambda *_: pytest.fail("pairs were drawn"))
    stage = {"objective": "features", "student": student, "method": method}
    recipe = load_config(DistillRecipe, {"stages": {"only": stage}})
    with pytest.raises(InputError, match=words):
        distil(recipe, load_prior(tiny_folders["sd"]), TEXTS, tmp_path / "run")


CLEAN = """
import sys, torch, numpy
from safetensors.torch import load_file, save_file
from diffusers import DiffusionPipeline, StableDiffusionPipeline
folder, base, lora, out = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(base if lora == "1" else folder)
if lora == "1":
    pipe.load_lora_weights(folder)
given = load_file(out + "/in.safetensors")
cond = {"timestep_cond": given["told"]} if "told" in given else {}
with torch.no_grad():
    answer = pipe.unet(given["x"], 300, given["text"], **cond).sample
save_file({"answer": answer}, out + "/answer.safetensors")
assert "unproject" not in sys.modules
print(type(pipe.scheduler).__name__, *(f"{k}={pipe.scheduler.config[k]}" for k in pipe.scheduler.config if k in
      ("timestep_spacing", "set_alpha_to_one", "original_inference_steps")))
"""


@pytest.mark.parametrize("kind", [Full(), Told(), Full("flow"), Lora(2, 8)], ids=lambda kind: str(kind.name))
def test_exports_load_in_a_clean_process_without_this_package(tiny_folders, tmp_path, kind):
    from safetensors.torch import load_file, save_file

    prior = load_prior(tiny_folders["sd"])
    student = Student(prior, kind)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in student.network.parameters():
            if p.requires_grad:
                p += 0.05 * torch.randn(p.shape, generator=noise)
    scheduler = {"timestep_spacing": "trailing", "set_alpha_to_one": True} if kind == Full() else None
    folder = export(student, tmp_path / "s", About("m", prior.name, "0" * 16, Recommended()), scheduler)
    given = {"x": torch.randn(2, 4, 8, 8, generator=noise), "text": torch.randn(2, 5, 32, generator=noise)}
    if kind == Told():
        given["told"] = torch.randn(2, 256, generator=noise)
    save_file(given, tmp_path / "in.safetensors")
    words = [str(folder), str(tiny_folders["sd"]), "1" if kind.name == "lora" else "0", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", CLEAN, *words], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with torch.no_grad():
        told = {"timestep_cond": given["told"]} if "told" in given else {}
        ours = student.network(given["x"], 300, given["text"], **told).sample
    theirs = load_file(tmp_path / "answer.safetensors")["answer"]
    np.testing.assert_allclose(theirs.numpy(), ours.numpy(), rtol=1e-4, atol=1e-5)
    if kind == Full():
        assert "timestep_spacing=trailing" in done.stdout and "set_alpha_to_one=True" in done.stdout
    if kind == Full("flow"):
        assert done.stdout.startswith("FlowMatchEulerDiscreteScheduler")
