"""Real pipeline classes with random weights behind the prior interface; the registry; conditions."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

from unproject.core.priors import EmbeddedPrior, StableDiffusionPrior, available, load_prior, multi_view_sibling
from unproject.core.priors.registry import PriorEntry, registry
from unproject.core.sampling import DDIM, ClassifierFree, Denoiser, NoiseSchedule, Sampler
from unproject.utils.errors import InputError

SHAPES = {"sd": (4, 8, 8), "sd-v": (4, 8, 8), "toybox": (4, 8, 8), "sdxl": (4, 8, 8), "sd3": (4, 8, 8)}
KINDS = {
    "sd": "epsilon",
    "sd-v": "v_prediction",
    "sdxl": "epsilon",
    "sd3": "flow_prediction",
    "flux": "flow_prediction",
}


def start(prior, rows: int = 2, seed: int = 3) -> torch.Tensor:
    return torch.randn(rows, prior.latent_shape[0], 8, 8, generator=torch.Generator().manual_seed(seed))


def sampled(prior, condition, x, steps, scale):
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    levels = schedule.grid(steps, tokens=prior.tokens(x))
    with torch.no_grad():
        return Sampler(DDIM()).run(Denoiser(prior, condition, scale), x, levels)


@pytest.mark.parametrize("name", list(KINDS))
def test_every_family_loads_predicts_and_is_frozen(tiny_folders, name):
    prior = load_prior(tiny_folders[name])
    assert prior.prediction_type == KINDS[name]
    assert prior.vae_factor == 4
    if name in SHAPES:
        assert prior.latent_shape == SHAPES[name]
    assert not any(p.requires_grad for p in prior.parameters())
    assert not any(module.training for module in prior.modules().values())
    condition = prior.encode_text(["a red chair", "a dog"])
    x = start(prior)
    out = prior.predict(x, 500.0, condition["cond"])
    assert out.shape == x.shape
    assert torch.isfinite(out).all()
    assert prior.nfe == 2
    alone = prior.predict(x[1:], 500.0, condition["cond"].index([1]))
    torch.testing.assert_close(alone, out[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sd", "sd-v"])
def test_sampling_equals_the_stock_stable_diffusion_pipeline(tiny_folders, name):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folders[name], safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    prior = load_prior(tiny_folders[name])
    x = start(prior)
    prompts, against = ["a red chair", "a dog"], ["blue", "the wagon"]
    stock = pipe(
        prompts, negative_prompt=against, latents=x, num_inference_steps=10, guidance_scale=5.0, output_type="latent"
    ).images
    ours = sampled(prior, prior.encode_text(prompts, against), x, 10, 5.0)
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)


def test_rescaled_guidance_equals_the_stock_pipeline(tiny_folders):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folders["sd"], safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    prior = load_prior(tiny_folders["sd"])
    x = start(prior)
    stock = pipe(
        ["a dog"] * 2, latents=x, num_inference_steps=5, guidance_scale=9.0, guidance_rescale=0.7, output_type="latent"
    ).images
    ours = sampled(prior, prior.encode_text(["a dog"] * 2), x, 5, ClassifierFree(9.0, rescale=0.7))
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)


def test_sampling_equals_the_stock_sdxl_pipeline(tiny_folders):
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_folders["sdxl"])
    pipe.set_progress_bar_config(disable=True)
    prior = load_prior(tiny_folders["sdxl"])
    x = start(prior)
    prompts = ["a red chair", "a dog"]
    stock = pipe(
        prompts, latents=x, num_inference_steps=6, guidance_scale=4.0, height=32, width=32, output_type="latent"
    ).images
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    levels = schedule.grid(6, final="zero")
    with torch.no_grad():
        ours = Sampler(DDIM()).run(Denoiser(prior, prior.encode_text(prompts), 4.0), x, levels)
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-3)


def test_sampling_equals_the_stock_sd3_pipeline(tiny_folders):
    pipe = StableDiffusion3Pipeline.from_pretrained(tiny_folders["sd3"], text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    prior = load_prior(tiny_folders["sd3"])
    x = start(prior)
    prompts = ["a red chair", "a dog"]
    stock = pipe(
        prompts, latents=x, num_inference_steps=6, guidance_scale=4.0, height=32, width=32, output_type="latent"
    ).images
    torch.testing.assert_close(sampled(prior, prior.encode_text(prompts), x, 6, 4.0), stock, rtol=1e-4, atol=1e-4)


def test_sampling_equals_the_stock_flux_pipeline(tiny_folders):
    pipe = FluxPipeline.from_pretrained(tiny_folders["flux"])
    pipe.set_progress_bar_config(disable=True)
    prior = load_prior(tiny_folders["flux"])
    x = start(prior)
    prompts = ["a red chair", "a dog"]
    packed = FluxPipeline._pack_latents(x, 2, 4, 8, 8)
    stock = pipe(
        prompts,
        latents=packed,
        num_inference_steps=5,
        guidance_scale=2.5,
        height=32,
        width=32,
        output_type="latent",
        max_sequence_length=512,
    ).images
    condition = prior.encode_text(prompts)
    assert "null" not in condition
    condition = condition.with_rows(guidance=torch.tensor([2.5]))
    ours = FluxPipeline._pack_latents(sampled(prior, condition, x, 5, 1.0), 2, 4, 8, 8)
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_codec_matches_the_vae_and_passes_gradients(tiny_folders, name):
    prior = load_prior(tiny_folders[name])
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
    latents = prior.encode(images)
    vae = prior.pipe.vae
    shift = vae.config.shift_factor or 0.0
    wanted = (vae.encode(2 * images - 1).latent_dist.mean - shift) * vae.config.scaling_factor
    torch.testing.assert_close(latents, wanted)
    latents.square().sum().backward()
    assert images.grad.abs().max() > 0
    assert all(p.grad is None for p in prior.parameters())
    free = latents.detach().requires_grad_(True)
    prior.decode(free, clamp=False).square().sum().backward()
    assert free.grad.abs().min() > 0


def test_sampled_encoding_draws_one_stream_per_image(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)).expand(3, -1, -1, -1)
    seeds = [torch.Generator().manual_seed(s) for s in (1, 2, 1)]
    latents = prior.encode(images, sample=True, generator=seeds)
    torch.testing.assert_close(latents[0], latents[2], rtol=1e-4, atol=1e-5)
    assert (latents[0] - latents[1]).abs().max() > 1e-3
    with pytest.raises(InputError, match="generator"):
        prior.encode(images, sample=True)


def test_known_and_unknown_words(tiny_folders):
    prior = load_prior(tiny_folders["toybox"])
    assert isinstance(prior, EmbeddedPrior)
    assert prior.unknown_words("A RED chair, of the dog!") == []
    found = dict(prior.unknown_words("a red wagn and a 🐉 chair"))
    assert found["wagn"] == ["wagon"]
    assert "🐉" in found
    assert "and" not in found and found["🐉"] == []
    assert prior.unknown_words("is a red chair with the dog") == []
    assert load_prior(tiny_folders["sd"]).unknown_words("a dragon") == []


def test_truncated_ending_is_returned(tiny_folders):
    prior = load_prior(tiny_folders["sd"])
    assert prior.truncated("a red chair") == ""
    words = ["dog"] * 10 + ["wagon"] * 4  # three letters a word fill the 30 places
    assert prior.truncated(" ".join(words)) == "wagon wagon wagon wagon"


def test_save_and_reload(tiny_folders, tmp_path):
    prior = load_prior(tiny_folders["toybox"])
    prior.save(tmp_path / "copy")
    again = load_prior(tmp_path / "copy")
    assert isinstance(again, EmbeddedPrior)
    assert again.vocabulary == prior.vocabulary
    x, condition = start(prior), prior.encode_text(["a dog"] * 2)
    assert torch.equal(again.predict(x, 10.0, condition["cond"]), prior.predict(x, 10.0, condition["cond"]))


def test_half_precision_keeps_the_state_in_float32(tiny_folders):
    prior = load_prior(tiny_folders["sd"], dtype=torch.bfloat16)
    x = start(prior)
    assert prior.predict(x, 500.0, prior.encode_text("a dog")["cond"]).dtype == torch.float32
    assert prior.decode(x).dtype == torch.float32


def test_a_codec_that_overflows_in_half_precision_stays_in_float32(tiny_folders):
    prior = load_prior(tiny_folders["sdxl"])
    prior.vae.register_to_config(force_upcast=True)
    weight = prior.vae.decoder.conv_out.weight.clone()
    assert prior.to(dtype=torch.float16) is prior
    assert torch.equal(prior.vae.decoder.conv_out.weight, weight)
    assert (prior.dtype, prior.network.dtype, prior.vae.dtype) == (torch.float16, torch.float16, torch.float32)
    assert torch.isfinite(prior.encode(torch.zeros(1, 3, 32, 32))).all()
    prior.to(dtype=torch.bfloat16)
    assert prior.vae.dtype == torch.bfloat16
    prior.vae.register_to_config(force_upcast=False)
    assert prior.to(dtype=torch.float16).vae.dtype == torch.float16


@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
def test_other_codecs_are_in_half_precision_as_in_the_stock_pipelines(tiny_folders, family):
    """Files without the entry `force_upcast` have it by default, and only SDXL's pipeline looks at it."""
    prior = load_prior(tiny_folders[family], dtype=torch.float16)
    assert prior.vae.config.force_upcast and prior.vae.dtype == torch.float16


