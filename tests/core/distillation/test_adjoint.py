"""Adjoint matching: the discrete adjoint is a gradient; limits, the loss at the optimum, marginals, real classes."""

from __future__ import annotations

import math

import pytest
import torch

from unproject.core.distillation.adjoint import (
    AdjointConfig,
    AdjointMatching,
    data_time,
    lean_adjoint,
    matching_loss,
    step_mean,
)
from unproject.core.distillation.kinds import Lora
from unproject.core.distillation.student import Student
from unproject.core.distillation.teacher import Teacher, rollout
from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior, load_prior
from unproject.core.sampling import DDIM, Denoiser, NoiseSchedule
from unproject.core.sampling.attention import subject_tokens
from unproject.core.sampling.focus import AttentionCost, moved
from unproject.core.sampling.solvers.ddim import ancestral_std
from unproject.utils.errors import InputError

SHAPE = (2, 1, 2, 2)


def denoiser_of(config=FLOW_SCHEDULE, rows: int = 2, means=(-0.5, 0.8), std: float = 0.6) -> Denoiser:
    centres = torch.stack([torch.full((1, 2, 2), float(m)) for m in means])
    prior = GaussianMixturePrior(centres, torch.full((len(means),), std), scheduler_config=config)
    return Denoiser(prior, prior.encode_text([""] * rows))


