"""Objectives beside their papers' formulas, computed again from the networks' own answers: signs, weights, levels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from unproject.core.distillation.adversarial import Critical, critic_loss, realism
from unproject.core.distillation.arcflow import FACTOR, WINDOW, Arcing, ArcObjective, Mixture
from unproject.core.distillation.asdm import IncubateObjective, Incubating, Slim
from unproject.core.distillation.cuts import cuts_of
from unproject.core.distillation.distil import DistillRecipe, objective_of
from unproject.core.distillation.export import KINDS, About, export, load_student
from unproject.core.distillation.prune import FeatureMatching, FeatureObjective, Pruned
from unproject.core.distillation.quest import Quantised, Selective, SelectiveObjective
from unproject.core.distillation.speedupnet import NegativeAdapter, SpeedingUp, SpeedUpObjective, negatives
from unproject.core.distillation.student import Student
from unproject.core.distillation.teacher import Teacher
from unproject.core.priors import SD_SCHEDULE, load_prior
from unproject.core.sampling import NoiseSchedule, Prediction
from unproject.core.sampling.solvers.arc import Policy
from unproject.utils.configs import CONFIGS, load_config

TEXTS = ["a dog", "a red chair", "the blue wagon"]
LATENTS = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3))
BATCH = {"latents": LATENTS, "captions": TEXTS}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(student: Student) -> Student:
    """The student a little away from where it begins."""
    with torch.no_grad():
        for value in student.network.parameters():
            if value.requires_grad:
                value += 0.1 * torch.randn(value.shape, generator=rng(8))
    return student


def noised(schedule: NoiseSchedule, draw: torch.Generator):
    """(x, noise, alpha, sigma, index) of the batch at drawn train indices, from the definition of the path."""
    index = torch.randint(0, schedule.steps, (3,), generator=draw)
    noise = torch.randn(LATENTS.shape, generator=draw)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)[index].float().reshape(3, 1, 1, 1)
    alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
    return alpha * LATENTS + sigma * noise, noise, alpha, sigma, index


def answer(network, x, index, text, names):
    """The network's answer and what the named modules gave."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name):
        return lambda module, args, out: seen.__setitem__(name, out[0] if isinstance(out, tuple) else out)

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    raw = network(x, index, text).sample
    for hook in hooks:
        hook.remove()
    return raw, [seen[name] for name in names]


def test_a_smaller_network_learns_task_answer_and_features_with_their_weights(tiny_folders):
    prior, weights = load_prior(tiny_folders["sd-v"]), (0.7, 1.3, 0.2)
    method = FeatureMatching("self-attn", weights=weights, drop=0.0)
    objective = FeatureObjective(moved(Student(prior, Pruned(mid=False))), Teacher(prior), method)
    x, noise, alpha, sigma, index = noised(objective.teacher.schedule, rng(5))
    text = prior.encode_text(TEXTS)["cond"]["text"]
    mine, theirs = (list(names) for names in zip(*objective.pairs))
    with torch.no_grad():
        wanted, features = answer(prior.network, x, index, text, theirs)
        found, own = answer(objective.student.network, x, index, text, mine)
        loss = objective.loss(BATCH, rng(5), 0).loss
    assert any(name.endswith("attn1") for name in mine)
    parts = (
        F.mse_loss(found, alpha * noise - sigma * LATENTS),
        F.mse_loss(found, wanted),
        sum(F.mse_loss(a, b) for a, b in zip(own, features)),
    )
    torch.testing.assert_close(loss, sum(w * part for w, part in zip(weights, parts)), rtol=1e-4, atol=1e-6)


