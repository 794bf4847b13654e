"""What backbones need of memory: the documented numbers against what autograd and a network call keep, by counting."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from unproject.core.priors.footprint import decoder_numbers, encoder_numbers, network_numbers
from unproject.utils.live_bytes import LiveBytes

VAES = {
    "of Stable Diffusion": {"block_out_channels": (16, 32, 64, 64), "layers_per_block": 2},
    "plain": {
        "block_out_channels": (8, 16, 32),
        "layers_per_block": 1,
        "mid_block_add_attention": False,
    },
}


def vae(config: dict) -> AutoencoderKL:
    levels = len(config["block_out_channels"])
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    return AutoencoderKL(**config, **blocks, norm_num_groups=4).requires_grad_(False).eval()


def kept_by_autograd(model: AutoencoderKL, side: int) -> int:
    """Bytes of all saved tensors but the weights."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.encode(torch.zeros(1, 3, side, side, requires_grad=True))
    return sum(storage.nbytes() for key, storage in kept.items() if key not in own)


@pytest.mark.parametrize("name", VAES)
def test_two_small_encoders_tell_of_a_third(name):
    model = vae(VAES[name])
    small, larger = (kept_by_autograd(model, side) for side in (16, 32))
    slope = (larger - small) / (32**2 - 16**2)
    assert 4 * encoder_numbers(model.config) == pytest.approx(slope, rel=0.1)
    assert small + slope * (96**2 - 16**2) == pytest.approx(kept_by_autograd(model, 96), rel=0.1)
    assert 4 * encoder_numbers(model.config) * 96**2 == pytest.approx(kept_by_autograd(model, 96), rel=0.1)


def test_the_published_encoder_keeps_twelve_kilobytes_a_pixel():
    """3 GB for a picture of 512 px in float32."""
    assert 4 * encoder_numbers({"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}) == 12172


def test_an_encoder_by_blocks_keeps_one_of_them():
    model = vae(VAES["of Stable Diffusion"])
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = []
    for by_block in (False, True):
        (model.enable_gradient_checkpointing if by_block else model.disable_gradient_checkpointing)()
        image.grad = None
        with LiveBytes() as live:
            model.encode(image).latent_dist.mean.square().sum().backward()
        found.append(image.grad)
        assert 4 * 64**2 * encoder_numbers(model.config, by_block) == pytest.approx(live.peak, rel=0.1)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", VAES)
def test_a_decoder(name):
    model = vae(VAES[name])
    factor = 2 ** (len(VAES[name]["block_out_channels"]) - 1)
    with torch.no_grad(), LiveBytes() as live:
        model.decode(torch.zeros(1, 4, 64 // factor, 64 // factor))
    assert 4 * 64**2 * decoder_numbers(model.config) == pytest.approx(live.peak, rel=0.1)


@pytest.mark.parametrize("attends", [True, False])
def test_a_network_call(attends):
    """As Stable Diffusion's, with attention in the upper levels, or as SDXL's, without it in the first."""
    kinds = ("CrossAttnDownBlock2D" if attends else "DownBlock2D", "CrossAttnDownBlock2D")
    model = UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=kinds,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
        cross_attention_dim=16,
        norm_num_groups=8,
    ).eval()
    assert network_numbers("UNet2DConditionModel", model.config, 32**2) > 0
    for rows in (1, 2):
        with torch.no_grad(), LiveBytes() as live:
            model(torch.zeros(rows, 4, 32, 32), 1, torch.zeros(rows, 7, 16))
        numbers = rows * network_numbers("UNet2DConditionModel", model.config, 32**2)
        assert 4 * numbers == pytest.approx(live.peak, rel=0.1)
