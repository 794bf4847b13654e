"""The text-to-image pipeline: stock parity, batches, seeds, callbacks, warnings and messages."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from unproject.core.priors import GaussianMixturePrior, inflate
from unproject.core.sampling import DDIM
from unproject.core.sampling.init import FixedNoiseInit, ImageInit, NoiseInit
from unproject.core.sampling.solvers.edict import EDICT
from unproject.pipelines.text_to_image import TextToImage
from unproject.utils.errors import InputError, UnprojectError


@pytest.fixture(scope="module")
def pipe(tiny_folders):
    return TextToImage.from_pretrained(tiny_folders["toybox"], quality="native")


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_images_equal_the_stock_pipeline(tiny_folders, pipe):
    stock = StableDiffusionPipeline.from_pretrained(tiny_folders["toybox"], safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 5, "guidance_scale": 4.0, "output_type": "np"}
    prompts = ["a red chair", "a blue dog"]
    for make in (lambda: generators(1, 2), lambda: generators(3)[0]):
        theirs = stock(prompts, generator=make(), **settings).images
        np.testing.assert_allclose(pipe(prompts, generator=make(), **settings).images, theirs, atol=1e-4)


@pytest.mark.parametrize("solver", ["ddim", "unipc"])
def test_a_batch_equals_its_images_one_by_one(pipe, solver):
    settings = {"num_inference_steps": 4, "output_type": "pt", "solver": solver}
    batch = pipe("a red chair", num_images_per_prompt=4, seed=10, **settings)
    assert batch.seeds == [10, 11, 12, 13]
    chunked = pipe("a red chair", num_images_per_prompt=4, seed=10, batch_size=3, **settings)
    torch.testing.assert_close(chunked.latents, batch.latents, rtol=1e-4, atol=1e-4)
    for i, seed in enumerate(batch.seeds):
        alone = pipe("a red chair", seed=seed, **settings)
        torch.testing.assert_close(alone.images[0], batch.images[i], rtol=1e-4, atol=1e-4)


def test_stochastic_batches_too(pipe):
    settings = {"num_inference_steps": 4, "eta": 1.0, "output_type": "latent"}
    batch = pipe("a dog", num_images_per_prompt=3, seed=0, **settings).images
    torch.testing.assert_close(pipe("a dog", seed=2, **settings).images[0], batch[2], rtol=1e-4, atol=1e-4)


def test_a_start_is_made_once_for_all_parts(pipe):
    calls, levels_seen = [], []

    class Counted(ImageInit):
        def __call__(self, noise, levels):
            calls.append(len(noise))
            levels_seen.append(len(levels))
            return super().__call__(noise, levels)

    image = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    settings = {"num_images_per_prompt": 3, "seed": 1, "num_inference_steps": 4, "output_type": "latent"}
    parts = pipe("a dog", init=Counted(image, 0.5), batch_size=2, **settings).latents
    assert (calls, levels_seen) == ([3], [5])
    torch.testing.assert_close(parts, pipe("a dog", init=ImageInit(image, 0.5), **settings).latents)
    assert torch.equal(pipe("a dog", init=ImageInit(image, 0.0), batch_size=2, **settings).latents, image)


def test_same_seed_same_image_and_fresh_seeds_are_reported(pipe):
    first = pipe("a dog", num_inference_steps=2, output_type="latent")
    again = pipe("a dog", num_inference_steps=2, output_type="latent", seed=first.seeds[0])
    assert torch.equal(first.images, again.images)


def test_output_types_and_cost(pipe):
    settings = {"num_inference_steps": 2, "seed": 0}
    picture = pipe("a dog", **settings)
    assert picture.images[0].size == (32, 32)
    assert picture.nfe == 4
    assert pipe("a dog", guidance_scale=1.0, **settings).nfe == 2
    assert pipe("a dog", solver="heun", **settings).nfe == 6
    array = pipe("a dog", output_type="np", **settings).images
    assert array.shape == (1, 32, 32, 3)
    assert 0 <= array.min() <= array.max() <= 1
    assert pipe("a dog", output_type="pt", **settings).images.shape == (1, 3, 32, 32)
    assert pipe("a dog", output_type="latent", height=16, width=48, **settings).images.shape == (1, 4, 4, 12)
    (images,) = pipe("a dog", return_dict=False, **settings)
    assert np.array_equal(np.asarray(images[0]), np.asarray(picture.images[0]))


def test_callback_sees_and_changes_latents(pipe):
    seen = []

    def keep(owner, step, timestep, tensors):
        seen.append((step, timestep))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else None

    out = pipe("a dog", num_inference_steps=4, seed=0, output_type="latent", callback_on_step_end=keep)
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert [time for _, time in seen] == [751, 501, 251, 1]
    assert out.images.abs().max() == 0


def test_given_latents_are_used(pipe):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    drawn = pipe("a dog", num_inference_steps=2, seed=6, output_type="latent").images
    given = pipe("a dog", num_inference_steps=2, latents=latents, output_type="latent").images
    torch.testing.assert_close(given, drawn)


def test_save_and_load(pipe, tmp_path):
    again = TextToImage.from_pretrained(pipe.save_pretrained(tmp_path / "saved"), quality="native")
    settings = {"num_inference_steps": 2, "seed": 0, "output_type": "latent"}
    assert torch.equal(again("a dog", **settings).images, pipe("a dog", **settings).images)


def test_multiview_prior_draws_all_views(tiny_folders, make_unet, tmp_path):
    (tmp_path / "base").symlink_to(tiny_folders["toybox"])
    inflate(make_unet()).save(tmp_path / "mv", base="base")
    pipe = TextToImage.from_pretrained(tmp_path / "mv")
    out = pipe(["a dog", "a chair"], cameras=torch.ones(4, 16), num_inference_steps=2, seed=0, batch_size=5)
    assert len(out.images) == 8
    assert out.nfe == 2 * 2 * 8


def test_a_known_vocabulary_is_silent(pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe("A red chair!", num_inference_steps=1, seed=0)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("a red wagn", r"'wagn' \(did you mean wagon\?\).*--prior sd15"),
        ("a 🐉", "'🐉'"),
        ("a dog " * 1600, "longer than.*ignored"),
    ],
)
def test_what_the_prior_cannot_see_is_named(pipe, prompt, message):
    with pytest.warns(UserWarning, match=message):
        pipe(prompt, num_inference_steps=1, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "non-empty"),
        ({"prompt": 3}, "prompt=3"),
        ({"num_inference_steps": 0}, "steps=0"),
        ({"num_inference_steps": 2000}, "steps=2000"),
        ({"guidance_scale": float("nan")}, "guidance=nan"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt=0"),
        ({"height": 30}, "height=30.*multiple of 4"),
        ({"width": -4}, "width=-4"),
        ({"width": 0}, "width=0"),
        ({"height": 10**6, "width": 10**6}, "exceeds"),
        ({"solver": "rk45"}, "'rk45'.*ddim"),
        ({"spacing": "odd"}, "spacing='odd'"),
        ({"output_type": "gif"}, "'gif'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1, "generator": torch.Generator()}, "not both"),
        ({"generator": [torch.Generator()] * 3}, "3 generators for 1"),
        ({"negative_prompt": ["a", "b", "c"]}, "3 negative prompts for 1"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, "latents have shape"),
    ],
)
def test_bad_arguments_are_named(pipe, arguments, message):
    with pytest.raises(InputError, match=message):
        pipe(**{"prompt": "a dog", **arguments})


def test_the_oracle_lands_on_its_component():
    means = torch.stack([torch.full((3, 4, 4), -0.5), torch.full((3, 4, 4), 0.5)])
    prior = GaussianMixturePrior(means, torch.tensor([0.01, 0.01]), names=("dark", "light"))
    images = TextToImage(prior)(["dark", "light"], seed=0, guidance_scale=1.0, output_type="pt").images
    torch.testing.assert_close(images[0].mean(), torch.tensor(0.25).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(images[1].mean(), torch.tensor(0.75).double(), atol=0.02, rtol=0)


def test_broken_networks_do_not_pass_as_images():
    prior = GaussianMixturePrior(torch.full((1, 3, 4, 4), float("nan")), torch.tensor([0.1]))
    with pytest.raises(UnprojectError, match="not finite"):
        TextToImage(prior)("x", seed=0, num_inference_steps=2, guidance_scale=1.0)


def test_starts_caches_and_remaps_reach_the_loop(pipe):
    settings = {"num_inference_steps": 10, "output_type": "latent", "seed": 3}
    plain = pipe("a red chair", **settings)
    for nothing in ({"cache": "deep:1"}, {"cache": "none"}, {"init": NoiseInit()}, {"time_remap": lambda time: time}):
        assert torch.equal(pipe("a red chair", **settings, **nothing).latents, plain.latents)
    fixed = pipe("a red chair", num_images_per_prompt=2, init=FixedNoiseInit(torch.zeros(4, 16, 16)), **settings)
    torch.testing.assert_close(fixed.latents[0], fixed.latents[1])
    assert pipe("a red chair", init=ImageInit(plain.latents, 0.5), **settings).nfe == plain.nfe // 2
    assert not torch.equal(pipe("a red chair", cache="deep:3", **settings).latents, plain.latents)
    assert torch.equal(pipe("a red chair", **settings).latents, plain.latents)  # the cache is gone
    with pytest.raises(InputError, match="invert"):
        pipe("a red chair", solver=EDICT(), cache="deep:3", **settings)


def test_a_solver_may_be_an_object(pipe):
    settings = {"num_inference_steps": 4, "output_type": "latent", "seed": 3}
    named, given = (pipe("a dog", solver=solver, **settings).latents for solver in ("ddim", DDIM()))
    assert torch.equal(named, given)
