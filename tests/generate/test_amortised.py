"""Generators of fields: networks, what a step minimises, twins, drawing, files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unproject.core.distillation.rules import RuleConfig
from unproject.core.distillation.score import ScoreConfig
from unproject.core.priors import Condition, GaussianMixturePrior, StableDiffusionPrior
from unproject.core.priors.rows import Rows
from unproject.core.training.config import TrainerConfig
from unproject.core.training.objectives.base import Playing, fixed_init
from unproject.core.training.trainer import Trainer
from unproject.generate.amortised import Amortised, AmortisedConfig
from unproject.generate.amortised_train import LibraryConfig, LibraryObjective, amortise
from unproject.generate.field_networks import NetworkConfig, make_network
from unproject.generate.health import coverage
from unproject.generate.lessons import Prompts
from unproject.generate.regularisers import LossWeights
from unproject.generate.render_teacher import TeacherConfig
from unproject.generate.views import ViewConfig, turntable_cameras
from unproject.geometry.fields import (
    DualConfig,
    FieldConfig,
    GridConfig,
    HashConfig,
    HeadConfig,
    TriplaneConfig,
    make_field,
)
from unproject.geometry.representation import MeshConfig
from unproject.geometry.shapes.volume import VolumeShapeConfig
from unproject.geometry.volume import VolumeConfig
from unproject.scripts.random_backbones import tiny_sd
from unproject.utils.errors import InputError
from unproject.utils.ramps import Moment

HEAD = HeadConfig("sdf", radius=0.5, beta=(0.08,))
FIELDS = {
    "hash": FieldConfig("hash", head=HEAD, hash=HashConfig(levels=2, coarse=4, fine=8, width=8)),
    "triplane": FieldConfig("triplane", head=HEAD, triplane=TriplaneConfig(8, 4, 8)),
    "dual": FieldConfig("dual", head=HEAD, dual=DualConfig(side=8, features=4, width=8)),
    "grid": FieldConfig("grid", head=HEAD, grid=GridConfig((5, 9), (0, 0))),
}
NETWORKS = {"hash": "hyper", "triplane": "planes", "dual": "planes", "grid": "voxels"}
RAYS = VolumeConfig(step=0.2, cells=8)
PULL = ScoreConfig(RuleConfig("asd"), "score", guidance=5.0, rescale=0.0, weight="sigma2")


def made_of(field: str, **changes: Any) -> AmortisedConfig:
    network = NetworkConfig(NETWORKS[field], width=16, layers=1, heads=2, tokens=2, style=3)  # type: ignore[arg-type]
    return AmortisedConfig(replace(network, **changes), VolumeShapeConfig(FIELDS[field], RAYS))


LIBRARY = LibraryConfig(
    made_of("triplane"),
    single=TeacherConfig("tiny", views="one", score=PULL),
    views=ViewConfig(views=2),
    schedule=10,
    render_px=8,
    seen_px=32,
)


@pytest.fixture(scope="module")
def prior() -> StableDiffusionPrior:
    return StableDiffusionPrior(tiny_sd(), "tiny")


@pytest.fixture(scope="module")
def analytic() -> GaussianMixturePrior:
    """Two prompts, two pictures; text is one number a prompt."""
    means = torch.stack([torch.full((3, 8, 8), 0.6), torch.full((3, 8, 8), -0.4)])
    return GaussianMixturePrior(means, torch.tensor([0.4, 0.5]), names=("cup", "ball"))


def objective(prior: Any, config: LibraryConfig = LIBRARY, teacher: Any = None, **options: Any) -> LibraryObjective:
    return LibraryObjective(config, prior, {"single": teacher or prior}, **options)


def told(words: int = 5, width: int = 6, rows: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, words, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("field", FIELDS)
def test_networks_fill_fields_and_every_prompt_begins_as_the_start_shape(field):
    shape = make_field(FIELDS[field], torch.Generator().manual_seed(0))
    with fixed_init(0):
        network = make_network(made_of(field).network, 6, shape)
    style = told(1, 3)[:, 0]
    values = network(told(), style)
    own = dict(shape.named_parameters())
    assert all(value.shape == (2, *own[name].shape) for name, value in values.items())
    shared = network.shared(shape)
    learnt = {id(p) for p in ([] if shared is None else shared.parameters())}
    filled = {id(own[name]) for name in values}
    rest = {name for name, p in own.items() if p.requires_grad and id(p) not in learnt | filled}
    assert not rest and not learnt & filled  # every parameter is filled or learnt, none is both
    one = network(told()[1:], style[1:])
    for name, value in values.items():  # a batch is its objects one by one
        torch.testing.assert_close(value[1:], one[name], atol=1e-5, rtol=1e-5)
        assert not torch.equal(value[0], value[1])
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value[0])
    points = torch.tensor([[0.9, 0.0, 0.1], [0.1, 0.2, 0.0], [0.3, -0.4, 0.35]])
    found = shape.snapshot().value_color(points)[0]
    torch.testing.assert_close(found, points.norm(dim=-1) - 0.5, atol=0.25, rtol=0)


def test_words_and_style_reach_the_values_and_a_style_of_none_does_not_exist():
    shape = make_field(FIELDS["triplane"], torch.Generator().manual_seed(0))
    with fixed_init(0):
        network = make_network(made_of("triplane").network, 6, shape)
    plain = network(told(), told(1, 3)[:, 0])["planes"]
    for text, style in ((told(seed=1), told(1, 3)[:, 0]), (told(), told(1, 3, seed=1)[:, 0])):
        assert not torch.allclose(network(text, style)["planes"], plain)
    bare = make_network(made_of("triplane", style=0).network, 6, shape)
    assert bare(told(), torch.zeros(2, 0))["planes"].shape == plain.shape


def test_a_step_has_the_gradients_of_one_graph(prior, analytic):
    """The generator, the render, the pull of the Gaussian's score and regularisers in one graph, prompt by prompt."""
    config = replace(LIBRARY, single=replace(LIBRARY.single, prior="exact", views="all"), seen_px=8)
    made = objective(prior, config, analytic)
    parameters = [p for module in made.modules.values() for p in module.parameters()]
    prompts = ["cup", "ball"]
    out = made.loss({"captions": prompts}, torch.Generator().manual_seed(5), 3)
    found = torch.autograd.grad(out.loss, parameters)

    rng, amortised, now = torch.Generator().manual_seed(5), made.amortised, Moment(3, 10)
    field = amortised.shape.field
    planes = amortised.values(prompts, amortised.style(rng, 2))["planes"]
    total, kept = torch.zeros(()), field.planes
    for number, prompt in enumerate(prompts):
        with torch.no_grad():
            kept.copy_(planes[number])
        amortised.shape.on_step(now, rng)
        del field._parameters["planes"]
        field.planes = planes[number]  # the graph goes on into the network
        total = total + made.lessons.volume(prompt, 8, now, rng)[0] / 2
        del field.planes
        field.planes = kept
    slow = torch.autograd.grad(total, parameters)
    assert out.loss.item() == pytest.approx(total.item(), rel=1e-5)
    for fast, whole in zip(found, slow, strict=True):
        torch.testing.assert_close(fast, whole, atol=1e-6 * float(whole.abs().max()) + 1e-9, rtol=1e-3)
    assert all(float(grad.abs().max()) > 0 for grad in slow)


