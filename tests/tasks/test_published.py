"""Published layouts on random weights: each answers as its authors' code would, and what is not understood is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from unproject.core.priors import hub
from unproject.pipelines.image_to_camera import ImageToCamera
from unproject.pipelines.picture_inputs import squared
from unproject.tasks.alternatives import load_alternative
from unproject.tasks.heads import head_table, load_head
from unproject.tasks.native_materials import clip_pixels
from unproject.tasks.one_step import OneStepConfig, OneStepHead
from unproject.tasks.published import LAYOUTS, Loading, layout_of, load_published
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def network(seed: int, **changes) -> UNet2DConditionModel:
    """A tiny U-Net with random weights."""
    sizes = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return UNet2DConditionModel(**{**sizes, **changes}).eval()


@pytest.fixture
def calib(tiny_prior, tmp_path: Path) -> tuple[Path, UNet2DConditionModel]:
    """DM-Calib's folder, with the prior that it was made of beside it."""
    tiny_prior.save(tmp_path / "stable-diffusion-2-1")
    unet = network(1, in_channels=8)
    unet.save_pretrained(tmp_path / "dm" / "calib" / "unet")
    return tmp_path / "dm", unet


def test_the_camera_head_reads_the_noisy_camera_first(calib) -> None:
    folder, unet = calib
    head = load_head(folder, ("camera",))
    config = head.config
    assert (config.start, config.steps, config.processing_resolution, config.square) == ("noise", 20, 768, True)
    assert (config.spacing, config.final, config.kind) == ("trailing", "index0", "epsilon")  # as the prior's scheduler
    z, x, level = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1), head.levels(20)[3]
    tokens = head.prior.pipe.tokenizer("", return_tensors="pt").input_ids
    assert tokens.shape[1] == 2
    with torch.no_grad():
        words = head.prior.pipe.text_encoder(tokens)[0].expand(2, -1, -1)
        wanted = unet(torch.cat([x, z], 1), level.index, words).sample
    torch.testing.assert_close(head.denoiser(z)(x, level).raw, wanted, rtol=1e-4, atol=1e-5)
    back = load_head(head.save(folder.parent / "ours", "stable-diffusion-2-1"), ("camera",))
    torch.testing.assert_close(back.denoiser(z)(x, level).raw, wanted, rtol=0.05, atol=0.02)  # fp16 on the disk


def test_pictures_stand_in_the_middle_of_black_squares(calib) -> None:
    image = torch.rand(1, 3, 10, 17, generator=generator(0))
    square, top, left = squared(image)
    assert square.shape == (1, 3, 17, 17) and (top, left) == (3, 0)
    assert torch.equal(square[:, :, 3:13], image)
    assert float(square[:, :, :3].abs().sum() + square[:, :, 13:].abs().sum()) == 0
    seen, head = [], load_head(calib[0], ("camera",)).with_config(processing_resolution=32)
    inner = head.encode_image
    head.encode_image = lambda images: seen.append(images) or inner(images)
    looked = ImageToCamera(head).looked(0.1 + 0.9 * torch.rand(1, 3, 16, 32, generator=generator(1)), seed=0)
    assert seen[0].shape == (1, 3, 32, 32) and float(seen[0][:, :, :8].abs().max()) == 0
    assert looked.rays.shape == (1, 2, 16, 32)


def test_yoso_is_a_head_by_folder(tiny_prior, tmp_path: Path) -> None:
    folder = tmp_path / "yoso"
    tiny_prior.save(folder)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(2)
        net = ControlNetModel.from_unet(network(3), conditioning_channels=3)
    net.save_pretrained(folder / "controlnet")
    head = load_alternative(folder, "normals")
    like = OneStepHead(tiny_prior, OneStepConfig(timestep=0))
    like.hint.body.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("controlnet_")})
    z, x = noise(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    torch.testing.assert_close(head.predict(z, x), like.predict(z, x), rtol=1e-4, atol=1e-5)
    assert (head.config.start, head.settings.timestep, head.config.processing_resolution) == ("zeros", 0, 768)
    with pytest.raises(InputError, match=r"another kind \(one-step\); give it as --head"):
        load_head(folder)
    path = folder / "controlnet" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(path), "dino.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"first 'dino\.weight'"):
        load_alternative(folder, "normals")
    with pytest.raises(InputError, match="neither a folder nor one of one-step, refiner, yoso-normal for normals"):
        load_alternative("magic", "normals")


def test_stable_material_is_told_a_token_and_guided(tiny_prior, tmp_path: Path) -> None:
    folder = tmp_path / "sm"
    tiny_prior.save(folder)
    unet = network(4, in_channels=12, out_channels=8)
    unet.save_pretrained(folder / "unet")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, image_size=16, patch_size=8, projection_dim=16))
    vision.save_pretrained(folder / "image_encoder")
    head = load_head(folder, ("albedo", "surface"))
    assert (head.asked.prediction_type, head.config.steps) == ("v_prediction", 50)
    photo, x = torch.rand(2, 3, 32, 32, generator=generator(0)), noise(2, 8, 8, 8, seed=1)
    level = head.levels(50)[9]
    with torch.no_grad():
        plain = head.prior.vae.encode(2 * photo - 1).latent_dist.mean  # as it is, without the scale of latents
        token = vision.eval()(clip_pixels(photo, vision)).image_embeds[:, None].repeat(1, 1, 2)
        cond = unet(torch.cat([x, plain], 1), level.index, token).sample
        null = unet(torch.cat([x, torch.zeros_like(plain)], 1), level.index, torch.zeros_like(token)).sample
    found = head.denoiser(head.encode_image(photo))(x, level).raw
    torch.testing.assert_close(found, null + 3 * (cond - null), rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match="copy its folder"):
        head.save(tmp_path / "other", "tiny")


def test_what_is_not_understood_is_refused_by_name(calib, tmp_path: Path) -> None:
    for mark, told in (("dino_controlnet", "StableNormal's refiner"), ("cc_projection", "several views at once")):
        place = tmp_path / mark
        (place / mark).mkdir(parents=True)
        (place / mark / "config.json").write_text("{}")
        with pytest.raises(InputError, match=told):
            load_head(place)
    network(1, in_channels=9).save_pretrained(calib[0] / "calib" / "unet")
    with pytest.raises(InputError, match="9 channels in and 4 out, expected 8 and 4"):
        load_head(calib[0])
    assert layout_of(tmp_path) == ""
    with pytest.raises(InputError, match="none of the layouts dm-calib"):
        load_published(tmp_path, Loading())


def test_known_ids_have_a_layout_and_say_when_they_cannot_be_had(monkeypatch) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    named = {label: entry for label, entry in head_table().items() if entry.layout}
    assert {entry.layout for entry in named.values()} == set(LAYOUTS)
    assert all(LAYOUTS[entry.layout].target == entry.target for entry in named.values())
    with pytest.raises(InputError, match=r"could not be fetched.*Give a local folder"):
        load_head("dm-calib", cache_dir="/nonexistent")
