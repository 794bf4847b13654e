"""The table of students: equal budgets, what is kept, claims, and students in other places."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from unproject.bench import kept as kept_module
from unproject.bench import student_kernels, student_others
from unproject.bench.kept import kept, place_of
from unproject.bench.runner import Context
from unproject.bench.student_budget import (
    ALL_4_4,
    BRANCHES,
    QUEST_4_4,
    VARIANTS,
    Spending,
    budgeted,
    recipe_of,
    rows_of_a_sample,
)
from unproject.bench.student_claims import claims
from unproject.bench.student_kernels import NETWORK, Shape, compared, kernel_rows
from unproject.bench.student_others import CUT, head_row, negative_row, rounded
from unproject.bench.student_picture import distance, picture
from unproject.bench.students import METHODS, QUICK, SHIPPED, diversity, megabytes
from unproject.core.distillation.distil import OBJECTIVES, DistillRecipe
from unproject.core.distillation.export import kind_of
from unproject.core.distillation.lent import seeing_views
from unproject.core.distillation.student import Student
from unproject.core.distillation.teacher import Teacher
from unproject.core.priors import load_prior
from unproject.scripts.random_backbones import seeded
from unproject.utils.configs import load_config
from unproject.utils.seeds import generator

FITTING: dict[str, dict[str, Any]] = {  # students that tiny networks have the layers for
    "pruned": {"mid": False},
    "slim": {"removed": ("mid_block.resnets.1",)},
    "quantised": {"times": 1, "runs": 1, "prompts": ("a dog",)},
}
ROWS = {  # rows of the teacher for a sample, by stage
    "lora-distillation": [{2}],
    "guided-distillation": [{2}] * 4,
    "lcm-lora": [{2}],
    "scott": [{4}],
    "instaflow": [{0}] * 2,
    "rectified-diffusion": [{0}],
    "speedupnet": [{10, 18}],  # the last step has no further one behind it
    "arcflow": [{16}],
    "koala": [{1}],
    "asdm": [{1}] * 2,
    "quest": [{1}] * 2,
}


@pytest.fixture(scope="module")
def prior():
    return load_prior("toybox")


@pytest.fixture(scope="module")
def small(prior):
    """A U-Net of the embedded prior's form with a few channels, on its text encoder and codec."""
    config = {**prior.network.config, "block_out_channels": [16, 16, 16], "attention_head_dim": 1}
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    network = seeded(lambda: UNet2DConditionModel.from_config(config))
    return prior.with_network(network, prior.prediction_type).freeze()


@pytest.mark.parametrize("method", METHODS)
def test_what_a_sample_costs_the_teacher_is_what_its_network_is_asked(method: str, small) -> None:
    """Counted where the teacher's network is asked."""
    latents = torch.randn(2, *small.latent_shape, generator=generator(0))
    batch = {"latents": latents, "noise": latents.flip(0), "captions": ["a red chair", "a blue dog"]}
    recipe, told = load_config(DistillRecipe, f"distill/{method}"), None
    for stage, wanted in zip(recipe.stages.values(), ROWS[method], strict=True):
        settings = dict(stage.student)
        name = str(settings.pop("kind", "full"))
        settings = FITTING.get(name, settings)
        base = told if stage.teacher == "previous" and told is not None else small
        teacher, rows = Teacher(base), []
        student = Student(told if told is not None and name in ("slim", "quantised", "full") else small,
                          kind_of(name, settings))  # fmt: skip
        made = OBJECTIVES[stage.objective]
        objective = made.objective(student, teacher, load_config(made.settings, stage.method))
        hook = teacher.prior.network.register_forward_pre_hook(
            lambda module, args, rows=rows: rows.append(len(args[0]))
        )
        found = set()
        with torch.no_grad():
            for seed in range(6 if len(wanted) > 1 else 1):
                rows.clear()
                objective.loss(batch, generator(seed), 0)
                found.add(sum(rows) / 2)
        hook.remove()
        assert found == wanted
        mean = {10, 18} == wanted and (3 * 18 + 10) / 4
        assert rows_of_a_sample(stage) == pytest.approx(mean or max(wanted))
        told = student.prior


