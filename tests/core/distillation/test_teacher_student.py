"""Teachers and students: identity at first, frozen teachers, sharing of memory, files that plain diffusers loads."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from unproject.core.distillation.kinds import Lora
from unproject.core.distillation.states import FromData, FromNoise, FromRollout, StateSource
from unproject.core.distillation.student import Student
from unproject.core.distillation.teacher import Teacher, prior_hash, rollout
from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior, load_prior
from unproject.core.sampling import DDIM, Sampler
from unproject.core.training.checkpoints import latest_checkpoint, read_tensors
from unproject.core.training.config import TrainerConfig
from unproject.core.training.loss import LossOut
from unproject.core.training.objectives.base import Objective
from unproject.core.training.trainer import Trainer
from unproject.utils.errors import InputError

LORA = Lora(rank=2, alpha=4)


def gaussian(config=SD_SCHEDULE, mean: float = 0.3, std: float = 0.6) -> GaussianMixturePrior:
    return GaussianMixturePrior(torch.full((1, 1, 2, 2), mean), torch.tensor([std]), scheduler_config=config)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents(prior, rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, *prior.latent_shape, generator=rng(3))


def moved(student: Student) -> Student:
    """As after some training."""
    noise = rng(5)
    with torch.no_grad():
        for p in student.network.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=noise)
    return student


# teachers


def test_a_teacher_is_frozen_but_passes_gradients(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    prior.network.requires_grad_(True).train()
    teacher = Teacher(prior, guidance=3.0)
    assert not any(p.requires_grad for p in prior.parameters()) and not prior.network.training
    condition, level = prior.encode_text(["a dog", "a cat"]), teacher.schedule.at_index(500)
    x = latents(prior).requires_grad_(True)
    teacher.denoiser(condition)(x, level).x0.sum().backward()
    assert x.grad.abs().max() > 0 and all(p.grad is None for p in prior.parameters())
    found = teacher.predict(x, level, condition)
    assert not found.x0.requires_grad
    plain = Teacher(prior).predict(x, level, condition)
    assert (found.x0 - plain.x0).abs().max() > 1e-4


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_a_step_of_a_gaussian_keeps_its_quantile(config):
    """The flow of a Gaussian maps x to alpha' m + (x - alpha m) std' / std of the marginals; a fine grid follows it."""
    prior = gaussian(config)
    teacher, x = Teacher(prior), latents(prior, 3).double()
    condition = prior.encode_text([""] * 3)
    level, after = teacher.schedule.at_index(600), teacher.schedule.at_index(590)
    quantile = (x - float(level.alpha) * 0.3) / spread(level)
    wanted = float(after.alpha) * 0.3 + quantile * spread(after)
    torch.testing.assert_close(teacher.step(x, level, after, condition), wanted, rtol=0, atol=2e-3)
    exact = [teacher.schedule.at_index(i) for i in np.linspace(600, 590, 200)]
    torch.testing.assert_close(teacher.rollout(x, exact, condition)[-1], wanted, rtol=0, atol=1e-5)


def spread(level) -> float:
    return float((level.alpha * 0.6) ** 2 + level.sigma**2) ** 0.5


def test_rollouts_are_the_solvers_states():
    prior = gaussian()
    teacher, x, condition = Teacher(prior), latents(prior), prior.encode_text(["", ""])
    levels = teacher.schedule.grid(5)
    states = teacher.rollout(x, levels, condition, rng(1), DDIM(eta=1.0))
    assert len(states) == 6 and states[0] is x
    assert torch.equal(states[-1], Sampler(DDIM(eta=1.0)).run(teacher.denoiser(condition), x, levels, rng(1)))
    generator = rng(1)
    for k in range(5):
        after = teacher.step(states[k], levels[k], levels[k + 1], condition, generator, DDIM(eta=1.0))
        torch.testing.assert_close(states[k + 1], after, rtol=0, atol=0)


def test_the_hash_names_weights_path_and_guidance(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    mark = Teacher(prior).hash
    assert mark == prior_hash(load_prior(tiny_folders["sd"])) and len(mark) == 16
    others = {Teacher(prior, 3.0).hash, Teacher(load_prior(tiny_folders["sd-v"])).hash}
    assert mark not in others and len(others) == 2
    with torch.no_grad():
        prior.vae.decoder.conv_out.bias += 0.1
    assert Teacher(prior).hash != mark
    assert Teacher(gaussian()).hash != Teacher(gaussian(mean=0.4)).hash


# students


@pytest.mark.parametrize("name", ["sd", "sd3"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_a_student_begins_as_its_teacher(tiny_folders, name, lora):
    prior = load_prior(tiny_folders[name])
    before = prior_hash(prior)
    student = Student(prior, lora)
    condition, x = prior.encode_text(["a dog", "a cat"]), latents(prior)
    level = student.schedule.at_index(500)
    with torch.no_grad():
        wanted = Teacher(prior).predict(x, level, condition).x0
        torch.testing.assert_close(student.denoiser(condition)(x, level).x0, wanted, rtol=1e-5, atol=1e-5)
        moved(student)
        assert (student.denoiser(condition)(x, level).x0 - wanted).abs().max() > 1e-3
        torch.testing.assert_close(Teacher(prior).predict(x, level, condition).x0, wanted, rtol=0, atol=0)
    learning = [name for name, p in student.network.named_parameters() if p.requires_grad]
    assert all("lora" in name for name in learning) if lora else len(learning) == len(list(prior.network.parameters()))
    assert prior_hash(prior) == before == student.base and not any(p.requires_grad for p in prior.parameters())


def test_a_shared_teacher_answers_as_the_prior_and_hands_the_adapter_back(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    student = moved(Student(prior, LORA))
    teacher, apart = student.teacher(3.0), Teacher(prior, 3.0)
    condition, x, level = prior.encode_text(["a dog", "a cat"]), latents(prior), apart.schedule.at_index(400)
    with torch.no_grad():
        own = student.denoiser(condition, 3.0)(x, level).x0
        ours = teacher.predict(x, level, condition).x0
        torch.testing.assert_close(ours, apart.predict(x, level, condition).x0, rtol=1e-5, atol=1e-5)
        assert torch.equal(own, student.denoiser(condition, 3.0)(x, level).x0) and not torch.equal(own, ours)
    assert teacher.hash == apart.hash and teacher.prior.network is student.network
    assert teacher.denoiser(condition).with_condition(condition)._off is not None
    student.denoiser(condition)(x, level).x0.sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in student.network.parameters())
    with pytest.raises(InputError, match="kind full"):
        Student(prior).teacher()


def test_the_seed_decides_the_adapter(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    state = torch.get_rng_state()
    first, again, other = (Student(prior, LORA, seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    name = next(n for n, p in first.network.named_parameters() if "lora_A" in n)
    a, b, c = (dict(s.network.named_parameters())[name] for s in (first, again, other))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_impossible_adapters_are_named(tiny_folders):
    with pytest.raises(InputError, match="rank=0"):
        Lora(rank=0)
    with pytest.raises(InputError, match="name no layer"):
        Student(load_prior(tiny_folders["sd"]), Lora(targets=("to_z",)))


@pytest.mark.parametrize("lora", [None, LORA])
def test_files_load_in_plain_diffusers(tiny_folders, tmp_path, lora):
    prior = load_prior(tiny_folders["sd"])
    student = moved(Student(prior, lora))
    folder = student.save(tmp_path / "student")
    assert prior.pipe.unet is not student.network
    stock = StableDiffusionPipeline.from_pretrained(tiny_folders["sd"] if lora else folder)
    if lora:
        stock.load_lora_weights(folder)
    text = prior.encode_text(["a dog"])["cond"]["text"]
    x, t = latents(prior, 1), torch.tensor([300.0])
    with torch.no_grad():
        ours, theirs, base = (
            network(x, t, text, return_dict=False)[0] for network in (student.network, stock.unet, prior.network)
        )
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert (base - ours).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["sd", "sd3"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_a_saved_student_comes_back(tiny_folders, tmp_path, name, lora):
    prior = load_prior(tiny_folders[name])
    student, fresh = moved(Student(prior, lora)), Student(prior, lora, seed=9)
    folder = student.save(tmp_path / "student")
    fresh.load(folder)
    mine, theirs = student.network.state_dict(), fresh.network.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert json.loads((folder / "distill.json").read_text())["base"] == student.base
    with pytest.raises(InputError, match=r"holds another student \(kind "):
        Student(prior, None if lora else LORA).load(folder)
    with torch.no_grad():
        next(prior.network.parameters()).add_(1.0)
    with pytest.raises(InputError, match=r"holds another student \(base "):
        Student(prior, lora).load(folder)


# states


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_states_of_data_are_what_they_say(config):
    teacher, x0 = Teacher(gaussian(config)), torch.full((4000, 1, 2, 2), 0.5, dtype=torch.float64)
    condition = teacher.prior.encode_text([""])
    source: StateSource = FromData(teacher.schedule, (0.5, 0.75))
    state = source(x0, condition, rng())
    alpha, sigma = state.level.coefficients(x0)
    assert torch.equal(state.x, alpha * x0 + sigma * state.noise) and state.x0 is x0
    index = teacher.schedule.at_index(torch.arange(500, 750)).sigma
    assert index.min() <= sigma.min() < sigma.max() <= index.max()
    assert sigma.mean().item() == pytest.approx(index.mean().item(), rel=0.01)
    assert abs(state.noise.mean()) < 0.05 and torch.equal(state.x, source(x0, condition, rng()).x)
    with pytest.raises(InputError, match="window"):
        FromData(teacher.schedule, (0.5, 0.5))


def test_states_of_a_rollout_are_its_own():
    prior = gaussian()
    teacher, like = Teacher(prior), torch.zeros(2, 1, 2, 2)
    condition, levels = prior.encode_text(["", ""]), teacher.schedule.grid(4)
    source: StateSource = FromRollout(teacher.denoiser, levels)
    whole = {}
    for seed in range(24):
        state = source(like, condition, rng(seed))
        number = levels.index(state.level)
        states = teacher.rollout(state.noise, levels, condition)
        torch.testing.assert_close(state.x, states[number], rtol=0, atol=0)
        whole[number] = state
    assert set(whole) == {0, 1, 2, 3} and torch.equal(whole[0].x, whole[0].noise)
    start = FromNoise(levels[0])(like, condition, rng(2))
    assert start.level is levels[0] and start.x is start.noise and start.x0 is None
    assert torch.equal(start.x, torch.randn(like.shape, generator=rng(2)))
    assert torch.equal(rollout(teacher.denoiser(condition), start.x, levels[:2])[0], start.x)


# an objective of ten lines


@dataclass(frozen=True)
class Imitation:
    scale: float
    student: dict
    teacher: str


class Imitate(Objective):
    """The student says alone what its teacher says with guidance."""

    def __init__(self, student: Student, scale: float = 4.0) -> None:
        self.student, self.teacher = student, student.teacher(scale)
        self.config = Imitation(scale, student.recipe, self.teacher.hash)
        self.modules, self.frozen = student.trainable(), {}
        self.states = FromData(student.schedule)

    def loss(self, batch, rng, step):
        condition = self.student.prior.encode_text(batch["text"])
        state = self.states(batch["z0"], condition, rng)
        aim = self.teacher.predict(state.x, state.level, condition)
        found = self.student.denoiser(condition)(state.x, state.level)
        return LossOut((found.raw - aim.raw).square().mean(), {})


class Latents:
    """Latents with texts."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> dict:
        return {"z0": torch.full((4, 8, 8), i / 6), "text": ["a dog", "a cat"][i % 2]}


