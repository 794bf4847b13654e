"""Our solvers inside stock diffusers pipelines: parity with diffusers' schedulers and with our own Sampler."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    HeunDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior, load_prior
from unproject.core.sampling import Denoiser, NoiseSchedule, Sampler, make_solver
from unproject.core.sampling.dpm_v3_statistics import ModelStatistics
from unproject.core.sampling.scheduler import DPMSolverV3Scheduler, GHVBScheduler, SolverScheduler, USFScheduler
from unproject.core.sampling.solvers import DPMSolverV3, SolverSchedule, StepDecision, preset
from unproject.core.sampling.solvers.decisions import times_of
from unproject.utils.errors import InputError

CLASSES = {
    "sd": StableDiffusionPipeline,
    "sd-v": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sd3": StableDiffusion3Pipeline,
    "flux": FluxPipeline,
}


def pipeline(name: str, folder, cls=None):
    options = {"safety_checker": None} if name in ("sd", "sd-v") else {}
    if name == "sd3":
        options = dict.fromkeys(("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"))
    pipe = (cls or CLASSES[name]).from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, steps: int = 5, **options):
    rng = torch.Generator().manual_seed(3)
    out = pipe("a red chair", num_inference_steps=steps, generator=rng, output_type="latent", **options)
    return out.images


def small(name: str) -> dict[str, int]:
    return {"height": 32, "width": 32} if name in ("sdxl", "sd3", "flux") else {}


def tables(channels: int = 4, side: int = 8) -> ModelStatistics:
    rng = torch.Generator().manual_seed(2)
    lambdas = torch.linspace(-3, 3, 5, dtype=torch.float64)
    values = (
        scale * torch.rand(5, channels, side, side, generator=rng, dtype=torch.float64) for scale in (1.0, -0.5, 0.1)
    )
    return ModelStatistics(lambdas, *values)


@pytest.mark.parametrize("name", ["sd", "sd-v", "sd3", "flux"])
def test_ddim_equals_the_scheduler_of_diffusers(name, tiny_folders):
    """DDIM on VP paths, flow Euler on rectified flows (dynamic shift included)."""
    pipe = pipeline(name, tiny_folders[name])
    wanted = draw(pipe, **small(name))
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config)
    ours = draw(pipe, **small(name))
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


def test_sdxl_keeps_the_state_unscaled(tiny_folders):
    pipe = pipeline("sdxl", tiny_folders["sdxl"])
    config = dict(pipe.scheduler.config)
    pipe.scheduler = DDIMScheduler.from_config(config, clip_sample=False)
    wanted = draw(pipe, **small("sdxl"))
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config)
    torch.testing.assert_close(draw(pipe, **small("sdxl")), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("kind", ["v3", "ghvb", "usf", "hb"])
def test_every_scheduler_runs_in_every_family(name, kind, tiny_folders):
    pipe = pipeline(name, tiny_folders[name])
    config = pipe.scheduler.config
    pipe.scheduler = {
        "v3": lambda: DPMSolverV3Scheduler.from_config(config, statistics=tables(), order=3),
        "ghvb": lambda: GHVBScheduler.from_config(config, order=1.8),
        "usf": lambda: USFScheduler.from_config(config, schedule=preset("unipc-bh2", 4)),
        "hb": lambda: SolverScheduler.from_config(config, solver="hb:dpm++,0.9"),
    }[kind]()
    out = draw(pipe, 4, **small(name))
    assert bool(torch.isfinite(out).all())


@pytest.mark.parametrize("name", ["sd", "sd3"])
@pytest.mark.parametrize("solver", ["dpm-v3:2", "ghvb:2,0.8", "unipc"])
def test_a_pipeline_equals_our_sampler(name, solver, tiny_folders):
    prior = load_prior(tiny_folders[name])
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(5)
    noise = torch.randn(1, *prior.latent_shape, generator=torch.Generator().manual_seed(3))
    denoiser = Denoiser(prior, prior.encode_text("a red chair", ""), 3.0)
    method = make_solver(solver, denoiser.schedule.flow, prior.prediction_type, statistics=tables())
    with torch.no_grad():
        ours = Sampler(method).run(denoiser, noise, levels)
    pipe = pipeline(name, tiny_folders[name])
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config, solver=solver, statistics=tables())
    theirs = draw(pipe, latents=noise, guidance_scale=3.0, **small(name))
    torch.testing.assert_close(theirs, ours, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "cls"), [("sd", StableDiffusionImg2ImgPipeline), ("sd3", StableDiffusion3Img2ImgPipeline)]
)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image_begins_late(name, cls, strength, tiny_folders):
    image = np.random.default_rng(0).random((1, 32, 32, 3)).astype(np.float32)
    pipe = pipeline(name, tiny_folders[name], cls)
    options = {"image": image, "strength": strength, **small(name)}
    wanted = draw(pipe, 6, **options)
    config = pipe.scheduler.config
    pipe.scheduler = SolverScheduler.from_config(config)
    torch.testing.assert_close(draw(pipe, 6, **options), wanted, rtol=5e-5, atol=5e-5)
    pipe.scheduler = DPMSolverV3Scheduler.from_config(config, statistics=ModelStatistics.constant(), order=1)
    torch.testing.assert_close(draw(pipe, 6, **options), wanted, rtol=1e-3, atol=1e-3)


def test_solvers_of_two_calls_repeat_timesteps(tiny_folders):
    pipe = pipeline("sd", tiny_folders["sd"])
    config = {
        k: v for k, v in pipe.scheduler.config.items() if k.startswith(("beta", "num_train", "steps", "timestep"))
    }
    theirs = HeunDiscreteScheduler.from_config(config)
    theirs.set_timesteps(4)
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config, solver="heun")
    pipe.scheduler.set_timesteps(4)
    assert pipe.scheduler.order == theirs.order == 2
    assert pipe.scheduler.timesteps.tolist() == theirs.timesteps.tolist()
    assert bool(torch.isfinite(draw(pipe, 4)).all())


def test_a_callback_may_change_the_latents(tiny_folders):
    pipe = pipeline("sd", tiny_folders["sd"])
    outs = []

    def halve(pipe, step, time, values):
        return {"latents": values["latents"] * 0.5} if step == 1 else values

    for scheduler in (pipe.scheduler, SolverScheduler.from_config(pipe.scheduler.config)):
        pipe.scheduler = scheduler
        outs.append(draw(pipe, callback_on_step_end=halve))
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-5, atol=1e-5)


def test_a_changed_sample_reaches_a_corrector():
    """With x0 = 0 whatever is asked, UniPC's step scales the state as Euler's does."""
    ends = {}
    for solver in ("unipc", "euler"):
        for shift in (0.0, 1.0):
            config = {**SD_SCHEDULE, "prediction_type": "sample", "set_alpha_to_one": True}
            scheduler = SolverScheduler.from_config(config, solver=solver)
            scheduler.set_timesteps(4)
            x, x0 = torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
            for k, time in enumerate(scheduler.timesteps[:3]):
                x = scheduler.step(x0, time, x + shift if k == 2 else x).prev_sample
            ends[solver, shift] = x
    moved = [ends[solver, 1.0] - ends[solver, 0.0] for solver in ("unipc", "euler")]
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-4, atol=1e-5)
    assert float(moved[0].min()) > 0.05


@pytest.mark.parametrize("solver", ["dpm++", "unipc", "euler", "heun", "ddim", "hb:dpm++,0.9"])
@pytest.mark.parametrize("spacing", [{"timestep_spacing": "linspace"}, {"steps_offset": 0}])
def test_a_grid_that_visits_its_end_twice(solver, spacing):
    """Both spacings reach index 0, on which the run then ends."""
    prior = GaussianMixturePrior(torch.full((1, 2, 3, 3), 0.4), torch.tensor([0.5]))
    scheduler = SolverScheduler.from_config({**SD_SCHEDULE, **spacing}, solver=solver)
    scheduler.set_timesteps(5)
    levels = scheduler.noise_schedule.grid(5)
    assert levels[-1].index == levels[-2].index == 0
    condition = prior.encode_text("")
    noise = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    x = noise
    for time in scheduler.timesteps:
        x = scheduler.step(prior.predict(x, time, condition["cond"]), time, x).prev_sample
    wanted = Sampler(make_solver(solver)).run(Denoiser(prior, condition), noise, levels)
    torch.testing.assert_close(x, wanted, rtol=1e-4, atol=1e-4)
    assert scheduler.order == (2 if solver == "heun" else 1)


EVERY = ("ddim", "euler", "heun", "dpm++", "unipc", "ghvb", "hb:unipc,0.9", "edict", "dpm-v3:3")


def stepped(scheduler, prior, x, begin=0, changes=None):
    """The last sample of a pipeline that changes what it was given before some calls."""
    condition = prior.encode_text("")["cond"]
    for call, time in enumerate(scheduler.timesteps[begin:]):
        x = x if changes is None or call not in changes else x + changes[call]
        x = scheduler.step(prior.predict(x, time, condition), time, x).prev_sample
        last = begin + call + 1 == len(scheduler.timesteps)
        assert scheduler.step_index == (None if last else begin + call + 1)
    return x


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
@pytest.mark.parametrize("solver", EVERY)
def test_a_pipeline_drives_the_run_the_sampler_drives(solver, config):
    """Whole, begun late (a step is `order` calls), and with the state changed between calls."""
    means = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prior = GaussianMixturePrior(means, torch.tensor([0.4, 0.8]), scheduler_config=config)
    scheduler = SolverScheduler.from_config(config, solver=solver, statistics=tables(side=3))
    scheduler.set_timesteps(5)
    levels = scheduler.noise_schedule.grid(5)
    sampler = Sampler(make_solver(solver, scheduler.noise_schedule.flow, statistics=tables(side=3)))
    denoiser = Denoiser(prior, prior.encode_text(""))
    x = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for late, changes in ((0, None), (2, None), (0, {1: 0.3, 2: -0.2, 3: 0.5})):
        scheduler.set_begin_index(scheduler.order * late)
        ours = sampler.run(
            denoiser,
            x,
            levels[late:],
            callback=lambda call, level, state, put=changes or {}: state + put[call + 1] if call + 1 in put else None,
        )
        theirs = stepped(scheduler, prior, x, scheduler.order * late, changes)
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_a_copy_of_a_scheduler_begins_anew():
    prior = GaussianMixturePrior(torch.full((1, 2, 3, 3), 0.4), torch.tensor([0.5]))
    scheduler, x = SolverScheduler.from_config(SD_SCHEDULE, solver="ghvb"), torch.ones(1, 2, 3, 3)
    scheduler.set_timesteps(4)
    wanted, condition, state = stepped(copy.deepcopy(scheduler), prior, x), prior.encode_text("")["cond"], x
    for call, time in enumerate(scheduler.timesteps):
        if call == 2:
            copied = copy.deepcopy(scheduler)
            assert copied.step_index is None and torch.equal(stepped(copied, prior, x), wanted)
        state = scheduler.step(prior.predict(state, time, condition), time, state).prev_sample
    assert torch.equal(state, wanted)


def test_add_noise_and_timesteps_agree_with_diffusers():
    ours, theirs = SolverScheduler.from_config(SD_SCHEDULE), DDIMScheduler.from_config(SD_SCHEDULE)
    x, e = (torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    at = torch.tensor([17, 801])
    torch.testing.assert_close(ours.add_noise(x, e, at), theirs.add_noise(x, e, at), rtol=1e-5, atol=1e-6)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(7)
    assert ours.timesteps.dtype == torch.int64
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    flow, euler = (
        SolverScheduler(prediction_type="flow_prediction", shift=3.0),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    for options in ({"num_inference_steps": 6}, {"sigmas": [1.0, 0.7, 0.2]}):
        flow.set_timesteps(**options)
        euler.set_timesteps(**options)
        torch.testing.assert_close(flow.timesteps, euler.timesteps, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(flow.sigmas, euler.sigmas, rtol=1e-5, atol=1e-6)


def test_configs_are_kept(tmp_path):
    schedule = preset("unipc-bh1", 3)
    made = USFScheduler.from_config(SD_SCHEDULE, schedule=schedule)
    made.save_pretrained(tmp_path)
    back = USFScheduler.from_pretrained(tmp_path)
    assert back.solver.schedule == schedule and back.config["beta_end"] == 0.012
    ghvb = GHVBScheduler.from_config(back.config, order=2.5)
    assert (ghvb.solver.order, ghvb.solver.beta) == (3, 0.5)
    v3 = DPMSolverV3Scheduler.from_config(ghvb.config, order=3, statistics=tables())
    assert isinstance(v3.solver, DPMSolverV3) and v3.solver.order == 3
    assert "statistics" not in v3.config


def test_misuse_is_named():
    with pytest.raises(InputError, match="usf:FILE"):
        USFScheduler.from_config(SD_SCHEDULE)
    with pytest.raises(InputError, match="needs statistics="):
        DPMSolverV3Scheduler.from_config(SD_SCHEDULE)
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(3)
    own = SolverSchedule((StepDecision(),) * 3, times_of(levels, NoiseSchedule.from_config(SD_SCHEDULE)))
    fixed = USFScheduler.from_config(SD_SCHEDULE, schedule=own)
    with pytest.raises(InputError, match="num_inference_steps=7"):
        fixed.set_timesteps(7)
    with pytest.raises(InputError, match="skips the first network call"):
        USFScheduler.from_config(SD_SCHEDULE, schedule=SolverSchedule((StepDecision(),) * 3, first="zero_x0"))
    twice = SolverSchedule((StepDecision(corrector="implicit"),) * 3, first="zero_x0")
    with pytest.raises(InputError, match="skips the first network call"):
        USFScheduler.from_config(SD_SCHEDULE, schedule=twice)
    scheduler = SolverScheduler.from_config(SD_SCHEDULE)
    scheduler.set_timesteps(4)
    x = torch.zeros(1, 4, 2, 2)
    with pytest.raises(InputError, match="got timestep 3 where 751 is due"):
        scheduler.step(x, 3, x)
    with pytest.raises(InputError, match="needs num_inference_steps"):
        scheduler.set_timesteps()
    packed = DPMSolverV3Scheduler.from_config(SD_SCHEDULE, statistics=tables())
    packed.set_timesteps(2)
    with pytest.raises(InputError, match="do not fit latents of shape"):
        packed.step(torch.zeros(1, 4, 2, 2), packed.timesteps[0], torch.zeros(1, 4, 2, 2))


@pytest.mark.parametrize("solver", ["unipc", "euler", "ddim"])
def test_a_state_that_is_written_into_is_a_changed_one(solver):
    """Callbacks of diffusers write into the latents they are given."""

    def last(change):
        scheduler = SolverScheduler.from_config(SD_SCHEDULE, solver=solver)
        scheduler.set_timesteps(4)
        x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(4))
        for k, time in enumerate(scheduler.timesteps):
            x = scheduler.step(0.3 * x + 0.1, time, x).prev_sample
            x = change(x) if k in (0, 2) else x
        return x

    torch.testing.assert_close(last(lambda x: x.mul_(0.9).add_(0.1)), last(lambda x: 0.9 * x + 0.1))