def test_the_loss_is_pure_and_goes_down_towards_what_the_prior_likes(analytic):
    class Reader(GaussianMixturePrior):
        def encode_text(self, prompts, negative=None):
            told = super().encode_text(prompts, negative)
            return Condition({"cond": Rows({"text": told["cond"]["text"].clamp_min(-3).float()})})

    pull = replace(PULL, rule=RuleConfig("sds"), guidance=1.0)
    config = replace(LIBRARY, single=TeacherConfig("exact", score=pull), seen_px=8, losses=LossWeights())
    made = objective(Reader(analytic.means, analytic.stds, names=analytic.names), config, analytic)
    losses = [made.loss({"captions": ["cup"]}, torch.Generator().manual_seed(1), 0).loss.item() for _ in range(2)]
    assert losses[0] == losses[1]
    parameters = [p for module in made.modules.values() for p in module.parameters()]
    adam = torch.optim.Adam(parameters, 5e-3)
    for step in range(40):
        adam.zero_grad()
        made.loss({"captions": ["cup", "ball"]}, torch.Generator().manual_seed(step), 5).loss.backward()
        adam.step()
    cup, ball = (made.amortised.made(prompt, 0) for prompt in ("cup", "ball"))
    points = torch.tensor([[0.45, 0.0, 0.0], [0.0, 0.3, 0.3], [-0.3, -0.3, 0.1]])
    bright, dark = (float(shape.field.color(points).detach().mean()) for shape in (cup, ball))
    assert bright > dark + 0.1  # pictures of 0.8 and 0.3


