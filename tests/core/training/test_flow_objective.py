"""The rectified-flow objective: times, padding, sizes, export, resumption."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from unproject.core.priors import load_prior
from unproject.core.sampling import DDIM, Denoiser, NoiseSchedule, Sampler
from unproject.core.training.config import TrainerConfig
from unproject.core.training.latents import LatentSet, encode_latents
from unproject.core.training.mixed_sizes import MixedSizes
from unproject.core.training.objectives.flow import (
    FlowConfig,
    FlowLossConfig,
    FlowObjective,
    draw_padding,
    draw_times,
    time_quantile,
)
from unproject.core.training.objectives.flow_networks import FlowNetworks, HeavyLastKey, build_transformer
from unproject.core.training.objectives.tokenizer import build_tokenizer
from unproject.core.training.objectives.vae import VAEConfig, build_vae
from unproject.core.training.trainer import Trainer
from unproject.utils.errors import InputError

WORDS = ["a", "red", "chair", "blue", "car"]
CODEC = VAEConfig(widths=(8, 8), norm_groups=4, image_size=8)  # factor 2
NETWORKS = FlowNetworks(16, 2, 2, latent_size=4, largest_latent=12, text_width=8, text_layers=(2, 1), text_heads=2)
LOSS = FlowLossConfig(validation_samples=6, preview_prompts=("a red chair",), preview_steps=2)
TINY = FlowConfig(NETWORKS, LOSS)
SIDES = (8, 4, 12)  # px; latents of 4, 2 and 6


class Pictures:
    """Random pictures with captions."""

    def __init__(self, pixels: int, count: int = 6) -> None:
        self.pixels = np.random.default_rng(pixels).integers(0, 256, (count, pixels, pixels, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, indices):
        return self.pixels[indices]

    def captions(self, indices, rng=None):
        return [("a red chair", "a blue car")[int(i) % 2] for i in indices]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(WORDS)


@pytest.fixture(scope="module")
def vae():
    return build_vae(CODEC, seed=0).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def sets(vae, tmp_path_factory):
    root = tmp_path_factory.mktemp("latents")
    made = [(encode_latents(vae, Pictures(px), root / str(px)), Pictures(px)) for px in SIDES]
    return [LatentSet(*pair) for pair in made]


@pytest.fixture(scope="module")
def shaken(tokenizer, vae):
    """An objective whose networks answer something: fresh ones answer zero."""
    objective = FlowObjective(TINY, tokenizer, vae, seed=1)
    shake(objective)
    return objective


@pytest.fixture(scope="module")
def exported(shaken, tmp_path_factory):
    return shaken.save_pipeline(tmp_path_factory.mktemp("export") / "prior")


def shake(objective: FlowObjective) -> None:
    noise = rng(5)
    with torch.no_grad():
        for module in objective.modules.values():
            for p in module.parameters():
                p += 0.1 * torch.randn(p.shape, generator=noise)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal_cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


# times and padding


@pytest.mark.parametrize("u", [0.001, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(("share", "mean", "std"), [(0.0, 0.0, 1.0), (0.0, 0.5, 0.7), (0.1, -0.3, 1.2)])
def test_the_quantile_of_times_inverts_the_closed_form(u, share, mean, std):
    config = FlowLossConfig(uniform_share=share, logit_mean=mean, logit_std=std)
    t = float(time_quantile(torch.tensor([u], dtype=torch.float64), config))
    if u < share:
        assert t == pytest.approx(u / share)
    else:
        cdf = normal_cdf((math.log(t / (1 - t)) - mean) / std)
        assert share + (1 - share) * cdf == pytest.approx(u, abs=1e-9)


def test_uniform_times_are_uniform_and_stratified():
    t = draw_times(64, FlowLossConfig(uniform_share=1.0), rng())
    assert t.dtype == torch.float32
    assert torch.equal((t * 64).floor().sort().values, torch.arange(64.0))


def test_logit_normal_times_have_their_moments_in_every_batch():
    config = FlowLossConfig(uniform_share=0.0, logit_mean=0.4, logit_std=0.8)
    for seed in range(3):
        t = draw_times(4096, config, rng(seed)).double()
        logits = (t / (1 - t)).log()
        assert logits.mean().item() == pytest.approx(0.4, abs=0.01)
        assert logits.std().item() == pytest.approx(0.8, abs=0.01)
    assert torch.equal(draw_times(8, config, rng(1)), draw_times(8, config, rng(1)))


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_the_ends_of_the_law_are_times(share):
    ends = time_quantile(
        torch.tensor([0.0, share, 1 - 1e-16], dtype=torch.float64), FlowLossConfig(uniform_share=share)
    )
    assert torch.isfinite(ends).all() and ends.min() >= 0 and ends.max() <= 1


def test_padding_is_whole_numbers_in_range():
    padding = draw_padding(4000, 0.5, rng())
    some = padding[padding > 0]
    assert len(some) / 4000 == pytest.approx(0.5, abs=0.03)
    assert torch.equal(padding, padding.round()) and some.min() == 1 and some.max() <= 512
    assert some.log().mean().item() == pytest.approx(math.log(512) / 2, abs=0.15)
    assert draw_padding(9, 0.0, rng()).max() == 0


@pytest.mark.parametrize("wrong", [{"uniform_share": 1.5}, {"empty_share": -0.1}, {"logit_std": 0.0}, {"shift": 0.0}])
def test_impossible_settings_are_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        FlowLossConfig(**wrong)


# networks


def test_a_fresh_transformer_is_the_zero_function():
    x = torch.randn(1, 4, 4, 4, generator=rng())
    with torch.no_grad():
        out = build_transformer(NETWORKS)(x, torch.zeros(1, 3, 16), torch.ones(1, 16), torch.tensor([400.0]))
    assert out.sample.abs().max() == 0


def test_positions_are_one_step_apart_and_centred():
    embed = build_transformer(NETWORKS).pos_embed
    grid = embed.pos_embed.reshape(6, 6, 16)  # width in the first half: sines of 4 frequencies, then cosines
    assert torch.allclose(grid[0, :, 0], torch.arange(6.0).sin(), atol=1e-6)
    assert torch.allclose(embed.cropped_pos_embed(4, 4).reshape(2, 2, 16), grid[2:4, 2:4])


def test_one_heavy_zero_token_is_many_zero_tokens(shaken):
    x, t = torch.randn(3, 4, 4, 4, generator=rng()), torch.tensor([0.1, 0.5, 1.0])
    captions = ["a red chair", "", "a blue car"]
    with torch.no_grad():
        tokens, pooled = shaken.embed(captions)
        for count in (1, 7, 256):
            many = torch.cat([tokens, tokens.new_zeros(3, count, tokens.shape[-1])], dim=1)
            one = shaken.velocity(x, t, captions, torch.full((3,), float(count)))
            torch.testing.assert_close(one, shaken._transform(x, t, many, pooled), rtol=1e-4, atol=1e-5)
        none = shaken.velocity(x, t, captions)
        torch.testing.assert_close(shaken.velocity(x, t, captions, torch.zeros(3)), none, rtol=1e-4, atol=1e-5)
        assert (none - one).abs().max() > 1e-3
        mixed = shaken.velocity(x, t, captions, torch.tensor([0.0, 256.0, 0.0]))
        torch.testing.assert_close(mixed[[0, 2]], none[[0, 2]], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mixed[1], one[1], rtol=1e-4, atol=1e-5)


def test_the_weighting_ends_with_its_context():
    q, k = torch.randn(2, 1, 2, 4, generator=rng()), torch.zeros(2, 1, 3, 4)
    v = torch.eye(3).expand(2, 1, 3, 3)
    attend = torch.nn.functional.scaled_dot_product_attention
    with HeavyLastKey(torch.tensor([0.0, 4.0])):
        weights = attend(q, k, v)
    torch.testing.assert_close(weights[0, 0, 0], torch.tensor([0.5, 0.5, 0.0]))
    torch.testing.assert_close(weights[1, 0, 0], torch.tensor([1.0, 1.0, 4.0]) / 6)
    torch.testing.assert_close(attend(q, k, v)[0, 0, 0], torch.full((3,), 1 / 3))


def test_text_is_embedded_as_the_stock_pipeline_does(shaken):
    captions = ["a red chair", "", "a zebra"]
    with torch.no_grad():
        tokens, pooled = shaken.embed(captions)
        stock = shaken.pipeline().encode_prompt(
            captions, None, None, do_classifier_free_guidance=False, max_sequence_length=0
        )
    torch.testing.assert_close(tokens, stock[0])
    torch.testing.assert_close(pooled, stock[2])
    assert tokens.shape == (3, 32, 16) and pooled.shape == (3, 16)


# loss


def test_the_zero_function_costs_the_power_of_noise_and_data(tokenizer, sets):
    objective = FlowObjective(TINY, tokenizer)
    batch = sets[0].batch(np.arange(6).repeat(60), np.random.default_rng(0))
    out = objective.loss(batch, rng(), 0)
    assert out.loss.item() == pytest.approx(1.0 + np.square(batch["latents"].astype(float)).mean(), rel=0.02)
    assert out.logs["v_mse"].item() == out.logs["v_mse_4"].item() == pytest.approx(out.loss.item())


def test_the_exact_velocity_costs_nothing(tokenizer, sets, monkeypatch):
    objective = FlowObjective(TINY, tokenizer)
    latents = torch.from_numpy(sets[0].latents).float()
    monkeypatch.setattr(objective, "velocity", lambda x, t, *_: (x - latents) / t[:, None, None, None])
    loss = objective.loss(sets[0].batch(np.arange(6), np.random.default_rng(0)), rng(), 0).loss
    assert loss.item() < 1e-9


def test_the_network_is_told_the_time_in_thousandths(shaken, monkeypatch):
    seen = {}
    monkeypatch.setattr(shaken.transformer, "forward", lambda **named: seen.update(named) or (named["hidden_states"],))
    shaken.velocity(torch.zeros(1, 4, 4, 4), torch.tensor([0.25]), ["a car"])
    assert seen["timestep"].tolist() == [250.0]


@pytest.mark.parametrize("number", range(3))
def test_every_size_trains_every_weight_and_is_pure(tokenizer, sets, number):
    objective = FlowObjective(TINY, tokenizer)
    shake(objective)
    batch = sets[number].batch(np.arange(4), np.random.default_rng(0))
    out = objective.loss(batch, rng(), 0)
    assert f"v_mse_{batch['latents'].shape[-1]}" in out.logs
    again, other = (objective.loss(batch, rng(seed), 0).loss.item() for seed in (0, 1))
    assert out.loss.item() == again != other
    out.loss.backward()
    assert [n for m in objective.modules.values() for n, p in m.named_parameters() if p.grad is None] == []
    assert all(p.grad.abs().max() > 0 for p in objective.text_encoder_2.parameters() if p.grad.ndim > 1)


def test_the_loss_of_a_fixed_batch_falls(tokenizer, sets):
    objective = FlowObjective(replace(TINY, flow=replace(LOSS, empty_share=0.0)), tokenizer)
    batch = sets[0].batch(np.arange(6), np.random.default_rng(0))
    weights = [p for m in objective.modules.values() for p in m.parameters()]
    optimizer = torch.optim.Adam(weights, lr=1e-2)
    losses = []
    for _ in range(30):
        loss = objective.loss(batch, rng(), 0).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


# sizes


def test_batches_are_of_one_size_with_their_shares(sets):
    mixed = MixedSizes(sets, [2.0, 1.0, 1.0])
    assert len(mixed) == 6
    indices, generator = np.array([1, 3, 5]), np.random.default_rng(0)
    batches = [mixed.batch(indices, generator) for _ in range(400)]
    sides = [batch["latents"].shape[-1] for batch in batches]
    assert all(len(batch["latents"]) == len(batch["captions"]) == 3 for batch in batches)
    assert [sides.count(side) / 400 for side in (4, 2, 6)] == pytest.approx([0.5, 0.25, 0.25], abs=0.08)
    first = batches[sides.index(4)]
    assert np.array_equal(first["latents"], sets[0].latents[indices]) and first["captions"] == ["a blue car"] * 3
    assert mixed.identity["sizes"] == [[6, 4, 4, 4], [6, 4, 2, 2], [6, 4, 6, 6]]


def test_sets_that_do_not_fit_are_refused(sets, tmp_path):
    with pytest.raises(InputError, match="shares"):
        MixedSizes(sets, [1.0])
    with pytest.raises(InputError, match="not all 0"):
        MixedSizes(sets[:1], [0.0])
    other = LatentSet(encode_latents(build_vae(CODEC, seed=1), Pictures(8), tmp_path), Pictures(8))
    with pytest.raises(InputError, match="different codecs"):
        MixedSizes([sets[0], other], [1.0, 1.0])


def test_validation_names_sizes_and_repeats_itself(tokenizer, sets):
    objective = FlowObjective(TINY, tokenizer, held_out=sets)
    shake(objective)
    with torch.no_grad():
        found = objective.validate()
        assert found == objective.validate()
    assert set(found) == {"v_mse", "v_mse_4", "v_mse_2", "v_mse_6", "v_mse_padded"}
    assert found["v_mse"] == pytest.approx(np.mean([found[f"v_mse_{side}"] for side in (4, 2, 6)]))
    assert found["v_mse_padded"] != found["v_mse"]
    assert FlowObjective(TINY, tokenizer).validate() == {}


def test_every_size_is_previewed(tokenizer, vae, sets, tmp_path):
    objective = FlowObjective(TINY, tokenizer, vae, sets)
    with torch.no_grad():
        paths = objective.preview(7, tmp_path)
    assert [p.name for p in paths] == [f"samples-{px}-0000007.png" for px in (4, 8, 12)]
    assert all(p.is_file() for p in paths)
    assert FlowObjective(TINY, tokenizer).preview(7, tmp_path) == []


# training and export


def test_a_stopped_and_resumed_training_equals_an_uninterrupted_one(tokenizer, sets, tmp_path):
    config = TrainerConfig(steps=5, batch=3, lr=1e-2, warmup=1, ema=0.9)

    def run(out, resume=False, **settings):
        data = MixedSizes(sets, [1.0, 1.0, 1.0])
        trainer = Trainer(replace(config, **settings), FlowObjective(TINY, tokenizer), data, out, "cpu")
        return trainer, trainer.run(resume)

    whole, _ = run(tmp_path / "whole")
    _, stopped = run(tmp_path / "parts", max_minutes=0.0)
    assert (stopped.step, stopped.reason) == (1, "time")
    resumed, ended = run(tmp_path / "parts", resume=True)
    assert ended.reason == "done"
    (first, _), (second, _) = whole.loop.state(), resumed.loop.state()
    for part in ("parameters", "ema"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(value, second[part][name]) for name, value in first[part].items())


STOCK = """
import sys
import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

