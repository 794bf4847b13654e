"""Generators of planes: times, drawing, what a step of the distillation minimises, files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unproject.core.distillation.rules import RuleConfig
from unproject.core.distillation.rules.asd import ASD
from unproject.core.distillation.score import ScoreConfig
from unproject.core.priors import StableDiffusionPrior
from unproject.core.training.config import TrainerConfig
from unproject.core.training.trainer import Trainer
from unproject.generate.lessons import Prompts, as_loss
from unproject.generate.render_teacher import RenderTeacher, TeacherConfig, known_teachers
from unproject.generate.turbo import TriplaneTurbo, TurboConfig, plane_times
from unproject.generate.turbo_train import PRDConfig, PRDObjective
from unproject.generate.views import ViewConfig
from unproject.geometry.fields import DualConfig, FieldConfig, HeadConfig
from unproject.geometry.representation import MeshConfig
from unproject.scripts.random_backbones import tiny_sd
from unproject.utils.errors import InputError
from unproject.utils.ramps import Moment

FIELD = FieldConfig("dual", head=HeadConfig("neus", inverse_std=(20.0,)), dual=DualConfig(features=4, width=8))
TURBO = TurboConfig(rank=2, steps=2, field=FIELD)
PULL = ScoreConfig(RuleConfig("asd", asd=ASD(0.0)), "score", guidance=5.0, rescale=0.0, even=0.1)
PRD = PRDConfig(
    TURBO,
    single=TeacherConfig("tiny", views="one", score=PULL),
    views=ViewConfig(views=2),
    schedule=10,
    volume_px=12,
    mesh_px=12,
    seen_px=32,
    mesh_resolution=13,
)


@pytest.fixture(scope="module")
def prior() -> StableDiffusionPrior:
    return StableDiffusionPrior(tiny_sd(), "tiny")


def moved(turbo: TriplaneTurbo, seed: int = 2) -> TriplaneTurbo:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in turbo.modules.values():
            for parameter in module.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    return turbo


def objective(prior: StableDiffusionPrior, config: PRDConfig = PRD, **options: Any) -> PRDObjective:
    return PRDObjective(config, prior, {"single": prior, "normals": prior, "joint": prior}, **options)


def test_times_are_the_leading_ones_moved_to_the_end():
    assert plane_times(4, 1000) == [999, 749, 499, 249]
    assert plane_times(1, 1000) == [999] and plane_times(3, 100) == [99, 66, 33]
    with pytest.raises(InputError, match="steps=0"):
        plane_times(0, 1000)


@torch.no_grad()
def test_drawing_is_ddim_without_noise_that_keeps_the_last_x0(prior):
    turbo = moved(TriplaneTurbo(prior, replace(TURBO, steps=3)))
    found = turbo.draw(["a red chair", "a blue car"], [3, 4])
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    times = [999, 666, 333]
    for number, (prompt, seed) in enumerate((("a red chair", 3), ("a blue car", 4))):
        x = torch.randn(6, *prior.latent_shape, generator=torch.Generator().manual_seed(seed))
        text = prior.encode_text([prompt])["cond"]["text"].repeat(6, 1, 1)
        for time, after in zip(times, [*times[1:], None], strict=True):
            eps = turbo.asked.network(x, torch.tensor(time), text, return_dict=False)[0]
            alpha, sigma = float(abar[time] ** 0.5), float((1 - abar[time]) ** 0.5)
            x0 = (x - sigma * eps) / alpha
            if after is not None:
                x = float(abar[after] ** 0.5) * x0 + float((1 - abar[after]) ** 0.5) * eps
        torch.testing.assert_close(found[number], turbo.decoder(x0), atol=2e-3, rtol=1e-3)


@torch.no_grad()
def test_a_batch_is_its_objects_one_by_one(prior):
    turbo = moved(TriplaneTurbo(prior, TURBO))
    both = turbo.draw(["a red chair", "a blue car"], [3, 4])
    torch.testing.assert_close(both[1], turbo.draw(["a blue car"], [4])[0], atol=1e-4, rtol=1e-4)
    parts = moved(TriplaneTurbo(prior, replace(TURBO, decoded_at_once=1)))
    torch.testing.assert_close(parts.draw(["a red chair", "a blue car"], [3, 4]), both, atol=1e-5, rtol=1e-5)


def test_a_step_has_the_gradients_of_all_its_parts_at_once(prior):
    """The same losses with one graph from noise to loss, through no step but its own."""
    made = objective(prior)
    moved(made.turbo)
    parameters = [p for module in made.modules.values() for p in module.parameters()]
    out = made.loss({"captions": ["a red chair"]}, torch.Generator().manual_seed(5), 3)
    found = torch.autograd.grad(out.loss, parameters, allow_unused=True)

    rng, turbo, shape = torch.Generator().manual_seed(5), made.turbo, made.turbo.shape
    z, value, now = turbo.noise(rng, 1), 0.0, Moment(3, 10)
    slow = [torch.zeros_like(p) for p in parameters]
    for level in turbo.levels:
        x = turbo.schedule.add_noise(z, turbo.noise(rng, 1), level)
        prediction = turbo.told(["a red chair"])(x, level)
        planes = turbo.decode(prediction.x0)
        with torch.no_grad():
            shape.planes.planes.copy_(planes)
        shape.on_step(now, rng)
        kept, total = shape.planes.planes, torch.zeros(())
        for branch in (made._volume, made._mesh):
            del shape.planes._parameters["planes"]
            shape.planes.planes = planes  # the graph goes on into the network
            total = total + branch("a red chair", now, rng)[0] / len(turbo.levels)
            del shape.planes.planes
            shape.planes.planes = kept
        z, value = prediction.x0.detach(), value + total.item()
        for sum_, grad in zip(slow, torch.autograd.grad(total, parameters, allow_unused=True), strict=True):
            sum_ += 0 if grad is None else grad
    assert out.loss.item() == pytest.approx(value, rel=1e-4)
    norm = torch.stack([g.norm() for g in slow]).norm().item()
    for fast, whole in zip(found, slow, strict=True):
        torch.testing.assert_close(fast, whole, atol=1e-4 * norm, rtol=1e-2)
    assert norm > 0


def test_the_loss_is_pure_and_the_prior_stays(prior):
    made = objective(prior, replace(PRD, mesh=(0.0,)))
    before = {name: value.clone() for name, value in prior.network.state_dict().items()}
    losses = [made.loss({"captions": ["a red chair"]}, torch.Generator().manual_seed(1), 0) for _ in range(2)]
    assert losses[0].loss.item() == losses[1].loss.item()
    losses[0].loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in prior.network.state_dict().items())
    assert all(p.grad is None for p in prior.parameters())


def test_fresh_noise_or_the_networks_own(prior):
    batch = {"captions": ["a red chair"]}
    quiet = replace(PRD, mesh=(0.0,))
    fresh, own = (objective(prior, replace(quiet, fresh=value)) for value in (True, False))
    values = [one.loss(batch, torch.Generator().manual_seed(1), 0).loss.item() for one in (fresh, own)]
    assert values[0] != values[1]


def test_some_steps_stand_for_all(prior):
    """One of them at random, and no step after it is made."""
    made = objective(prior, replace(PRD, mesh=(0.0,), taught=1))
    found = {tuple(made._followed(torch.Generator().manual_seed(seed))) for seed in range(20)}
    assert found == {(0,), (1,)}
    assert objective(prior)._followed(torch.Generator()) == [0, 1]
    spent = made.turbo.asked.nfe
    for number, rows in ((0, 6), (1, 12)):
        made._followed = lambda rng, number=number: [number]
        out = made.loss({"captions": ["a red chair"]}, torch.Generator().manual_seed(1), 0)
        assert torch.isfinite(out.loss) and made.turbo.asked.nfe - spent == rows
        spent = made.turbo.asked.nfe
    with pytest.raises(InputError, match="taught=3"):
        replace(PRD, taught=3)


def test_the_mean_of_updates_that_follow_one_step_is_the_one_that_follows_all(prior):
    made = objective(prior)
    moved(made.turbo)
    adapters, heads = (list(module.parameters()) for module in made.modules.values())
    made._lessons = lambda planes, prompts, now, rng: (planes.sin(), [torch.ones_like(p) for p in heads], 1.0, {})

    def gradients(numbers: list[int]) -> list[torch.Tensor]:
        made._followed = lambda rng: numbers
        out = made.loss({"captions": ["a red chair"]}, torch.Generator().manual_seed(1), 0)
        return list(torch.autograd.grad(out.loss, [*adapters, *heads], allow_unused=True))

    first, second, both = (gradients(numbers) for numbers in ([0], [1], [0, 1]))
    assert any(float((a - b).abs().max()) > 1e-4 for a, b in zip(first, second, strict=True) if a is not None)
    for a, b, mean in zip(first, second, both, strict=True):
        torch.testing.assert_close(mean, 0.5 * (a + b), atol=1e-6, rtol=1e-4)


def test_an_interrupted_training_is_a_whole_one(prior, tmp_path):
    config = replace(PRD, mesh=(0.0,), turbo=replace(TURBO, steps=1))
    prompts = Prompts(["a red chair", "a blue car", "a cup"])

    def run(out: Path, steps: int, resume: bool = False) -> dict[str, torch.Tensor]:
        made = objective(prior, config)
        trainer = TrainerConfig(steps=steps, batch=1, lr=1e-3, schedule="constant", save_every=1)
        Trainer(trainer, made, prompts, out, "cpu").run(resume)
        return {name: value.clone() for name, value in made.turbo.state().items()}

    whole = run(tmp_path / "whole", 2)
    run(tmp_path / "parts", 1)
    parts = run(tmp_path / "parts", 2, resume=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_scalar_with_given_gradients():
    p = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = as_loss(7.0, [p], [torch.tensor([3.0, -4.0])])
    assert float(loss.detach()) == 7.0
    torch.testing.assert_close(torch.autograd.grad(loss, p)[0], torch.tensor([3.0, -4.0]))


def test_saved_adapters_draw_the_same_and_belong_to_their_prior(prior, tmp_path):
    made = objective(prior)
    moved(made.turbo)
    folder = made.save(tmp_path / "export")
    again = TriplaneTurbo.load(folder, prior)
    halves = {name: value.half().float() for name, value in made.turbo.state().items()}
    assert all(torch.equal(again.state()[name], value) for name, value in halves.items())
    assert again.config == made.turbo.config
    made.turbo.take(halves, "halves")
    assert torch.equal(again.draw(["a cup"], [1]), made.turbo.draw(["a cup"], [1]))
    other = StableDiffusionPrior(tiny_sd(), "other")
    with torch.no_grad():
        other.network.conv_in.weight.add_(1.0)
    with pytest.raises(InputError, match="belongs to the prior tiny of other weights"):
        TriplaneTurbo.load(folder, other)
    about = json.loads((folder / "turbo.json").read_text())
    assert about["teachers"].keys() == {"single"} and about["method"] == "triplane-turbo"
    (folder / "turbo.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="damaged"):
        TriplaneTurbo.load(folder, prior)
    with pytest.raises(InputError, match=r"turbo\.json"):
        TriplaneTurbo.load(tmp_path, prior)


def test_a_halved_prior_keeps_whole_adapters():
    own = StableDiffusionPrior(tiny_sd(), "tiny")
    turbo = moved(TriplaneTurbo(own, TURBO))
    before = turbo.draw(["a cup"], [1])
    after = turbo.to(dtype=torch.bfloat16).draw(["a cup"], [1])
    assert own.dtype == turbo.asked.dtype == torch.bfloat16 and after.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in turbo.state().values())
    assert float((after - before).norm() / before.norm()) < 0.2


def test_a_filled_shape_is_closed_and_on_its_own(prior):
    turbo = moved(TriplaneTurbo(prior, TURBO))
    planes = turbo.draw(["a cup"], [1])[0]
    shape = turbo.filled({"planes": planes})
    assert torch.equal(shape.planes.planes.detach(), planes)
    assert shape.to_mesh(MeshConfig(resolution=17)).check().watertight
    with torch.no_grad():
        shape.planes.heads.sdf_network.layers[0].weight.zero_()
    assert float(turbo.shape.planes.heads.sdf_network.layers[0].weight.abs().max()) > 0


def test_validation_and_pictures_of_shown_prompts(prior, tmp_path):
    made = objective(prior, shown=["a cup", "a ball"])
    assert 0 <= made.validate()["solid"] <= 1 and 0 <= made.validate()["inside"] <= 1
    assert [path.name for path in made.preview(5, tmp_path)] == ["step-000005.png"]
    assert objective(prior).validate() == {} and objective(prior).preview(1, tmp_path) == []


def test_teachers_that_nobody_can_ask(prior):
    with pytest.raises(InputError, match="nobody teaches"):
        PRDConfig(TURBO)
    with pytest.raises(InputError, match="learns renders"):
        PRDConfig(TURBO, single=TeacherConfig("tiny", score=ScoreConfig(RuleConfig("vsd"), rescale=0.0)))
    closed = StableDiffusionPrior(tiny_sd(), "closed")
    closed.unknown_words = lambda text: [("normal", [])] if "normal" in text else []  # type: ignore[method-assign]
    normals = TeacherConfig("closed", shows="normals", score=PULL)
    with pytest.raises(InputError, match="never seen 'normal'"):
        RenderTeacher(normals, closed)
    with pytest.warns(UserWarning, match="'normals' is left out"):
        assert not known_teachers({"normals": replace(normals, optional=True)}, {"normals": closed})
    assert known_teachers({"normals": normals, "joint": TeacherConfig()}, {"normals": prior}).keys() == {"normals"}


def test_prompts_are_the_identity_of_the_data():
    one, other = Prompts(["a", "b"]), Prompts(["a", "c"])
    assert one.identity != other.identity and len(one) == 2
    assert one.batch(np.array([1, 0]), np.random.default_rng(0)) == {"captions": ["b", "a"]}
