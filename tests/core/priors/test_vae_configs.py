"""Statistics of latents in a VAE config: honoured as the stock pipeline does, or refused by name."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from unproject.core.priors import load_prior
from unproject.core.priors.diffusers import latent_affine
from unproject.utils.errors import InputError

MEAN, STD = [0.3, -0.7, 0.1, 0.9], [1.4, 0.6, 2.2, 0.9]


@pytest.fixture
def normalised(tiny_folders, tmp_path):
    """A tiny SDXL folder whose VAE has means and standard deviations of its latents."""
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_folders["sdxl"])
    pipe.vae.register_to_config(latents_mean=MEAN, latents_std=STD, scaling_factor=0.5)
    pipe.save_pretrained(tmp_path / "normalised")
    return tmp_path / "normalised"


def test_means_and_deviations_are_those_of_the_stock_pipeline(normalised):
    pipe = StableDiffusionXLPipeline.from_pretrained(normalised)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "height": 32, "width": 32, "guidance_scale": 1.0}
    images, latents = (
        pipe("a dog", **options, output_type=kind, generator=torch.Generator().manual_seed(1)).images
        for kind in ("pt", "latent")
    )
    prior = load_prior(normalised)
    torch.testing.assert_close(prior.decode(latents), images, rtol=1e-4, atol=1e-5)
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    mean, std = (torch.tensor(values).reshape(1, 4, 1, 1) for values in (MEAN, STD))
    posterior = prior.pipe.vae.encode(2 * picture - 1).latent_dist.mean
    torch.testing.assert_close(prior.encode(picture), (posterior - mean) / std * 0.5)


@pytest.mark.parametrize("config", [{"scaling_factor": 0.4, "shift_factor": 0.1}, {"scaling_factor": 0.4}])
def test_plain_factors_stay_numbers(config):
    shift, scale = latent_affine(config, torch.zeros(1, 4, 2, 2))
    assert (shift, scale) == (config.get("shift_factor", 0.0), 0.4)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"latents_mean": MEAN}, "latents_mean but no latents_std"),
        ({"latents_std": STD}, "latents_std but no latents_mean"),
        ({"latents_mean": MEAN, "latents_std": STD, "shift_factor": 0.1}, "shift_factor=0.1 and latents_mean"),
        ({"latents_mean": MEAN[:3], "latents_std": STD}, "have 3 and 4 entries for 4 channels"),
    ],
)
def test_contradictions_are_named(config, told):
    with pytest.raises(InputError, match=told):
        latent_affine({"scaling_factor": 0.2, **config}, torch.zeros(1, 4, 2, 2))