folder, work = sys.argv[1:]
pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
assert pipeline.text_encoder_3 is None and type(pipeline.scheduler) is FlowMatchEulerDiscreteScheduler
assert {m.dtype for m in (pipeline.transformer, pipeline.vae, pipeline.text_encoder_2)} == {torch.float32}
pipeline.set_progress_bar_config(disable=True)
settings = {"num_inference_steps": 4, "guidance_scale": 2.5, "output_type": "np", "max_sequence_length": 0}
for size in (4, 8, 12):
    noise = torch.from_numpy(np.load(f"{work}/noise-{size}.npy"))
    images = pipeline(["a red chair", "a blue car"], latents=noise, height=size, width=size, **settings).images
    np.save(f"{work}/image-{size}.npy", images)
assert pipeline("a red chair", num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 3)
assert "unproject" not in sys.modules
"""


def test_the_export_draws_in_a_clean_process_what_our_sampler_draws(exported, tmp_path):
    for size in (4, 8, 12):
        noise = torch.randn(2, 4, size // 2, size // 2, generator=rng(size))
        np.save(tmp_path / f"noise-{size}.npy", noise.numpy())
    command = [sys.executable, "-c", STOCK, str(exported), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    (exported / "vocabulary.json").write_text('["a", "red", "chair"]')
    prior = load_prior(exported)
    assert prior.latent_shape == (4, 4, 4) and prior.image_size == 8 and prior.latent_multiple == 2
    condition = prior.encode_text(["a red chair", "a blue car"])
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(4)
    for size in (4, 8, 12):
        noise = torch.from_numpy(np.load(tmp_path / f"noise-{size}.npy"))
        with torch.no_grad():
            latents = Sampler(DDIM()).run(Denoiser(prior, condition, 2.5), noise, levels)
            images = prior.decode(latents).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(images, np.load(tmp_path / f"image-{size}.npy"), atol=1e-4)
        assert images.std() > 0.01


def test_the_export_keeps_weights_words_and_no_origin(shaken, exported):
    pipeline = StableDiffusion3Pipeline.from_pretrained(exported, text_encoder_3=None, tokenizer_3=None)
    for name, module in shaken.modules.items():
        saved = getattr(pipeline, name).state_dict()
        for key, value in module.state_dict().items():
            assert torch.equal(saved[key], value.half().float()), f"{name}.{key}"
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        assert tokenizer("a red car").input_ids == shaken.tokenizer("a red car").input_ids
        assert tokenizer.model_max_length == 32
    assert pipeline.vae.config.shift_factor == 0.0
    assert pipeline.vae.config.scaling_factor == shaken.vae.config.scaling_factor
    assert not any(b"_name_or_path" in p.read_bytes() for p in exported.rglob("*.json"))


def test_the_given_codec_stays_as_it_was_and_is_needed(tokenizer, vae, shaken, tmp_path):
    assert vae.config.shift_factor is None and shaken.vae is not vae
    assert shaken.transformer.dtype == torch.float32
    with pytest.raises(InputError, match="codec"):
        FlowObjective(TINY, tokenizer).save_pipeline(tmp_path / "prior")
