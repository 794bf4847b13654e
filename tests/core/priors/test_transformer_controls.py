"""ControlNets of SD3 and FLUX ride on the rows of the condition: the same pictures as the stock pipelines draw."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxControlNetPipeline, StableDiffusion3ControlNetPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from unproject.core.priors import load_prior
from unproject.core.priors.control import PictureControl
from unproject.core.priors.latents import packed, unpacked
from unproject.core.priors.steering import with_controls
from unproject.pipelines import TextToImage
from unproject.scripts.random_backbones import random_control
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

PROMPTS, AGAINST = ["a red chair", "a dog"], ["blue", "the wagon"]
ASKED: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent", "height": 32, "width": 32}
SD3 = {
    "plain": {"force_zeros_for_pooled_projection": False, "num_layers": 2},
    "blind to the pooled text": {"force_zeros_for_pooled_projection": True},
    "blind to all text": {
        "force_zeros_for_pooled_projection": False,
        "joint_attention_dim": None,
        "use_pos_embed": False,
        "pos_embed_type": None,
    },
}
FLUX: dict[str, dict[str, Any]] = {
    "latents": {},
    "told no scale": {"guidance_embeds": False, "num_single_layers": 0},
    "the picture itself": {"conditioning_embedding_channels": 16},
    "several kinds": {"num_mode": 3},
}


def picture(seed: int = 0) -> Tensor:
    return torch.rand(1, 3, 32, 32, generator=generator(seed))


def start() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=generator(5))


@pytest.fixture(autouse=True)
def no_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock pipelines draw the latents of the control's picture; here they take the mean."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


def stock(kind: Any, prior: Any, net: Any) -> Any:
    names = inspect.signature(kind.__init__).parameters
    pipe = kind(**{k: v for k, v in prior.pipe.components.items() if k in names}, controlnet=net)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(prior: Any, **settings: Any) -> Tensor:
    made: Tensor = TextToImage(prior, "native")(PROMPTS, latents=start(), **{**ASKED, **settings}).latents
    return made


@pytest.mark.parametrize("kind", SD3)
def test_sd3_is_steered_as_in_the_stock_pipeline(tiny_folders: dict[str, Path], kind: str) -> None:
    plain = load_prior(tiny_folders["sd3"])
    prior = with_controls(plain, [PictureControl(random_control(plain.network, **SD3[kind]), 0.7)])
    pipe = stock(StableDiffusion3ControlNetPipeline, plain, prior.controls[0].network)
    told = {"negative_prompt": AGAINST, "guidance_scale": 4.0}
    shown = {"control_image": 2 * picture() - 1, "controlnet_conditioning_scale": 0.7}
    drawn = pipe(PROMPTS, latents=start(), **told, **shown, **ASKED).images
    torch.testing.assert_close(ours(prior, control_image=picture(), **told), drawn, rtol=1e-4, atol=1e-4)
    assert (ours(plain, **told) - drawn).abs().max() > 1e-2


@pytest.mark.parametrize("kind", FLUX)
def test_flux_is_steered_as_in_the_stock_pipeline(tiny_folders: dict[str, Path], kind: str) -> None:
    plain = load_prior(tiny_folders["flux"])
    mode = 1 if kind == "several kinds" else None
    prior = with_controls(plain, [PictureControl(random_control(plain.network, **FLUX[kind]), 0.7, mode=mode)])
    pipe = stock(FluxControlNetPipeline, plain, prior.controls[0].network)
    shown = {"control_image": 2 * picture() - 1, "controlnet_conditioning_scale": 0.7, "control_mode": mode}
    drawn = unpacked(pipe(PROMPTS, latents=packed(start()), guidance_scale=3.5, **shown, **ASKED).images, 8, 8)
    found = ours(prior, control_image=picture(), guidance_scale=3.5)
    torch.testing.assert_close(found, drawn, rtol=1e-4, atol=1e-4)
    assert (ours(plain, guidance_scale=3.5) - drawn).abs().max() > 1e-2


def test_controls_of_a_transformer_add_up_and_are_encoded_once(
    tiny_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load_prior(tiny_folders["sd3"])
    nets = [random_control(plain.network, seed=seed) for seed in (3, 7)]
    encoded: list[Tensor] = []
    encode = type(plain).encode
    monkeypatch.setattr(type(plain), "encode", lambda self, x, *more: (encoded.append(x), encode(self, x, *more))[1])
    shown = [picture(0), picture(1)]
    both = ours(with_controls(plain, nets), control_image=shown)
    assert [len(x) for x in encoded] == [4, 4], "two prompts in two branches, once a run"
    single = ours(with_controls(plain, nets[:1]), control_image=shown[0])
    assert (both - single).abs().max() > 1e-2
    torch.testing.assert_close(ours(with_controls(plain, nets[::-1]), control_image=shown[::-1]), both)
    nets[0].save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = load_prior(tiny_folders["sd3"], controlnet=str(tmp_path))
    torch.testing.assert_close(ours(loaded, control_image=shown[0]), single)
    alone = TextToImage(loaded, "native")(PROMPTS[1], latents=start()[1:], control_image=shown[0], **ASKED).latents
    torch.testing.assert_close(alone, single[1:], rtol=1e-4, atol=1e-5)


def test_patches_are_put_back() -> None:
    x = torch.randn(2, 3, 4, 6, generator=generator(0))
    patches = packed(x)
    assert patches.shape == (2, 6, 12)
    assert torch.equal(patches[1, 4].reshape(3, 2, 2), x[1, :, 2:4, 2:4])
    assert torch.equal(unpacked(patches, 4, 6), x)


def test_controls_that_do_not_fit_a_transformer_are_told(tiny_folders: dict[str, Path]) -> None:
    sd3, flux = load_prior(tiny_folders["sd3"]), load_prior(tiny_folders["flux"])
    cases: list[tuple[Any, list[Any], str]] = [
        (flux, [random_control(sd3.network)], "is a FluxControlNetModel, got SD3ControlNetModel"),
        (sd3, [random_control(sd3.network, attention_head_dim=16)], "its attention_head_dim is 16, not 8"),
        (sd3, [random_control(sd3.network, extra_conditioning_channels=1)], "wants a mask beside the picture"),
        (flux, [random_control(flux.network, num_mode=3)], "serves 3 kinds of pictures.*got mode=None"),
        (flux, [PictureControl(random_control(flux.network), mode=1)], "takes no mode, got mode=1"),
        (flux, [PictureControl(random_control(flux.network, num_mode=3), mode=3)], "serves 3 kinds.*mode=3"),
        (sd3, [random_control(sd3.network), random_control(sd3.network, num_layers=2)], "do not add up"),
    ]
    for prior, nets, told in cases:
        with pytest.raises(InputError, match=told):
            with_controls(prior, nets)
    steered = with_controls(sd3, [random_control(sd3.network)])
    with pytest.raises(InputError, match="block_controlnet_hidden_states adds features at every step"):
        ours(steered, control_image=picture(), cache="inherit", num_inference_steps=8)
    flux.network.register_to_config(guidance_embeds=False)
    with pytest.raises(InputError, match="is told a guidance scale, which"):
        with_controls(flux, [random_control(flux.network, guidance_embeds=True)])