def test_an_adapter_trains_resumes_and_keeps_its_teacher_out_of_its_checkpoints(tiny_folders, tmp_path):
    config = TrainerConfig(steps=3, batch=2, lr=1e-2, save_every=9, ema=0.5)
    prior = load_prior(tiny_folders["sd"])

    def run(out, resume=False, **settings):
        objective = Imitate(Student(prior, LORA))
        trainer = Trainer(replace(config, **settings), objective, Latents(), out, "cpu")
        trainer.run(resume)
        return objective, trainer.loop.state()[0]

    objective, whole = run(tmp_path / "whole")
    run(tmp_path / "parts", max_minutes=0.0)
    _, parts = run(tmp_path / "parts", resume=True)
    for part, values in whole.items():
        assert all(torch.equal(value, parts[part][name]) for name, value in values.items()), part
    saved = read_tensors(latest_checkpoint(tmp_path / "whole"), "model")
    assert saved and all("lora" in name for name in saved)
    assert objective.teacher.hash == objective.config.teacher
    with torch.no_grad():
        prior.network.conv_out.bias += 1.0
    with pytest.raises(InputError, match=r"model\.teacher"):
        run(tmp_path / "whole", resume=True, steps=4)


def test_adapters_of_convolutions_are_written_whatever_their_layout(tiny_folders, tmp_path):
    prior, kind = load_prior(tiny_folders["sd"]), Lora(2, 2, ("conv1", "to_q"))
    student, fresh = Student(prior, kind), Student(prior, kind, seed=4)
    student.network.to(memory_format=torch.channels_last)
    fresh.load(student.save(tmp_path / "s"))
    assert all(torch.equal(v, fresh.network.state_dict()[k]) for k, v in student.network.state_dict().items())
