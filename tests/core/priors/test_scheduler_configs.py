"""Scheduler configs of diffusers: every field honoured, harmless or refused by its name; grids as the stock ones."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from diffusers import (
    ConfigMixin,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
    schedulers,
)

from unproject.core.priors.schedulers import HARMLESS, HONOURED, OWN, REFUSED, SCHEDULERS, is_known, read_scheduler
from unproject.core.sampling import NoiseSchedule
from unproject.core.sampling.scheduler import SolverScheduler, USFScheduler
from unproject.utils.errors import InputError

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.013}
SIGMA_OPTIONS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
EVERY = {
    name: found
    for name in dir(schedulers)
    if inspect.isclass(found := getattr(schedulers, name)) and issubclass(found, ConfigMixin)
}


def fields(name: str) -> list[str]:
    return list(inspect.signature(EVERY[name].__init__).parameters)[1:]


def full(scheduler) -> dict:
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


def sigmas_of(levels, flow: bool = False) -> list[float]:
    return [float(level.sigma) if flow else float(level.sigma) / float(level.alpha) for level in levels]


@pytest.mark.parametrize("name", sorted(EVERY))
def test_every_field_of_every_scheduler_is_known_or_the_scheduler_refused(name):
    if name in SCHEDULERS:
        assert [field for field in fields(name) if not is_known(field)] == []
        read_scheduler({"_class_name": name})
    else:
        with pytest.raises(InputError, match=name):
            NoiseSchedule.from_config({"_class_name": name})
        with pytest.raises(InputError, match=name):
            SolverScheduler.from_config({"_class_name": name, "num_train_timesteps": 1000})


def test_the_tables_of_fields_do_not_overlap_and_name_real_fields():
    assert (
        not (HONOURED & HARMLESS.keys()) and not (HONOURED & REFUSED.keys()) and not (HARMLESS.keys() & REFUSED.keys())
    )
    assert set(SCHEDULERS) <= set(EVERY)
    assert set(OWN) == {"SolverScheduler", "DPMSolverV3Scheduler", "GHVBScheduler", "USFScheduler"}
    assert issubclass(USFScheduler, SolverScheduler)


WRONG = [
    (DDIMScheduler, "clip_sample", True),
    (DDIMScheduler, "thresholding", True),
    (DPMSolverMultistepScheduler, "lambda_min_clipped", -5.1),
    (DPMSolverMultistepScheduler, "variance_type", "learned_range"),
    (EulerDiscreteScheduler, "timestep_type", "continuous"),
    (EulerDiscreteScheduler, "interpolation_type", "log_linear"),
    (EulerDiscreteScheduler, "prediction_type", "trigflow"),
    (FlowMatchEulerDiscreteScheduler, "invert_sigmas", True),
    (FlowMatchEulerDiscreteScheduler, "stochastic_sampling", True),
    (DDIMScheduler, "latents_mean", [0.1, 0.2]),
    (DDIMScheduler, "latents_std", [1.0, 2.0]),
    (DDIMScheduler, "newest_option", 0.5),
]


@pytest.mark.parametrize(("cls", "field", "value"), WRONG)
def test_what_cannot_be_followed_is_refused_by_name(cls, field, value):
    config = {"_class_name": cls.__name__, **BETAS, field: value}
    for read in (NoiseSchedule.from_config, SolverScheduler.from_config):
        with pytest.raises(InputError, match=rf"{field}=.*scheduler_config\.json"):
            read(config)
    with pytest.raises(InputError, match=field):
        SolverScheduler.from_config({"_class_name": cls.__name__}, **{field: value})


def test_left_over_fields_count_for_nothing():
    """SDXL's config still says how DDIM would end; its Euler scheduler ends without noise."""
    config = {"_class_name": "EulerDiscreteScheduler", **BETAS, "set_alpha_to_one": False, "clip_sample": True}
    assert NoiseSchedule.from_config(config).grid(4)[-1].sigma == 0
    assert (
        NoiseSchedule.from_config({**config, "_class_name": "PNDMScheduler", "clip_sample": False}).grid(4)[-1].index
        == 0
    )


