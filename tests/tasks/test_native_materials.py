"""The published layout of StableMaterials on random weights: channels, one pooled token, black pictures, few steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from unproject.core.priors.rows import COND, NULL
from unproject.tasks.materials import load_materials
from unproject.tasks.native_materials import is_native, load_native
from unproject.utils.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Tiny random weights in the published folders."""
    root = tmp_path_factory.mktemp("stablematerials")
    entries = ["<|startoftext|>", "<|endoftext|>", *(f"{chr(c)}</w>" for c in range(97, 123))]
    CLIPTokenizer(vocab={t: i for i, t in enumerate(entries)}, merges=[], model_max_length=8).save_pretrained(
        root / "tokenizer"
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    tokens = {"vocab_size": 28, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    blocks = {
        "sample_size": 8,
        "in_channels": 18,
        "out_channels": 18,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        CLIPTextModelWithProjection(CLIPTextConfig(**sizes, **tokens, projection_dim=24)).save_pretrained(
            root / "text_encoder"
        )
        CLIPVisionModelWithProjection(
            CLIPVisionConfig(**sizes, image_size=16, patch_size=8, projection_dim=24)
        ).save_pretrained(root / "vision_encoder")
        AutoencoderKL(
            in_channels=9,
            out_channels=9,
            latent_channels=18,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            mid_block_add_attention=False,
        ).save_pretrained(root / "vae")
        UNet2DConditionModel(**blocks).save_pretrained(root / "unet")
        UNet2DConditionModel(**blocks, time_cond_proj_dim=256).save_pretrained(root / "unet_lcm")
    DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(root / "scheduler")
    return root


def test_one_pooled_token_and_a_black_picture(folder: Path) -> None:
    prior, distilled = load_native(folder, fast=False)
    assert not distilled
    told = prior.encode_text(["red bricks", "tiles"])
    assert told[COND]["text"].shape == (2, 1, 24)
    ids = prior.pipe.tokenizer(["tiles"], padding="max_length", max_length=8, return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(told[COND]["text"][1], prior.pipe.text_encoder(ids).text_embeds)
        black = (torch.zeros(1, 3, 16, 16) - torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(1, 3, 1, 1)) / (
            torch.tensor([0.26862954, 0.26130258, 0.27577711]).reshape(1, 3, 1, 1)
        )
        torch.testing.assert_close(told[NULL]["text"][0], prior.vision(black).image_embeds)
    photos = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    seen = prior.described(["", ""], photos)
    torch.testing.assert_close(seen[NULL]["text"], told[NULL]["text"])
    assert not torch.allclose(seen[COND]["text"][0], seen[COND]["text"][1])
    with pytest.raises(InputError, match="a text or a picture, not both"):
        prior.described(["red", ""], photos)


def test_it_draws_as_the_other_layout_does(folder: Path) -> None:
    make = load_materials(folder)
    assert is_native(folder)
    assert (make.config.distilled, make.config.steps, make.prior.guidance_embedded) == (True, 4, True)
    both = make(["red bricks", "tiles"], seed=[2, 5], size=16)
    assert both.nfe == 2 * 4
    assert both.maps.albedo.shape == (2, 3, 16, 16)
    torch.testing.assert_close(both.maps.normal.norm(dim=1), torch.ones(2, 16, 16), rtol=0, atol=1e-5)
    alone = make("tiles", seed=5, size=16)
    torch.testing.assert_close(alone.maps.height[0], both.maps.height[1], rtol=0, atol=1e-4)
    photo = make(image=np.random.default_rng(0).random((12, 12, 3)), seed=5, size=16)
    assert not torch.allclose(photo.maps.height, alone.maps.height)
    latents = make.prior.encode_maps(both.maps)
    assert latents.shape == (2, 18, 8, 8)
    with pytest.raises(InputError, match="copy its folder"):
        make.save(folder.with_name("other"), "toybox")


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text((folder / "vae" / "config.json").read_text())
    with pytest.raises(InputError, match="lacks unet, text_encoder"):
        load_materials(tmp_path)