def test_every_method_has_the_same_pairs_updates_and_rows_of_the_teacher() -> None:
    spending, pairs = Spending(), set()
    for method in METHODS:
        made = budgeted(load_config(DistillRecipe, f"distill/{method}"), spending, 5)
        stages = list(made.recipe.stages.values())
        assert abs(sum(stage.trainer.steps for stage in stages) - spending.updates) <= 1
        assert all(stage.trainer.seed == 5 for stage in stages) and made.batch <= spending.rows
        pairs.add(replace(made.recipe.pairs, batch=0))
        if method == "rectified-diffusion":  # the pairs are all that it asks for
            assert made.teacher_rows == 0 and made.batch == spending.rows
        else:
            assert made.teacher_rows == pytest.approx(spending.total, rel=0.03)
    assert len(pairs) == 1
    flow = budgeted(load_config(DistillRecipe, "distill/instaflow"), spending, 0).recipe.stages["one-step"].pairs
    assert flow is not None and flow.count * BRANCHES * spending.pair_steps == spending.total


def test_what_quest_is_compared_with_spends_the_same_on_all_weights() -> None:
    spending, plain = Spending(), budgeted(recipe_of("quest"), Spending(), 0)
    for name in VARIANTS:
        made = budgeted(recipe_of(name), spending, 0)
        stages = list(made.recipe.stages.values())
        assert all(stage.student["input_bits"] == stage.student["weight_bits"] == 4 for stage in stages)
        assert abs(sum(stage.trainer.steps for stage in stages) - spending.updates) <= 1
        assert made.teacher_rows == pytest.approx(plain.teacher_rows, rel=0.02)
        wanted = [{"weights": "all"}] if name == ALL_4_4 else [s.method for s in recipe_of("quest").stages.values()]
        assert [stage.method for stage in stages] == wanted and made.recipe.pairs == plain.recipe.pairs
    assert recipe_of("koala") == load_config(DistillRecipe, "distill/koala")


def test_kernels_are_compared_in_one_run_and_say_whether_integers_are_quicker(monkeypatch) -> None:
    shapes = (Shape("toybox", "conv", 6, 4, 5), Shape("toybox", "linear", 32, 64, 9))
    rows = kernel_rows(shapes, (1, 2), 1)
    assert [(row["layer"], row["batch"]) for row in rows] == [
        ("conv 6 to 4 at 5", 1), ("conv 6 to 4 at 5", 2), ("linear 32 to 64 at 9", 1), ("linear 32 to 64 at 9", 2)
    ]  # fmt: skip
    assert all(row["float32_ms"] > 0 and row["reference_ratio"] > 0 and row["int8_ratio"] > 0 for row in rows)
    clock = iter([0.0] * 3 + [0.0, 2.0, 2.0, 5.0, 5.0, 6.0] + [0.0, 4.0, 4.0, 9.0, 9.0, 11.0])
    monkeypatch.setattr(student_kernels.time, "process_time", lambda: next(clock))
    ways = dict.fromkeys(("float32", "reference", "int8"), lambda: None)
    told = compared(ways, 2)  # 2 and 4 s, 3 and 5 s, 1 and 2 s; the first turn does not count
    assert told == {"float32_ms": 3000.0, "reference_ratio": 1.33, "int8_ratio": 0.5, "int8_quicker": True}


def test_moments_of_an_objective_come_with_its_share_of_the_updates() -> None:
    def method(name: str, updates: int) -> dict[str, Any]:
        made = budgeted(load_config(DistillRecipe, f"distill/{name}"), Spending(updates), 0)
        return next(iter(made.recipe.stages.values())).method

    assert method("arcflow", 150)["mixed"] == 50 and method("arcflow", 600)["mixed"] == 200
    assert method("scott", 150)["critic"] == {"weight": 0.1, "rank": 8, "start": 20}


