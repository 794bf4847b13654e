"""What a generator of planes begins with: views that a prior draws, and how shapes are compared with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unproject.core.distillation.score import DivergedError
from unproject.core.priors import MultiViewPrior, StableDiffusionPrior, inflate
from unproject.core.sampling.plan import SamplingPlan
from unproject.core.training.config import TrainerConfig
from unproject.core.training.trainer import Trainer
from unproject.generate import drawn_views
from unproject.generate.drawn_views import DrawnViews, DrawnViewsConfig, ViewDrawer
from unproject.generate.lessons import Prompts
from unproject.generate.render_teacher import TeacherConfig
from unproject.generate.turbo import TurboConfig
from unproject.generate.turbo_start import COVERED, StartConfig, hull_of, picked, start_loss
from unproject.generate.turbo_train import PRDConfig, PRDObjective
from unproject.generate.view_normals import NormalsDraw, Ring
from unproject.geometry.cameras import Camera
from unproject.geometry.fields import DualConfig, FieldConfig, HeadConfig
from unproject.geometry.shapes.dual import DualVolume
from unproject.geometry.shapes.volume import VolumeShapeConfig
from unproject.scripts.random_backbones import seeded, tiny_sd
from unproject.utils.errors import InputError
from unproject.utils.ramps import Moment

FIELD = FieldConfig("dual", head=HeadConfig("neus", inverse_std=(40.0,)), dual=DualConfig(16, 4, 8))
NOW = Moment(0, 10)


def ball(radius: float, color: tuple[float, float, float] = (0.8, 0.1, 0.1)) -> DrawnViews:
    """Exact views of a ball."""
    camera = Ring(elevation_deg=20.0).camera(4, 32)
    origins, directions = camera.rays()
    along = torch.nn.functional.normalize(directions, dim=-1)
    middle = -(origins * along).sum(-1)
    chord = radius**2 - (origins + middle[..., None] * along).square().sum(-1)
    points = origins + (middle - chord.clamp_min(0).sqrt())[..., None] * along
    normals = torch.nn.functional.normalize(points, dim=-1)
    return DrawnViews(camera, (chord > 0).float(), normals, torch.tensor(color).expand_as(normals))


def silent(radius: float) -> DualVolume:
    """A ball whose networks say nothing."""
    head = replace(FIELD.head, radius=radius)
    shape = DualVolume(VolumeShapeConfig(replace(FIELD, head=head)), torch.Generator().manual_seed(0))
    with torch.no_grad():
        shape.planes.heads.sdf_network.layers[-1].weight.zero_()
    return shape


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_right_ball_is_nearer_than_smaller_and_larger_ones():
    config = StartConfig(rays=2000, colors=0.0)
    found = {r: start_loss(silent(r), ball(0.5), config, NOW, rng())[0].item() for r in (0.35, 0.5, 0.65)}
    assert found[0.5] < 0.75 * min(found[0.35], found[0.65])
    logs = start_loss(silent(0.5), ball(0.5), config, NOW, rng())[1]
    assert float(logs["normals"]) < 0.01 and float(logs["eikonal"]) < 1e-6


def test_colours_say_nothing_of_coverage_and_coverage_nothing_of_colours():
    shape, views = silent(0.5), ball(0.5)
    planes = shape.planes.planes
    only = {"coverage": 0.0, "hull": (0.0,), "colors": 0.0, "normals": 0.0, "eikonal": 0.0}

    def pull(name: str) -> torch.Tensor:
        loss, _ = start_loss(
            shape, views, StartConfig(rays=200, **{**only, name: (1.0,) if name == "hull" else 1.0}), NOW, rng()
        )
        heads = shape.planes.heads
        weights = [heads.sdf_network.layers[-1].weight, heads.feature_network.layers[-1].weight]
        with torch.no_grad():
            planes.fill_(0.1)
        return torch.stack([g.abs().sum() for g in torch.autograd.grad(loss, weights, materialize_grads=True)])

    with torch.no_grad():
        planes.fill_(0.1)
    assert pull("coverage")[0] > 0 and pull("coverage")[1] == 0
    assert pull("hull")[0] > 0 and pull("hull")[1] == 0
    assert pull("colors")[1] > 0
    nothing = views._replace(alpha=torch.zeros_like(views.alpha))
    loss, logs = start_loss(shape, nothing, StartConfig(rays=200), NOW, rng())
    assert float(logs["colors"]) == 0 and torch.isfinite(loss)


def test_the_hull_is_what_all_views_cover():
    views = ball(0.5)
    points = torch.tensor([[0.0, 0.0, 0.0], [0.4, 0.0, 0.0], [0.0, 0.7, 0.0], [0.0, 0.0, 0.7], [5.0, 0.0, 0.0]])
    assert hull_of(views, points).tolist() == [True, True, False, False, False]


def test_views_without_colours_teach_geometry():
    _, logs = start_loss(silent(0.5), ball(0.5)._replace(colors=None), StartConfig(rays=200), NOW, rng())
    assert logs.keys() == {"coverage", "hull", "normals", "eikonal"}


def test_half_of_the_rays_are_near_the_object():
    alpha = torch.zeros(2, 64, 64)
    alpha[1, 30:34, 30:34] = 1.0
    places = picked(alpha, 1000, rng())
    view, row, column = places // 4096, places // 64 % 64, places % 64
    near = (view == 1) & ((row - 31.5).abs() < 5) & ((column - 31.5).abs() < 5)
    assert len(places) == 1000 and 500 <= int(near.sum()) < 540
    assert len(picked(torch.zeros(1, 8, 8), 10, rng())) == 10 and COVERED < 1


def tiny_views() -> MultiViewPrior:
    pipe = tiny_sd()
    return seeded(lambda: MultiViewPrior(pipe, inflate(pipe.unet), "views"))


def faked(monkeypatch: pytest.MonkeyPatch, empty: int = 0) -> list[tuple[str, float, int]]:
    """The drawing of normals is a ball; the first `empty` tries show nothing. Returns what was asked."""
    asked: list[tuple[str, float, int]] = []

    def draw(prior: object, prompt: str, config: NormalsDraw, generator: torch.Generator):
        asked.append((prompt, config.ring.elevation_deg, generator.initial_seed()))
        if len(asked) <= empty:
            raise DivergedError("nothing")
        views = ball(0.5)
        return views.normals, views.alpha, views.camera

    monkeypatch.setattr(drawn_views, "draw_normals", draw)
    monkeypatch.setattr(drawn_views, "check_draws_normals", lambda prior, words: None)
    return asked


def test_a_prompt_is_drawn_once_at_its_own_height(monkeypatch):
    asked = faked(monkeypatch)
    drawer = ViewDrawer(DrawnViewsConfig(elevations=(0.0, 30.0)), tiny_views())
    prompts = [f"a {color} chair" for color in ("red", "blue", "green", "black", "white", "pink")]
    first = [drawer.of(prompt) for prompt in prompts]
    assert all(drawer.of(prompt) is one for prompt, one in zip(prompts, first, strict=True))
    assert [prompt for prompt, _, _ in asked] == prompts and {height for _, height, _ in asked} == {0.0, 30.0}
    assert all(seed == asked[0][2] for _, _, seed in asked)
    assert first[0] is not None and first[0].colors is None and isinstance(first[0].camera, Camera)
    with pytest.raises(InputError, match="elevations"):
        DrawnViewsConfig(elevations=())


def test_an_empty_drawing_is_tried_again_and_then_left(monkeypatch):
    asked = faked(monkeypatch, empty=1)
    assert ViewDrawer(DrawnViewsConfig(), tiny_views()).of("a cup") is not None
    assert asked[0][2] != asked[1][2]
    faked(monkeypatch, empty=3)
    assert ViewDrawer(DrawnViewsConfig(), tiny_views()).of("a cup") is None


def test_a_painter_gives_colours_and_a_student_its_own_plan(monkeypatch):
    faked(monkeypatch)
    prior = tiny_views()
    monkeypatch.setattr(drawn_views, "draw_views", lambda *args, **named: torch.full((4, 3, 32, 32), 0.25))
    drawer = ViewDrawer(DrawnViewsConfig(), prior, painter=prior, student=prior)
    views = drawer.of("a cup")
    assert views is not None and views.colors is not None and float(views.colors.float().mean()) == 0.25
    assert drawer.config.normals.plan == SamplingPlan.of(prior.recommended) and len(drawer.priors) == 2


PRD = PRDConfig(
    TurboConfig(rank=2, steps=2, field=FieldConfig("dual", head=HeadConfig("neus"), dual=DualConfig(16, 4, 8))),
    start=StartConfig(updates=4, rays=64),
    joint=TeacherConfig("views"),
    schedule=10,
)


def made(config: PRDConfig = PRD) -> PRDObjective:
    drawer = ViewDrawer(DrawnViewsConfig(), tiny_views())
    return PRDObjective(config, StableDiffusionPrior(tiny_sd(), "tiny"), {"joint": tiny_views()}, drawer=drawer)


def test_a_training_begins_with_views_and_goes_on_with_teachers(monkeypatch):
    faked(monkeypatch)
    objective = made()
    told: list[str] = []
    for name in ("_volume", "_mesh"):
        zero = lambda *args, name=name: told.append(name) or (objective.turbo.shape.planes.planes.sum() * 0, {})  # noqa: E731
        monkeypatch.setattr(objective, name, zero)
    batch = {"captions": ["a red chair"]}
    out = objective.loss(batch, rng(), 3)
    assert not told and {"start_coverage", "start_normals", "start_eikonal"} <= out.logs.keys()
    objective.loss(batch, rng(), 4)
    assert told == ["_volume", "_mesh"] * 2
    assert any(name.startswith("drawn by") for name in objective.config.teachers)


def test_views_are_learnt_and_an_interrupted_start_is_a_whole_one(monkeypatch, tmp_path):
    faked(monkeypatch)

    def run(out: Path, steps: int, resume: bool = False) -> dict[str, torch.Tensor]:
        objective = made()
        trainer = TrainerConfig(steps=steps, batch=1, lr=1e-3, schedule="constant", save_every=1)
        Trainer(trainer, objective, Prompts(["a red chair", "a blue car"]), out, "cpu").run(resume)
        return {name: value.clone() for name, value in objective.turbo.state().items()}

    whole = run(tmp_path / "whole", 2)
    run(tmp_path / "parts", 1)
    parts = run(tmp_path / "parts", 2, resume=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_start_needs_who_draws():
    with pytest.raises(InputError, match="joint"):
        replace(PRD, joint=TeacherConfig(), single=TeacherConfig("tiny"))
    with pytest.raises(InputError, match="drawer"):
        PRDObjective(PRD, StableDiffusionPrior(tiny_sd(), "tiny"), {"joint": tiny_views()})
    for wrong in ({"updates": -1}, {"rays": 1}):
        with pytest.raises(InputError, match="start"):
            StartConfig(**wrong)
