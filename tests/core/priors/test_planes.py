"""Six planes out of a 2-D network: where adapters hang, how many there are, what they leave alone."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from unproject.core.priors import load_prior
from unproject.core.priors.planes import (
    COUNT,
    PlaneAdapters,
    plane_networks,
    sites,
    told_planes,
)
from unproject.geometry.fields.dual import DualConfig, DualHeads
from unproject.utils.errors import InputError

SD21_UNET = {
    "sample_size": 64,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
SD21_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


@pytest.fixture(scope="module")
def sd21():
    """Networks of the shapes of Stable Diffusion 2.1, without numbers."""
    with torch.device("meta"):
        return UNet2DConditionModel(**SD21_UNET), AutoencoderKL(**SD21_VAE)


def moved(module, seed: int = 5, size: float = 0.1):
    """The module with random weights in the place of its zeros."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=rng))
    return module


def test_as_many_numbers_learn_on_stable_diffusion_as_published(sd21):
    unet, vae = sd21
    with torch.device("meta"):
        parts = PlaneAdapters(unet, vae.decoder, 16, 32), DualHeads(DualConfig())
    count = sum(p.numel() for part in parts for p in part.parameters())
    frozen = sum(p.numel() for part in (unet, vae.decoder, vae.post_quant_conv) for p in part.parameters())
    assert count == 22_684_160
    assert count / frozen == pytest.approx(0.0248, abs=5e-5)


def test_the_places_of_adapters_on_stable_diffusion_are_the_published_ones(sd21):
    unet, vae = sd21
    found = sites(unet, vae.decoder)
    assert len(found) == 131 and len(set(found)) == 131
    attentions = [(site.kind, site.path.split(".")[0]) for site in found[:32]]
    down, up, mid = (
        [(kind, part) for kind in ("planes", "text")] for part in ("down_blocks", "up_blocks", "mid_block")
    )
    assert attentions == down * 6 + up * 9 + mid
    assert found[32] == ("decoder", "mid_block.attentions.0", "attention")
    assert all(site.owner == "unet" and site.kind == "conv" for site in found[33:97])
    assert all(site.owner == "decoder" and site.kind == "conv" for site in found[97:130])
    assert [site.path for site in found[33:38]] == [
        "down_blocks.0.resnets.0.conv1",
        "down_blocks.0.resnets.0.conv2",
        "down_blocks.0.resnets.1.conv1",
        "down_blocks.0.resnets.1.conv2",
        "down_blocks.0.downsamplers.0.conv",
    ]
    assert found[40].path == "down_blocks.1.resnets.0.conv_shortcut"
    assert found[96].path == "mid_block.resnets.1.conv2" and found[97].path.startswith("up_blocks.0")
    assert found[130] == ("decoder", "conv_out", "last")


@pytest.fixture
def prior(tiny_folders):
    return load_prior(tiny_folders["sd"])


def rows(prior, objects: int = 2, seed: int = 1):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(COUNT * objects, 4, 8, 8, generator=rng)
    return x, prior.encode_text(["a red chair", "a blue car"][:objects])


@torch.no_grad()
def test_fresh_adapters_on_six_equal_planes_are_the_plain_network(prior):
    adapters, asked, _ = plane_networks(prior, 4, 8)
    x, condition = rows(prior)
    same = x[::COUNT].repeat_interleave(COUNT, 0)
    plain = prior.predict(x[::COUNT], 300.0, condition["cond"])
    planes = asked.predict(same, 300.0, told_planes(condition)["cond"])
    torch.testing.assert_close(planes, plain.repeat_interleave(COUNT, 0), atol=2e-5, rtol=1e-4)
    moved(adapters)
    assert float((asked.predict(same, 300.0, told_planes(condition)["cond"]) - planes).abs().max()) > 1e-3
    assert torch.equal(prior.predict(x[::COUNT], 300.0, condition["cond"]), plain)  # which has none of them


