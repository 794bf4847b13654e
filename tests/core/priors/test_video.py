"""Stable Video Diffusion as a prior: the stock pipeline's numbers from our sampler, on random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from unproject.core.priors import from_pipeline, load_prior
from unproject.core.priors.video import MICRO, TOKEN
from unproject.core.sampling import DDIM, Denoiser, Sampler
from unproject.core.sampling.guidance import ClassifierFree, FrameGuidance
from unproject.scripts.random_backbones import tiny_svd, write_folder
from unproject.utils.errors import InputError


@pytest.fixture(scope="module")
def svd():
    return tiny_svd()


@pytest.fixture(scope="module")
def photo():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def as_tensor(photo):
    return torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)[None].float() / 255


def drawn(prior, condition, noise, steps, guidance):
    denoiser = Denoiser(prior, condition, guidance)
    return Sampler(DDIM()).run(denoiser, noise, denoiser.schedule.grid(steps))


def test_our_sampler_draws_what_the_stock_pipeline_draws(svd, photo):
    """fps - 1, unscaled concat, zeroed unconditional branch, ramp of guidance, Karras grid, chunked decoding."""
    noise = torch.randn(1, 4, 4, 12, 16, generator=torch.Generator().manual_seed(5))
    svd.set_progress_bar_config(disable=True)
    stock = svd(
        photo,
        height=24,
        width=32,
        num_inference_steps=3,
        min_guidance_scale=1.2,
        max_guidance_scale=2.9,
        fps=9,
        motion_bucket_id=31,
        noise_aug_strength=0.1,
        decode_chunk_size=3,
        generator=torch.Generator().manual_seed(7),
        latents=noise,
        output_type="pt",
    ).frames[0]
    prior = from_pipeline(svd)
    prior.fps, prior.motion_bucket, prior.decoded_at_once = 9, 31, 3
    condition = prior.encode_picture(as_tensor(photo), torch.Generator().manual_seed(7), cond_aug=0.1)
    latents = drawn(prior, condition, noise[0], 3, FrameGuidance.ramp(1.2, 2.9, 4))
    with torch.no_grad():
        torch.testing.assert_close(prior.decode(latents), stock, rtol=1e-4, atol=1e-4)
        whole = prior.decode(latents.repeat(2, 1, 1, 1))
        prior.decoded_at_once = 4
        assert not torch.allclose(prior.decode(latents), stock, atol=1e-4)  # chunks show
        assert whole.shape == (8, 3, 24, 32)


def test_the_condition_is_what_the_card_says(svd, photo):
    prior = from_pipeline(svd)
    images = as_tensor(photo)
    condition = prior.encode_picture(images.repeat(2, 1, 1, 1), torch.Generator().manual_seed(1), 3, cond_aug=0.0)
    cond, null = condition["cond"], condition["null"]
    assert condition.rows == 6 and condition.frames == 3 and prior.frames == 4
    with torch.no_grad():
        mode = svd.vae.encode(2 * images - 1).latent_dist.mode()
    torch.testing.assert_close(cond["concat"], mode.expand(6, -1, -1, -1))
    assert not null["concat"].any() and not null[TOKEN].any() and torch.equal(null[MICRO], cond[MICRO])
    assert cond[MICRO].unique(dim=0).tolist() == [[6.0, 127.0, 0.0]]
    token = svd._encode_image(photo, "cpu", 1, False)
    torch.testing.assert_close(cond[TOKEN], token.expand(6, -1, -1), rtol=1e-4, atol=1e-5)
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    apart = prior.encode_picture(images.repeat(2, 1, 1, 1), seeds, 1)["cond"]["concat"]
    alone = prior.encode_picture(images, torch.Generator().manual_seed(2), 1)["cond"]["concat"]
    torch.testing.assert_close(apart[1:], alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"31 x 24 px; .* multiples of 2"):
        prior.encode_picture(images[..., :31], torch.Generator())
    with pytest.raises(InputError, match=r"told a picture, not words.*image-to-views"):
        prior.encode_text("a chair")


def test_one_frame_of_weight_one_is_the_conditional_model(svd, photo):
    """(4) and (5) on the real network class."""
    prior = from_pipeline(svd)
    noise = torch.randn(2, 4, 12, 16, generator=torch.Generator().manual_seed(2))
    condition = prior.encode_picture(as_tensor(photo).repeat(2, 1, 1, 1), torch.Generator().manual_seed(0), 1)
    ones, plain = (drawn(prior, condition, noise, 2, g) for g in (FrameGuidance((1.0,)), None))
    assert torch.equal(ones, plain)
    scaled, single = (drawn(prior, condition, noise, 2, g) for g in (FrameGuidance((2.0,)), ClassifierFree(2.0)))
    torch.testing.assert_close(scaled, single, rtol=1e-5, atol=1e-5)


def test_an_orbit_model_is_told_cond_aug_alone_and_its_last_frame_is_the_picture(photo):
    prior = from_pipeline(tiny_svd(1, 5))
    assert prior.orbits and prior.picture_frame == 4 and prior.scales == (1.0, 2.5)
    assert prior.azimuths(5) == pytest.approx([72, 144, 216, 288, 0])
    condition = prior.encode_picture(as_tensor(photo), torch.Generator())
    assert condition["cond"][MICRO].flatten().tolist() == pytest.approx([1e-5] * 5)
    noise = torch.randn(5, 4, 12, 16, generator=torch.Generator().manual_seed(2))
    assert bool(torch.isfinite(drawn(prior, condition, noise, 2, 1.5)).all())
    with pytest.raises(InputError, match="told 64 numbers"):
        from_pipeline(tiny_svd(2))


def test_a_folder_loads_with_its_image_encoder(svd, photo, tmp_path):
    prior = load_prior(write_folder(svd, tmp_path / "svd"))
    assert type(prior).__name__ == "StableVideoPrior" and not prior.orbits and prior.latent_shape == (4, 16, 16)
    seed = torch.Generator().manual_seed(3)
    condition = prior.encode_picture(as_tensor(photo), seed)
    own = from_pipeline(svd).encode_picture(as_tensor(photo), seed.manual_seed(3))
    torch.testing.assert_close(condition["cond"][TOKEN], own["cond"][TOKEN])
