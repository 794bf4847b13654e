"""A U-Net that begins with a narrower one, and with one of other latents."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unproject.core.priors.multiview import CameraEmbedding
from unproject.core.training.objectives.base import fixed_init
from unproject.core.training.objectives.diffusion import DiffusionConfig, build_unet
from unproject.core.training.objectives.unet_weights import OUTER, begin_with_cameras, begin_with_unet
from unproject.utils.errors import InputError

SHAPE = DiffusionConfig((4, 8, 16), transformer_layers=1, heads=(1, 2, 4), norm_groups=2, text_width=8)


def network(shape: DiffusionConfig, seed: int = 0):
    """With every weight drawn: biases and norms too."""
    with fixed_init(seed):
        made = build_unet(shape)
        for parameter in made.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return made.requires_grad_(False)


def answer(unet) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, unet.config["in_channels"], 8, 8, generator=rng), torch.randn(2, 3, 8, generator=rng)
    return unet(x, torch.tensor([20, 731]), text).sample


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_wider_network_computes_what_the_narrower_did(times, layers):
    shape = replace(SHAPE, layers_per_block=layers)
    given = network(shape)
    wide = network(replace(shape, widths=tuple(times * w for w in shape.widths)), seed=5)
    begin_with_unet(wide, given, "there")
    torch.testing.assert_close(answer(wide), answer(given), rtol=0, atol=2e-5)
    copies = wide.down_blocks[0].resnets[0].conv2.weight[:2]
    assert times == 1 or not torch.equal(copies[0, ::2], copies[0, 1::2])  # they can learn different things


def test_one_level_alone_may_grow():
    given = network(SHAPE)
    wide = network(replace(SHAPE, widths=(4, 8, 32)), seed=5)
    begin_with_unet(wide, given, "there")
    off = (answer(wide) - answer(given)).abs().mean() / answer(given).abs().mean()
    assert 0 < off < 0.3  # group norms over what is joined on the way up
    level = network(replace(SHAPE, widths=(8, 8, 16)), seed=5)  # as wide as the next: no map beside its first block
    begin_with_unet(level, given, "there")
    assert torch.equal(level.mid_block.resnets[0].conv1.weight, given.mid_block.resnets[0].conv1.weight)


def test_what_meets_other_latents_stays_fresh():
    given, mine = network(SHAPE), network(replace(SHAPE, latent_channels=6), seed=5)
    fresh = mine.conv_in.weight.clone()
    begin_with_unet(mine, given, "there")
    differing = {k for k, v in mine.state_dict().items() if not torch.equal(v, given.state_dict()[k])}
    assert differing == set(OUTER) and torch.equal(mine.conv_in.weight, fresh)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"widths": (4, 12, 16)}, "be multiples of"),
        ({"widths": (2, 8, 16)}, "be multiples of"),
        ({"layers_per_block": 2}, "in the same blocks"),
        ({"text_width": 12}, "attn2.to_k.weight is"),
    ],
)
def test_another_shape_is_refused(change, told):
    with pytest.raises(InputError, match="start_from=there holds a network of another shape") as failure:
        begin_with_unet(network(replace(SHAPE, **change)), network(SHAPE), "there")
    assert told in str(failure.value)


def test_cameras_speak_to_a_wider_network():
    with fixed_init(3):
        given, mine, odd = CameraEmbedding(4), CameraEmbedding(12), CameraEmbedding(6)
        given[2].weight.data.normal_()
        given[2].bias.data.normal_()
    begin_with_cameras(mine, given, "there")
    poses = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mine(poses), given(poses).repeat_interleave(3, dim=1))
    with pytest.raises(InputError, match="cameras=there are those of a network of another shape"):
        begin_with_cameras(odd, given, "there")
