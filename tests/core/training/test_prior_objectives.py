"""What the toybox prior is trained with: codec, tokenizer, denoising losses, latents, exports, recipes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

from unproject.core.priors import SD_SCHEDULE
from unproject.core.priors.multiview import MultiViewUNet
from unproject.core.sampling import NoiseSchedule
from unproject.core.training.latents import LatentSet, ViewGroups, encode_latents
from unproject.core.training.objectives.diffusion import (
    SCHEDULE,
    DiffusionConfig,
    DiffusionObjective,
    NoiseLossConfig,
    drop,
    noise_error,
    noise_weight,
)
from unproject.core.training.objectives.multiview import MultiViewConfig, MultiViewObjective
from unproject.core.training.objectives.tokenizer import build_tokenizer, save_tokenizer
from unproject.core.training.objectives.vae import (
    VAEConfig,
    build_vae,
    to_model,
)
from unproject.geometry.cameras import Camera
from unproject.toybox.captions import vocabulary
from unproject.utils.errors import InputError

WORDS = ["a", "red", "chair", "blue", "car", "front", "view", ","]
VAE = VAEConfig(widths=(8, 8), norm_groups=4, image_size=8, validation_images=6)
NOISE = NoiseLossConfig(validation_samples=8, preview_prompts=("a red chair",), preview_steps=2)
TINY = DiffusionConfig(
    (8, 8, 16), transformer_layers=1, heads=(1, 1, 2), norm_groups=4, latent_size=4, text_width=8, text_layers=1,
    text_heads=2, noise=NOISE,
)  # fmt: skip


class Renders:
    """Eight pictures: two groups of four views."""

    def __init__(self, seed: int = 0) -> None:
        self.pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return 8

    def images(self, indices):
        return self.pixels[indices]

    def captions(self, indices, rng=None):
        return [("a red chair", "a blue car")[int(i) // 4] for i in indices]

    def groups(self):
        return np.arange(8).reshape(2, 4)

    def cameras(self, indices):
        orbit = Camera.orbit(torch.as_tensor(indices) * 90.0, 20.0, 3.0, 40.0, 8, 8)
        return orbit.c2w.numpy(), orbit.K.numpy()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(WORDS)


@pytest.fixture(scope="module")
def vae():
    return build_vae(VAE, seed=0).requires_grad_(False)


@pytest.fixture(scope="module")
def latents(vae, tmp_path_factory):
    return LatentSet(encode_latents(vae, Renders(), tmp_path_factory.mktemp("latents")), Renders())


@pytest.fixture(scope="module")
def exported(tokenizer, vae, tmp_path_factory):
    objective = DiffusionObjective(TINY, tokenizer, vae, seed=1)
    return objective, objective.save_pipeline(tmp_path_factory.mktemp("export") / "prior")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# tokenizer


def test_every_word_of_the_vocabulary_is_one_token(tmp_path):
    words = vocabulary()
    save_tokenizer(build_tokenizer(words), tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    ids = loaded(list(words), add_special_tokens=False).input_ids
    assert [len(i) for i in ids] == [1] * len(words)
    assert len({i[0] for i in ids}) == len(words)
    assert [loaded.decode(i) for i in ids] == list(words)
    assert loaded.model_max_length == 32
    assert (loaded.bos_token_id, loaded.eos_token_id) == (len(loaded) - 2, len(loaded) - 1)


def test_a_vocabulary_always_gives_the_same_tokens():
    first, *others = (build_tokenizer(vocabulary()).get_vocab() for _ in range(6))
    assert all(other == first for other in others)


def test_the_saved_vocabulary_and_merges_rebuild_the_tokenizer(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    merges = [tuple(line.split()) for line in (tmp_path / "merges.txt").read_text().splitlines()[1:]]
    again = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=32)
    text = "A red CHAIR, seen by a zebra 42 é"
    assert again(text).input_ids == tokenizer(text).input_ids


@pytest.mark.parametrize("text", ["zebra", "a red chair", "naïve 7!", "車", ""])
def test_any_text_tokenises_without_loss(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[:-1]
    if text.isascii():
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_long_prompts_are_cut_at_the_model_length(tokenizer):
    assert len(tokenizer("a " * 100, truncation=True).input_ids) == 32


@pytest.mark.parametrize("words", [[], ["Red"], ["two words"]])
def test_unusable_vocabularies_are_refused(words):
    with pytest.raises(InputError, match="lower-case"):
        build_tokenizer(words)


# latents


def test_latents_are_scaled_posterior_means_and_encoded_once(vae, latents, tmp_path):
    mean = vae.encode(to_model(Renders().images(np.array([3])))).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(torch.from_numpy(latents.latents[3:4]).float(), mean, rtol=2e-3, atol=2e-3)
    encode_latents(vae, Renders(), tmp_path)
    stamp = (tmp_path / "latents-00000.npy").stat().st_mtime_ns
    encode_latents(vae, Renders(), tmp_path)
    assert (tmp_path / "latents-00000.npy").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="another codec"):
        encode_latents(build_vae(VAE, 1), Renders(), tmp_path)


def test_latents_must_belong_to_the_pictures(vae, latents, tmp_path):
    class More(Renders):
        def __len__(self):
            return 9

    with pytest.raises(InputError, match=r"run scripts\.encode_latents"):
        LatentSet(tmp_path, Renders())
    encode_latents(vae, Renders(), tmp_path)
    with pytest.raises(InputError, match="8 latents, but the data set has 9"):
        LatentSet(tmp_path, More())


def test_groups_stay_together_and_mix_with_single_pictures(latents):
    groups = ViewGroups(latents, Renders(), single_share=0.0)
    batch = groups.batch(np.array([1, 0]), np.random.default_rng(0))
    assert batch["frames"] == 4 and batch["c2w"].shape == (8, 4, 4)
    assert batch["captions"] == ["a blue car"] * 4 + ["a red chair"] * 4
    assert np.array_equal(batch["latents"], latents.latents[[4, 5, 6, 7, 0, 1, 2, 3]])
    groups.single_share = 1.0
    single = groups.batch(np.array([1, 0]), np.random.default_rng(0))
    assert single["frames"] == 1 and single["c2w"] is None and len(single["latents"]) == 8
    assert groups.batch(np.array([0]), None)["frames"] == 4


# denoising


def test_the_noise_weight_has_its_closed_form():
    snr = torch.tensor([99.0, 9.0, 1.0, 1 / 9], dtype=torch.float64)
    level = NoiseSchedule.from_config(SD_SCHEDULE).at_lambda(0.5 * snr.log())
    weights = [noise_weight(level, replace(NOISE, snr_gamma=5.0, snr_floor=floor)) for floor in (0.0, 0.5)]
    torch.testing.assert_close(weights[0], torch.tensor([5 / 99, 5 / 9, 1.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(weights[1], torch.tensor([5 / 99, 5 / 9, 1.0, 4.5], dtype=torch.float64))
    assert noise_weight(level, replace(NOISE, snr_gamma=0.0)).tolist() == [1.0] * 4


def test_the_error_of_v_is_read_as_that_of_the_noise():
    scheduler, schedule = DDIMScheduler(**SCHEDULE), NoiseSchedule.from_config(SD_SCHEDULE)
    latents, noise, raw = torch.randn((3, 3, 4, 4, 4), generator=rng()).unbind(0)
    t = torch.tensor([10, 500, 990])
    abar = scheduler.alphas_cumprod[t].reshape(3, 1, 1, 1)
    eps = abar.sqrt() * raw + (1 - abar).sqrt() * scheduler.add_noise(latents, noise, t)
    want = (eps - noise).square().mean((1, 2, 3))
    found = noise_error(schedule, "v_prediction", raw, latents, noise, schedule.at_index(t))
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_exported_pipeline_says_what_its_network_predicts(latents, tokenizer, kind, tmp_path, exported):
    config = replace(TINY, noise=replace(NOISE, prediction=kind))
    objective = DiffusionObjective(config, tokenizer, exported[0].vae, latents)
    folder = objective.save_pipeline(tmp_path / kind)
    assert StableDiffusionPipeline.from_pretrained(folder).scheduler.config.prediction_type == kind


def test_prompts_are_dropped_by_group_at_the_wanted_rate():
    texts = [str(i // 4) for i in range(4000)]
    got = drop(texts, 0.1, rng(), frames=4)
    assert all(len(set(got[i : i + 4])) == 1 for i in range(0, 4000, 4))
    assert got.count("") / 4000 == pytest.approx(0.1, abs=0.03)
    assert drop(texts, 0.0, rng()) == texts and drop(texts, 1.0, rng()) == [""] * 4000


def test_a_network_that_answers_zero_costs_the_power_of_the_noise(tokenizer, latents, monkeypatch):
    objective = DiffusionObjective(replace(TINY, noise=replace(NOISE, snr_gamma=0.0)), tokenizer)
    monkeypatch.setattr(objective, "unet", _Zero())
    batch = latents.batch(np.arange(8).repeat(40), np.random.default_rng(0))
    out = objective.loss(batch, rng(), 0)
    assert out.loss.item() == pytest.approx(1.0, abs=0.02)
    assert out.loss.item() == pytest.approx(out.logs["eps_mse"].item())


class _Zero:
    device = torch.device("cpu")

    def __call__(self, noisy, t, embeds, return_dict):
        return (torch.zeros_like(noisy),)


def test_denoising_loss_is_pure_and_reaches_every_weight(tokenizer, latents):
    objective = DiffusionObjective(TINY, tokenizer)
    batch = latents.batch(np.arange(4), np.random.default_rng(0))
    out = objective.loss(batch, rng(), 0)
    assert (
        out.loss.item() == objective.loss(batch, rng(), 0).loss.item() != objective.loss(batch, rng(1), 0).loss.item()
    )
    out.loss.backward()
    without = [n for m in objective.modules.values() for n, p in m.named_parameters() if p.grad is None]
    assert without == []


def test_validation_repeats_itself(tokenizer, latents):
    objective = DiffusionObjective(TINY, tokenizer, held_out=latents)
    with torch.no_grad():
        assert objective.validate() == objective.validate()


def test_plain_diffusers_loads_the_exported_prior(exported, tmp_path):
    objective, folder = exported
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert {m.dtype for m in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}
    assert isinstance(pipeline.scheduler, DDIMScheduler) and pipeline.scheduler.config.timestep_spacing == "trailing"
    assert pipeline.safety_checker is None
    settings = {"num_inference_steps": 2, "generator": rng(), "output_type": "np"}
    ours = objective.pipeline()
    ours.set_progress_bar_config(disable=True)
    ours = ours("a red chair", **settings).images
    theirs = pipeline("a red chair", **{**settings, "generator": rng()}).images
    assert theirs.shape == (1, 8, 8, 3)
    np.testing.assert_allclose(ours, theirs, atol=5e-3)
    assert not any(b"_name_or_path" in p.read_bytes() for p in folder.rglob("*.json"))


def test_export_needs_a_codec(tokenizer, tmp_path):
    with pytest.raises(InputError, match="codec"):
        DiffusionObjective(TINY, tokenizer).save_pipeline(tmp_path / "prior")


# several views


def multiview(exported, latents, **config) -> MultiViewObjective:
    base = StableDiffusionPipeline.from_pretrained(exported[1])
    whole = MultiViewConfig(noise=replace(NOISE, **config))
    return MultiViewObjective(whole, base, ViewGroups(latents, Renders(), 0.0))


def test_groups_share_their_time_and_singles_equal_the_base(exported, latents, monkeypatch):
    objective = multiview(exported, latents, snr_gamma=0.0, empty_share=0.0)
    seen = []
    error = objective._error
    monkeypatch.setattr(objective, "_error", lambda b, c, t, n: seen.append(t) or error(b, c, t, n))
    groups = ViewGroups(latents, Renders(), 0.0)
    objective.loss(groups.batch(np.arange(2), np.random.default_rng(0)), rng(), 0)
    assert seen[0].reshape(2, 4).unique(dim=1).shape == (2, 1)
    groups.single_share = 1.0
    batch = groups.batch(np.arange(2), np.random.default_rng(0))
    flat = DiffusionObjective(TINY, exported[0].tokenizer)
    flat.unet.load_state_dict({k: v.half().float() for k, v in exported[0].unet.state_dict().items()})
    flat.text_encoder.load_state_dict(objective.text_encoder.state_dict())
    noise, t = torch.randn(batch["latents"].shape, generator=rng()), torch.arange(8) * 100
    want = flat._error(torch.from_numpy(batch["latents"]).float(), noise, t, flat.embed(batch["captions"]))
    torch.testing.assert_close(error(batch, batch["captions"], t, noise), want, rtol=1e-5, atol=1e-6)


def test_only_the_inflated_network_learns(exported, latents):
    objective = multiview(exported, latents)
    objective.text_encoder.requires_grad_(False)
    objective.loss(
        ViewGroups(latents, Renders(), 0.0).batch(np.arange(2), np.random.default_rng(0)), rng(), 0
    ).loss.backward()
    assert all(p.grad is None for p in objective.text_encoder.parameters())
    assert objective.unet.camera_embedding[2].weight.grad.abs().max() > 0
    with torch.no_grad():
        assert set(objective.validate()) == {"eps_mse_views", "eps_mse_single"}


def test_views_are_sampled_and_the_export_answers_alike(exported, latents, tmp_path):
    objective = multiview(exported, latents)
    torch.nn.init.normal_(objective.unet.camera_embedding[2].weight, generator=rng())
    assert objective.sample(["a red chair", "a blue car"], 2, 3.0, seed=0).shape == (8, 3, 8, 8)
    loaded = MultiViewUNet.load(objective.save(tmp_path / "mv", base="prior"))
    x, embeds, cameras = (torch.randn(s, generator=rng()) for s in ((4, 4, 4, 4), (4, 32, 8), (4, 16)))
    t = torch.full((4,), 300)
    with torch.no_grad():
        ours, theirs = (net(x, t, embeds, cameras, 4) for net in (objective.unet, loaded))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-2)
    assert json.loads((tmp_path / "mv" / "mv.json").read_text())["base"] == "prior"


def test_one_training_makes_both_priors(exported, latents, tmp_path):
    base = StableDiffusionPipeline.from_pretrained(exported[1])
    config = MultiViewConfig(noise=replace(NOISE, empty_share=0.0), train_text=True)
    objective = MultiViewObjective(config, base, ViewGroups(latents, Renders(), 0.0))
    batch = ViewGroups(latents, Renders(), 0.0).batch(np.arange(2), np.random.default_rng(0))
    objective.loss(batch, rng(), 0).loss.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in objective.text_encoder.parameters())
    plain = StableDiffusionPipeline.from_pretrained(objective.save_base(tmp_path / "prior"))
    x, embeds, t = torch.randn((2, 4, 4, 4), generator=rng()), torch.randn((2, 32, 8), generator=rng()), 300
    with torch.no_grad():
        ours, theirs = objective.unet(x, torch.full((2,), t), embeds), plain.unet(x, t, embeds).sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-2)
    views = MultiViewUNet.load(objective.save(tmp_path / "prior-mv", base="prior"))
    assert not (tmp_path / "prior-mv" / "unet").exists()  # it is that of prior/
    assert all(torch.equal(value, views.unet.state_dict()[key]) for key, value in plain.unet.state_dict().items())
