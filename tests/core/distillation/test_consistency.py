"""Consistency models: diffusers' scheduler, published losses, Gaussian fixed points, SCott's limits and critic."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import LCMScheduler

from unproject.core.distillation.adversarial import Critic, Critical, critic_loss, realism
from unproject.core.distillation.consistency import (
    ConsistencyObjective,
    Consistent,
    between,
    stochastic_step,
    trained_levels,
)
from unproject.core.distillation.kinds import Lora, Told
from unproject.core.distillation.states import of_each
from unproject.core.distillation.student import Student
from unproject.core.distillation.teacher import Teacher
from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior, load_prior
from unproject.core.sampling import NoiseSchedule, Prediction, Sampler
from unproject.core.sampling.solvers import make_solver
from unproject.core.sampling.solvers.consistency import consistent
from unproject.core.training.config import TrainerConfig
from unproject.core.training.trainer import Trainer
from unproject.utils.errors import InputError

TEXTS = ["a dog", "a red chair"]
LCM = {**SD_SCHEDULE, "_class_name": "LCMScheduler", "original_inference_steps": 50}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(prior, rows: int = 2) -> dict:
    return {"latents": torch.randn(rows, *prior.latent_shape, generator=rng(7)), "captions": TEXTS[:rows]}


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_sampling_is_that_of_the_lcm_scheduler(steps, kind):
    config = {**LCM, "prediction_type": kind}
    theirs = LCMScheduler.from_config({k: v for k, v in config.items() if k != "_class_name"})
    theirs.set_timesteps(steps)
    levels = NoiseSchedule.from_config(config).grid(steps)
    assert [int(level.index) for level in levels[:-1]] == theirs.timesteps.tolist()
    x = torch.randn(2, 4, 4, 4, generator=rng(1), dtype=torch.float64)

    def network(x, time):
        return torch.sin(3 * x) + 0.001 * time

    source, state = rng(2), x
    for time in theirs.timesteps:
        state = theirs.step(network(state, time), time, state, generator=source, return_dict=False)[0]
    ours = Sampler(make_solver("lcm", kind=kind)).run(
        lambda z, level: Prediction(z, level, network(z, level.model_time), kind), x, levels, rng(2)
    )
    torch.testing.assert_close(ours, state, rtol=1e-3, atol=1e-4)  # its tables are float32


def test_the_boundary_is_exact_and_a_flow_has_it_by_itself():
    x, raw = torch.randn(2, 1, 2, 2, generator=rng(1)), torch.randn(2, 1, 2, 2, generator=rng(2))
    vp, flow = (NoiseSchedule.from_config(config) for config in (SD_SCHEDULE, FLOW_SCHEDULE))
    assert torch.equal(consistent(Prediction(x, vp.at_index(0), raw, "epsilon")), x)
    assert torch.equal(consistent(Prediction(x, flow.clean, raw, "flow_prediction")), x)
    far = Prediction(x, vp.at_index(torch.tensor([19.0, 999.0])), raw, "epsilon")
    torch.testing.assert_close(consistent(far), far.x0, rtol=1e-4, atol=1e-4)
    rows = consistent(Prediction(x, vp.at_index(torch.tensor([0.0, 999.0])), raw, "epsilon"))
    assert torch.equal(rows[0], x[0]) and not torch.equal(rows[1], x[1])


def test_the_learnt_levels_are_those_that_steps_are_taken_from():
    levels = trained_levels(NoiseSchedule.from_config(SD_SCHEDULE), 50)
    indices = [int(level.index) for level in levels]
    assert len(indices) == 51 and indices[:2] == [999, 979] and indices[-2:] == [19, 0]
    for steps in (1, 2, 4, 8):
        asked = NoiseSchedule.from_config(LCM).grid(steps)[:-1]
        assert {int(level.index) for level in asked} <= set(indices)
    flow = trained_levels(NoiseSchedule.from_config(FLOW_SCHEDULE), 4)
    assert [float(level.sigma) for level in flow] == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("folder", ["sd", "sd-v"])
def test_the_loss_is_the_published_one(tiny_folders, folder):
    """Written again from the paper with diffusers' tables, for eps and v."""
    prior = load_prior(tiny_folders[folder])
    student, method = Student(prior, Told()), Consistent(scale=(4.0, 4.0))
    with torch.no_grad():
        student.network.time_embedding.cond_proj.weight.normal_(generator=rng(1))
    ours = ConsistencyObjective(student, Teacher(prior), method).loss(batch(prior), rng(9), 0).loss
    source, x0 = rng(9), batch(prior)["latents"]
    number = torch.randint(50, (2,), generator=source)
    noise = torch.randn(2, 4, 8, 8, generator=source)
    start = (50 - number) * 20 - 1
    end = (start - 20).clamp_min(0)
    abar = prior.pipe.scheduler.alphas_cumprod.double()

    def coefficients(index):
        a = abar[index].reshape(-1, 1, 1, 1)
        return a.sqrt().float(), (1 - a).sqrt().float()

    text, null = (prior.encode_text(TEXTS)[name]["text"] for name in ("cond", "null"))
    told = prior.pipe.get_guidance_scale_embedding(torch.full((2,), 3.0), 256)

    def read(out, z, a, s):
        return ((z - s * out) / a, out) if folder == "sd" else (a * z - s * out, a * out + s * z)

    def f(z, index):
        a, s = coefficients(index)
        x = read(student.network(z, index, text, timestep_cond=told).sample, z, a, s)[0]
        scaled = (10.0 * index).reshape(-1, 1, 1, 1)
        return 0.25 / (scaled**2 + 0.25) * z + scaled / (scaled**2 + 0.25).sqrt() * x

    a, s = coefficients(start)
    z = a * x0 + s * noise
    with torch.no_grad():
        cond, uncond = (read(prior.network(z, start, side).sample, z, a, s) for side in (text, null))
        x, eps = (c + 3.0 * (c - u) for c, u in zip(cond, uncond))
        a_end, s_end = coefficients(end)
        target = f(a_end * x + s_end * eps, end)
    wanted = (torch.sqrt((f(z, start) - target) ** 2 + 1e-6) - 1e-3).mean()
    torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-6)


