"""Every entry of the registry takes the noise levels that its stock pipeline takes, tried with tiny weights."""

from __future__ import annotations

import json

import diffusers
import numpy as np
import pytest
import torch

from unproject.core.priors import load_prior
from unproject.core.priors.registry import registry
from unproject.core.sampling import NoiseSchedule
from unproject.utils.errors import InputError

SD = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
PNDM = {"_class_name": "PNDMScheduler", **SD}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
DYNAMIC = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15}
PUBLISHED = {  # tiny weights of the family, and the scheduler config that the repository holds
    "sd15": ("sd", PNDM),
    "sd21-base": ("sd", {**PNDM, "prediction_type": "epsilon"}),
    "sd21": ("sd-v", {"_class_name": "DDIMScheduler", **SD, "prediction_type": "v_prediction"}),
    "sdxl": (
        "sdxl",
        {
            "_class_name": "EulerDiscreteScheduler",
            **SD,
            "interpolation_type": "linear",
            "prediction_type": "epsilon",
            "sample_max_value": 1.0,
            "timestep_spacing": "leading",
            "use_karras_sigmas": False,
        },
    ),
    "sd3": ("sd3", {**FLOW, "shift": 3.0}),
    "sd35-medium": ("sd3", {**FLOW, "shift": 3.0}),
    "flux-dev": ("flux", {**FLOW, **DYNAMIC, "shift": 3.0, "use_dynamic_shifting": True}),
    "flux-schnell": ("flux", {**FLOW, **DYNAMIC, "shift": 1.0, "use_dynamic_shifting": False}),
}
PARTS = dict.fromkeys(("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"))


@pytest.fixture
def published(tiny_folders, tmp_path, request):
    """A tiny folder of the family with the scheduler of the entry."""
    family, config = PUBLISHED[request.param]
    folder = tmp_path / request.param
    folder.mkdir()
    for part in tiny_folders[family].iterdir():
        if part.name not in ("scheduler", "model_index.json"):
            (folder / part.name).symlink_to(part)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((tiny_folders[family] / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", config["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))
    return request.param, folder, index["_class_name"]


def asked(pipe, steps: int) -> list[float]:
    """The times that a stock pipeline asks its network at."""
    network, times = getattr(pipe, "unet", None) or pipe.transformer, []
    scale = 1000 if isinstance(pipe, diffusers.FluxPipeline) else 1

    def note(module, args, kwargs):
        times.append(
            scale * float(torch.as_tensor(kwargs.get("timestep", args[1] if len(args) > 1 else 0)).flatten()[0])
        )

    handle = network.register_forward_pre_hook(note, with_kwargs=True)
    pipe.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(0)
    pipe("a red chair", num_inference_steps=steps, height=32, width=32, output_type="latent", generator=rng)
    handle.remove()
    return times


@pytest.mark.parametrize("published", list(PUBLISHED), indirect=True)
def test_an_entry_takes_the_levels_of_its_stock_pipeline(published):
    name, folder, family = published
    entry = registry()[name]
    options = PARTS if family == "StableDiffusion3Pipeline" else {}
    options = {"safety_checker": None} if family == "StableDiffusionPipeline" else options
    stock = getattr(diffusers, family).from_pretrained(folder, **options)
    wanted = asked(stock, 4)
    prior = load_prior(folder)
    assert prior.prediction_type == entry.prediction_type
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    tokens = prior.tokens(torch.empty(1, prior.latent_shape[0], 8, 8))
    levels = schedule.grid(4, entry.recommended.spacing, tokens=tokens)
    np.testing.assert_allclose([lv.model_time for lv in levels[:-1]], list(dict.fromkeys(wanted)), rtol=1e-5)
    kept = 1 - getattr(stock.scheduler, "final_alpha_cumprod", torch.ones(()))
    assert levels[-1].sigma == pytest.approx(float(kept) ** 0.5, rel=1e-4)
    assert len({round(level.model_time, 6) for level in levels}) == 5  # no call is spent where one was made


def test_every_entry_is_tried():
    assert PUBLISHED.keys() == {name for name, entry in registry().items() if entry.base is None}
    assert {entry.base for entry in registry().values()} - {None} <= PUBLISHED.keys()
    halves = {name: entry.half for name, entry in registry().items() if entry.half != "float16"}
    assert halves == dict.fromkeys(("sd35-medium", "flux-dev", "flux-schnell"), "bfloat16")


@pytest.mark.parametrize("published", ["sd15"], indirect=True)
def test_a_folder_with_an_edm_scheduler_is_refused_by_its_name(published):
    _, folder, _ = published
    config = {"_class_name": "EDMEulerScheduler", "sigma_min": 0.01, "sigma_max": 50.0, "prediction_type": "epsilon"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "EDMEulerScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="EDMEulerScheduler is not supported"):
        load_prior(folder)