@torch.no_grad()
def test_planes_see_the_other_planes_of_their_object_alone(prior):
    adapters, asked, _ = plane_networks(prior, 4, 8)
    moved(adapters)
    x, condition = rows(prior)
    before = asked.predict(x, 300.0, told_planes(condition)["cond"])
    x[3] += 1.0
    change = (asked.predict(x, 300.0, told_planes(condition)["cond"]) - before).flatten(1).abs().amax(1)
    assert bool((change[:COUNT] > 1e-4).all()) and float(change[COUNT:].max()) < 1e-6


def test_the_frozen_weights_are_the_priors_own_and_stay_frozen(prior):
    adapters, asked, decoder = plane_networks(prior, 4, 8)
    x, condition = rows(prior, 1)
    own = {id(p) for p in (*prior.network.parameters(), *prior.vae.parameters())}
    added = {id(p) for p in adapters.parameters()}
    assert {id(p) for p in asked.network.parameters()} <= own
    assert {id(p) for p in decoder.parameters()} <= own | added
    latents = asked.predict(x, 300.0, told_planes(condition)["cond"])
    decoder(latents).square().sum().backward()
    assert all(p.grad is None for p in prior.parameters())
    reached = [name for name, p in adapters.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0]
    ups = [name for name, _ in adapters.named_parameters() if name.endswith("up.weight")]
    assert set(ups) <= set(reached)  # the text too, whose rows differ


@torch.no_grad()
def test_decoded_are_unscaled_latents_and_halves_of_the_channels(prior):
    channels = 8
    _, _, decoder = plane_networks(prior, 4, channels)
    x, _ = rows(prior)
    whole = decoder.decoder(prior.vae.post_quant_conv(x))  # not divided by the scale of the codec
    planes = decoder(x)
    assert planes.shape == (12, channels, 32, 32)
    for row in range(12):
        part = slice(0, channels) if row % COUNT < 3 else slice(channels, None)
        torch.testing.assert_close(planes[row], whole[row, part])


@torch.no_grad()
def test_the_decoders_attention_gets_ordinary_maps(make_unet):
    unet, vae = make_unet(), AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    adapters = PlaneAdapters(unet, vae.decoder, 2, 4)
    adapters.attach(unet, vae.decoder)
    moved(adapters)
    number = next(i for i, site in enumerate(adapters.sites) if site.kind == "attention")
    weights, attention = adapters.layers[number].state_dict(), vae.decoder.mid_block.attentions[0]
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    for part, linear in (("q", attention.to_q), ("out", attention.to_out[0])):
        down, up = (weights[f"to_{part}_lora.{half}.weight"] for half in ("down", "up"))
        torch.testing.assert_close(linear(x), x @ linear.weight.T + linear.bias + x @ down.T @ up.T)
    assert vae.decoder.conv_out is adapters.layers[-1] and vae.decoder.conv_out.out_channels == 8


@torch.no_grad()
def test_recomputed_activations_change_nothing(prior):
    x, condition = rows(prior, 1)
    found = []
    for checkpointing in (False, True):
        adapters, asked, _ = plane_networks(prior, 4, 8, checkpointing)
        moved(adapters)
        with torch.enable_grad():
            out = asked.predict(x, 300.0, told_planes(condition)["cond"])
            found.append(
                torch.autograd.grad(out.square().sum(), adapters.layers[0].get_submodule("to_q_xy_lora_geo").up.weight)[
                    0
                ]
            )
    torch.testing.assert_close(found[0], found[1])


def test_priors_that_cannot_draw_planes_are_refused(tiny_folders, prior):
    with pytest.raises(InputError, match="2-D Stable Diffusion"):
        plane_networks(load_prior(tiny_folders["sd3"]), 4, 8)
    views = copy.copy(prior)
    views.frames = 4
    with pytest.raises(InputError, match="several views"):
        plane_networks(views, 4, 8)
    with pytest.raises(InputError, match="rank=0"):
        plane_networks(prior, 0, 8)
