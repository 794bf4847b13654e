"""A prior of pixels: exact pooling, files, refusals, and the training that makes one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from unproject.core.priors import load_prior
from unproject.core.priors.pixels import PixelPrior
from unproject.core.sampling.denoiser import Denoiser
from unproject.core.training.objectives.diffusion import DiffusionConfig, NoiseLossConfig
from unproject.core.training.objectives.pixels import PixelBatches, PixelConfig, PixelObjective
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

NETWORK = DiffusionConfig(
    widths=(8, 8, 8), heads=(2, 2, 2), norm_groups=4, latent_size=8, latent_channels=3, text_width=32,
    noise=NoiseLossConfig(validation_samples=4, preview_prompts=("a dog", "a cat"), preview_steps=2),
)  # fmt: skip
CONFIG = PixelConfig(factor=2, network=NETWORK)


def made(folder, name: str = "") -> PixelPrior:
    objective = PixelObjective(CONFIG, load_prior(folder))
    return PixelPrior(objective.base, objective.unet.eval(), 2, name)


def test_pixels_are_means_and_come_back(tiny_folders):
    prior = made(tiny_folders["toybox"])
    images = torch.rand(2, 3, 16, 16, generator=generator(0)).requires_grad_()
    x = prior.encode(images)
    assert x.shape == (2, *prior.latent_shape) and prior.image_size == 16
    window = images.detach()[0, 1, 4:6, 6:8]
    assert float(x.detach()[0, 1, 2, 3]) == pytest.approx(float(2 * window.mean() - 1), abs=1e-6)
    torch.testing.assert_close(prior.encode(prior.decode(x)), x)
    x.sum().backward()
    torch.testing.assert_close(images.grad, torch.full_like(images, 0.5))
    assert "vae" not in prior.modules() and {"unet", "text_encoder"} <= set(prior.modules())


def test_it_is_saved_with_its_base_and_loaded_by_folder(tiny_folders, tmp_path):
    prior = made(tiny_folders["toybox"])
    other = load_prior(prior.save(tmp_path / "pixels"))
    assert isinstance(other, PixelPrior) and other.name == "pixels" and other.vocabulary == prior.vocabulary
    x, condition = torch.randn(2, 3, 8, 8, generator=generator(1)), prior.encode_text(["a dog", "a cat"])
    level = Denoiser(prior, condition).schedule.at_index(600.0)
    with torch.no_grad():
        for one in (prior, other):
            answer = Denoiser(one, one.encode_text(["a dog", "a cat"]), 3.0)(x, level).x0
            torch.testing.assert_close(answer, Denoiser(prior, condition, 3.0)(x, level).x0)
    (tmp_path / "pixels" / "pixels.json").write_text(json.dumps({"base": 3}))
    with pytest.raises(InputError, match=r"pixels\.json must say"):
        load_prior(tmp_path / "pixels")


def test_networks_of_latents_are_refused(tiny_folders):
    base = load_prior(tiny_folders["toybox"])
    with pytest.raises(InputError, match="factor of at least 1 and 3 channels"):
        PixelPrior(base, base.pipe.unet, 2)
    assert isinstance(base.pipe.unet, UNet2DConditionModel) and base.latent_shape[0] == 4
    with pytest.raises(InputError, match="text_width=16, but"):
        PixelObjective(replace(CONFIG, network=replace(NETWORK, text_width=16)), base)


class Pictures:
    """Four pictures with texts."""

    identity: dict = {}

    def __len__(self) -> int:
        return 4

    def images(self, indices):
        return np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)[indices]

    def captions(self, indices, rng=None):
        return ["a dog"] * len(indices)


def test_training_teaches_the_network_alone(tiny_folders, tmp_path):
    base = load_prior(tiny_folders["toybox"])
    batches = PixelBatches(Pictures())
    objective = PixelObjective(CONFIG, base, batches)
    batch = batches.batch(np.arange(4), np.random.default_rng(0))
    values = [float(objective.loss(batch, generator(3), step).loss.detach()) for step in (0, 9)]
    assert values[0] == values[1], "the same draws give the same loss"
    before = {name: value.clone() for name, value in base.pipe.text_encoder.state_dict().items()}
    adam = torch.optim.Adam(objective.unet.parameters(), lr=1e-2)
    first = objective.validate()["eps_mse"]
    for step in range(25):
        adam.zero_grad()
        objective.loss(batch, generator(step), step).loss.backward()
        adam.step()
    assert objective.validate()["eps_mse"] < 0.9 * first
    assert all(torch.equal(value, before[name]) for name, value in base.pipe.text_encoder.state_dict().items())
    assert objective.preview(7, tmp_path)[0].is_file()
    loaded = load_prior(objective.save(tmp_path / "made", str(tiny_folders["toybox"])))
    assert isinstance(loaded, PixelPrior) and loaded.vae_factor == 2