def test_trainable_networks_stay_trainable_when_asked(tiny_folders):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folders["sd"], safety_checker=None)
    pipe.unet.train().requires_grad_(True)
    prior = StableDiffusionPrior(pipe, frozen=False)
    assert prior.network.training and all(p.requires_grad for p in prior.network.parameters())
    assert not any(p.requires_grad for p in StableDiffusionPrior(pipe).parameters())


def test_what_a_prior_is_stands_on_it(tiny_folders):
    toybox, sd = load_prior(tiny_folders["toybox"]), load_prior(tiny_folders["sd"])
    assert (toybox.recipe, sd.recipe) == ("toybox", "stable-diffusion")
    assert (toybox.image_size, toybox.frames, toybox.multiview) == (32, 1, False)


def test_the_sibling_of_a_prior_is_the_one_that_names_it(monkeypatch, tmp_path):
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    assert multi_view_sibling("toybox") is None
    (tmp_path / "toybox-mv").mkdir()
    (tmp_path / "toybox-mv" / "mv.json").write_text(json.dumps({"base": "toybox"}))
    assert multi_view_sibling("toybox") == "toybox-mv"
    assert multi_view_sibling("toybox-dit") is None
    assert multi_view_sibling("toybox-mv") is None
    assert multi_view_sibling(str(tmp_path / "toybox")) is None