def test_randomness_zero_is_lcm_and_the_adapters_aim_is_itself(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    losses = []
    for method in (
        Consistent((2.0, 5.0)),
        Consistent((2.0, 5.0), eta=0.0, substeps=1),
        Consistent((2.0, 5.0), eta=0.5),
    ):
        student = Student(prior, Lora(2, 4))
        loss = ConsistencyObjective(student, student.teacher(), method).loss(batch(prior), rng(4), 0).loss
        loss.backward()
        grad = torch.cat([p.grad.flatten() for p in student.network.parameters() if p.grad is not None])
        losses.append((loss, grad))
    assert torch.equal(losses[0][0], losses[1][0]) and torch.equal(losses[0][1], losses[1][1])
    assert not torch.equal(losses[0][0], losses[2][0])
    with pytest.raises(InputError, match=r"eta=1\.5"):
        Consistent(eta=1.5)


def marginal(level, spread: float) -> float:
    return math.sqrt((float(level.alpha) * spread) ** 2 + float(level.sigma) ** 2)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_every_randomness_keeps_the_marginal(eta):
    """With the exact score a step of any eta keeps N(0, alpha^2 s^2 + sigma^2), up to its length."""
    spread, schedule = 0.6, NoiseSchedule.from_config(SD_SCHEDULE)
    prior = GaussianMixturePrior(torch.zeros(1, 1, 1, 1), torch.tensor([spread]))
    now, after = schedule.at_index(torch.full((40000,), 520.0)), schedule.at_index(torch.full((40000,), 500.0))
    z = marginal(schedule.at_index(520), spread) * torch.randn(40000, 1, 1, 1, generator=rng(1)).double()
    prediction = Teacher(prior).predict(z, now, prior.encode_text([""]))
    moved = stochastic_step(prediction, after, eta, rng(2))
    assert float(moved.std()) == pytest.approx(marginal(schedule.at_index(500), spread), rel=0.015)
    if eta:
        fixed = stochastic_step(prediction, after, 0.0, rng(2))
        assert (moved - fixed).std() > 0.05 * eta


def test_full_randomness_is_the_first_order_sde_solver():
    """z' = (sigma' / sigma) e^{-h} z + alpha' (1 - e^{-2h}) x0 + sigma' sqrt(1 - e^{-2h}) xi."""
    schedule = NoiseSchedule.from_config(SD_SCHEDULE)
    now, after = (schedule.at_index(torch.tensor(pair)) for pair in ([700.0, 300.0], [650.0, 100.0]))
    z = torch.randn(2, 1, 2, 2, generator=rng(1)).double()
    p = Prediction(z, now, torch.randn(2, 1, 2, 2, generator=rng(2)).double(), "epsilon")
    noise = torch.randn(z.shape, generator=rng(3), dtype=z.dtype)
    h = (after.lam - now.lam).reshape(-1, 1, 1, 1)
    (a, s), (_, s_now) = after.coefficients(z), now.coefficients(z)
    wanted = s / s_now * (-h).exp() * z + a * (1 - (-2 * h).exp()) * p.x0 + s * (1 - (-2 * h).exp()).sqrt() * noise
    torch.testing.assert_close(stochastic_step(p, after, 1.0, rng(3)), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_fixed_point_is_the_ode_map_or_the_posterior_mean(eta):
    """A linear student f(z_n) = k_n z_n on N(0, s^2): regressing on f(z_m) is a recursion, which a fine grid takes to
    s / sqrt(alpha^2 s^2 + sigma^2) for eta = 0 and alpha s^2 / (alpha^2 s^2 + sigma^2) for eta = 1."""
    spread, schedule = 0.7, NoiseSchedule.from_config(SD_SCHEDULE)
    prior = GaussianMixturePrior(torch.zeros(1, 1, 1, 1), torch.tensor([spread]))
    teacher, condition = Teacher(prior), prior.encode_text([""])
    levels = trained_levels(schedule, 500)
    factor, rows = 1.0, 4000
    for level, before in zip(reversed(levels[:-1]), reversed(levels[1:])):
        pair = [of_each([one], torch.zeros(rows, dtype=torch.long)) for one in (level, before)]
        z = torch.linspace(-1e4, 1e4, rows).double().reshape(-1, 1, 1, 1)
        back = stochastic_step(teacher.predict(z, pair[0], condition), pair[1], eta, rng(1))
        factor *= float((back * z).sum() / z.square().sum())  # least squares of k_m z_m on z_n
    variance = marginal(levels[0], spread) ** 2
    wanted = spread / math.sqrt(variance) if eta == 0 else float(levels[0].alpha) * spread**2 / variance
    assert factor == pytest.approx(wanted, abs=0.02)


def test_substeps_end_at_the_grid():
    schedule = NoiseSchedule.from_config(SD_SCHEDULE)
    levels = trained_levels(schedule, 50)
    now, before = of_each(levels, torch.tensor([0, 48])), of_each(levels, torch.tensor([1, 49]))
    found = between(schedule, now, before, 2)
    assert len(found) == 3 and found[0] is now and found[2] is before
    assert found[1].index.tolist() == [989.0, 29.0]


class Latents:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> dict:
        return {"latents": torch.full((4, 8, 8), i / 4), "captions": TEXTS[i % 2]}


def test_the_aim_is_the_average_which_comes_back_after_a_stop(tiny_folders, tmp_path):
    config = TrainerConfig(steps=3, batch=2, lr=1e-2, save_every=9)
    prior = load_prior(tiny_folders["sd"])

    def run(out, **settings):
        method = Consistent((2.0, 5.0), average=0.5, substeps=2, eta=0.3, critic=Critical(rank=2, start=1))
        objective = ConsistencyObjective(Student(prior, Told()), Teacher(prior), method)
        trainer = Trainer(TrainerConfig(**{**vars(config), **settings}), objective, Latents(), out, "cpu")
        trainer.run("resume" in str(settings) or bool(list(out.glob("ckpt*"))))
        return objective, trainer.loop.state()[0]

    objective, whole = run(tmp_path / "whole")
    run(tmp_path / "parts", max_minutes=0.0)
    _, parts = run(tmp_path / "parts")
    for part, values in whole.items():
        assert all(torch.equal(value, parts[part][name]) for name, value in values.items()), part
    weights = dict(objective.student.network.named_parameters())["conv_out.weight"]
    with objective._aiming():
        aimed = weights.clone()
    assert not torch.equal(aimed, weights) and objective.teacher.hash == objective.config.teacher
    moved = [name for name, p in objective.critic.named_parameters() if p.requires_grad]
    assert moved and all("lora" in name or name.startswith("heads") for name in moved)


def test_a_critic_tells_two_kinds_apart_and_its_weights_are_not_the_students(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    schedule, condition = NoiseSchedule.from_config(prior.scheduler_config), prior.encode_text(TEXTS)
    critic = Critic(prior, Critical(rank=2, levels=(0.0, 0.2)))
    real = torch.randn(2, 4, 8, 8, generator=rng(1))
    made = (0.2 * real).requires_grad_(True)
    optimizer = torch.optim.Adam([p for p in critic.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(25):
        out = critic_loss(critic, real, made, schedule, condition, rng(step))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(float(out.loss.detach()))
    assert made.grad is None and sum(losses[-5:]) < 0.8 * sum(losses[:5])
    realism(critic, made, schedule, condition, rng(1)).backward()
    assert made.grad is not None and made.grad.abs().max() > 0
    with pytest.raises(InputError, match="has none"):
        Critic(GaussianMixturePrior(torch.zeros(1, 1, 1, 1), torch.tensor([1.0])), Critical())