def noise(rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, *SHAPE[1:], generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_adjoint_is_the_gradient_of_the_simulated_cost(config):
    denoiser = denoiser_of(config)
    levels = denoiser.schedule.grid(6)
    draws = [noise().roll(k, 0) * (k + 1) / 4 for k in range(6)]

    def chain(x):
        states = [x]
        for k, (level, after) in enumerate(zip(levels, levels[1:])):
            states.append(step_mean(denoiser(states[-1], level), level, after) + ancestral_std(level, after) * draws[k])
        return states

    start = noise().requires_grad_(True)
    states = chain(start)
    spans = [data_time(b) - data_time(a) for a, b in zip(levels, levels[1:])]
    total = sum(h * 0.5 * x.square().sum() for h, x in zip(spans, states))
    wanted = torch.autograd.grad(total, start)[0]
    stored = [x.detach() for x in states]
    found = lean_adjoint(denoiser, stored, levels, stored[:-1])
    torch.testing.assert_close(found[0], wanted, rtol=1e-9, atol=1e-10)
    assert len(found) == len(states) and float(found[-1].abs().max()) == 0


def test_adjoint_converges_to_the_differential_equation_with_order_one():
    """One Gaussian, f = sum(x): da/dt = -(J a + 1), J = 2 v' - 1/t with v = (data - noise) linear in x."""
    std, low, high = 0.6, 0.2, 0.9
    denoiser = denoiser_of(means=(0.0,), std=std)

    def slope(t: float) -> float:
        variance = t * t * std**2 + (1 - t) ** 2
        return 2 * (t * std**2 - (1 - t)) / variance - 1 / t

    steps, a = 4000, 0.0
    for i in range(steps):
        h = (high - low) / steps
        t = high - (i + 0.5) * h
        a += h * (slope(t) * (a + 0.5 * h * (slope(t) * a + 1)) + 1)

    def error(n: int) -> float:
        levels = [denoiser.schedule.at_lambda(math.log(t / (1 - t))) for t in torch.linspace(low, high, n + 1).tolist()]
        states = [noise()] * (n + 1)
        return abs(float(lean_adjoint(denoiser, states, levels, [torch.ones(SHAPE).double()] * n)[0][0, 0, 0, 0]) - a)

    assert 0.8 < math.log2(error(32) / error(64)) < 1.2


def test_small_steps_are_the_memoryless_equation():
    schedule = NoiseSchedule.from_config(FLOW_SCHEDULE)
    t, h = 0.4, 1e-4
    level, after = (schedule.at_lambda(math.log(s / (1 - s))) for s in (t, t + h))
    assert ancestral_std(level, after) ** 2 / h == pytest.approx(2 * (1 - t) / t, rel=1e-3)
    denoiser = denoiser_of()
    prediction = denoiser(noise(), level)
    drift = (step_mean(prediction, level, after) - noise()) / h
    torch.testing.assert_close(drift, -2 * prediction.u - noise() / t, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_loss_is_zero_at_the_optimal_control_only(config):
    denoiser = denoiser_of(config)
    level, after = denoiser.schedule.at_index(700), denoiser.schedule.at_index(600)
    base, adjoint = denoiser(noise(), level), noise().flip(0)
    per_u = step_mean(moved(base, torch.ones_like(adjoint)), level, after) - step_mean(base, level, after)
    optimal = moved(base, -(ancestral_std(level, after) ** 2) * adjoint / per_u)
    assert float(matching_loss(optimal, base, level, after, adjoint).max()) < 1e-18
    alone = matching_loss(base, base, level, after, adjoint)
    span = data_time(after) - data_time(level)
    wanted = ancestral_std(level, after) ** 2 * adjoint.square().mean((1, 2, 3)) / span
    torch.testing.assert_close(alone, wanted)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_memoryless_runs_keep_the_moments_from_pure_noise_on(config):
    rows = 2000
    denoiser = denoiser_of(config, rows, means=(1.5,), std=0.5)
    levels = denoiser.schedule.grid(150, "logsnr", "index0")
    states = rollout(denoiser, noise(rows), levels, torch.Generator().manual_seed(1), DDIM(eta=1.0))
    for state, level in zip(states, levels):
        spread = math.sqrt((level.alpha * 0.5) ** 2 + level.sigma**2)
        assert float(state.std()) == pytest.approx(spread, rel=0.06)
    assert float(states[-1].mean()) == pytest.approx(1.5 * levels[-1].alpha, abs=0.05)


@pytest.mark.parametrize("name", ["sd", "sd3"])
@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_an_update_on_the_real_classes_trains_only_the_student(tiny_folders, name, lora):
    prior = load_prior(tiny_folders[name])
    student = Student(prior, lora)
    teacher = student.teacher() if lora else Teacher(prior)
    prompt = "a red chair of the blue dog"
    tokens = subject_tokens(prior, prompt, ["red chair", "blue dog"])
    config = AdjointConfig(steps=4, trajectories=1, times=2)
    objective = AdjointMatching(student, teacher, lambda prompts: AttentionCost(tokens), config)
    before = teacher.hash
    out = objective.loss({"prompts": [prompt]}, torch.Generator().manual_seed(0), 0)
    out.loss.backward()
    assert float(out.loss.detach()) > 0
    learning = {n: p for n, p in student.network.named_parameters() if p.requires_grad}
    assert max(float(p.grad.abs().max()) for p in learning.values() if p.grad is not None) > 0
    assert all("lora" in name for name in learning) == (lora is not None)
    assert all(p.grad is None for module in objective.frozen.values() for p in module.parameters())
    assert all(p.grad is None for p in student.network.parameters() if not p.requires_grad)
    assert not any(module is student.network for module in objective.frozen.values())
    again = objective.loss({"prompts": [prompt]}, torch.Generator().manual_seed(0), 0)
    torch.testing.assert_close(again.loss, out.loss, rtol=1e-4, atol=0.0)
    torch.optim.SGD(learning.values(), lr=0.1).step()
    assert teacher.hash == before == objective.config.teacher == Teacher(prior).hash


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_without_cost_the_teacher_is_the_optimum(tiny_folders, lora):
    prior = load_prior(tiny_folders["sd"])
    student = Student(prior, lora)
    config = AdjointConfig(strength=0.0, steps=3, trajectories=1, times=1)
    teacher = student.teacher() if lora else Teacher(prior)
    objective = AdjointMatching(student, teacher, lambda prompts: AttentionCost([[1], [2]]), config)
    loss = objective.loss({"prompts": ["a dog"]}, torch.Generator().manual_seed(0), 0).loss
    assert loss.item() == pytest.approx(0, abs=0.0 if lora else 1e-9)  # copied weights lie elsewhere in memory


def test_bad_input_is_named():
    with pytest.raises(InputError, match="times=9"):
        AdjointConfig(steps=10, times=9)
    with pytest.raises(InputError, match="trajectories=0"):
        AdjointConfig(trajectories=0)
    denoiser = denoiser_of()
    level = denoiser.schedule.at_index(20)
    base = denoiser(noise(), level)
    with pytest.raises(InputError, match="draws no noise"):
        matching_loss(base, base, level, denoiser.schedule.clean, noise())