def test_kept_rows_are_not_made_again_and_others_lie_elsewhere(tmp_path: Path, monkeypatch) -> None:
    made: list[int] = []

    def make() -> list[dict[str, Any]]:
        made.append(1)
        return [{"student": "a", "value": 0.5}]

    for _ in range(2):
        assert kept(tmp_path / "deep" / "a.json", make) == [{"student": "a", "value": 0.5}]
    assert len(made) == 1
    weights = {"toybox": "one", "toybox-lcm": "two"}
    monkeypatch.setattr(kept_module, "fingerprints", lambda name, prior: {"weights": dict(weights), "code": {}})
    context = Context("students")
    place = place_of(context, QUICK, SHIPPED)
    assert place.parent == Path(QUICK.work)
    assert place != place_of(replace(context, seed=1), QUICK, SHIPPED)
    assert place != place_of(context, replace(QUICK, prompts=4), SHIPPED)
    weights["toybox-lcm"] = "another"
    assert place == place_of(context, QUICK, SHIPPED) != place_of(context, QUICK)
    weights["toybox"] = "another"
    assert place != place_of(context, QUICK, SHIPPED)


def test_diversity_is_the_mean_distance_within_a_prompt() -> None:
    seen = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0], [1.0, 2.0]])
    assert diversity(seen, 2)["mean"] == pytest.approx((5 + 1) / 2)
    three = torch.tensor([[0.0], [1.0], [3.0]])
    assert diversity(three, 3)["mean"] == pytest.approx((1 + 3 + 2) / 3)


def test_megabytes_are_those_of_what_a_student_adds(tmp_path: Path) -> None:
    for name in ("unet", "vae", "text_encoder", "plain/unet"):
        (tmp_path / name).mkdir(parents=True)
        save_file({"x": torch.zeros(250_000)}, tmp_path / name / "m.safetensors")
    assert megabytes(tmp_path) == pytest.approx(1.0, rel=0.01)


def row(student: str, calls: int, fid: float, **more: Any) -> dict[str, Any]:
    solver = more.pop("solver", "ddim")
    told = {"student": student, "solver": solver, "calls": calls, "guidance": 3.0, "trained_share": 0.04}
    told |= {"toy_fid": {"fid": fid, "floor": 50.0}, "accuracy": {"value": 0.8}, "mse_to_teacher": {"mean": 0.2}}
    return {**told, "ms_per_picture": 10.0, "megabytes": 25.0, **more}


def test_claims_by_hand() -> None:
    table = [
        row("none", 1, 300.0),
        row("none", 2, 200.0, mse_to_teacher={"mean": 0.5}),
        row("none", 4, 150.0),
        row("none", 8, 120.0),
        row("none", 4, 90.0, solver="dpm++"),
        row("none", 8, 110.0, guidance=1.0, accuracy={"value": 0.6}),
        row("none", 50, 100.0, solver="dpm++", accuracy={"value": 0.9}),
        row("lcm-lora", 1, 130.0, accuracy={"value": 0.83}),
        row("lcm-lora", 4, 115.0, accuracy={"value": 0.89}),
        row("lora-distillation", 8, 121.0, accuracy={"value": 0.78}),
        row("arcflow", 2, 140.0, mse_to_teacher={"mean": 0.1}),
        row("koala", 8, 126.0, ms_per_picture=5.5),
        row("quest", 8, 126.0, megabytes=3.5),
        row(QUEST_4_4, 8, 150.0),
        row(ALL_4_4, 8, 120.0),
        row("dmd2", 4, 60.0),  # the field's, which is no student of ours
        row("dmd2", 1, 60.0),
    ]
    kernels = [{"of": "sd 1.5", "layer": "conv", "batch": 8, "int8_ratio": 0.3}]
    kernels += [{**kernels[0], "layer": "linear", "int8_ratio": 0.6}, {**kernels[0], "of": "toybox", "int8_ratio": 1.4}]
    kernels += [{"of": "toybox", "layer": NETWORK, "batch": 8, "int8_ratio": 0.9}]
    heads = [{"network": "as shipped"}, {"network": "weights of 8 bits", "abs_rel_ratio": {"ratio": 1.01}}]
    heads += [{"network": CUT, "abs_rel_ratio": {"ratio": 3.0}}]
    found = claims(table, heads, [{"student": "speedupnet", "cosine": {"mean": 0.7}}], kernels)
    told = {(one["student"], one["claim"]): (one["measured"]["value"], one["holds"]) for one in found}
    assert told["lcm-lora", "toy-FID of the best at 4 calls over that of 50"] == (1.15, False)
    assert told["lcm-lora", "toy-FID of the best at 1 call over that of 50"] == (1.3, True)
    assert told["lcm-lora", "points of accuracy lost at 4 calls"] == (1.0, True)
    assert told["lcm-lora", "points of accuracy lost at 1 call"] == (7.0, False)
    assert told["lora-distillation", "share of the gain of guidance, at half the rows"] == (0.9, True)
    memory = told["lora-distillation", "weights, gradients and moments over those of a whole student and its teacher"]
    assert memory == (pytest.approx((1 + 4 * 0.04) / 5, abs=1e-3), True)
    assert told["speedupnet", "cosine of what another negative prompt changes"] == (0.7, False)
    assert told["arcflow", "paired error at 2 calls over that of DDIM"] == (0.2, True)
    assert told["arcflow", "share of the weights that learns"] == (0.04, True)
    assert told["koala", "time of a picture over the prior's"] == (0.55, True)
    assert told["koala", "toy-FID over the prior's"] == (1.05, True)
    assert told["quest", "file over float32"] == (0.14, True)
    selective = "toy-FID with weights and inputs of 4 bits over that of a fine-tuning of all weights"
    assert told["quest", selective] == (1.25, False)
    parts = ("the slowest layer, sd 1.5", "the slowest layer, toybox", f"{NETWORK}, toybox")
    slowest = [told["quest", f"time of integers over float32, {part}, batch 8"] for part in parts]
    assert slowest == [(0.6, True), (1.4, False), (0.9, True)]
    assert told["head of geometry", "AbsRel over the whole head's, weights of 8 bits"] == (1.01, True)
    assert sum(student == "head of geometry" for student, _ in told) == 1
    assert not any("asdm" in student for student, _ in told)


