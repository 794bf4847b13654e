"""Controls and image prompts ride on the rows of the condition: the same pictures as the stock pipelines draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    MultiAdapter,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    T2IAdapter,
)
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from unproject.core.distillation.score import ScoreConfig
from unproject.core.priors import StableDiffusionPrior, load_prior
from unproject.core.priors.steering import with_controls
from unproject.generate.guides import make_guide
from unproject.geometry.cameras import Camera
from unproject.pipelines import TextToImage
from unproject.pipelines.picture_conditions import read_picture
from unproject.scripts.random_backbones import random_control, seeded, tiny_unet
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

DRAW: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "latent"}
PROMPTS, AGAINST = ["a red chair", "a dog"], ["blue", "the wagon"]
SAFE: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def picture(seed: int, rows: int = 1) -> Tensor:
    return torch.rand(rows, 3, 32, 32, generator=generator(seed))


def start() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=generator(5))


def adapter(seed: int = 4) -> T2IAdapter:
    return seeded(lambda: T2IAdapter(3, [16, 32], num_res_blocks=1, downscale_factor=4).eval(), seed)


def stock(kind: Any, prior: Any, **options: Any) -> Any:
    parts = {k: v for k, v in prior.pipe.components.items() if k not in ("image_encoder", *SAFE)}
    pipe = kind(**parts, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ours(prior: Any, **pictures: Any) -> Tensor:
    settings = {"solver": "ddim", **DRAW, **pictures}
    made: Tensor = TextToImage(prior, "native")(
        PROMPTS, AGAINST, latents=start(), height=32, width=32, **settings
    ).latents
    return made


def test_a_control_net_steers_as_in_the_stock_pipeline(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    plain = load_prior(tiny_folders["sd"])
    net = random_control(plain.network)
    net.save_pretrained(tmp_path / "net")
    pipe = stock(StableDiffusionControlNetPipeline, plain, controlnet=net, **SAFE)
    drawn = pipe(
        PROMPTS,
        image=picture(0),
        negative_prompt=AGAINST,
        latents=start(),
        controlnet_conditioning_scale=0.7,
        **DRAW,
    ).images
    prior = load_prior(tiny_folders["sd"], controlnet=f"{tmp_path / 'net'}:0.7")
    assert prior.reads == plain.reads | {"control"} and "control" in prior.modules()
    torch.testing.assert_close(ours(prior, control_image=picture(0)), drawn, rtol=1e-5, atol=1e-5)
    assert (ours(plain) - drawn).abs().max() > 1e-2
    cached = ours(prior, control_image=picture(0), cache="deep:1", num_inference_steps=3)
    torch.testing.assert_close(cached, drawn, rtol=1e-5, atol=1e-5)
    each = ours(prior, control_image=picture(1, 2))
    alone = TextToImage(prior, "native")(
        PROMPTS[1], AGAINST[1], latents=start()[1:], solver="ddim", control_image=picture(1, 2)[1:], **DRAW
    )
    torch.testing.assert_close(each[1:], alone.latents, rtol=1e-4, atol=1e-5)


def test_several_controls_add_up(tiny_folders: dict[str, Path]) -> None:
    plain = load_prior(tiny_folders["sd"])
    nets = [random_control(plain.network, seed=seed) for seed in (3, 7)]
    pipe = stock(StableDiffusionControlNetPipeline, plain, controlnet=nets, **SAFE)
    shown = [picture(0), picture(1)]
    drawn = pipe(PROMPTS, image=shown, negative_prompt=AGAINST, latents=start(), **DRAW).images
    prior = with_controls(plain, nets)
    torch.testing.assert_close(ours(prior, control_image=shown), drawn, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="2 controls need control_image="):
        ours(prior, control_image=picture(0))


def test_sdxl_is_steered(tiny_folders: dict[str, Path]) -> None:
    plain = load_prior(tiny_folders["sdxl"])
    net = random_control(plain.network)
    pipe = stock(StableDiffusionXLControlNetPipeline, plain, controlnet=net)
    drawn = pipe(PROMPTS, image=picture(0), negative_prompt=AGAINST, latents=start(), **DRAW).images
    found = ours(with_controls(plain, [net]), control_image=picture(0))
    torch.testing.assert_close(found, drawn, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2])
def test_adapters_steer_as_in_the_stock_pipeline(tiny_folders: dict[str, Path], count: int) -> None:
    plain = load_prior(tiny_folders["sd"])
    nets = [adapter(seed) for seed in range(count)]
    shown = [picture(seed) for seed in range(count)]
    pipe = stock(StableDiffusionAdapterPipeline, plain, adapter=nets[0] if count == 1 else MultiAdapter(nets), **SAFE)
    drawn = pipe(
        PROMPTS,
        image=[one.expand(2, -1, -1, -1) for one in shown] if count > 1 else shown[0].expand(2, -1, -1, -1),
        negative_prompt=AGAINST,
        latents=start(),
        adapter_conditioning_scale=1.0 if count == 1 else [1.0, 1.0],
        **DRAW,
    ).images
    prior = with_controls(plain, nets)
    found = ours(prior, control_image=shown[0] if count == 1 else shown)
    torch.testing.assert_close(found, drawn, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(prior, control_image=shown[0] if count == 1 else shown), found, rtol=0, atol=0)


def image_adapter(unet: Any, folder: Path, width: int = 16, tokens: int = 4) -> Path:
    """An IP-Adapter file of random weights and its image encoder beside it."""
    values: dict[str, Tensor] = {}
    rng, cross = generator(11), unet.config.cross_attention_dim
    names = [name for name in unet.attn_processors if "attn2" in name]
    for number, name in enumerate(names):
        hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for which in ("to_k_ip", "to_v_ip"):
            values[f"ip_adapter.{2 * number + 1}.{which}.weight"] = 0.2 * torch.randn(hidden, cross, generator=rng)
    values["image_proj.proj.weight"] = 0.2 * torch.randn(tokens * cross, width, generator=rng)
    values["image_proj.proj.bias"] = torch.zeros(tokens * cross)
    values["image_proj.norm.weight"], values["image_proj.norm.bias"] = torch.ones(cross), torch.zeros(cross)
    folder.mkdir()
    save_file(values, folder / "ip.safetensors")
    config = CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=width,
    )  # fmt: skip
    seeded(lambda: CLIPVisionModelWithProjection(config).eval(), 2).save_pretrained(folder / "image_encoder")
    return folder / "ip.safetensors"


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_picture_is_read_beside_the_words(tiny_folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    plain = load_prior(tiny_folders[family])
    path = image_adapter(plain.network, tmp_path / "ip")
    shown = Image.fromarray((255 * picture(2)[0].permute(1, 2, 0).numpy()).astype(np.uint8))
    pipe = load_prior(tiny_folders[family]).pipe
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(str(path.parent), subfolder="", weight_name=path.name)
    pipe.set_ip_adapter_scale(0.6)
    drawn = pipe(
        PROMPTS, negative_prompt=AGAINST, ip_adapter_image=shown, latents=start(), height=32, width=32, **DRAW
    ).images
    prior = load_prior(tiny_folders[family], ip_adapter=f"{path}:0.6")
    assert prior.name.endswith("+ip:0.6") and not any(p.requires_grad for p in prior.parameters())
    found = ours(prior, ip_adapter_image=shown)
    torch.testing.assert_close(found, drawn, rtol=1e-4, atol=1e-5)
    assert (found - ours(plain)).abs().max() > 1e-3
    with pytest.raises(InputError, match=r"loaded with ip_adapter=FILE.*give the picture"):
        ours(prior)


def test_what_cannot_steer_is_told(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    plain = load_prior(tiny_folders["sd"])
    net = random_control(plain.network)
    with pytest.raises(InputError, match="is a SD3ControlNetModel, got ControlNetModel"):
        with_controls(load_prior(tiny_folders["sd3"]), [net])
    with pytest.raises(InputError, match=r"another backbone.*cross_attention_dim is 32, not 64"):
        with_controls(load_prior(tiny_folders["sdxl"]), [net])
    with pytest.raises(InputError, match="ControlNetModel or T2IAdapter, got UNet2DConditionModel"):
        with_controls(plain, [tiny_unet()])
    with pytest.raises(InputError, match=r"no folder with a config\.json"):
        load_prior(tiny_folders["sd"], controlnet=str(tmp_path))
    with pytest.raises(InputError, match="is a UNet2DConditionModel; supported are ControlNetModel"):
        load_prior(tiny_folders["sd"], controlnet=str(tiny_folders["sd"] / "unet"))
    with pytest.raises(InputError, match="control_image= is something that this prior does not look at"):
        ours(plain, control_image=picture(0))
    with pytest.raises(InputError, match="give the picture that it looks at as control_image="):
        ours(with_controls(plain, [net]))
    save_file({"emb_params": torch.zeros(2, 4)}, tmp_path / "word.safetensors")
    with pytest.raises(InputError, match="is no IP-Adapter"):
        load_prior(tiny_folders["sd"], ip_adapter=tmp_path / "word.safetensors")
    path = image_adapter(plain.network, tmp_path / "ip", width=16)
    (path.parent / "image_encoder").rename(path.parent / "other")
    with pytest.raises(InputError, match="needs a CLIP image encoder of width 16"):
        load_prior(tiny_folders["sd"], ip_adapter=path)
    assert isinstance(plain, StableDiffusionPrior) and plain.reads == StableDiffusionPrior.reads


def test_every_view_of_a_mesh_is_shown_the_picture(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    path = image_adapter(load_prior(tiny_folders["sd"]).network, tmp_path / "ip")
    prior = load_prior(tiny_folders["sd"], ip_adapter=path)
    seen = read_picture(prior, picture(2)[0])
    guide: Any = make_guide(ScoreConfig(guidance=5.0), prior, "a chair", picture=seen)
    shown, nothing = (guide.words.conditions[name]["image_prompt"] for name in ("cond", "null"))
    assert shown.shape == nothing.shape == (4, 16) and not nothing.any()
    assert shown[0].any() and torch.equal(shown, shown[:1].expand(4, -1))
    camera, images = Camera.orbit([0.0, 90.0, 180.0, 270.0], 15.0, 3.0, 34.0, 32), picture(6, 4)
    other: Any = make_guide(ScoreConfig(guidance=5.0), prior, "a chair", picture=read_picture(prior, picture(9)[0]))
    losses = [float(one(images, camera, 0.5, generator(0)).loss) for one in (guide, guide, other)]
    assert losses[0] == losses[1] != losses[2]
    with pytest.raises(InputError, match="give the picture"):
        read_picture(prior, None)
    with pytest.raises(InputError, match="reads no pictures"):
        make_guide(ScoreConfig(), load_prior(tiny_folders["sd"]), "a chair", picture=seen)