def test_registry_is_complete():
    for name, entry in registry().items():
        assert isinstance(entry, PriorEntry)
        assert entry.licence
        assert entry.recommended.steps > 0
        assert name in available()
    assert {"toybox", "toybox-mv", "sd15", "sdxl", "sd3", "flux-dev"} <= set(available())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sd51", "did you mean"),
        ("./nowhere", "neither a name nor a folder"),
        ("no such", "neither a name nor a folder"),
    ],
)
def test_unknown_priors_are_named(name, message):
    with pytest.raises(InputError, match=message) as caught:
        load_prior(name)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["sd21", "some-owner/a-vanished-model"])
def test_unreachable_priors_are_input_errors(name, tmp_path):
    with pytest.raises(InputError, match=r"could not be fetched.*--prior toybox"):
        load_prior(name, local_files_only=True, cache_dir=tmp_path)


def test_broken_folders_are_input_errors(tmp_path, monkeypatch, tiny_folders):
    with pytest.raises(InputError, match=r"no model_index\.json"):
        load_prior(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableVideoDiffusionPipeline"}))
    with pytest.raises(InputError, match="StableVideoDiffusionPipeline"):
        load_prior(tmp_path)
    (tmp_path / "model_index.json").write_text((tiny_folders["sd"] / "model_index.json").read_text())
    with pytest.raises(InputError, match="is not whole: it has no safetensors of scheduler, text_encoder"):
        load_prior(tmp_path)
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(InputError, match="UNPROJECT_WEIGHTS"):
        load_prior("toybox")
    (tmp_path / "model.pt").write_bytes(b"0")
    with pytest.raises(InputError, match="other pickled weights are never loaded"):
        load_prior(tmp_path / "model.pt")


def test_embedded_name_reads_the_weights_root(monkeypatch, tiny_folders):
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tiny_folders["toybox"].parent))
    prior = load_prior("toybox")
    assert prior.name == "toybox"
    assert prior.recommended.steps == 20
