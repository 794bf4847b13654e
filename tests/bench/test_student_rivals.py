"""Methods of the field beside the table: what their equations say of flows and Gaussians that are known."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from numpy.polynomial.hermite_e import hermegauss

from unproject.bench.rival_dmd2 import Matching, MatchingObjective, sized
from unproject.bench.rival_meanflow import Averaging, MeanFlowObjective, begun, drawn, identity
from unproject.bench.rival_policy import Expectations, Following, Points, PolicyObjective
from unproject.bench.student_rivals import POLICY, RIVALS, rival_draws
from unproject.core.distillation.kinds import Full, Told
from unproject.core.distillation.student import Student
from unproject.core.distillation.teacher import Teacher
from unproject.core.distillation.views import flow_view
from unproject.core.priors import load_prior
from unproject.core.sampling import DDIM, Denoiser, NoiseSchedule, Prediction, Sampler
from unproject.core.sampling.levels import Level
from unproject.scripts.random_backbones import seeded
from unproject.utils.seeds import generator

SHAPE = (3, 2, 4, 4)


@pytest.fixture(scope="module")
def prior():
    """A U-Net of the embedded prior's form with a few channels, on its text encoder and codec."""
    whole = load_prior("toybox")
    config = {key: value for key, value in whole.network.config.items() if not key.startswith("_")}
    config |= {"block_out_channels": [16, 16, 16], "attention_head_dim": 1}
    network = seeded(lambda: UNet2DConditionModel.from_config(config))
    return whole.with_network(network, whole.prediction_type).freeze()


@pytest.fixture
def batch(prior):
    draws = torch.randn(2, 3, *prior.latent_shape, generator=generator(3))
    return {"latents": draws[0], "noise": draws[1], "captions": ["a dog", "a red chair", "a blue cup"]}


def test_the_mean_velocity_of_a_known_flow_is_its_own_aim() -> None:
    """v = k x: x_r = x_t e^{-k (t - r)}, so that u = x_t (1 - e^{-k (t - r)}) / (t - r)."""
    k = 1.7

    def u(x, r, t):
        span = (t - r).reshape(-1, 1, 1, 1)
        return x * (-torch.expm1(-k * span)) / span

    x, r, t = (
        torch.randn(SHAPE, dtype=torch.float64, generator=generator(1)),
        *torch.tensor([[0.1, 0.2, 0.55], [0.9, 0.35, 0.6]], dtype=torch.float64),
    )
    found, aim = identity(u, x, r, t, k * x)
    assert torch.allclose(found, aim, atol=1e-12) and not aim.requires_grad
    wrong = identity(lambda x, r, t: 1.1 * u(x, r, t), x, r, t, k * x)
    assert (wrong[0] - wrong[1]).abs().max() > 0.05


def test_a_velocity_that_changes_in_time_alone_has_its_integral_for_a_mean() -> None:
    """v = a + b t: u = a + b (t + r) / 2; only du/dt, not du/dx, tells it from v."""
    a, b = 0.3, -2.0
    x = torch.zeros(SHAPE, dtype=torch.float64)
    r, t = torch.tensor([0.0, 0.2, 0.5]).double(), torch.tensor([0.7, 0.2, 0.6]).double()
    mean = identity(lambda x, r, t: (a + b * (t + r) / 2).reshape(-1, 1, 1, 1) + 0 * x, x, r, t,
                    (a + b * t).reshape(-1, 1, 1, 1) + 0 * x)  # fmt: skip
    assert torch.allclose(*mean, atol=1e-12)


def test_a_mean_velocity_begins_as_the_teacher_without_guidance(prior, batch) -> None:
    """What tells the span begins at nothing: the student's even steps are the flow's own, and r = t asks for v."""
    other = prior.with_network(copy.deepcopy(prior.network), prior.prediction_type)
    other.network.to(memory_format=torch.channels_last)  # as the table's trainings have it
    student, view = Student(other, Told()), flow_view(prior)
    condition = prior.encode_text(batch["captions"])
    plain = Sampler(DDIM()).run(Denoiser(view, condition), begun(view, batch["noise"]), view.levels(3))
    with torch.no_grad():
        assert torch.allclose(drawn(student.prior, condition, batch["noise"], 3), plain, atol=1e-5)
    objective = MeanFlowObjective(student, Teacher(prior), Averaging(scale=1.0, apart=0.0))
    out = objective.loss(batch, generator(1), 0)
    assert float(out.logs["error"]) < 1e-6  # without guidance there is nothing to learn
    apart = MeanFlowObjective(student, Teacher(prior), Averaging(scale=1.0, apart=1.0)).loss(batch, generator(1), 0)
    assert float(apart.logs["error"]) > 1e-4
    apart.loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.network.parameters())