def test_incubation_is_the_error_of_the_answer_and_of_one_slim_stage(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    student = moved(Student(prior, Slim(("mid_block.resnets.1", "up_blocks.0.resnets.1"))))
    objective = IncubateObjective(student, Teacher(prior), Incubating(0.3))
    draw = rng(6)
    stage = objective.stages[int(torch.randint(len(objective.stages), (), generator=draw))]
    x, _, _, _, index = noised(objective.teacher.schedule, draw)
    text = prior.encode_text(TEXTS)["cond"]["text"]
    with torch.no_grad():
        loss = objective.loss(BATCH, rng(6), 0).loss
        wanted, (block,) = answer(prior.network, x, index, text, [stage])
        for cut in (cut for other, cuts in cuts_of(student.network).items() if other != stage for cut in cuts):
            cut.on = False
        found, (own,) = answer(student.network, x, index, text, [stage])
    torch.testing.assert_close(loss, F.mse_loss(found, wanted) + 0.3 * F.mse_loss(own, block), rtol=1e-4, atol=1e-6)


def test_few_bits_learn_the_layers_once_each_and_the_answer_with_its_weight(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    student = Student(prior, Quantised(3, 4, times=3, runs=2, prompts=("a dog", "")))
    objective = SelectiveObjective(student, Teacher(prior), Selective("sensitive", answer=2.5))
    x, _, _, _, index = noised(objective.teacher.schedule, rng(7))
    text = prior.encode_text(TEXTS)["cond"]["text"]
    with torch.no_grad():
        loss = objective.loss(BATCH, rng(7), 0).loss
        wanted, outputs = answer(prior.network, x, index, text, objective.local)
        found, own = answer(student.network, x, index, text, objective.local)
    layers = sum(F.mse_loss(a, b) for a, b in zip(own, outputs))
    assert len(objective.local) > 5
    torch.testing.assert_close(loss, layers + 2.5 * F.mse_loss(found, wanted), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_speedupnet_is_guidance_step_and_drift_with_their_weights(tiny_folders, seed):
    """Of an eps prior: DDIM written out from alpha and sigma, the teacher guided away from the negative prompts."""
    prior, weights = load_prior(tiny_folders["sd"]), (0.6, 1.1, 0.4)
    method = SpeedingUp(3.0, 3, 2, 2, weights=weights)
    objective = SpeedUpObjective(moved(Student(prior, NegativeAdapter())), Teacher(prior), method)
    schedule = objective.teacher.schedule
    draw = rng(seed)
    told = prior.encode_text(TEXTS, negatives(TEXTS, method.empty, draw))
    cond, null = told["cond"]["text"], told["null"]["text"]
    grid = schedule.grid(6, "trailing", "zero")
    first = int(torch.randint(3, (), generator=draw))
    at = [(float(v.alpha), float(v.sigma), float(v.model_time)) for v in grid]
    z = at[2 * first][0] * LATENTS + at[2 * first][1] * torch.randn(LATENTS.shape, generator=draw)

    def teach(x, k):
        pair = [prior.network(x, at[k][2], text).sample for text in (cond, null)]
        return pair[1] + 3.0 * (pair[0] - pair[1])

    def own(x, k):
        return objective.student.network(x, at[k][2], torch.cat([cond, null], 1)).sample

    def ddim(x, eps, k, to):
        return at[to][0] * (x - at[k][1] * eps) / at[k][0] + at[to][1] * eps

    with torch.no_grad():
        made = objective.loss(BATCH, rng(seed), 0)
        loss = made.loss
        assert "step" not in made.logs  # the trainer's own column
        eps, start = own(z, 2 * first), 2 * first
        guided = F.mse_loss(eps, teach(z, start))
        ends, x = [], z
        for k in range(start, min(start + 4, 6)):
            x = ddim(x, teach(x, k), k, k + 1)
            ends.append(x)
        ratio = at[start + 2][1] / at[start][1]
        aim = (ends[1] - ratio * z) / (at[start + 2][0] - ratio * at[start][0])
        aim_eps = (z - at[start][0] * aim) / at[start][1]
        errors = [((z - at[start][1] * eps) / at[start][0] - aim).square().flatten(1).mean(1)]
        errors.append((eps - aim_eps).square().flatten(1).mean(1))
        step, drift = torch.maximum(*errors).mean(), 0.0
        if first < 2:
            state = ddim(z, eps, start, start + 2)
            state = ddim(state, own(state, start + 2), start + 2, start + 4)
            drift = F.mse_loss(state, ends[3])
    hand = weights[0] * guided + weights[1] * step + weights[2] * drift
    torch.testing.assert_close(loss, hand, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.0, 0.6, 1.0])
def test_a_law_of_one_velocity_is_compared_with_the_teachers_along_its_own_path(tiny_folders, ratio):
    """15 |c - u|^2 everywhere; the states lie where the law c and the teacher's u lead, towards the data."""
    prior = load_prior(tiny_folders["sd"])
    objective = ArcObjective(Student(prior, Mixture(1, 2)), Teacher(prior), Arcing(2.0, 2, 3, dropout=0.0))
    own, theirs, x = (torch.randn(2, 4, 8, 8, generator=rng(k)) for k in range(3))
    law = Policy(own[:, None], torch.ones(2, 1, 1, 1, 1), torch.zeros(2, 1, 1, 1, 1), 0.9)
    asked = []

    def teach(state, level):
        asked.append((state, float(level.sigma) / (float(level.alpha) + float(level.sigma))))
        return Prediction(state, level, theirs, "flow_prediction")

    loss = objective._within(law, x, 0.9, 0.4, ratio, teach, rng(4))
    torch.testing.assert_close(loss, FACTOR * (own - theirs).square().mean(), rtol=1e-4, atol=1e-6)
    sigmas = [sigma for _, sigma in asked]
    assert sigmas == sorted(sigmas, reverse=True) and 0.4 + WINDOW <= min(sigmas) <= max(sigmas) <= 0.9 + 1e-9
    for state, sigma in asked:
        if ratio == 0:  # the student's own law leads there
            torch.testing.assert_close(state, x - (0.9 - sigma) * own, rtol=1e-4, atol=1e-5)
        if ratio == 1:
            torch.testing.assert_close(state, x - (0.9 - sigma) * theirs, rtol=1e-4, atol=1e-5)


def test_a_critic_learns_hinges_and_the_student_its_opinion():
    schedule, settings = NoiseSchedule.from_config(SD_SCHEDULE), Critical(levels=(0.2, 0.2))

    class Mean:
        def __init__(self) -> None:
            self.settings = settings

        def __call__(self, z, level, condition):
            return z.flatten(1).mean(1)

    critic, made = Mean(), LATENTS + 0.3
    level = schedule.at_index(0.2 * 999)

    def scores(latents, draw):
        torch.rand(3, generator=draw)
        noise = torch.randn(latents.shape, generator=draw)
        return (float(level.alpha) * latents + float(level.sigma) * noise).flatten(1).mean(1)

    draw = rng(2)
    real, fake = scores(LATENTS, draw), scores(made, draw)
    wanted = (1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean()
    found = critic_loss(critic, LATENTS, made, schedule, None, rng(2))
    torch.testing.assert_close(found.loss, wanted, rtol=1e-4, atol=1e-5)
    moving = made.clone().requires_grad_(True)
    said = realism(critic, moving, schedule, None, rng(2))
    torch.testing.assert_close(said, scores(made, rng(2)).mean(), rtol=1e-4, atol=1e-5)
    said.backward()  # larger is more real: the student's loss has it with a minus
    assert float(moving.grad.min()) > 0


LATER = ("runs", "prompts")  # settings that a kind needs only where it begins


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "distill").glob("*.yaml")))
def test_the_last_stage_of_a_recipe_names_its_kind_in_full(name):
    """Files hold the last stage's settings alone: what was cut or rounded in an earlier one has to be among them."""
    stages = [stage.student for stage in load_config(DistillRecipe, f"distill/{name}").stages.values()]
    whole = [{"kind": "full", **{key: value for key, value in one.items() if key not in LATER}} for one in stages]
    if not KINDS[whole[-1]["kind"]].stock:
        assert all(one == whole[-1] for one in whole if one["kind"] == whole[-1]["kind"])


def test_a_slim_student_of_the_packaged_recipe_comes_back(tmp_path):
    prior, recipe = load_prior("toybox"), load_config(DistillRecipe, "distill/asdm")
    previous = None
    for stage in recipe.stages.values():
        previous = objective_of(stage, prior, previous).student
    folder = export(moved(previous), tmp_path / "s", About("asdm", "toybox", "0" * 16, recipe.sampling))
    x = torch.randn(1, *prior.latent_shape, generator=rng(1))
    rows, time = prior.encode_text(["a red chair"])["cond"], torch.tensor([400.0])
    with torch.no_grad():
        found = load_student(folder).predict(x, time, rows)
        torch.testing.assert_close(found, previous.prior.predict(x, time, rows), rtol=1e-4, atol=1e-5)