def test_an_interrupted_training_is_a_whole_one_with_a_twin_and_accumulation(prior, tmp_path):
    config = replace(LIBRARY, single=replace(LIBRARY.single, score=replace(PULL, rule=RuleConfig("vsd"))))
    prompts = Prompts(["a red chair", "a blue car", "a cup"])

    def run(out: Path, steps: int, resume: bool = False) -> dict[str, torch.Tensor]:
        made = objective(prior, config)
        trainer = TrainerConfig(steps=steps, batch=1, accumulate=2, lr=1e-3, schedule="constant", save_every=1)
        Trainer(trainer, made, prompts, out, "cpu").run(resume)
        twin = made.modules["twin_single"]
        learnt = {f"twin.{name}": p.detach().clone() for name, p in twin.named_parameters() if p.requires_grad}
        return {name: value.clone() for name, value in made.amortised.state().items()} | learnt

    fresh = objective(prior, config)
    first = {n: p.detach().clone() for n, p in fresh.modules["twin_single"].named_parameters() if p.requires_grad}
    whole = run(tmp_path / "whole", 2)
    run(tmp_path / "parts", 1)
    parts = run(tmp_path / "parts", 2, resume=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert any(not torch.equal(whole[f"twin.{name}"], value) for name, value in first.items())


def test_a_library_is_learnt_with_averaged_weights_and_goes_on(prior, analytic, tmp_path):
    config = replace(LIBRARY, single=TeacherConfig("exact", score=PULL), seen_px=8)
    settings = TrainerConfig(steps=2, batch=1, lr=1e-2, schedule="constant", ema=0.5, save_every=1)
    made = objective(prior, config, analytic)
    first = {name: value.clone() for name, value in made.amortised.state().items()}
    learnt = amortise(["cup", "ball"], made, settings, tmp_path, "cpu")
    weights = Trainer(settings, again := objective(prior, config, analytic), Prompts(["cup", "ball"]), tmp_path, "cpu")
    weights.run(resume=True)
    last, average = again.amortised.state(), dict(weights.loop.players["shape"].average)
    assert learnt is made.amortised and any(not torch.equal(value, first[n]) for n, value in learnt.state().items())
    for name, value in learnt.state().items():
        torch.testing.assert_close(value, average[name], atol=0, rtol=0)
    assert any(not torch.equal(learnt.state()[name], value) for name, value in last.items())


def test_a_twin_learns_renders_of_every_prompt_with_their_cameras(prior):
    pull = replace(PULL, rule=RuleConfig("vsd"))
    made = objective(prior, replace(LIBRARY, single=TeacherConfig("tiny", views="all", score=pull)))
    assert isinstance(made, Playing) and made.losses().keys() == {"shape", "twin_single"}
    twin, seen = made.teachers["single"].twin, []
    told_of = twin.told
    twin.told = lambda x, condition: (seen.append((x, condition["cond"])), told_of(x, condition))[1]
    batch = {"captions": ["a red chair", "a blue car"]}
    values = [made.lesson("twin_single", batch, torch.Generator().manual_seed(3), 0).loss for _ in range(2)]
    assert values[0].item() == values[1].item()
    values[0].backward()
    assert all(p.grad is None for p in made.amortised.network.parameters())
    assert any(p.grad is not None for p in made.modules["twin_single"].parameters())
    texts = [rows["text"] for _, rows in seen[:2]]
    assert not torch.equal(*texts) and all(rows["cameras"].shape == (2, 16) for _, rows in seen)
    assert all(x.shape[0] == 2 and not x.requires_grad for x, _ in seen)


@pytest.mark.parametrize("perp_neg", [False, True])
def test_view_words_and_perpendicular_negatives_tell_each_camera_apart(prior, perp_neg):
    pull = replace(PULL, perp_neg=perp_neg)
    teacher = objective(
        prior, replace(LIBRARY, single=TeacherConfig("tiny", views="all", view_words=True, score=pull))
    ).teachers["single"]
    asked = []
    plain = teacher.score.__class__.__call__

    class Told(teacher.score.__class__):  # type: ignore[name-defined]
        def __call__(self, *given, **named):
            asked.append(named)
            return plain(self, *given, **named)

    teacher.score.__class__ = Told
    shape = Amortised(prior, made_of("triplane")).made("a cup", 0)
    camera = turntable_cameras(2, 16, 0.0)  # front and back
    seen = shape.render(camera)
    teacher(seen, camera, "a cup", 32, 0.5, torch.Generator().manual_seed(0))
    words = prior.encode_text(["a cup, front view", "a cup, back view"])["cond"]["text"]
    torch.testing.assert_close(asked[0]["condition"]["cond"]["text"], words)
    assert (asked[0]["guidance"] is not None) == perp_neg
    with pytest.raises(InputError, match="view_words: true"):
        TeacherConfig("tiny", score=replace(PULL, perp_neg=True))


def test_accumulated_batches_are_one_batch(prior, analytic):
    config = replace(LIBRARY, single=TeacherConfig("exact", score=PULL), seen_px=8)
    made = objective(prior, config, analytic)
    parameters = [p for module in made.modules.values() for p in module.parameters()]
    made.amortised.style = lambda rng, count: torch.zeros(count, 3)  # one order of draws for both
    both = made.loss({"captions": ["cup", "ball"]}, torch.Generator().manual_seed(5), 3).loss
    rng = torch.Generator().manual_seed(5)
    apart = [made.loss({"captions": [prompt]}, rng, 3).loss for prompt in ("cup", "ball")]
    for whole, first, second in zip(
        torch.autograd.grad(both, parameters), *(torch.autograd.grad(one, parameters) for one in apart), strict=True
    ):
        torch.testing.assert_close(whole, (first + second) / 2, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("field", ["hash", "grid"])
def test_saved_networks_draw_the_same_and_belong_to_their_prior(prior, tmp_path, field):
    config = replace(LIBRARY, generator=made_of(field))
    made = objective(prior, config)
    with torch.no_grad():
        for parameter in made.amortised.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    folder = made.save(tmp_path / "export")
    again = Amortised.load(folder, prior)
    made.amortised.take({name: value.half().float() for name, value in made.amortised.state().items()}, "halves")
    one, other = (a.draw(["a cup", "a red chair"], [1, 2]) for a in (again, made.amortised))
    assert all(torch.equal(one[name], other[name]) for name in one) and again.config == made.amortised.config
    shape = again.made("a red chair", 2)
    filled = dict(shape.field.named_parameters())
    for name, value in one.items():
        torch.testing.assert_close(filled[name], value[1], atol=1e-5, rtol=1e-5)
    assert again.nfe == 3 and not torch.equal(again.draw(["a cup"], [3])[name], one[name][:1])
    about = json.loads((folder / "amortised.json").read_text())
    assert about["teachers"].keys() == {"single"} and about["method"] == "amortised"
    with pytest.raises(InputError, match=r"amortised\.json"):
        Amortised.load(tmp_path, prior)


def test_cells_of_the_last_prompt_are_not_those_of_the_next(prior):
    amortised = Amortised(prior, made_of("triplane"))
    amortised.shape.occupancy.mask.zero_()
    shape = amortised.made("a cup", 0)
    assert bool(shape.occupancy.mask.all()) and 0.05 < coverage(shape) < 0.95
    assert shape.to_mesh(MeshConfig(resolution=17, visibility_views=0)).check().watertight


def test_validation_counts_what_is_lost(prior, tmp_path):
    made = objective(prior, shown=["a cup", "a ball"])
    assert made.validate()["collapsed"] == 0 and 0.05 < made.validate()["opacity"] < 0.95
    assert [path.name for path in made.preview(5, tmp_path / "new")] == ["step-000005.png"]
    with torch.no_grad():
        made.amortised.shape.field.decoder.layers[-1].bias[0] = 5.0  # everything is far outside
    assert made.validate() == {"opacity": pytest.approx(0.0, abs=1e-6), "collapsed": 1.0}
    assert objective(prior).validate() == {} and objective(prior).preview(1, tmp_path) == []


def test_what_cannot_be_is_refused(prior):
    with pytest.raises(InputError, match="nobody teaches"):
        LibraryConfig()
    with pytest.raises(InputError, match="fills fields of kind hash, not triplane"):
        Amortised(prior, made_of("triplane", kind="hyper"))
    with pytest.raises(InputError, match="must divide the 8 texels"):
        Amortised(prior, made_of("triplane", tokens=3))
    with pytest.raises(InputError, match="multiple of heads"):
        NetworkConfig(width=10, heads=3)
    learnt = replace(FIELDS["triplane"], head=replace(HEAD, learn_beta=True))
    with pytest.raises(InputError, match="learn_beta"):
        AmortisedConfig(volume=VolumeShapeConfig(learnt))
