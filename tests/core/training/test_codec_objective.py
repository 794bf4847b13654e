"""The codec: its loss and what it is made of, beginning with another one, standardised weights, packed latents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from unproject.core.training.latents import UNIT, LatentSet, encode_latents
from unproject.core.training.objectives.vae import (
    VAEConfig,
    VAEObjective,
    build_vae,
    feature_distance,
    opponent,
    to_model,
)
from unproject.core.training.objectives.vae_weights import begin_with_codec, reset_posterior, save_vae, standardised
from unproject.utils.errors import InputError

VAE = VAEConfig(widths=(8, 8), norm_groups=4, image_size=8, validation_images=6)


class Renders:
    """Eight pictures."""

    def __init__(self, seed: int = 0) -> None:
        self.pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return 8

    def images(self, indices):
        return self.pixels[indices]

    def captions(self, indices, rng=None):
        return ["a red chair" for _ in indices]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def vae():
    return build_vae(VAE, seed=0).requires_grad_(False)


@pytest.fixture(scope="module")
def latents(vae, tmp_path_factory):
    return LatentSet(encode_latents(vae, Renders(), tmp_path_factory.mktemp("latents")), Renders())


def test_pictures_reach_the_codec_in_minus_one_to_one():
    images = np.array([[[[0, 51, 255]]]], np.uint8)
    assert to_model(images).flatten().tolist() == pytest.approx([-1.0, -0.6, 1.0])


def test_codec_loss_is_pure_and_samples_only_after_the_first_steps():
    objective = VAEObjective(replace(VAE, mean_steps=5))
    batch = {"images": Renders().images(np.arange(4))}
    losses = [
        objective.loss(batch, rng(seed), step).loss.item() for seed, step in ((0, 0), (1, 0), (0, 5), (0, 5), (1, 5))
    ]
    assert losses[0] == losses[1] and losses[2] == losses[3] and losses[3] != losses[4]


def test_codec_loss_is_the_weighted_sum_of_its_parts():
    objective = VAEObjective(replace(VAE, l1=2.0, mse=3.0, kl=1e-3, opponent=(0.5, 0.1), opponent_steps=10))
    for step, weight in ((0, 0.5), (5, 0.3), (10, 0.1), (99, 0.1)):
        out = objective.loss({"images": Renders().images(np.arange(2))}, rng(), step)
        parts = out.logs
        total = 2 * parts["l1"] + 3 * parts["mse"] + weight * parts["opponent"] + 1e-3 * parts["kl"]
        assert out.loss.item() == pytest.approx(total.item(), rel=1e-5)


def test_opponent_space_keeps_grey_and_amplifies_differences():
    grey = torch.full((1, 3, 2, 2), 0.3)
    colour = torch.tensor([0.2, -0.1, -0.1])[None, :, None, None]
    assert torch.allclose(opponent(grey + colour, 4.0), grey + 4 * colour, atol=1e-6)


def test_validation_psnr_of_a_known_error(monkeypatch):
    objective = VAEObjective(VAE, Renders())
    monkeypatch.setattr(objective, "_through", lambda images: images + 0.2)  # 0.1 of the range [0, 1]
    assert objective.validate() == pytest.approx({"psnr": 20.0, "psnr_pooled": 20.0}, abs=1e-4)


def test_codecs_of_one_seed_are_equal_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    a, b, c = build_vae(VAE, 0), build_vae(VAE, 0), build_vae(VAE, 1)
    first = "encoder.conv_in.weight"
    assert torch.equal(a.state_dict()[first], b.state_dict()[first])
    assert not torch.equal(a.state_dict()[first], c.state_dict()[first])
    assert torch.equal(state, torch.get_rng_state())


def test_the_saved_codec_scales_latents_to_unit_deviation(vae, tmp_path):
    loaded = AutoencoderKL.from_pretrained(save_vae(vae, Renders(), tmp_path / "vae"))
    mean = loaded.encode(to_model(Renders().images(np.arange(8)))).latent_dist.mean
    assert mean.std(dim=(0, 2, 3)).tolist() == pytest.approx([1.0] * 4, abs=5e-3)
    assert mean.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0.0] * 4, abs=5e-3)
    assert (loaded.config.scaling_factor, loaded.config.shift_factor) == (1.0, 0.0)
    assert loaded.dtype == torch.float32 and [p.name for p in tmp_path.iterdir()] == ["vae"]


def test_a_standardised_codec_is_the_same_codec(vae):
    means, deviations = torch.tensor([0.5, -2.0, 0.0, 1.0]), torch.tensor([2.0, 0.1, 1.0, 5.0])
    images = to_model(Renders().images(np.arange(3)))
    moved = standardised(vae, means, deviations)
    before, after = vae.encode(images).latent_dist, moved.encode(images).latent_dist
    shift, scale = means.view(1, 4, 1, 1), deviations.view(1, 4, 1, 1)
    torch.testing.assert_close(after.mean, (before.mean - shift) / scale, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.std, before.std / scale, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(moved.decode(after.mean).sample, vae.decode(before.mean).sample, rtol=1e-4, atol=1e-4)


def test_a_codec_with_more_channels_begins_as_the_one_it_goes_on_from(vae):
    images = to_model(Renders().images(np.arange(3)))
    wide = build_vae(replace(VAE, latent_channels=6), 5)
    begin_with_codec(wide, vae, "given")
    mine, theirs = wide.encode(images).latent_dist, vae.encode(images).latent_dist
    torch.testing.assert_close(mine.mean[:, :4], theirs.mean)
    torch.testing.assert_close(mine.logvar[:, :4], theirs.logvar)
    torch.testing.assert_close(wide.decode(mine.mean).sample, vae.decode(theirs.mean).sample)
    assert mine.mean[:, 4:].std() > 0  # the further channels say something, which the decoder can learn to read
    same = build_vae(VAE, 5)
    begin_with_codec(same, vae, "given")
    torch.testing.assert_close(same.decode(theirs.mean).sample, vae.decode(theirs.mean).sample, rtol=0, atol=0)
    with pytest.raises(InputError, match="start_from=given holds a codec of 4 latent channels"):
        begin_with_codec(build_vae(replace(VAE, latent_channels=2), 0), vae, "given")
    with pytest.raises(InputError, match="start_from=given"):
        begin_with_codec(build_vae(replace(VAE, widths=(16, 8)), 0), vae, "given")


def test_the_edge_loss_is_that_of_the_gradient_of_the_error():
    plain, edged = (VAEObjective(replace(VAE, gradient=weight)) for weight in (0.0, 0.5))
    batch = {"images": Renders().images(np.arange(2))}
    target = to_model(batch["images"])
    error = edged.vae.decode(edged.vae.encode(target).latent_dist.mean).sample - target
    down, right = error[:, :, 1:] - error[:, :, :-1], error[..., 1:] - error[..., :-1]
    expected = down.abs().mean() + right.abs().mean()
    out = edged.loss(batch, rng(), 0)
    assert out.logs["gradient"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert (out.loss - plain.loss(batch, rng(), 0).loss).item() == pytest.approx(0.5 * expected.item(), rel=1e-4)


def test_the_feature_loss_compares_directions():
    class Eyes(torch.nn.Module):
        def forward(self, images):
            return [images, 7 * images[:, :2, ::2]]

    a, b = torch.randn((2, 2, 3, 4, 4), generator=rng()).unbind(0)
    eyes = Eyes()
    levels = [1 - torch.cosine_similarity(x, y).mean() for x, y in zip(eyes(a), eyes(b), strict=True)]
    assert feature_distance(eyes(a), eyes(b)).item() == pytest.approx((levels[0] + levels[1]).item(), rel=1e-5)
    assert feature_distance(eyes(a), eyes(5 * a)).item() == pytest.approx(0.0, abs=1e-6)
    seeing = VAEObjective(replace(VAE, features=0.3), eyes=eyes)
    batch = {"images": Renders().images(np.arange(2))}
    out, plain = seeing.loss(batch, rng(), 0), VAEObjective(VAE).loss(batch, rng(), 0)
    assert (out.loss - plain.loss).item() == pytest.approx(0.3 * out.logs["features"].item(), rel=1e-4)
    assert seeing.frozen == {"eyes": eyes}
    with pytest.raises(InputError, match=r"features=0\.3 needs"):
        VAEObjective(replace(VAE, features=0.3))


def test_a_decoder_can_learn_alone():
    objective = VAEObjective(replace(VAE, trained="decoder"))
    objective.loss({"images": Renders().images(np.arange(2))}, rng(), 0).loss.backward()
    learns = {name for name, p in objective.vae.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert learns and all(name.startswith(("decoder", "post_quant_conv")) for name in learns)


def test_scores_are_averaged_over_pictures_spread_over_the_set(monkeypatch):
    seen = []

    def scores(indices, decoded):
        seen.extend(indices.tolist())
        assert decoded.shape == (len(indices), 8, 8, 3) and decoded.min() >= 0 and decoded.max() <= 1
        return {"number": indices.astype(float)}

    objective = VAEObjective(replace(VAE, validation_images=3), Renders(), scores=scores)
    with torch.no_grad():
        found = objective.validate()
    assert seen == [0, 4, 7] and found["number"] == pytest.approx(11 / 3) and found["number_median"] == 4.0


def test_packed_latents_are_the_same_to_half_a_unit(vae, latents, tmp_path):
    packed = LatentSet(encode_latents(vae, Renders(), tmp_path, packed=True), Renders())
    assert packed.latents.dtype == np.int8
    every = np.arange(8)
    off = packed.rows(every) - np.clip(latents.rows(every).astype(np.float32), -127 * UNIT, 127 * UNIT)
    assert np.abs(off).max() <= 0.5 * UNIT + 2e-3 and packed.batch(every, None)["latents"].dtype == np.float32
    with pytest.raises(InputError, match="packed in another way"):
        encode_latents(vae, Renders(), tmp_path)


def test_latents_of_several_folders_follow_one_another(vae, latents, tmp_path):
    class Twice(Renders):
        def __len__(self):
            return 16

    first = encode_latents(vae, Renders(), tmp_path / "first")
    second = encode_latents(vae, Renders(seed=3), tmp_path / "second")
    both = LatentSet([first, second], Twice())
    np.testing.assert_array_equal(both.rows(np.arange(8)), latents.latents)
    np.testing.assert_array_equal(both.rows(np.array([9])), LatentSet(second, Renders()).latents[1:2])
    other = encode_latents(build_vae(VAE, 1), Renders(), tmp_path / "other")
    with pytest.raises(InputError, match="different codecs"):
        LatentSet([first, other], Twice())


def test_a_wider_codec_computes_what_the_given_one_does_and_its_copies_part(vae):
    for parameter in (given := build_vae(VAE, seed=3)).parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng(4))
    wide = build_vae(replace(VAE, widths=(16, 16), latent_channels=6), seed=5)
    begin_with_codec(wide, given, "given")
    images = torch.randn(2, 3, 8, 8, generator=rng(6))
    mine, theirs = (v.encode(images).latent_dist.mean for v in (wide, given))
    torch.testing.assert_close(mine[:, :4], theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(wide.decode(mine).sample, given.decode(theirs).sample, rtol=1e-4, atol=1e-4)
    wide.decode(mine).sample.square().mean().backward()
    slopes = wide.decoder.conv_in.weight.grad.unflatten(0, (8, 2))
    assert (slopes[:, 0] - slopes[:, 1]).abs().max() > 0.1 * slopes.abs().max()
    with pytest.raises(InputError, match="does not fit"):
        begin_with_codec(build_vae(replace(VAE, widths=(12, 12)), 0), given, "given")


def test_a_fresh_posterior_keeps_its_means(vae):
    images = to_model(Renders().images(np.arange(3)))
    begin_with_codec(again := build_vae(VAE, 5), vae, "given")
    reset_posterior(again, -3.0)
    found = again.encode(images).latent_dist
    torch.testing.assert_close(found.mean, vae.encode(images).latent_dist.mean, rtol=0, atol=0)
    assert torch.equal(found.logvar, torch.full_like(found.logvar, -3.0))
