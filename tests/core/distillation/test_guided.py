"""Guided distillation: where it becomes the conditional model, its published formulas, exact linear teachers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unproject.core.distillation.guided import (
    GuidanceObjective,
    Guiding,
    Halving,
    ProgressiveObjective,
    halves,
    solved,
    without_text,
)
from unproject.core.distillation.kinds import Full, Lora, Told
from unproject.core.distillation.objective import distance, step_to
from unproject.core.distillation.states import of_each
from unproject.core.distillation.student import Student
from unproject.core.distillation.teacher import Teacher
from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior, load_prior
from unproject.core.sampling import NoiseSchedule, Prediction
from unproject.core.sampling.guidance import guided
from unproject.utils.errors import InputError

TEXTS = ["a dog", "a red chair"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(prior, rows: int = 2) -> dict:
    x = torch.randn(rows, *prior.latent_shape, generator=rng(7))
    return {"latents": x, "noise": torch.randn(x.shape, generator=rng(8)), "captions": TEXTS[:rows]}


def loss_of(prior, kind, method, name="guidance"):
    student = Student(prior, kind)
    objective = {"guidance": GuidanceObjective, "progressive": ProgressiveObjective}[name]
    return student, objective(student, Teacher(prior), method)


@pytest.mark.parametrize("folder", ["sd", "sdxl"])
def test_a_told_student_begins_as_the_conditional_teacher_at_every_scale(tiny_folders, folder):
    prior = load_prior(tiny_folders[folder])
    student = Student(prior, Told())
    assert student.prior.guidance_embedded and not prior.guidance_embedded
    condition, level = prior.encode_text(TEXTS), student.schedule.at_index(400)
    x = batch(prior)["latents"]
    with torch.no_grad():
        plain = Teacher(prior).predict(x, level, condition).raw
        for scale in (1.0, 5.0):
            found = student.ask(x, level, condition, torch.full((2,), scale)).raw
            torch.testing.assert_close(found, plain, rtol=0, atol=1e-6)
        student.network.time_embedding.cond_proj.weight.normal_(generator=rng(1))
        told = [student.ask(x, level, condition, torch.tensor([s, 1.0])).raw for s in (1.0, 5.0)]
    assert (told[0][0] - told[1][0]).abs().max() > 1e-4 and torch.equal(told[0][1], told[1][1])


def test_the_input_of_a_scale_is_w_one_below_it(tiny_folders):
    """VDM features of w = s - 1, as stock pipelines compute them."""
    prior = load_prior(tiny_folders["sd"])
    student = Student(prior, Told())
    rows = prior.encode_text(TEXTS)["cond"].with_tensors(guidance=torch.tensor([3.5, 1.0]))
    ours = student.prior._scale_features(torch.zeros(2, 4, 8, 8), rows)
    theirs = prior.pipe.get_guidance_scale_embedding(torch.tensor([2.5, 0.0]), 256)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)


def test_networks_that_cannot_be_told_a_scale_say_so(tiny_folders):
    for folder, words in (("sd3", "cannot be told"), ("flux", "takes a guidance scale already")):
        with pytest.raises(InputError, match=words):
            Student(load_prior(tiny_folders[folder]), Told())
    with pytest.raises(InputError, match="scale="):
        Guiding(scale=(3.0, 1.0))


def test_the_adapters_loss_is_nothing_at_scale_one_and_grows_with_the_square_of_w(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    losses = {}
    for scale in (1.0, 2.0, 4.0):
        student, objective = loss_of(prior, Lora(2, 2), Guiding((scale, scale), "raw"))
        found = objective.loss(batch(prior), rng(3), 0).loss
        found.backward()
        losses[scale] = float(found.detach())
        if scale == 1:
            grads = [p.grad.abs().max() for p in student.network.parameters() if p.grad is not None]
            assert losses[1.0] < 1e-12 and max(grads) < 1e-6
    assert losses[4.0] == pytest.approx(9 * losses[2.0], rel=1e-4) and losses[2.0] > 1e-8


def test_equal_branches_make_the_aim_independent_of_the_scale(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    condition = prior.encode_text(TEXTS)
    condition = without_text(condition, torch.tensor([True, True]))
    teacher, level, x = Teacher(prior), NoiseSchedule.from_config(prior.scheduler_config).at_index(200), batch(prior)
    found = [teacher.guided(x["latents"], level, condition, torch.full((2,), s)).raw for s in (1.5, 9.0)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
    half = without_text(prior.encode_text(TEXTS), torch.tensor([False, True]))
    assert torch.equal(half["cond"]["text"][1], half["null"]["text"][1])
    assert not torch.equal(half["cond"]["text"][0], half["null"]["text"][0])


@pytest.mark.parametrize("states", ["data", "rollout"])
def test_stage_one_is_pure_and_leaves_its_teacher(tiny_folders, states):
    prior = load_prior(tiny_folders["sd-v"])
    student, objective = loss_of(prior, Told(), Guiding((1.0, 6.0), "v", states, steps=3, drop=0.3))
    before = objective.teacher.hash
    first, again = (objective.loss(batch(prior), rng(5), 0).loss for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, objective.loss(batch(prior), rng(6), 0).loss)
    first.backward()
    with torch.no_grad():
        for p in student.network.parameters():
            p -= 0.1 * p.grad
    assert objective.teacher.hash == before
    assert objective.loss(batch(prior), rng(5), 0).loss < first


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_aim_of_halving_is_the_published_formula(kind):
    """x = (z'' - e z) / (a'' - e a), e = exp((softplus(l) - softplus(l'')) / 2), l = log(alpha^2 / sigma^2)."""
    schedule = NoiseSchedule.from_config(SD_SCHEDULE)
    levels = halves(schedule, 4)
    number = torch.tensor([1, 2, 4])
    now, middle, after = (of_each(levels, 2 * number - k) for k in range(3))
    z = torch.randn(3, 2, 2, 2, generator=rng(1)).double()
    raw = [torch.randn(3, 2, 2, 2, generator=rng(2 + k)).double() for k in range(2)]
    first = Prediction(z, now, raw[0], kind)
    second = Prediction(step_to(first, middle), middle, raw[1], kind)
    end = step_to(second, after)
    found = solved(z, end, now, after)
    for row in range(3):
        full, last = 2 * float(now.lam[row]), 2 * float(after.lam[row])
        if np.isinf(last):
            torch.testing.assert_close(found[row], second.x0[row])
            continue
        ratio = np.exp(0.5 * (np.logaddexp(0, full) - np.logaddexp(0, last)))
        wanted = (end[row] - ratio * z[row]) / (float(after.alpha[row]) - ratio * float(now.alpha[row]))
        torch.testing.assert_close(found[row], wanted, rtol=1e-6, atol=1e-6)
    onwards = step_to(Prediction(z, now, found, "sample"), after)
    torch.testing.assert_close(onwards, end, rtol=0, atol=1e-9)


def test_halves_end_clean_and_take_in_the_teachers_middle():
    for config in (SD_SCHEDULE, FLOW_SCHEDULE):
        schedule = NoiseSchedule.from_config(config)
        levels = halves(schedule, 2)
        assert levels[0].sigma == 0 and levels[0].alpha == 1
        assert [level.index for level in levels[1:]] == [249, 499, 749, 999]
    with pytest.raises(InputError, match="of a teacher behind them"):
        halves(schedule, 600)


def test_a_perfect_gaussian_student_of_halving_has_the_teachers_two_steps():
    """The aim of a linear teacher is linear in z; a student that says it has no loss."""
    prior = GaussianMixturePrior(torch.full((1, 1, 2, 2), 0.4), torch.tensor([0.5]))
    teacher, levels = Teacher(prior), halves(NoiseSchedule.from_config(SD_SCHEDULE), 4)
    condition, z = prior.encode_text([""] * 2), torch.randn(2, 1, 2, 2, generator=rng(4)).double()
    now, middle, after = (of_each(levels, torch.tensor([6, 6]) - k) for k in range(3))
    end = step_to(teacher.predict(step_to(teacher.predict(z, now, condition), middle), middle, condition), after)
    aim = Prediction(z, now, solved(z, end, now, after), "sample")
    torch.testing.assert_close(step_to(aim, after), end, rtol=0, atol=1e-6)
    plain = teacher.predict(z, now, condition)
    assert float(distance(plain, aim, "truncated").mean()) > 1e-5
    worse = torch.maximum(distance(plain, aim, "x0"), distance(plain, aim, "eps"))
    assert torch.equal(distance(plain, aim, "truncated"), worse)


def test_a_round_after_the_told_student_teaches_by_one_call(tiny_folders):
    prior = load_prior(tiny_folders["sd-v"])
    told = Student(prior, Told())
    student = Student(told.prior, Full())
    assert student.prior.guidance_embedded
    objective = ProgressiveObjective(student, Teacher(told.prior), Halving(2, (1.0, 5.0)))
    before = told.prior.nfe
    objective.loss(batch(prior), rng(2), 0).loss.backward()
    assert told.prior.nfe - before == 4  # two calls of two rows
    _, rows = guided(told.prior, prior.encode_text(TEXTS), torch.tensor([2.0, 3.0]))
    assert rows["cond"]["guidance"].tolist() == [2.0, 3.0]