CHOICES = [
    (name, option, spacing)
    for name in SCHEDULERS
    for option in ("", *SIGMA_OPTIONS)
    for spacing in ("trailing", "leading", "linspace")
    if hasattr(EVERY[name], "sigmas") or "sigma" in str(fields(name)) or "Ancestral" in name
    if not name.startswith("FlowMatch") and (not option or option in fields(name))
]


@pytest.mark.parametrize(("name", "option", "spacing"), CHOICES)
def test_grids_are_those_of_the_scheduler(name, option, spacing):
    """Noise levels of every scheduler that tells its own, and of ours in its place."""
    options = {option: True} if option else {}
    if "timestep_spacing" in fields(name):
        options["timestep_spacing"] = spacing
    theirs = EVERY[name](**BETAS, **options)
    theirs.set_timesteps(6)
    wanted = theirs.sigmas.double().numpy()
    if theirs.order == 2 and len(wanted) > 7:  # a level is listed twice, or with the point half way to the next
        wanted = np.r_[wanted[:1], wanted[1:12:2]]
    np.testing.assert_allclose(sigmas_of(NoiseSchedule.from_config(full(theirs)).grid(6)), wanted, rtol=2e-3, atol=1e-6)
    ours = SolverScheduler.from_config(theirs.config, solver="dpm++")
    ours.set_timesteps(6)
    np.testing.assert_allclose(ours.sigmas.numpy(), wanted, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("name", [n for n in SCHEDULERS if n.startswith(("DD", "PNDM", "LCM", "TCD", "Cog"))])
def test_times_are_those_of_the_scheduler(name, spacing):
    options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    theirs = EVERY[name](**BETAS, timestep_spacing=spacing, steps_offset=1, **options)
    theirs.set_timesteps(7)
    wanted = list(dict.fromkeys(theirs.timesteps.tolist()))  # PNDM asks twice at its second time
    config = {**full(theirs), "clip_sample": False}
    levels = NoiseSchedule.from_config(config).grid(7)
    assert [level.model_time for level in levels[:-1]] == wanted
    final = getattr(theirs, "final_alpha_cumprod", torch.ones(()))
    assert float(levels[-1].alpha) ** 2 == pytest.approx(float(final), rel=1e-5)
    ours = SolverScheduler.from_config(config)
    ours.set_timesteps(7)
    assert ours.timesteps.tolist() == wanted


@pytest.mark.parametrize("name", [n for n in SCHEDULERS if n.startswith("FlowMatch")])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shift_terminal": 0.12},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True, "shift_terminal": 0.05},
        {"use_beta_sigmas": True},
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    ],
    ids=str,
)
def test_flow_grids_are_those_of_the_scheduler(name, options):
    if not set(options) <= set(fields(name)):
        return
    theirs = EVERY[name](shift=2.5, **options)
    calls = [{"num_inference_steps": 6}]
    calls += [{"sigmas": [1.0, 0.8, 0.55, 0.2]}] if "Heun" not in name else []
    for call in calls:
        call |= {"mu": 0.7} if "use_dynamic_shifting" in options else {}
        theirs.set_timesteps(**call)
        wanted = theirs.sigmas.numpy()
        wanted = np.r_[wanted[:1], wanted[1::2]] if "Heun" in name else wanted
        ours = SolverScheduler.from_config(full(theirs))
        ours.set_timesteps(**call)
        np.testing.assert_allclose(ours.sigmas.numpy(), wanted, rtol=1e-5, atol=1e-6)
    if "mu" not in call:
        theirs.set_timesteps(6)
        levels = NoiseSchedule.from_config(full(theirs)).grid(6)
        np.testing.assert_allclose(
            [level.model_time for level in levels[:-1]], theirs.timesteps.unique().flip(0), rtol=1e-5
        )


FLOWS = [n for n in SCHEDULERS if "use_flow_sigmas" in fields(n)]


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flows_of_schedulers_of_diffusion(name, shift):
    theirs = EVERY[name](use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift)
    if SCHEDULERS[name].end == "index0":  # these stop short of the picture
        with pytest.raises(InputError, match=f"use_flow_sigmas.*{name}"):
            NoiseSchedule.from_config(full(theirs))
        return
    theirs.set_timesteps(6)
    for config in (full(theirs), dict(theirs.config)):  # with and without the name of the class
        ours = SolverScheduler.from_config(config)
        ours.set_timesteps(6)
        np.testing.assert_allclose(ours.sigmas.numpy(), theirs.sigmas.numpy(), rtol=1e-5, atol=2e-6)
        assert ours.config["prediction_type"] == "flow_prediction"