def test_spans_lie_in_what_the_prior_knows_and_are_as_often_apart_as_is_said(prior) -> None:
    objective = MeanFlowObjective(Student(prior, Told()), Teacher(prior), Averaging(apart=0.25))
    r, t = objective.spans(4000, generator(2))
    assert bool((r <= t).all()) and float(t.max()) <= objective.noisiest < 1
    assert float((r < t).double().mean()) == pytest.approx(0.25, abs=0.03)
    later = objective.spans(4000, generator(2))[0]
    assert torch.equal(r, later)


def gaussian(x: torch.Tensor, level: Level, mean: float, std: float) -> Prediction:
    """The exact answer where clean values are N(mean, std^2)."""
    alpha, sigma = float(level.alpha), float(level.sigma)
    x0 = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)
    return Prediction(x, level, x0, "sample")


@pytest.mark.parametrize("index", [150, 700])
def test_the_gradient_of_matching_is_that_of_the_divergence_of_two_gaussians(prior, index: int) -> None:
    """x = m + s xi is moved; KL(N(a m, (a s)^2 + b^2) || N(a m', (a s')^2 + b^2)) by m and s."""
    level = NoiseSchedule.from_config(prior.scheduler_config).at_index(index)
    alpha, sigma = float(level.alpha), float(level.sigma)
    mean, std = torch.tensor(0.7).double().requires_grad_(True), torch.tensor(0.6).double().requires_grad_(True)
    one, other = (alpha * std) ** 2 + sigma**2, (alpha * 1.1) ** 2 + sigma**2
    kl = 0.5 * (one / other - 1 + (other / one).log()) + (alpha * (mean + 0.4)) ** 2 / (2 * other)
    wanted = torch.autograd.grad(kl, (mean, std))
    nodes, weights = (torch.from_numpy(v) for v in hermegauss(6))  # exact for what is quadratic in the two noises
    weights = weights / weights.sum()
    xi, eps = torch.meshgrid(nodes, nodes, indexing="ij")
    share = (weights[:, None] * weights).reshape(-1, 1, 1, 1)
    made = (0.7 + 0.6 * xi).reshape(-1, 1, 1, 1)
    z = alpha * made + sigma * eps.reshape(-1, 1, 1, 1)
    fake, real = gaussian(z, level, 0.7, 0.6), gaussian(z, level, -0.4, 1.1)
    left = (made - real.x0).abs()  # of rows of one number
    gradient = (alpha / sigma) ** 2 * left * sized(made, fake, real)
    assert float((share * gradient).sum()) == pytest.approx(float(wanted[0]), rel=1e-6)
    assert float((share * gradient * xi.reshape(-1, 1, 1, 1)).sum()) == pytest.approx(float(wanted[1]), rel=1e-6)


def test_what_is_matched_does_not_move_and_the_size_of_a_step_is_what_is_left(prior) -> None:
    level = NoiseSchedule.from_config(prior.scheduler_config).at_index(400)
    x = torch.randn(SHAPE, generator=generator(4))
    fake, real = gaussian(x, level, 0.2, 0.5), gaussian(x, level, -0.3, 0.9)
    assert not sized(x, fake, fake).any()
    made = torch.randn(SHAPE, generator=generator(5))
    moved = sized(made, fake, real)
    assert torch.allclose(moved * (made - real.x0).abs().mean((1, 2, 3), keepdim=True), fake.x0 - real.x0, atol=1e-6)


def test_two_networks_take_turns_and_only_the_last_answer_of_a_run_learns(prior, batch) -> None:
    objective = MatchingObjective(Student(prior, Full()), Teacher(prior), Matching(scale=1.0, calls=3, turns=4))
    moves = {player.name: player.moves for player in objective.players(RIVALS["dmd2"].trainer)}
    assert moves["fake"].times == 4 and moves["fake"].after == "student"
    out = objective.loss(batch, generator(6), 0)
    assert float(out.logs["loss"]) < 1e-8  # a fake that is the teacher has nothing to move
    with torch.no_grad():
        for value in objective.fake.network.parameters():
            value += 0.02 * torch.randn(value.shape, generator=generator(7))
    objective.loss(batch, generator(6), 0).loss.backward()
    assert not any(p.grad is not None for p in objective.fake.network.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.student.network.parameters())
    objective.student.network.zero_grad(set_to_none=True)
    objective.fake_loss(batch, generator(8), 0).loss.backward()
    assert not any(p.grad is not None for p in objective.student.network.parameters())
    assert any(p.grad is not None for p in objective.fake.network.parameters())


