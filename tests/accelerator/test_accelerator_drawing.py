"""Pictures, edits, calibrations and heads on an accelerator: nothing on the wrong device, no float64, finite in half
precision, and in float32 what the CPU makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from unproject.bench.backbone_verbs import VERBS
from unproject.core.priors.diffusers import DiffusersPrior
from unproject.core.priors.replay import replay
from unproject.core.sampling import ClassifierFree, RestoreConfig
from unproject.core.sampling.dpm_v3_statistics import ModelStatistics
from unproject.core.sampling.noiseshift import RemapSearch
from unproject.core.sampling.q_sched import Coefficients, RescaledSolver
from unproject.core.sampling.solvers import DDIM
from unproject.pipelines import EditImage, RestoreImage, TextToImage
from unproject.pipelines.calibrations import (
    Sizes,
    choose_boundary,
    fit_gaussian,
    fit_time_remap,
    measure_statistics,
    search_solver,
)
from unproject.pipelines.image_to_geometry import ImageToGeometry
from unproject.tasks.geometry_head import GeometryHead, HeadConfig
from unproject.utils.seeds import generator

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HALF = torch.float16
SOLVERS = ("dpm++", "dpm++3m", "unipc", "euler", "heun", "ghvb:2,0.5", "hb:dpm++,0.9", "edict")
PICTURE = np.random.default_rng(0).random((32, 32, 3), np.float32)
SIZES = Sizes(guidance=1.0, size=32, steps=2, batch=2)


def drawn(prior: Any, prompt: Any = "a red chair", **settings: Any) -> Any:
    asked = {"num_inference_steps": 2, "seed": 0, "output_type": "np", **settings}
    return TextToImage(prior)(prompt, height=32, width=32, **asked)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux"])
def test_every_family_draws(prior_on: Any, device: torch.device, family: str) -> None:
    wanted = drawn(prior_on(family), negative_prompt="a dog").latents
    for dtype in DTYPES:
        made = drawn(prior_on(family, device, dtype), negative_prompt="a dog")
        assert made.latents.device.type == device.type and made.latents.dtype == torch.float32
        assert np.isfinite(made.images).all() and made.images.shape == (1, 32, 32, 3)
        apart = (made.latents.cpu() - wanted).abs().mean() / wanted.abs().mean()
        assert float(apart) < {torch.float32: 1e-4, HALF: 0.02, torch.bfloat16: 0.1}[dtype]


def test_views_are_drawn_together(prior_on: Any, device: torch.device) -> None:
    cameras = torch.randn(4, 16, generator=generator(0))
    made = drawn(prior_on("mv", device, HALF), cameras=cameras)
    assert made.images.shape == (4, 32, 32, 3) and np.isfinite(made.images).all()


def test_every_solver_runs(prior_on: Any, device: torch.device) -> None:
    prior = prior_on("sd15", device, HALF)
    for solver in SOLVERS:
        made = drawn(prior, solver=solver, num_inference_steps=3, guidance_scale=1.0, output_type="latent")
        assert bool(made.latents.isfinite().all()), solver


def test_randomness_of_a_solver_is_that_of_the_cpu(prior_on: Any, device: torch.device) -> None:
    made = drawn(prior_on("sd15", device), solver="ddim", eta=1.0, num_images_per_prompt=2, batch_size=1)
    wanted = drawn(prior_on("sd15"), solver="ddim", eta=1.0, num_images_per_prompt=2)
    torch.testing.assert_close(made.latents.cpu(), wanted.latents, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "cache"),
    [("sdxl", "deep:3,0,centred"), ("sd15", "inherit:2,unit"), ("sd3", "regions:0.5"), ("flux", "regions:0.5")],
)
def test_every_cache_runs(prior_on: Any, device: torch.device, family: str, cache: str) -> None:
    asked = {"cache": cache, "num_inference_steps": 8, "guidance_scale": 1.0, "output_type": "latent"}
    assert bool(drawn(prior_on(family, device, HALF), **asked).latents.isfinite().all())


@pytest.mark.parametrize(("family", "control"), [("sd15", "focus:1"), ("sd3", "attend-and-excite:1")])
def test_controls_run(prior_on: Any, device: torch.device, family: str, control: str) -> None:
    prior = prior_on(family, device, HALF)
    made = drawn(prior, "a red chair and a blue dog", control=control, subjects=("red chair", "blue dog"))
    assert np.isfinite(made.images).all()


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_pictures_steer(prior_on: Any, device: torch.device, family: str) -> None:
    for dtype in (HALF, torch.bfloat16):
        VERBS["--control-image"](prior_on(family, device, dtype))


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_recorded_calls_draw_the_same(prior_on: Any, device: torch.device, family: str) -> None:
    """On CUDA they are recorded, and replayed for the other pictures; elsewhere every call is computed."""
    prior = prior_on(family, device, HALF)
    wanted = [drawn(prior, seed=seed, num_inference_steps=4).latents for seed in range(2)]
    forward = replay(prior.network)
    for seed, latents in enumerate(wanted):
        torch.testing.assert_close(drawn(prior, seed=seed, num_inference_steps=4).latents, latents, rtol=0, atol=1e-3)
    assert (len(forward.recorded) == 1 and not forward.off) == (device.type == "cuda")


@pytest.mark.parametrize("start", ["noise", "zeros"])
def test_a_head_of_few_steps(prior_on: Any, device: torch.device, start: str) -> None:
    """Its noise between the steps is drawn on the CPU, for every device the same."""
    few = {"steps": 3, "solver": "lcm", "spacing": None} if start == "noise" else {}
    config = HeadConfig(start=start, processing_resolution=32, **few)
    head = GeometryHead.from_prior(prior_on("sd15"), config)
    wanted = ImageToGeometry(head)(PICTURE, seed=0)
    made = ImageToGeometry(head.to(device, torch.float32))(PICTURE, seed=0)
    for name, output in made.maps.items():
        assert float(np.abs(output.prediction - wanted.maps[name].prediction).mean()) < 1e-3


def test_guidance_in_an_interval_and_with_rescaling(prior_on: Any, device: torch.device) -> None:
    guidance = ClassifierFree(3.0, rescale=0.5, interval=(0.2, 0.8))
    assert np.isfinite(drawn(prior_on("sd21", device, HALF), guidance=guidance, num_inference_steps=4).images).all()


def test_a_second_model_and_scaled_steps(prior_on: Any, device: torch.device) -> None:
    one, two = prior_on("sd15", device, HALF), prior_on("sd21", device, HALF)
    two.scheduler_config = one.scheduler_config
    assert np.isfinite(drawn(one, model_schedule=(two, 0.5)).images).all()
    solver = RescaledSolver(DDIM(), Coefficients.profile(2, 0.9, 1.1))
    assert np.isfinite(drawn(one, solver=solver).images).all()


def test_calibrations_are_measured_and_used(prior_on: Any, device: torch.device) -> None:
    prior = prior_on("sd15", device, torch.bfloat16)
    pipe, prompts = TextToImage(prior), ["a red chair", "a dog"]
    statistics: ModelStatistics = measure_statistics(pipe, prompts, SIZES, cells=3, derivative="difference")
    gaussian = fit_gaussian(pipe, prompts, SIZES)
    remap = fit_time_remap(pipe, prompts, SIZES, RemapSearch(levels=2, cells=(0.2,)))
    noise, _ = choose_boundary(pipe, prompts, SIZES, "ddim", 2, count=2)
    settings = {"solver": "dpm-v3:2", "statistics": statistics, "num_inference_steps": 3, "time_remap": remap}
    assert np.isfinite(drawn(prior, **settings, guidance_scale=2.0).images).all()
    assert np.isfinite(drawn(prior, gaussian=gaussian, teleport=0.3, num_inference_steps=4).images).all()
    assert np.isfinite(drawn(prior, boundary=noise, solver="ddim").images).all()


def test_a_solver_is_searched(prior_on: Any, device: torch.device) -> None:
    pipe = TextToImage(prior_on("sd15", device, HALF))
    found = search_solver(pipe, ["a dog"], SIZES, nfe=1, budget=20, reference_steps=2)
    assert np.isfinite(found.fixed_score)


def test_an_edit(prior_on: Any, device: torch.device) -> None:
    made = EditImage(prior_on("sd15", device, HALF))(
        PICTURE, "a chair", "a dog", num_inference_steps=2, output_type="np", generator=generator(0)
    )
    assert np.isfinite(made.images).all()


@pytest.mark.parametrize(
    ("task", "dtype"), [("super-resolution:2", HALF), ("inpaint", torch.bfloat16), ("deblur:1", torch.float32)]
)
def test_restorations(prior_on: Any, device: torch.device, task: str, dtype: torch.dtype) -> None:
    prior = prior_on("sd15", device, dtype)
    more: dict[str, Any] = {"mask": (PICTURE[..., 0] > 0.7).astype(np.float32)} if task == "inpaint" else {}
    config = RestoreConfig(1, guidance=2.0, data_steps=1)
    made = RestoreImage(prior)(PICTURE, task, config=config, seed=0, output_type="np", **more)
    assert np.isfinite(made.images).all()


@pytest.mark.parametrize(("start", "dtype"), [("zeros", HALF), ("noise", torch.bfloat16), ("noise", torch.float32)])
def test_heads_predict(prior_on: Any, device: torch.device, start: str, dtype: torch.dtype) -> None:
    prior: DiffusersPrior = prior_on("sd15")
    config = HeadConfig(start=start, steps=1 if start == "zeros" else 2, processing_resolution=32)
    head = GeometryHead.from_prior(prior, config)
    members = 1 if dtype == torch.float32 else 2  # of two normals the nearest to their mean is a matter of rounding
    wanted = ImageToGeometry(head)(PICTURE, ensemble_size=members, seed=0)
    made = ImageToGeometry(head.to(device, dtype))(PICTURE, ensemble_size=members, seed=0)
    for name, output in made.maps.items():
        assert np.isfinite(output.prediction).all()
        assert members == 1 or np.isfinite(output.uncertainty).all()
        if members == 1:
            assert float(np.abs(output.prediction - wanted.maps[name].prediction).mean()) < 1e-3


def test_a_head_on_tiles(prior_on: Any, device: torch.device) -> None:
    head = GeometryHead.from_prior(prior_on("sd15"), HeadConfig(processing_resolution=32)).to(device, HALF)
    tiled = ImageToGeometry(head)(np.tile(PICTURE, (2, 1, 1)), tiles=2)
    assert all(np.isfinite(output.prediction).all() for output in tiled.maps.values())
