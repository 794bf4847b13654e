"""The multi-view inflation: limits, symmetries, files, published checkpoint layout."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from unproject.core.priors import (
    CameraEmbedding,
    Condition,
    MultiViewPrior,
    MultiViewUNet,
    Rows,
    inflate,
    load_prior,
)
from unproject.core.priors.mvdream import CAMERA, PREFIX, convert_mvdream
from unproject.core.sampling import Denoiser, NoiseSchedule
from unproject.utils.errors import InputError


def inputs(rows: int = 4):
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, 8, 8, generator=rng)
    embeds = torch.randn(1, 5, 32, generator=rng).expand(rows, -1, -1)
    cameras = torch.randn(rows, 16, generator=rng)
    return x, torch.full((rows,), 300.5), embeds, cameras


def lively(unet) -> MultiViewUNet:
    """An inflated U-Net whose cameras matter."""
    views = inflate(unet)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in views.camera_embedding.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    return views.requires_grad_(False)


@torch.no_grad()
def test_one_view_without_camera_is_the_base_network_bit_for_bit(make_unet):
    x, time, embeds, _ = inputs()
    unet = make_unet()
    base = unet(x, time, embeds).sample
    views = lively(unet)
    assert torch.equal(views(x, time, embeds), base)
    assert torch.equal(views(x, time, embeds, torch.zeros(4, 16)), base)
    assert torch.equal(views.deflate()(x, time, embeds).sample, base)


@torch.no_grad()
def test_a_fresh_camera_embedding_is_silent(make_unet):
    x, time, embeds, cameras = inputs()
    views = inflate(make_unet())
    assert torch.equal(views(x, time, embeds, cameras, 4), views(x, time, embeds, None, 4))


def test_identical_views_equal_a_single_one(make_unet):
    x, time, embeds, cameras = inputs()
    views = lively(make_unet())
    four = views(x[:1].expand(4, -1, -1, -1), time, embeds, cameras[:1].expand(4, -1), 4)
    one = views(x[:1], time[:1], embeds[:1], cameras[:1])
    torch.testing.assert_close(four, one.expand(4, -1, -1, -1), rtol=1e-5, atol=1e-5)


def test_permuting_views_permutes_outputs(make_unet):
    x, time, embeds, cameras = inputs()
    views, order = lively(make_unet()), torch.tensor([2, 0, 3, 1])
    out = views(x, time, embeds, cameras, 4)
    torch.testing.assert_close(views(x[order], time, embeds, cameras[order], 4), out[order], rtol=1e-5, atol=1e-5)


def test_views_see_each_other_but_objects_do_not(make_unet):
    x, time, embeds, cameras = inputs(8)
    views = lively(make_unet())
    out = views(x, time, embeds, cameras, 4)
    changed = x.clone()
    changed[5] += 1
    again = views(changed, time, embeds, cameras, 4)
    torch.testing.assert_close(again[:4], out[:4], rtol=1e-5, atol=1e-5)
    assert (again[4] - out[4]).abs().max() > 1e-4


def test_the_camera_matters_per_row(make_unet):
    x, time, embeds, cameras = inputs()
    views = lively(make_unet())
    cameras[2:] = 0  # no camera for these rows
    out, plain = views(x, time, embeds, cameras), views(x, time, embeds)
    torch.testing.assert_close(out[2:], plain[2:], rtol=1e-5, atol=1e-5)
    assert (out[:2] - plain[:2]).abs().max() > 1e-4


def test_gradients_reach_weights_cameras_and_latents_under_checkpointing(make_unet):
    x, time, embeds, cameras = inputs()
    gradients = []
    for checkpointing in (False, True):
        views = lively(make_unet()).requires_grad_(True).train()
        if checkpointing:
            views.unet.enable_gradient_checkpointing()
        leaf = x.clone().requires_grad_(True)
        views(leaf, time, embeds, cameras, 4).square().mean().backward()
        gradients.append((leaf.grad, views.camera_embedding[0].weight.grad))
    for plain, recomputed in zip(*gradients):
        assert plain.abs().max() > 0
        torch.testing.assert_close(plain, recomputed)


def test_save_and_load(make_unet, tmp_path):
    x, time, embeds, cameras = inputs()
    views = lively(make_unet())
    views.save(tmp_path / "mv", base="toybox")
    assert torch.equal(
        MultiViewUNet.load(tmp_path / "mv")(x, time, embeds, cameras, 4), views(x, time, embeds, cameras, 4)
    )
    stock = UNet2DConditionModel.from_pretrained(tmp_path / "mv" / "unet")
    assert torch.equal(stock(x, time, embeds).sample, views(x, time, embeds))


def test_multiview_prior_from_files(tiny_folders, make_unet, tmp_path):
    x, time, _, cameras = inputs()
    (tmp_path / "base").symlink_to(tiny_folders["toybox"])
    lively(make_unet(seed=9)).save(tmp_path / "mv", base="base")
    prior = load_prior(tmp_path / "mv")
    assert isinstance(prior, MultiViewPrior)
    assert not any(p.requires_grad for p in prior.parameters())
    condition = prior.encode_text("a red chair").with_views(cameras, 4)
    out = prior.predict(x, time, condition["cond"])
    assert prior.nfe == 4
    assert out.shape == x.shape
    joined = Rows.join([condition["null"], condition["cond"]])
    both = prior.predict(torch.cat([x, x]), torch.cat([time, time]), joined)
    torch.testing.assert_close(both[4:], out, rtol=1e-5, atol=1e-5)
    dropped = prior.views(x, time, condition["null"]["text"], cameras, 4)  # text dropped, camera kept
    torch.testing.assert_close(both[:4], dropped, rtol=1e-5, atol=1e-5)
    prior.save(tmp_path / "copy")
    assert not (tmp_path / "copy" / "unet").exists()  # that of base/ is the same network
    again = load_prior(tmp_path / "copy")
    torch.testing.assert_close(again.predict(x, time, condition["cond"]), out, rtol=1e-6, atol=1e-6)
    assert (prior.frames, again.frames, prior.recipe) == (4, 4, "toybox")
    assert prior.multiview and not load_prior(tiny_folders["toybox"]).multiview


def test_a_multi_view_folder_says_how_many_views_it_learnt(tiny_folders, make_unet, tmp_path):
    (tmp_path / "base").symlink_to(tiny_folders["sd"])
    lively(make_unet()).save(tmp_path / "mv", base="base", frames=6)
    prior = load_prior(tmp_path / "mv")
    assert (prior.frames, prior.recipe) == (6, "stable-diffusion")
    prior.save(tmp_path / "copy")
    assert load_prior(tmp_path / "copy").frames == 6


def test_groups_do_not_see_each_other(tiny_folders, make_unet, tmp_path):
    """Two objects of four views in one batch are the two objects alone, also when guided."""
    (tmp_path / "base").symlink_to(tiny_folders["toybox"])
    lively(make_unet(seed=9)).save(tmp_path / "mv", base="base")
    prior = load_prior(tmp_path / "mv")
    rng = torch.Generator().manual_seed(5)
    x, cameras = torch.randn(8, 4, 8, 8, generator=rng), torch.randn(8, 16, generator=rng)
    condition = prior.encode_text(["a red chair", "a dog"]).with_views(cameras, 4)
    level = NoiseSchedule.from_config(prior.scheduler_config).at_index(400)
    whole = Denoiser(prior, condition, 4.0)(x, level).raw
    for rows in (slice(0, 4), slice(4, 8)):
        alone = Denoiser(prior, condition.index(rows), 4.0)(x[rows], level).raw
        torch.testing.assert_close(alone, whole[rows], rtol=1e-4, atol=1e-4)
    crowd = Condition({name: Rows(rows.tensors, 8) for name, rows in condition.branches.items()})
    assert (Denoiser(prior, crowd, 4.0)(x, level).raw - whole).abs().max() > 1e-2


def test_another_network_of_a_multi_view_prior_sees_single_images(tiny_folders, make_unet, tmp_path):
    (tmp_path / "base").symlink_to(tiny_folders["toybox"])
    lively(make_unet(seed=9)).save(tmp_path / "mv", base="base")
    prior, plain = load_prior(tmp_path / "mv"), make_unet(seed=3)
    other = prior.with_network(plain, "v_prediction")
    rows, x = prior.encode_text(["a dog"] * 2)["cond"], torch.randn(2, 4, 8, 8)
    wanted = plain(x, torch.full((2,), 10.0), rows["text"], return_dict=False)[0]
    torch.testing.assert_close(other.predict(x, 10.0, rows), wanted)
    assert (other.nfe, prior.nfe, prior.prediction_type, other.prediction_type) == (2, 0, "epsilon", "v_prediction")
    assert other.modules()["unet"] is plain and prior.modules()["unet"] is not plain


def test_mvdream_checkpoint_layout(ldm, make_unet, tiny_folders, tmp_path):
    x, time, embeds, cameras = inputs()
    views = lively(make_unet())
    config = dict(views.unet.config)
    checkpoint = {ldm.unet(key): value.clone() for key, value in views.unet.state_dict().items()}
    checkpoint |= {f"{CAMERA}{key}": value.clone() for key, value in views.camera_embedding.state_dict().items()}
    assert f"{PREFIX}input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight" in checkpoint
    expected = views(x, time, embeds, cameras, 4)
    torch.testing.assert_close(convert_mvdream(checkpoint, config)(x, time, embeds, cameras, 4), expected)
    save_file({key: value.contiguous() for key, value in checkpoint.items()}, tmp_path / "mv.safetensors")
    prior = load_prior(tmp_path / "mv.safetensors", base=tiny_folders["sd"])
    torch.testing.assert_close(prior.views(x, time, embeds, cameras, 4), expected)
    with pytest.raises(InputError, match=r"camera_embed"):
        convert_mvdream({k: v for k, v in checkpoint.items() if not k.startswith(CAMERA)}, config)


def test_wrong_shapes_and_folders_are_named(make_unet, tmp_path):
    x, time, embeds, cameras = inputs()
    views = inflate(make_unet())
    with pytest.raises(InputError, match="frames=3"):
        views(x, time, embeds, cameras, 3)
    with pytest.raises(InputError, match=r"expected \(4, 16\)"):
        views(x, time, embeds, cameras[:2], 4)
    with pytest.raises(InputError, match=r"needs camera_embedding\.safetensors"):
        MultiViewUNet.load(tmp_path)
    views.save(tmp_path / "mv", base="sd15", shared=True)
    with pytest.raises(InputError, match="nor its base has unet/; put sd15 beside it"):
        MultiViewUNet.load(tmp_path / "mv")
    assert CameraEmbedding(8)(torch.ones(2, 16)).shape == (2, 8)