@pytest.mark.parametrize(
    "options",
    [
        {"prediction_type": "epsilon"},
        {"prediction_type": "flow_prediction", "use_karras_sigmas": True},
        {"prediction_type": "flow_prediction", "final_sigmas_type": "sigma_min"},
    ],
    ids=str,
)
def test_flows_that_contradict_themselves_are_refused(options):
    config = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, **options}
    with pytest.raises(InputError, match="use_flow_sigmas with"):
        NoiseSchedule.from_config(config)
    with pytest.raises(InputError, match="needs use_flow_sigmas=True"):
        NoiseSchedule.from_config({**config, "use_flow_sigmas": False, "prediction_type": "flow_prediction"})


def test_ends_of_the_sigmas_may_be_given():
    for theirs in (
        EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True, sigma_min=0.05, sigma_max=9.0),
        EulerDiscreteScheduler(**BETAS, use_exponential_sigmas=True, sigma_min=0.05, final_sigmas_type="sigma_min"),
        UniPCMultistepScheduler(**BETAS, use_beta_sigmas=True, sigma_max=9.0, final_sigmas_type="sigma_min"),
        DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True, final_sigmas_type="sigma_min"),
        DPMSolverMultistepScheduler(**BETAS, timestep_spacing="leading", final_sigmas_type="sigma_min"),
    ):
        theirs.set_timesteps(5)
        levels = NoiseSchedule.from_config(full(theirs)).grid(5)
        np.testing.assert_allclose(sigmas_of(levels), theirs.sigmas, rtol=2e-3)


def test_a_spacing_that_is_asked_for_wins():
    config = full(DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True))
    plain = full(DDIMScheduler(**BETAS, clip_sample=False))
    schedule, other = NoiseSchedule.from_config(config), NoiseSchedule.from_config(plain)
    for spacing in ("trailing", "karras", "logsnr"):
        assert [lv.index for lv in schedule.grid(5, spacing)] == [lv.index for lv in other.grid(5, spacing)]


def test_a_config_of_ours_keeps_what_it_replaced(tmp_path):
    theirs = UniPCMultistepScheduler(**BETAS, use_karras_sigmas=True, sigma_min=0.07, final_sigmas_type="sigma_min")
    ours = SolverScheduler.from_config(full(theirs), solver="ddim")
    ours.save_pretrained(tmp_path)
    for again in (SolverScheduler.from_pretrained(tmp_path), SolverScheduler.from_config(ours.config)):
        again.set_timesteps(5)
        ours.set_timesteps(5)
        theirs.set_timesteps(5)
        assert torch.equal(again.sigmas, ours.sigmas)
        np.testing.assert_allclose(again.sigmas, theirs.sigmas, rtol=2e-3)
        assert again.config["solver"] == "ddim"
        assert read_scheduler(again.config) == read_scheduler(ours.config)
    plain = SolverScheduler.from_config(ours.config, use_karras_sigmas=False, set_alpha_to_one=True)
    plain.set_timesteps(5)
    assert float(plain.sigmas[-1]) == 0
    assert (plain.timesteps == plain.timesteps.round()).all() and ours.timesteps.dtype == torch.float32
    back = UniPCMultistepScheduler.from_config(ours.config)
    assert back.config.sigma_min == 0.07 and back.config.solver_order == 2


def test_untouched_defaults_are_those_of_the_class_replaced():
    theirs = LCMScheduler()  # its betas are not ours
    ours = SolverScheduler.from_config(theirs.config)
    torch.testing.assert_close(
        ours.noise_schedule.at_index(500).alpha ** 2, float(theirs.alphas_cumprod[500]), rtol=1e-4, atol=0
    )
    theirs.set_timesteps(4)
    ours.set_timesteps(4)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    with pytest.raises(InputError, match="steps=51 must not exceed the 50"):
        ours.set_timesteps(51)
