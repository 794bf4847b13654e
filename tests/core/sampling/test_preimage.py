"""Preimages of frozen U-Nets: which tensors, the published reduction of attention, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from unproject.core.priors import load_prior
from unproject.core.sampling.preimage import cross_maps, decoder_positions, grid_of, preimage, self_maps
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator


@pytest.fixture(scope="module")
def sd(tiny_folders):
    return load_prior(tiny_folders["sd"])


def latents(count: int = 2, side: int = 8) -> torch.Tensor:
    return torch.randn(count, 4, side, side, generator=generator(5))


def test_features_are_the_inputs_of_the_decoders_blocks(sd):
    """[hidden, skip] of each residual block, as a pass with its own hooks sees them at index 1."""
    z, noise = latents(), latents(1)
    seen = []
    blocks = [resnet for block in sd.network.up_blocks for resnet in block.resnets]
    hooks = [block.register_forward_pre_hook(lambda m, args: seen.append(args[0])) for block in blocks]
    abar = sd.pipe.scheduler.alphas_cumprod[1]
    with torch.no_grad():
        text = sd.encode_text([""])["cond"]["text"].expand(2, -1, -1)
        sd.network(abar.sqrt() * z + (1 - abar).sqrt() * noise, 1, text)
    for hook in hooks:
        hook.remove()
    found = preimage(sd, z, noise=noise).features
    assert len(found) == len(seen) == 4
    for one, other in zip(found, seen, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_attention_is_that_of_the_module_before_and_of_the_layer_behind_the_skip(sd):
    """The tiny network: middle, two layers a decoder level; skips from [conv_in, layer, down, layer] in reverse."""
    unet = sd.network
    down, up, middle = unet.down_blocks, unet.up_blocks, unet.mid_block.attentions[0]
    wanted = [
        (middle, down[1].attentions[0]),
        (up[0].attentions[0],),  # its skip comes from the downsampler
        (up[0].attentions[1], down[0].attentions[0]),
        (up[1].attentions[0],),  # conv_in
    ]
    assert [position.transformers for position in decoder_positions(unet)] == wanted
    with pytest.raises(InputError, match="not a Linear"):
        decoder_positions(torch.nn.Linear(1, 1))


def test_maps_are_the_softmax_of_the_last_block_reduced(sd):
    z = latents()
    found = preimage(sd, z)
    heads, tokens = 4, sd.encode_text([""])["cond"]["text"].shape[1]
    counts = [2 * heads * (64 + tokens), heads * (64 + tokens)] * 2
    assert [one.shape[1] for one in found.attention] == counts
    assert [tuple(one.shape[2:]) for one in found.attention] == [tuple(one.shape[2:]) for one in found.features]
    attn = sd.network.up_blocks[1].attentions[0].transformer_blocks[0].attn2
    seen = []
    hook = attn.register_forward_hook(lambda m, args, kwargs, out: seen.append((args[0], kwargs)), with_kwargs=True)
    preimage(sd, z, attention=False)
    hook.remove()
    (hidden, told) = seen[0]
    query, key = (layer(x).unflatten(-1, (heads, -1)).transpose(1, 2) for layer, x in
                  ((attn.to_q, hidden), (attn.to_k, told["encoder_hidden_states"])))  # fmt: skip
    weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)  # (B, heads, HW, L)
    wanted = weights.permute(0, 1, 3, 2).reshape(2, heads * tokens, 8, 8)
    torch.testing.assert_close(found.attention[3][:, -heads * tokens :], wanted, rtol=1e-4, atol=1e-5)


def test_uniform_self_attention_is_all_ones():
    maps = self_maps(torch.full((2, 3, 24, 24), 1 / 24), (4, 6))
    torch.testing.assert_close(maps, torch.ones(2, 3 * 64, 4, 6))


@pytest.mark.parametrize("grid", [(8, 8), (16, 8), (5, 11)])
def test_reduced_self_attention_is_that_of_a_loop(grid):
    """One query at a time, as published: sides grow by 8 - side mod 8, also where that is 8."""
    height, width = grid
    weights = torch.rand(1, 2, height * width, height * width, generator=generator(0)).softmax(-1)
    found = self_maps(weights, grid)
    for head in range(2):
        rows = []
        for query in range(height * width):
            keys = weights[0, head, query].reshape(1, 1, height, width)
            keys = F.interpolate(keys, (height + 8 - height % 8, width + 8 - width % 8), mode="bilinear")
            keys = F.avg_pool2d(keys, (max(height // 8, 1), max(width // 8, 1)))
            rows.append(F.interpolate(keys, (8, 8), mode="bilinear").flatten())
        wanted = torch.stack(rows) / torch.stack(rows).max()
        for cell in (0, 9, 63):
            torch.testing.assert_close(found[0, head * 64 + cell].flatten(), wanted[:, cell])


def test_cross_attention_keeps_tokens_as_channels():
    weights = torch.rand(2, 3, 12, 5, generator=generator(1))
    maps = cross_maps(weights, (3, 4))
    assert maps.shape == (2, 15, 3, 4)
    torch.testing.assert_close(maps[1, 2 * 5 + 4, 2, 1], weights[1, 2, 2 * 4 + 1, 4])


def test_the_network_answers_to_the_bit_as_before(sd):
    z, text = latents(1), sd.encode_text(["a dog"])["cond"]["text"]
    before = sd.network(z, 7, text)[0]
    processors = sd.network.attn_processors
    preimage(sd, z)
    assert torch.equal(sd.network(z, 7, text)[0], before)
    assert all(sd.network.attn_processors[name] is one for name, one in processors.items())
    assert not any(m._forward_pre_hooks for m in sd.network.modules())


def test_sizes_of_other_pictures(sd):
    wide = torch.randn(1, 4, 8, 12, generator=generator(2))
    assert preimage(sd, wide).attention[0].shape[2:] == (4, 6)
    assert grid_of(15, (9, 6)) == (5, 3)
    with pytest.raises(InputError, match="7 tokens"):
        grid_of(7, (8, 8))
