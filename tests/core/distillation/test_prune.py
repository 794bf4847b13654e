"""Pruned U-Nets: identity, removed layers that did nothing, published sizes, feature matching."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from unproject.core.distillation.prune import (
    FeatureMatching,
    FeatureObjective,
    Pruned,
    feature_pairs,
    matched,
    origin,
    pruned,
)
from unproject.core.distillation.student import Student
from unproject.core.distillation.teacher import Teacher
from unproject.core.priors import load_prior
from unproject.core.priors.taps import Taps
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator as rng

TEXTS = ["a dog", "a red chair"]
DEEP = {"layers_per_block": 2, "transformer_layers_per_block": (1, 3)}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
    "layers_per_block": 2,
}


def test_nothing_removed_is_the_teacher_bit_for_bit(make_unet, asked):
    unet = make_unet(seed=1, **DEEP)
    assert torch.equal(asked(pruned(unet, Pruned())), asked(unet))
    assert (asked(pruned(unet, Pruned(fresh=True))) - asked(unet)).abs().max() > 1e-3


def test_removing_what_does_nothing_changes_nothing(make_unet, asked):
    unet = make_unet(seed=1, **DEEP)
    gone = [unet.down_blocks[i].resnets[1].conv2 for i in range(2)]
    gone += [unet.down_blocks[i].attentions[1].proj_out for i in range(2)]
    gone += [unet.mid_block.resnets[i].conv2 for i in range(2)] + [unet.mid_block.attentions[0].proj_out]
    for block in [*unet.down_blocks, *unet.up_blocks, unet.mid_block]:
        for attention in block.attentions:
            for deep in attention.transformer_blocks[1:]:
                gone += [deep.attn1.to_out[0], deep.attn2.to_out[0], deep.ff.net[2]]
    with torch.no_grad():
        for layer in gone:
            layer.weight.zero_()
            if layer.bias is not None:
                layer.bias.zero_()
    shallow = pruned(unet, Pruned(depth=(1, 1), mid=False))
    torch.testing.assert_close(asked(shallow), asked(unet), rtol=0, atol=1e-5)
    assert shallow.mid_block is None and sum(p.numel() for p in shallow.parameters()) < sum(
        p.numel() for p in unet.parameters()
    )


def test_the_last_layer_of_the_way_up_stays():
    assert origin("up_blocks.1.resnets.1.conv1.weight", 1, 2) == "up_blocks.1.resnets.2.conv1.weight"
    assert origin("up_blocks.1.attentions.0.proj_in.weight", 1, 2) == "up_blocks.1.attentions.0.proj_in.weight"
    assert origin("down_blocks.1.resnets.0.conv1.weight", 1, 2) == "down_blocks.1.resnets.0.conv1.weight"
    name = "up_blocks.0.attentions.1.transformer_blocks.1.attn1"
    found = [origin(name, 1, 2, (2, 10), how) for how in ("bottom", "top", "interleave")]
    assert [one.split(".")[-2] for one in found] == ["1", "9", "9"] and all(".attentions.2." in one for one in found)
    assert [matched(k, 3, 9, "interleave") for k in range(3)] == [0, 4, 8]


def test_the_sizes_are_the_published_ones():
    """SDXL's U-Net and KOALA's 1.16 B and 782 M, counted without weights."""
    with torch.device("meta"):
        base = UNet2DConditionModel(**SDXL)
        small = UNet2DConditionModel.from_config(Pruned(1, (1, 2, 6)).config(base.config))
        smaller = UNet2DConditionModel.from_config(Pruned(1, (1, 2, 5), mid=False).config(base.config))
    counts = [sum(p.numel() for p in unet.parameters()) / 1e6 for unet in (base, small, smaller)]
    assert counts == pytest.approx([2567, 1161, 782], rel=0.01)


def test_what_cannot_be_pruned_says_so(tiny_folders, make_unet):
    with pytest.raises(InputError, match="must lie between 1"):
        Pruned(layers=3).config(make_unet().config)
    with pytest.raises(InputError, match=r"the network of .* is none"):
        Student(load_prior(tiny_folders["sd3"]), Pruned())


def test_features_are_those_of_the_same_place(make_unet, asked):
    unet = make_unet(seed=1, **DEEP)
    small = pruned(unet, Pruned(1, (1, 2), mid=False))
    counts = {}
    for choice in ("none", "self-attn", "cross-attn", "ff", "resnet", "last"):
        pairs = feature_pairs(small, unet, FeatureMatching(choice, "top"))
        counts[choice] = len(pairs)
        with Taps(small, [a for a, _ in pairs]) as mine, Taps(unet, [b for _, b in pairs]) as theirs:
            asked(small), asked(unet)
            assert all(mine[a].shape == theirs[b].shape for a, b in pairs)
    assert counts == {"none": 0, "self-attn": 9, "cross-attn": 9, "ff": 9, "resnet": 6, "last": 4}
    with pytest.raises(InputError, match="no module 'down_blocks"):
        Taps(unet, ["down_blocks.9"])


@pytest.mark.parametrize("features", ["self-attn", "last"])
def test_the_whole_network_has_nothing_to_learn_from_its_teacher(tiny_folders, features):
    prior = load_prior(tiny_folders["sd-v"])
    batch = {"latents": torch.randn(2, 4, 8, 8, generator=rng(3)), "captions": TEXTS}
    same = FeatureObjective(Student(prior, Pruned()), Teacher(prior), FeatureMatching(features))
    out = same.loss(batch, rng(1), 0)
    assert out.logs["output"] == 0 and out.logs["features"] == 0 and out.logs["task"] > 0
    less = FeatureObjective(Student(prior, Pruned(mid=False)), Teacher(prior), FeatureMatching(features))
    out = less.loss(batch, rng(1), 0)
    assert out.logs["output"] > 0 and out.logs["features"] > 0
    assert torch.equal(out.loss, less.loss(batch, rng(1), 0).loss)
    out.loss.backward()
    assert less.student.network.conv_in.weight.grad.abs().max() > 0


def test_a_pruned_student_is_a_plain_network_of_diffusers(tiny_folders, tmp_path, asked):
    prior = load_prior(tiny_folders["sd"])
    student = Student(prior, Pruned(mid=False))
    folder = student.save(tmp_path / "s")
    stock = UNet2DConditionModel.from_pretrained(folder / "unet")
    assert stock.mid_block is None and torch.equal(asked(stock), asked(student.network))
