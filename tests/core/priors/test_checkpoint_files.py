"""Checkpoints in one file: told by their names, loaded where they are whole; MVDream's pickled one; adapters."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from unproject.core.priors import MultiViewPrior, hub, inflate, load_prior
from unproject.core.priors.mvdream import CAMERA, as_safetensors
from unproject.core.priors.single_file import FLUX_T5, SD1, SD2, SDXL, Kind, kind_of, lacking
from unproject.utils.errors import InputError

UNET = "model.diffusion_model."
FIRST = f"{UNET}input_blocks.0.0.weight"
KEYS = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    """Nothing is asked of the network; the cache is a folder of the test."""
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setenv("UNPROJECT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def pipe(tiny_folders):
    return StableDiffusionPipeline.from_pretrained(tiny_folders["sd"], safety_checker=None)


def state(prior):
    return {f"{part}.{k}": v for part, module in prior.modules().items() for k, v in module.state_dict().items()}


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ({FIRST: (320, 4, 3, 3), KEYS: (320, 768)}, SD1),
        ({FIRST: (320, 4, 3, 3), KEYS: (320, 1024)}, SD2),
        ({FIRST: (4,), "cond_stage_model.model.ln_final.weight": (4,)}, SD2),
        ({FIRST: (320, 4, 3, 3), f"{UNET}label_emb.0.0.weight": (1280, 2816)}, SDXL),
        ({FIRST: (320, 9, 3, 3), KEYS: (320, 768)}, "inpainting or edits .9 input"),
        ({"conditioner.embedders.0.model.ln_final.weight": (1,), FIRST: (384, 4, 3, 3)}, "SDXL refiner"),
        ({f"{UNET}camera_embed.0.weight": (1, 16), FIRST: (320, 4, 3, 3)}, "multi-view checkpoint"),
        ({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 8)}, "a LoRA.*--lora"),
        ({"unet.down_blocks.0.attn1.to_q.lora_A.weight": (4, 8)}, "a LoRA.*--lora"),
        ({"emb_params": (2, 768)}, "textual inversion, which is not supported"),
        ({"<cat-toy>": (768,)}, "textual inversion, which is not supported"),
        ({"clip_l": (1, 768), "clip_g": (1, 1280)}, "textual inversion, which is not supported"),
        ({"control_model.time_embed.0.weight": (1, 1)}, "ControlNet"),
        ({f"{UNET}joint_blocks.0.x_block.mlp.fc1.weight": (1, 1)}, "Stable Diffusion 3"),
        ({"down_blocks.0.resnets.0.conv1.weight": (1, 1)}, "layout without its settings"),
        ({"encoder.conv_in.weight": (1, 1), "decoder.conv_in.weight": (1, 1)}, "VAE alone"),
        ({"colour": (3,)}, "no checkpoint that is known"),
    ],
)
def test_a_file_is_told_by_its_names(names, what, tmp_path):
    if isinstance(what, Kind):
        assert kind_of(names) is what
        return
    assert isinstance(kind_of(names), str)
    if "camera_embed" not in next(iter(names)):
        save_file({name: torch.zeros(shape) for name, shape in names.items()}, tmp_path / "some.safetensors")
        with pytest.raises(InputError, match=rf"some\.safetensors is .*{what}"):
            load_prior(tmp_path / "some.safetensors")


@pytest.mark.parametrize("prefix", ["", UNET])
def test_flux_files_are_told_apart_by_their_guidance(prefix):
    names = dict.fromkeys([f"{prefix}{n}.weight" for n in ("img_in", "final_layer.linear")], (1, 1))
    names[f"{prefix}double_blocks.0.img_mod.lin.weight"] = (1, 1)
    kind = kind_of(names)
    assert isinstance(kind, Kind) and (kind.family, kind.base) == ("FluxPipeline", "flux-schnell")
    assert lacking(kind, names) == ["vae", "text_encoder", "text_encoder_2"]
    dev = kind_of({**names, f"{prefix}guidance_in.in_layer.weight": (1, 1)})
    assert isinstance(dev, Kind) and dev.base == "flux-dev"
    assert lacking(dev, {**names, FLUX_T5: (1, 1)}) == ["vae", "text_encoder"]


def test_a_whole_file_is_the_pipeline_that_it_was_made_of(tiny_folders, tmp_path, ldm, pipe):
    pipe.unet.conv_in.weight.data.add_(0.5)
    pipe.vae.decoder.conv_out.bias.data.add_(0.5)
    pipe.text_encoder.get_input_embeddings().weight.data.mul_(0.5)
    save_file(ldm.checkpoint(pipe), tmp_path / "mine.safetensors")
    prior = load_prior(tmp_path / "mine.safetensors", base=tiny_folders["sd"])
    assert (prior.name, prior.prediction_type) == ("mine", "epsilon")
    found = state(prior)
    for part in ("unet", "vae", "text_encoder"):
        for key, value in getattr(pipe, part).state_dict().items():
            assert torch.equal(found[f"{part}.{key}"], value), f"{part}.{key}"
    assert not any(p.requires_grad for p in prior.parameters())
    assert (
        load_prior(tmp_path / "mine.safetensors", dtype=torch.bfloat16, base=tiny_folders["sd"]).dtype == torch.bfloat16
    )
    with pytest.raises(InputError, match=r"Stable Diffusion 1\.x.*StableDiffusion3Pipeline; give another --base"):
        load_prior(tmp_path / "mine.safetensors", base=tiny_folders["sd3"])
    with pytest.raises(
        InputError, match=r"is a Stable Diffusion 1\.x checkpoint; its settings come from sd15: .*fetched"
    ):
        load_prior(tmp_path / "mine.safetensors", cache_dir=tmp_path)


@pytest.mark.parametrize("base", [None, "sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5"])
def test_a_folder_never_shadows_the_id_of_a_base(tiny_folders, tmp_path, ldm, pipe, monkeypatch, base):
    monkeypatch.chdir(tmp_path)
    save_file(ldm.checkpoint(pipe), "mine.safetensors")
    place = tmp_path / (base or "sd15")
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(tiny_folders["sd"])
    with pytest.raises(InputError, match=f"come from {base or 'sd15'}: .*not in the cache"):
        load_prior("mine.safetensors", base=base, cache_dir=tmp_path / "hub")
    assert load_prior("mine.safetensors", base=f"./{base or 'sd15'}").name == "mine"


def test_an_sdxl_network_is_loaded_with_the_rest_of_its_base(tiny_folders, tmp_path, ldm):
    unet, base = (load_prior(tiny_folders["sdxl"]) for _ in range(2))
    unet.network.conv_in.weight.data.add_(0.5)
    unet.network.add_embedding.linear_2.bias.data.add_(0.5)
    kept = unet.network.state_dict()
    save_file({ldm.unet(key): value.contiguous() for key, value in kept.items()}, tmp_path / "xl.safetensors")
    with pytest.raises(InputError, match=r"is an SDXL checkpoint with the U-Net only; give --base.*second text"):
        load_prior(tmp_path / "xl.safetensors")
    prior = load_prior(tmp_path / "xl.safetensors", base=tiny_folders["sdxl"])
    assert type(prior) is type(base) and all(torch.equal(prior.network.state_dict()[k], v) for k, v in kept.items())
    told, known = (one.encode_text("a dog")["cond"] for one in (prior, base))
    torch.testing.assert_close((told["text"], told["pooled"]), (known["text"], known["pooled"]))
    assert torch.equal(prior.vae.decoder.conv_out.weight, base.vae.decoder.conv_out.weight)


def test_what_a_file_lacks_comes_from_its_base(tiny_folders, tmp_path, ldm, pipe):
    pipe.unet.conv_in.weight.data.add_(0.5)
    network = {key: value for key, value in ldm.checkpoint(pipe).items() if key.startswith(UNET)}
    save_file(network, tmp_path / "unet.safetensors")
    with pytest.raises(
        InputError, match=r"with the U-Net only; give --base.*VAE and text encoder, such as --base sd15"
    ):
        load_prior(tmp_path / "unet.safetensors")
    prior, base = load_prior(tmp_path / "unet.safetensors", base=tiny_folders["sd"]), load_prior(tiny_folders["sd"])
    assert torch.equal(prior.network.conv_in.weight, pipe.unet.conv_in.weight)
    assert torch.equal(prior.vae.decoder.conv_out.weight, base.vae.decoder.conv_out.weight)
    torch.testing.assert_close(prior.encode_text("a dog")["cond"]["text"], base.encode_text("a dog")["cond"]["text"])


def test_a_torn_file_says_what_it_was(tmp_path):
    names = [FIRST, "first_stage_model.decoder.conv_in.weight", "cond_stage_model.transformer.text_model.x.weight"]
    save_file({name: torch.zeros(4) for name in names}, tmp_path / "torn.safetensors")
    with pytest.raises(InputError, match=r"is a Stable Diffusion 1\.x checkpoint whose U-Net is not whole"):
        load_prior(tmp_path / "torn.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(InputError, match="is no safetensors file"):
        load_prior(tmp_path / "text.safetensors")


def test_the_published_multi_view_file_is_read_as_tensors_once(tiny_folders, tmp_path, ldm, make_unet):
    views = inflate(make_unet(seed=4))
    views.camera_embedding[2].weight.data.normal_(generator=torch.Generator().manual_seed(1))
    checkpoint = {ldm.unet(key): value for key, value in views.unet.state_dict().items()}
    checkpoint |= {f"{CAMERA}{key}": value for key, value in views.camera_embedding.state_dict().items()}
    torch.save({**checkpoint, "first_stage_model.x": torch.zeros(9)}, tmp_path / "four.pt")
    prior = load_prior(tmp_path / "four.pt", base=tiny_folders["sd"])
    assert isinstance(prior, MultiViewPrior) and prior.recommended.guidance == 10.0
    assert torch.equal(prior.views.camera_embedding[2].weight, views.camera_embedding[2].weight)
    kept = as_safetensors(tmp_path / "four.pt")
    written = kept.stat().st_mtime_ns
    assert as_safetensors(tmp_path / "four.pt") == kept and kept.stat().st_mtime_ns == written
    torch.save(checkpoint, tmp_path / "four.pt")
    os.utime(tmp_path / "four.pt", ns=(1, 1))
    assert as_safetensors(tmp_path / "four.pt") != kept


class Surprise:
    def __reduce__(self):
        return (os.system, ("false",))


@pytest.mark.parametrize("content", [{FIRST: torch.zeros(3)}, {"a": Surprise()}, [1]])
def test_other_pickled_files_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "model.ckpt")
    with pytest.raises(InputError, match="not MVDream's checkpoint; other pickled weights are never loaded"):
        load_prior(tmp_path / "model.ckpt")


def adapter(folder, path, seed):
    """An adapter of both networks, written as diffusers writes them."""
    pipe, layers = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None), {}
    for part, targets in (("unet", ["to_q", "to_v"]), ("text_encoder", ["q_proj"])):
        module = getattr(pipe, part)
        module.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False))
        rng = torch.Generator().manual_seed(seed)
        found = get_peft_model_state_dict(module, adapter_name="default")
        layers[f"{part}_lora_layers"] = {k: 0.3 * torch.randn(v.shape, generator=rng) for k, v in found.items()}
    StableDiffusionPipeline.save_lora_weights(path.parent, weight_name=path.name, **layers)


def test_adapters_are_added_as_the_stock_pipeline_adds_them(tiny_folders, tmp_path, pipe):
    files = [tmp_path / "first.safetensors", tmp_path / "second.safetensors"]
    for seed, path in enumerate(files):
        adapter(tiny_folders["sd"], path, seed)
        pipe.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name=path.stem)
    pipe.set_adapters(["first", "second"], [0.5, 1.0])
    plain = load_prior(tiny_folders["sd"])
    prior = load_prior(tiny_folders["sd"], lora=[f"{files[0]}:0.5", files[1]])
    assert prior.name == "sd+first:0.5+second:1"
    assert state(prior).keys() == state(plain).keys()
    x, rows = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), prior.encode_text("a dog")["cond"]
    with torch.no_grad():
        text = pipe.encode_prompt("a dog", "cpu", 1, False)[0]
        stock = pipe.unet(x, torch.tensor([500.0]), text).sample
    torch.testing.assert_close(rows["text"], text, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prior.predict(x, 500.0, rows), stock, rtol=1e-4, atol=1e-5)
    assert (plain.predict(x, 500.0, plain.encode_text("a dog")["cond"]) - stock).abs().max() > 1e-3
    assert not any(p.requires_grad for p in prior.parameters())
    silent = state(load_prior(tiny_folders["sd"], lora=f"{files[0]}:0"))
    assert all(torch.equal(silent[key], value) for key, value in state(plain).items())
    with pytest.raises(InputError, match=r"first\.safetensors"):
        load_prior(tiny_folders["sd3"], lora=files[0])


def test_layers_of_another_network_are_told(tiny_folders, tmp_path):
    adapter(tiny_folders["sd"], tmp_path / "whole.safetensors", 0)
    layers = load_file(tmp_path / "whole.safetensors")
    odd = {
        name.replace("mid_block", "last_block"): value.clone() for name, value in layers.items() if "mid_block" in name
    }
    save_file({**layers, **odd}, tmp_path / "more.safetensors")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the LoRA")
        load_prior(tiny_folders["sd"], lora=tmp_path / "whole.safetensors")
    count = sum("lora_A" in name or "lora.down" in name for name in layers)
    with pytest.warns(UserWarning, match=rf"only {count} of its {count + len(odd) // 2} layers are of sd"):
        load_prior(tiny_folders["sd"], lora=tmp_path / "more.safetensors")


def test_a_layer_of_another_size_is_named(tiny_folders, tmp_path):
    adapter(tiny_folders["sd"], tmp_path / "a.safetensors", 0)
    layers = load_file(tmp_path / "a.safetensors")
    wider = {name: v.repeat(1, 2) if "lora_A" in name or "down" in name else v for name, v in layers.items()}
    save_file(wider, tmp_path / "wide.safetensors")
    with pytest.raises(InputError, match=r"wide\.safetensors .*size mismatch for .*to_[qv].*shape torch\.Size"):
        load_prior(tiny_folders["sd"], lora=tmp_path / "wide.safetensors")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["emb_params"], "it is a textual inversion, which is not supported"),
        ([FIRST], "Stable Diffusion 1.x.*not a LoRA"),
    ],
)
def test_other_files_are_no_adapters(tiny_folders, tmp_path, names, message):
    save_file({name: torch.zeros(4) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=message):
        load_prior(tiny_folders["sd"], lora=tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="the scale 'much' is no number"):
        load_prior(tiny_folders["sd"], lora=f"{tmp_path / 'x.safetensors'}:much")
    with pytest.raises(InputError, match=r"nothing\.safetensors does not exist"):
        load_prior(tiny_folders["sd"], lora=str(tmp_path / "nothing.safetensors:0.5"))
