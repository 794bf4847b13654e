"""MVDream as a diffusers folder of foreign classes; consistency models that are told the guidance scale."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LCMScheduler
from safetensors.torch import save_file

from unproject.core.priors import MultiViewPrior, hub, inflate, load_prior
from unproject.core.priors.build import class_of, from_pipeline
from unproject.core.priors.mvdream import unet_config
from unproject.pipelines import TextToImage
from unproject.scripts.random_backbones import tiny_sd
from unproject.tasks.heads import load_head
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

PORT = {
    "model_channels": 32,
    "channel_mult": [1, 2],
    "attention_resolutions": [1, 2],
    "num_head_channels": 8,
    "num_res_blocks": 1,
    "context_dim": 32,
    "camera_dim": 16,
    "image_size": 8,
}


@pytest.fixture
def port(tiny_folders: dict[str, Path], make_unet: Any, ldm: Any, tmp_path: Path) -> tuple[Path, Any]:
    """A folder as ports write it, and the inflated U-Net that it holds."""
    config = {k: v for k, v in unet_config(PORT).items() if k != "cross_attention_dim"}
    views = inflate(make_unet(3, **config, norm_num_groups=32))
    for parameter in views.camera_embedding.parameters():
        torch.nn.init.normal_(parameter, generator=generator(4))
    folder = tmp_path / "port"
    shutil.copytree(tiny_folders["sd"], folder)
    shutil.rmtree(folder / "unet")
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "MultiViewUNetModel", **PORT}))
    values = {ldm.unet(key).removeprefix("model.diffusion_model."): v for key, v in views.unet.state_dict().items()}
    values |= {f"camera_embed.{key}": value for key, value in views.camera_embedding.state_dict().items()}
    save_file({key: value.contiguous() for key, value in values.items()}, folder / "unet" / "model.safetensors")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": ["pipeline_mvdream", "MVDreamPipeline"], "unet": ["mv_unet", "MultiViewUNetModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "pipeline_mvdream.py").write_text("raise SystemExit('this code must not run')\n")
    return folder, views


def test_a_port_of_mvdream_is_the_multi_view_prior(port: tuple[Path, Any]) -> None:
    folder, views = port
    prior = load_prior(folder)
    assert isinstance(prior, MultiViewPrior) and prior.frames == 4
    assert (prior.image_size, prior.recommended.guidance) == (32, 10.0)
    x, cameras = torch.randn(4, 4, 8, 8, generator=generator(0)), torch.randn(4, 16, generator=generator(1))
    rows = prior.encode_text("a dog").with_views(cameras, 4)["cond"]
    with torch.no_grad():
        wanted = views(x, torch.tensor(300.0), rows["text"], cameras, 4)
    torch.testing.assert_close(prior.predict(x, 300.0, rows), wanted, rtol=1e-5, atol=1e-5)
    assert load_prior(folder, dtype=torch.float16).views.dtype == torch.float16


def test_ports_that_cannot_be_read_are_told(port: tuple[Path, Any]) -> None:
    folder, _ = port
    with pytest.raises(InputError, match="lacks context_dim"):
        unet_config({**PORT, "context_dim": None})
    (folder / "unet" / "model.safetensors").rename(folder / "unet" / "model.bin")
    with pytest.raises(InputError, match="holds no safetensors"):
        load_prior(folder)


@pytest.mark.parametrize(
    ("index", "name"),
    [({"_class_name": "A"}, "A"), ({"_class_name": ["m", "B"]}, "B"), ({"_class_name": 3}, ""), ([], "")],
)
def test_the_class_of_an_index(index: Any, name: str) -> None:
    assert class_of(index) == name


def test_a_network_that_is_told_the_scale_draws_as_in_the_stock_pipeline() -> None:
    pipe = tiny_sd(time_cond_proj_dim=8)
    pipe.set_progress_bar_config(disable=True)
    x = torch.randn(2, 4, 8, 8, generator=generator(0))
    draw: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent", "height": 32, "width": 32}
    stock = {s: pipe(["a dog", "the wagon"], latents=x, guidance_scale=s, **draw).images for s in (2.0, 6.0)}
    prior = from_pipeline(pipe)
    assert prior.guidance_embedded
    for scale, wanted in stock.items():
        ours = TextToImage(prior, "native")(["a dog", "the wagon"], latents=x, guidance_scale=scale, **draw)
        torch.testing.assert_close(ours.latents, wanted, rtol=1e-4, atol=1e-4)
        assert ours.nfe == 6
    assert (stock[2.0] - stock[6.0]).abs().max() > 1e-3


def test_few_steps_with_a_scale_are_recommended_that_scale() -> None:
    pipe = tiny_sd(time_cond_proj_dim=8)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    recommended = from_pipeline(pipe).recommended
    assert (recommended.guidance, recommended.steps, recommended.distilled) == (7.5, 4, True)


def test_a_folder_never_shadows_a_head(tiny_folders: dict[str, Path], in_tmp: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: False)
    for name in ("marigold-depth", "prs-eth/marigold-depth-v1-1"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).symlink_to(tiny_folders["sd"])
        with pytest.raises(InputError, match=r"could not be fetched .*the hub cannot be reached.*the embedded head"):
            load_head(name, cache_dir=in_tmp / "cache")
        with pytest.raises(InputError, match="holds no geometry head"):
            load_head(f"./{name}")
    with pytest.raises(InputError, match=r"did you mean prs-eth/marigold-depth-v1-1"):
        load_head("prs-eth/marigold-depth-v1-2", cache_dir=in_tmp / "cache")