def test_the_picture_has_every_row_and_few_pictures_are_told_by_the_kernel(tmp_path: Path) -> None:
    table = [row("none", calls, 100.0 / calls) for calls in (1, 2)] + [row("lcm-lora", 4, 30.0, megabytes=2.0)]
    table.append(row("none", 50, 20.0, solver="dpm++"))  # the best of the teacher's
    picture(table, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert distance(table[0]) == 100.0
    assert distance({"toy_kid": {"kid": 0.25, "low": 0.0, "high": 1.0}}) == 0.25


def test_a_head_is_rounded_to_its_bits_but_for_its_ends(small) -> None:
    network = rounded(small.network, 2)
    inner = network.down_blocks[0].resnets[0].conv1.weight
    assert max(len(channel.unique()) for channel in inner.flatten(1)) <= 4
    assert max(len(channel.unique()) for channel in network.conv_out.weight.flatten(1)) > 16
    whole = np.array([0.1, 0.2])
    told = head_row("x", network, {"abs_rel": 1.5 * whole, "normals_mean": whole}, whole)
    count = sum(value.numel() for value in network.parameters())
    assert told["abs_rel_ratio"]["ratio"] == 1.5 and told["parameters_m"] == pytest.approx(count / 1e6, rel=0.01)


def test_a_student_that_learnt_nothing_sees_views_as_the_prior_of_views_does(prior) -> None:
    many = load_prior("toybox-mv")
    other = seeing_views(many, Student(prior).prior)
    assert other.network is not many.network and other.network is not prior.network
    x = torch.randn(2, *many.latent_shape, generator=generator(1))
    text = many.encode_text(["a red chair"] * 2)["cond"]
    cameras = torch.randn(2, 16, generator=generator(2))
    with torch.no_grad():
        answers = [one.views(x, torch.tensor([300.0] * 2), text["text"], cameras, 2) for one in (many, other)]
    assert torch.equal(*answers)


def test_the_change_of_a_negative_prompt_is_compared_with_the_teachers(prior, monkeypatch) -> None:
    latents = torch.randn(2, *prior.latent_shape, generator=generator(3))
    monkeypatch.setattr(student_others, "load_student", lambda folder: prior)
    told = negative_row(Path("speedupnet/export"), prior, latents)
    assert told["student"] == "speedupnet" and told["cosine"]["mean"] == pytest.approx(1.0)
    assert math.isfinite(told["cosine"]["low"])
