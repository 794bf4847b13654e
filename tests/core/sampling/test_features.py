"""Features of frozen backbones: which layers, at which noise, and that nothing is left behind."""

from __future__ import annotations

import pytest
import torch

from unproject.core.priors import load_prior
from unproject.core.sampling import NoiseSchedule
from unproject.core.sampling.features import Look, decoder_layers, noise_map, picture_features
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator


@pytest.fixture(scope="module")
def sd(tiny_folders):
    return load_prior(tiny_folders["sd"])


def latents(count: int = 2, side: int = 8, channels: int = 4) -> torch.Tensor:
    return torch.randn(count, channels, side, side, generator=generator(5))


def test_layers_are_those_before_the_last_of_each_level(sd, make_unet):
    assert decoder_layers(sd.network) == ("up_blocks.0.attentions.0", "up_blocks.1.attentions.0")
    kinds = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    deep = make_unet(layers_per_block=2, **kinds)
    assert decoder_layers(deep) == ("up_blocks.0.attentions.1", "up_blocks.1.resnets.1")
    with pytest.raises(InputError, match="Linear has neither"):
        decoder_layers(torch.nn.Linear(1, 1))


def test_features_are_what_the_network_computes_at_the_noised_state(sd):
    z, noise = latents(), latents()[:1]
    (found,) = picture_features(sd, z, Look(37, ("up_blocks.1.attentions.0",)), noise)
    seen = []
    hook = sd.network.up_blocks[1].attentions[0].register_forward_hook(lambda m, a, out: seen.append(out[0]))
    abar = sd.pipe.scheduler.alphas_cumprod[37]
    text = sd.encode_text([""])["cond"]["text"].expand(2, -1, -1)
    with torch.no_grad():
        sd.network(abar.sqrt() * z + (1 - abar).sqrt() * noise, 37, text)
    hook.remove()
    torch.testing.assert_close(found, seen[0], rtol=1e-4, atol=1e-5)
    assert not sd.network.up_blocks[1].attentions[0]._forward_hooks


def test_all_pictures_share_one_noise_so_that_a_batch_is_its_pictures(sd):
    z = latents(3)
    together = picture_features(sd, z)
    for k in range(3):
        for whole, one in zip(together, picture_features(sd, z[k : k + 1]), strict=True):
            torch.testing.assert_close(whole[k : k + 1], one, rtol=1e-4, atol=1e-5)
    own = torch.randn(1, 4, 8, 8, generator=generator(42))
    torch.testing.assert_close(noise_map(sd, (8, 8), 42), own)
    assert noise_map(sd, (12, 16), 42).shape == (1, 4, 12, 16)
    assert not torch.equal(noise_map(sd, (8, 8), 43), own)


def test_without_noise_the_picture_itself_is_looked_at(sd):
    z = latents()
    clean = picture_features(sd, z, Look(-1))
    noised = picture_features(sd, z, Look(-1), 100 * latents())
    assert all(torch.equal(a, b) for a, b in zip(clean, noised, strict=True))
    assert not torch.allclose(clean[0], picture_features(sd, z, Look(300))[0])


def test_one_row_is_asked_for_each_picture_and_the_words_count(sd):
    before = sd.nfe
    plain = picture_features(sd, latents(3))
    assert sd.nfe - before == 3
    told = picture_features(sd, latents(3), Look(prompt="a red chair"))
    assert not torch.allclose(plain[0], told[0])


@pytest.mark.parametrize(("name", "channels"), [("sdxl", 4), ("sd3", 4), ("flux", 4)])
def test_tokens_of_transformers_are_laid_out_as_the_picture(tiny_folders, name, channels):
    prior = load_prior(tiny_folders[name])
    z = latents(2, channels=channels)[..., :6]  # no square
    for features in picture_features(prior, z):
        assert features.ndim == 4 and features.shape[0] == 2
        if name != "sdxl":
            assert features.shape[2:] == (4, 3)
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    assert schedule.flow == (name != "sdxl")


def test_tokens_lie_row_by_row(tiny_folders):
    """The block's token n is at row n // 3 and column n % 3 of a picture three patches wide."""
    prior = load_prior(tiny_folders["sd3"])
    seen = []
    block = prior.network.transformer_blocks[1]
    hook = block.register_forward_hook(lambda m, a, out: seen.append(out[-1]))
    (found,) = picture_features(prior, latents(1)[..., :6], Look(layers=("transformer_blocks.1",)))
    hook.remove()
    for n in (0, 1, 3, 7, 11):
        torch.testing.assert_close(found[0, :, n // 3, n % 3], seen[0][0, n].float())


def test_indices_below_the_clean_end_are_refused():
    with pytest.raises(InputError, match="index=-2"):
        Look(-2)