def fine(policy: Expectations, x: torch.Tensor, start: float, end: float, steps: int) -> torch.Tensor:
    """The policy's velocity by the midpoint rule."""
    h = (start - end) / steps
    for k in range(steps):
        t = start - k * h
        half = x - 0.5 * h * policy.velocity(x, t)
        x = x - h * policy.velocity(half, t - 0.5 * h)
    return x


def test_a_policy_is_integrated_exactly_across_its_knots() -> None:
    clean = torch.randn(2, 4, 1, 2, 2, dtype=torch.float64, generator=generator(1))
    policy, x = Expectations(clean, 0.9, 0.15), torch.randn(2, 1, 2, 2, dtype=torch.float64, generator=generator(2))
    for start, end in ((0.9, 0.15), (0.8, 0.3), (0.52, 0.45)):
        errors = [(policy.step(x, start, end) - fine(policy, x, start, end, n)).abs().max() for n in (300, 600)]
        assert errors[1] < 1e-5 and errors[0] / errors[1] > 3  # what is left is the midpoint rule's
    halves = policy.step(policy.step(x, 0.9, 0.4), 0.4, 0.15)
    assert torch.allclose(halves, policy.step(x, 0.9, 0.15), atol=1e-12)
    assert torch.allclose(policy.expected(0.9), clean[:, 0]) and torch.allclose(policy.expected(0.15), clean[:, 3])
    assert torch.allclose(policy.expected(0.65), clean[:, 1])


def test_a_policy_ends_at_its_last_expectation_and_of_one_it_is_a_straight_line() -> None:
    clean = torch.randn(2, 3, 1, 2, 2, dtype=torch.float64, generator=generator(3))
    x = torch.randn(2, 1, 2, 2, dtype=torch.float64, generator=generator(4))
    assert torch.allclose(Expectations(clean, 0.9, 0.0).step(x, 0.9, 0.0), clean[:, -1])
    one = Expectations(clean[:, :1], 0.9, 0.0)
    assert torch.allclose(one.step(x, 0.9, 0.3), torch.lerp(clean[:, 0], x, 0.3 / 0.9))


def test_a_policy_begins_as_euler_steps_of_the_teacher(prior, batch) -> None:
    student = Student(prior, Points(5, 2))
    assert student.network.conv_out.out_channels == 5 * prior.latent_shape[0]
    condition, levels = (
        prior.encode_text(batch["captions"]),
        NoiseSchedule.from_config(prior.scheduler_config).grid(2, "trailing", "zero"),
    )
    with torch.no_grad():
        made = Sampler(Following()).run(Denoiser(student.prior, condition), batch["noise"], levels)
        plain = Sampler(DDIM()).run(Denoiser(prior, condition), batch["noise"], levels)
    assert torch.allclose(made, plain, atol=1e-4)
    objective = PolicyObjective(student, Teacher(prior), POLICY)
    out = objective.loss(batch, generator(1), 0)
    out.loss.backward()
    assert out.loss.item() > 0 and student.network.conv_out.weight.grad.abs().sum() > 0
    assert objective.loss(batch, generator(1), 0).loss.item() == out.loss.item()


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_asks_its_teacher_as_often_as_is_said_and_draws_with_as_many_calls(name: str, prior, batch) -> None:
    rival, teacher = RIVALS[name], Teacher(prior)
    student, rows = Student(prior, rival.kind), []
    objective = rival.objective(student, teacher, rival.method)
    hook = prior.network.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    objective.loss(batch, generator(1), 0)
    hook.remove()
    assert sum(rows) == 3 * rival.rows
    assert set(rival_draws(name, student.prior, (1, 2, 4, 8))) == set(rival.calls)
    condition = prior.encode_text(batch["captions"])
    for calls, draw in rival_draws(name, student.prior, (2,)).items():
        before = student.prior.nfe
        with torch.no_grad():
            made = draw(condition, batch["noise"], [generator(k) for k in range(3)])
        assert made.shape == batch["noise"].shape and student.prior.nfe - before in (3 * calls, 0)
