"""A head that is asked once and told the picture beside it: parity with the published network, files, training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from unproject.core.training.objectives.base import Objective
from unproject.pipelines.image_to_geometry import ImageToNormals
from unproject.tasks.alternatives import load_alternative, load_first
from unproject.tasks.data import GeometryData
from unproject.tasks.heads import load_head
from unproject.tasks.latent_control import take_controlnet
from unproject.tasks.one_step import OneStepConfig, OneStepHead
from unproject.tasks.refine import RefineConfig, RefinedHead
from unproject.tasks.refine_train import OneStepObjective
from unproject.tasks.train import LossConfig
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

SMALL = OneStepConfig(processing_resolution=32, start="noise")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


@pytest.fixture
def head(tiny_prior):
    return OneStepHead(tiny_prior, SMALL)


def published(unet: UNet2DConditionModel, net: ControlNetModel, image, x, time: int, words):
    """x0 as StableNormal's code asks for it, block by block: the ControlNet reads the clean latents, its embedding of
    pictures and its zero convolutions are passed by, its features are added to the skips and to the middle."""
    at = torch.full((len(x),), time)

    def down(model, y):
        emb = model.time_embedding(model.time_proj(at).to(y))
        y = model.conv_in(y)
        kept = [y]
        for block in model.down_blocks:
            told = {"encoder_hidden_states": words} if getattr(block, "has_cross_attention", False) else {}
            y, found = block(y, emb, **told)
            kept += found
        return model.mid_block(y, emb, encoder_hidden_states=words), kept, emb

    c, hints, _ = down(net, image)
    y, skips, emb = down(unet, x)
    y, skips = y + c, [skip + hint for skip, hint in zip(skips, hints, strict=True)]
    for block in unet.up_blocks:
        count = len(block.resnets)
        own, skips = tuple(skips[-count:]), skips[:-count]
        told = {"encoder_hidden_states": words} if getattr(block, "has_cross_attention", False) else {}
        y = block(hidden_states=y, temb=emb, res_hidden_states_tuple=own, **told)
    return unet.conv_out(torch.nn.functional.silu(unet.conv_norm_out(y)))


def test_it_answers_as_the_published_network(head) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(5)
        net = ControlNetModel.from_unet(head.unet, conditioning_channels=3).eval()
        for parameter in net.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))  # zero convolutions would say something now
    take_controlnet(head.hint, net.state_dict(), "here")
    image, x, words = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1), head.text.expand(2, -1, -1)
    with torch.no_grad():
        wanted = published(head.unet, net, image, x, 401, words)
    torch.testing.assert_close(head.predict(image, x), wanted, rtol=1e-4, atol=1e-4)
    assert head.nfe == 2
    turbo = OneStepHead(head.prior, OneStepConfig(timestep=0))
    take_controlnet(turbo.hint, net.state_dict(), "here")
    with torch.no_grad():
        wanted = published(head.unet, net, image, torch.zeros_like(x), 0, words)
    torch.testing.assert_close(turbo.predict(image, torch.zeros_like(x)), wanted, rtol=1e-4, atol=1e-4)


def test_keys_that_have_no_place_are_named(head) -> None:
    state = dict(head.hint.body.state_dict())
    with pytest.raises(InputError, match=r"here.*first 'dino\.weight'"):
        take_controlnet(head.hint, {**state, "dino.weight": torch.zeros(1)}, "here")
    state.pop("conv_in.bias")
    with pytest.raises(InputError, match=r"first 'conv_in\.bias'"):
        take_controlnet(head.hint, state, "here")


def test_it_is_a_head_for_every_pipeline_in_one_call(head) -> None:
    pipe, picture = ImageToNormals(head), torch.rand(3, 24, 32, generator=generator(3))
    made = pipe(picture, seed=4)
    assert made.normals.shape == (1, 24, 32, 3) and made.nfe == 1
    assert (pipe(picture, seed=4).normals == made.normals).all()
    assert not np.allclose(pipe(picture, seed=5).normals, made.normals, atol=1e-4)
    silent = ImageToNormals(OneStepHead(head.prior, OneStepConfig(processing_resolution=32)))
    assert (silent(picture).normals == silent(picture).normals).all()
    with pytest.raises(InputError, match="one-step regressor"):
        silent(picture, num_inference_steps=4)
    with pytest.raises(InputError, match="timestep=1000"):
        OneStepHead(head.prior, OneStepConfig(timestep=1000))


def test_files_hold_it_and_a_refiner_goes_on_from_it(head_folder) -> None:
    head = OneStepHead(load_head(head_folder).prior, SMALL, seed=2)
    with torch.no_grad():
        head.unet.conv_out.bias.add_(0.5)
    folder = head.save(head_folder.parent / "one-step", "tiny")
    z, x = noise(1, 4, 8, 8), noise(1, 4, 8, 8, seed=1)
    back = load_alternative(folder, "normals")
    torch.testing.assert_close(back.predict(z, x), head.predict(z, x), rtol=0.02, atol=0.02)  # fp16 on the disk
    first = load_first(folder, "normals")
    refined = RefinedHead(first, RefineConfig(steps=2, meaning=False))
    torch.testing.assert_close(refined.guess(z, x), first.predict(z, x))
    again = load_alternative(refined.save(head_folder.parent / "refined-one", "one-step"), "normals")
    torch.testing.assert_close(again.guess(z, x), first.predict(z, x), rtol=1e-4, atol=1e-4)


def test_training_replaces_noise_by_its_mean_now_and_then(head, planes) -> None:
    data = GeometryData([planes(4)], columns=head.codec.columns())
    objective = OneStepObjective(LossConfig(loss="regression"), head, data, shrink=0.25)
    assert isinstance(objective, Objective)
    inputs = objective.inputs(torch.zeros(400, 1, 2, 2), generator(1)).flatten(1)
    silent = (inputs == 0).all(1)
    assert 0.2 < float(silent.float().mean()) < 0.3 and float(inputs[~silent].std()) == pytest.approx(1, abs=0.1)
    batch = data.batch(np.arange(4), None)
    one = objective.loss(batch, generator(0), 0)
    assert torch.equal(one.loss, objective.loss(batch, generator(0), 0).loss)
    one.loss.backward()
    for name, module in objective.modules.items():
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters()), name
    assert all(p.grad is None for p in head.prior.vae.parameters())
    still = OneStepObjective(LossConfig(loss="regression"), OneStepHead(head.prior, OneStepConfig()), None)
    assert bool((still.inputs(torch.zeros(9, 4, 8, 8), generator(1)) == 0).all())
