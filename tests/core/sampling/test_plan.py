"""Sampling plans: one object for keywords, files and options; what goes together; what a plan becomes on a prior."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields

import pytest
import torch

from unproject.cli.sampling import PLANNED, option
from unproject.core.priors import FLOW_SCHEDULE, GaussianMixturePrior
from unproject.core.sampling.drawing import drawing
from unproject.core.sampling.focus import AttentionCost, VelocityControl
from unproject.core.sampling.guidance import ClassifierFree
from unproject.core.sampling.init import FixedNoiseInit
from unproject.core.sampling.levels import Level
from unproject.core.sampling.noiseshift import TimeRemap
from unproject.core.sampling.plan import ALIASES, SamplingPlan
from unproject.core.sampling.prediction import Prediction
from unproject.core.sampling.solvers import DDIM, WrappedSolver
from unproject.pipelines.text_to_image import TextToImage
from unproject.utils.errors import InputError

SHAPE = (3, 4, 4)


def mixture(**options: object) -> GaussianMixturePrior:
    means = torch.stack([torch.full(SHAPE, -0.5), torch.full(SHAPE, 0.5)])
    return GaussianMixturePrior(means, torch.tensor([0.3, 0.4]), names=("dark", "light"), **options)


def test_keywords_plan_and_file_draw_the_same() -> None:
    pipe, said = TextToImage(mixture()), {"solver": "dpm++", "steps": 4, "spacing": "logsnr", "guidance": 2.0}
    plans = [SamplingPlan(**said), SamplingPlan.from_dict(said), SamplingPlan().changed(**said)]
    drawn = [pipe("dark", None, plan, seed=3, output_type="latent") for plan in plans]
    names = {"num_inference_steps": 4, "guidance_scale": 2.0, "solver": "dpm++", "spacing": "logsnr"}
    drawn.append(pipe("dark", seed=3, output_type="latent", **names))
    assert all(torch.equal(one.latents, drawn[0].latents) for one in drawn)
    assert {one.nfe for one in drawn} == {8}
    other = pipe("dark", seed=3, output_type="latent", **{**names, "spacing": "leading"})
    assert not torch.equal(other.latents, drawn[0].latents)


def test_a_record_of_a_plan_draws_it_again() -> None:
    pipe = TextToImage(mixture())
    made = pipe("dark", seed=1, solver="ghvb:2,0.5", num_inference_steps=5, eta=0.0, output_type="latent")
    told = json.loads(json.dumps(made.plan.to_dict()))
    assert told == {"solver": "ghvb:2,0.5", "steps": 5, "spacing": "karras", "guidance": 7.5}
    again = TextToImage(mixture(), "native")("dark", None, SamplingPlan.from_dict(told), seed=1, output_type="latent")
    assert torch.equal(again.latents, made.latents)


def test_objects_are_told_by_their_type_and_not_brought_back() -> None:
    remap = TimeRemap(torch.tensor([0.0, 999.0]), torch.tensor([0.0, 990.0]))
    told = SamplingPlan(solver=DDIM(), time_remap=remap).to_dict()
    assert told["time_remap"] == {"object": "TimeRemap"} and told["solver"] == {"object": "DDIM"}
    with pytest.raises(InputError, match="solver was an object in memory"):
        SamplingPlan.from_dict(told)


def test_a_plan_that_says_something_wins_over_what_suits() -> None:
    defaults = SamplingPlan("unipc", 20, "karras", 3.0)
    assert SamplingPlan().over(defaults) == defaults
    assert SamplingPlan(steps=7).over(defaults) == SamplingPlan("unipc", 7, "karras", 3.0)
    assert SamplingPlan(guidance=0.0).over(defaults).guidance == 0.0


def test_names() -> None:
    assert {f.name for f in fields(SamplingPlan)} >= {*PLANNED, *ALIASES.values()}
    with pytest.raises(InputError, match=r"spacin= is no setting of a sampling plan; did you mean spacing\?"):
        TextToImage(mixture())("dark", spacin="karras")
    with pytest.raises(InputError, match="are the same setting; give one"):
        SamplingPlan().changed(guidance_scale=2.0, guidance=3.0)


@pytest.mark.parametrize(
    ("settings", "python", "command_line"),
    [
        ({"eta": 0.5, "boundary": "b"}, "boundary chooses all randomness of a run, eta=0.5", "--eta 0.5 adds"),
        ({"solver": "dpm-v3:2"}, "solver=dpm-v3:2 needs statistics=FILE", "--solver dpm-v3:2 needs --statistics FILE"),
        ({"statistics": "s"}, "not the default", "--statistics serves --solver dpm-v3"),
        ({"statistics": "s", "solver": "ddim"}, "statistics serves solver=dpm-v3 or usf:FILE, not ddim", "not ddim"),
        ({"teleport": 0.2}, "teleport needs gaussian=FILE too", "--teleport needs --gaussian FILE too"),
        ({"gaussian": "g"}, "gaussian needs teleport=F too", "--gaussian needs --teleport F too"),
        ({"gaussian": "g", "teleport": 1.0}, r"teleport=1 must lie in \[0, 1\)", "--teleport 1 must"),
        ({"subjects": ("chair",)}, "those of control=focus", "those of --control focus"),
        ({"control": "focus", "cache": "deep:3"}, "does not go with cache=deep:3", "with --cache deep:3"),
        ({"model_schedule": "toybox"}, "must be NAME:SHARE", "--model-schedule 'toybox' must be"),
        ({"model_schedule": "toybox:0.5", "cache": "deep:3"}, "no single network", "--model-schedule and --cache"),
        ({"model_schedule": "toybox:0.5", "time_remap": "r"}, "no calibrated files", "no calibrated files"),
        ({"guidance": float("nan")}, "guidance=nan must be a finite", "--guidance nan"),
        ({"steps": 0}, "steps=0 must be at least 1", "--steps 0"),
    ],
)
def test_what_does_not_go_together_is_told_in_the_words_of_the_caller(
    settings: dict[str, object], python: str, command_line: str
) -> None:
    plan = SamplingPlan(**settings)
    with pytest.raises(InputError, match=python):
        plan.check()
    with pytest.raises(InputError, match=command_line):
        plan.check(option)
    with pytest.raises(InputError):
        drawing(plan, mixture())


def test_a_control_of_attention_goes_with_no_cache_however_it_is_given() -> None:
    control = VelocityControl(AttentionCost([[1], [2]]))
    for given in (control, [control], (control,)):
        with pytest.raises(InputError, match="does not go with cache="):
            SamplingPlan(control=given, cache="deep:3").check()
        SamplingPlan(control=given, cache="none").check()
    with pytest.raises(InputError, match="of one prompt, got 2"):
        TextToImage(mixture())(["dark", "light"], control="focus", seed=0)


def test_a_drawing_has_everything_decided() -> None:
    draw = drawing(SamplingPlan(steps=3), mixture(), defaults=SamplingPlan("euler", 20, "trailing", 2.0))
    assert isinstance(draw.solver, WrappedSolver) and len(draw.levels) == 4
    assert (draw.plan.steps, draw.plan.spacing, draw.plan.guidance) == (3, "trailing", 2.0)
    noise = torch.zeros(2, *SHAPE)
    assert torch.equal(draw.started(noise).x, noise) and draw.remap() is None and draw.controls(["dark"]) == ()
    fixed = FixedNoiseInit(torch.arange(48.0).reshape(SHAPE))
    started = drawing(SamplingPlan(init=fixed), mixture()).started(noise)
    assert torch.equal(started.x[1], fixed.noise)


def test_a_flow_gets_solvers_for_flows() -> None:
    flow = mixture(scheduler_config=FLOW_SCHEDULE)
    draw = drawing(SamplingPlan("dpm++", 4), flow, defaults=SamplingPlan(guidance=1.0))
    assert draw.levels[0].sigma == 1.0 and isinstance(draw.solver, WrappedSolver)
    assert draw.solver.flow


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"steps": "5"}, "steps='5' must be a whole number"),
        ({"steps": 2.5}, "steps=2.5 must be a whole number"),
        ({"steps": True}, "steps=True must be a whole number"),
        ({"guidance": "7"}, "guidance='7' must be a finite number"),
        ({"guidance_rescale": 2.0}, r"guidance_rescale=2.0 must lie in \[0, 1\]"),
        ({"eta": float("nan")}, r"eta=nan must be a finite number"),
        ({"eta": "0.5"}, r"eta='0.5' must be a finite number"),
        ({"teleport": "a", "gaussian": "g"}, r"teleport='a' must be a finite number"),
        ({"spacing": "odd"}, "spacing='odd' is unknown; have trailing"),
        ({"solver": 5}, "solver=5 is no name of a solver"),
        ({"cache": 3}, "cache=3 is no text"),
        ({"control": [1, 2]}, r"control=\[1, 2\] is no text"),
        ({"control": 5}, "control=5 is no text"),
        ({"control": "focus", "subjects": "chair"}, "subjects='chair' is no list of words"),
        ({"init": 3}, "init=3 is no start"),
        ({"time_remap": 3}, "time_remap=3 is no file"),
        ({"boundary": 3}, "boundary=3 is no file"),
        ({"model_schedule": ("a",)}, "must be NAME:SHARE"),
        ({"model_schedule": ("a", 2.0)}, "must be NAME:SHARE"),
    ],
)
def test_a_value_that_is_none_is_told_before_anything_is_loaded(settings: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        SamplingPlan(**settings).check()


def test_objects_within_lists_are_not_brought_back_either() -> None:
    plan = SamplingPlan(control=[VelocityControl(AttentionCost([[1], [2]]))], model_schedule=(mixture(), 0.5))
    told = json.loads(json.dumps(plan.to_dict()))
    for name in ("control", "model_schedule"):
        with pytest.raises(InputError, match=f"{name} was an object in memory"):
            SamplingPlan.from_dict({name: told[name]})


def test_the_same_setting_twice_is_told_by_both_names() -> None:
    with pytest.raises(InputError, match="num_inference_steps= and steps= are the same"):
        SamplingPlan().changed(num_inference_steps=3, steps=4)


@dataclass(frozen=True)
class TowardsStyle:
    """null + scale (cond - null) + style (style - null): a guidance with a branch of its own."""

    scale: float = 3.0
    style: float = 0.0

    def needs(self, level: Level) -> tuple[str, ...]:
        return ("cond", "null", "style")

    def __call__(self, p: Mapping[str, Prediction]) -> Prediction:
        return p["null"] + self.scale * (p["cond"] - p["null"]) + self.style * (p["style"] - p["null"])


def test_a_plan_takes_any_guidance_and_a_call_its_branches() -> None:
    pipe, draw = TextToImage(mixture()), {"seed": 2, "num_inference_steps": 3, "output_type": "latent"}
    plain = pipe("dark", guidance_scale=3.0, **draw)
    same = pipe("dark", guidance=TowardsStyle(3.0), branches={"style": "light"}, **draw)
    torch.testing.assert_close(same.latents, plain.latents, rtol=1e-9, atol=1e-9)
    assert (same.nfe, plain.nfe) == (9, 6)
    styled = pipe(["dark", "dark"], guidance=TowardsStyle(1.0, 4.0), branches={"style": ["light", "dark"]}, **draw)
    assert styled.latents[0].mean() > styled.latents[1].mean()
    with pytest.raises(InputError, match="needs the branch 'style'"):
        pipe("dark", guidance=TowardsStyle(), **draw)
    narrow = ClassifierFree(3.0, interval=(0.0, 0.5))
    assert plain.nfe > pipe("dark", guidance=narrow, **draw).nfe > pipe("dark", guidance_scale=1.0, **draw).nfe
    with pytest.raises(InputError, match=r"guidance_rescale=0\.5 belongs to a guidance scale"):
        pipe("dark", guidance=narrow, guidance_rescale=0.5, **draw)
