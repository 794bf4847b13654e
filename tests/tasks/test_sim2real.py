"""Simulated depth sensors: the codec's exact inverse, the control's limits, any size, seeds, weights, files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from unproject.core.sampling import Prediction
from unproject.core.training.loss import LossOut
from unproject.tasks.codecs.residual import ResidualDepthCodec
from unproject.tasks.latent_control import LatentControl, grown_unet
from unproject.tasks.point_critic import CriticConfig
from unproject.tasks.sim2real import SensorConfig, SensorSimulator, SensorStage, load_sensor, spread_of
from unproject.tasks.sim2real_train import FlaggedPairs, SensorObjective, wasserstein
from unproject.utils.errors import InputError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clean_depth(height: int = 16, width: int = 24, count: int = 2) -> torch.Tensor:
    """Slanted depth (count, 1, H, W) with a hole and a part that is too far."""
    depth = 0.8 + 2 * torch.rand(count, 1, height, width, generator=seeded()).cumsum(3) / width
    depth[:, :, 2, 3] = 0
    depth[:, :, 5, 7] = 4.95
    return depth


def sensed(clean: torch.Tensor, seed: int = 1) -> torch.Tensor:
    """Clean depth with noise and lost pixels."""
    noisy = clean * (1 + 0.01 * torch.randn(clean.shape, generator=seeded(seed)))
    return torch.where(torch.rand(clean.shape, generator=seeded(seed + 1)) < 0.2, 0.0, noisy)


class Pairs:
    """Pairs in memory."""

    def __init__(self, count: int = 6, size: int = 16) -> None:
        self.clean = clean_depth(size, size, count)
        self.measured = sensed(self.clean)

    def __len__(self) -> int:
        return len(self.clean)

    def batch(self, indices, rng):
        K = np.array([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]], np.float32)
        found = {name: getattr(self, name)[indices, 0].numpy() for name in ("clean", "measured")}
        if rng is not None:
            found = {name: value[..., ::-1].copy() for name, value in found.items()}
        return {**found, "K": np.repeat(K[None], len(indices), 0)}


def make(prior, stage: int = 1, **settings) -> SensorStage:
    return SensorStage(prior, SensorConfig(stage=stage, **{"latents": "patches", "steps": 3, **settings}))


@pytest.mark.parametrize("knee", [0.0, 1e-3])
def test_the_codec_gives_back_what_was_measured(knee: float) -> None:
    codec = ResidualDepthCodec(knee=knee)
    clean = clean_depth().double()
    measured = sensed(clean)
    pictures = codec.encode(measured, clean)
    assert pictures.shape == (2, 2, 3, 16, 24)
    assert pictures.abs().max() <= 1
    answered = codec.answered(measured, clean)
    assert 0.6 < answered.double().mean() < 0.95
    back = codec.decode(pictures, clean)
    torch.testing.assert_close(back[answered], measured[answered], rtol=1e-9, atol=0)
    assert not bool(back[~answered].any())


def test_residuals_are_halved_logarithms() -> None:
    """r = ln(d'/d) / ln(5 / .05): both factors of two cancel, (2 l' - 2 l) / 2."""
    codec = ResidualDepthCodec(holes=False)
    clean = torch.full((1, 1, 2, 2), 2.0, dtype=torch.float64)
    found = codec.encode(1.1 * clean, clean)
    torch.testing.assert_close(found, torch.full_like(found, math.log(1.1) / math.log(100)))
    assert float(codec.clean_picture(clean)[0, 0, 0, 0]) == pytest.approx(2 * math.log(40) / math.log(100) - 1)
    assert bool((codec.clean_picture(torch.tensor([0.0, 4.95]).reshape(1, 1, 1, 2)) == 1).all())


def test_no_residual_is_the_clean_depth_to_the_bit() -> None:
    codec = ResidualDepthCodec(holes=False, knee=1e-3)
    clean = clean_depth()
    found = codec.decode(torch.zeros(2, 1, 3, 16, 24), clean)
    assert torch.equal(found, torch.where(codec.seen(clean), clean, 0.0))
    assert not bool(codec.encode(clean + 0.6, clean).any())  # further off than .5 m: not of this surface


def test_a_control_without_features_is_the_plain_network(tiny_prior) -> None:
    """And with the network's own state as hint it adds the network's own skips."""
    unet = tiny_prior.network
    x, time = torch.randn(2, 4, 8, 12, generator=seeded()), torch.tensor([10.0, 700.0])
    text = torch.randn(2, 8, 32, generator=seeded(1))
    control = LatentControl(unet, 4).eval()
    assert isinstance(control.merge, torch.nn.Identity)
    skips, middle = control(x, time, text, x)
    plain = unet(x, time, text, return_dict=False)[0]

    def asked(scale: float) -> torch.Tensor:
        added = {"down_block_additional_residuals": tuple(scale * s for s in skips)}
        return unet(x, time, text, mid_block_additional_residual=scale * middle, return_dict=False, **added)[0]

    torch.testing.assert_close(asked(0.0), plain, rtol=0, atol=0)
    seen = []
    hook = unet.mid_block.register_forward_hook(lambda module, given, out: seen.append(out))
    unet(x, time, text)
    hook.remove()
    torch.testing.assert_close(middle, seen[0])
    assert not torch.allclose(asked(1.0), plain)
    assert len(skips) == 1 + sum(len(block.resnets) + len(block.downsamplers or ()) for block in unet.down_blocks)


def test_more_channels_keep_the_prior_in_the_first(tiny_prior) -> None:
    unet = tiny_prior.network
    x, time = torch.randn(1, 4, 8, 8, generator=seeded()), torch.tensor([300.0])
    text = torch.randn(1, 8, 32, generator=seeded(1))
    grown = grown_unet(unet, 8).eval()
    found = grown(torch.cat([x, torch.zeros_like(x)], 1), time, text, return_dict=False)[0]
    plain = unet(x, time, text, return_dict=False)[0]
    torch.testing.assert_close(found[:, :4], plain, rtol=0, atol=1e-5)
    fewer = grown_unet(unet, 3).eval()
    missing = torch.cat([x[:, :3], torch.zeros_like(x[:, 3:])], 1)
    expected = unet(missing, time, text, return_dict=False)[0][:, :3]
    torch.testing.assert_close(fewer(x[:, :3], time, text, return_dict=False)[0], expected, rtol=0, atol=1e-5)


def test_the_encoder_stays_and_the_rest_learns(tiny_prior) -> None:
    stage = make(tiny_prior)
    objective = SensorObjective(stage, Pairs())
    before = {name: p.clone() for name, p in stage.unet.state_dict().items()}
    objective.loss(Pairs().batch(np.arange(4), None), seeded(), 0).loss.backward()
    for name, p in stage.unet.named_parameters():
        learns = name.startswith(("up_blocks", "conv_norm_out", "conv_out", "conv_in"))
        assert (p.grad is not None) == learns, name
    assert all(p.grad is not None for p in stage.control.parameters())
    assert all(p.grad is None for p in tiny_prior.parameters())
    assert all(torch.equal(before[name], p) for name, p in stage.unet.state_dict().items())


def test_the_loss_is_weighted_before_its_mean(tiny_prior) -> None:
    """Ones are no weights; a weight on one cell counts that cell alone."""
    stage = make(tiny_prior)
    objective, batch = SensorObjective(stage), Pairs().batch(np.arange(3), None)

    def loss(weights: torch.Tensor | None) -> float:
        given = batch if weights is None else {**batch, "weights": weights.numpy()}
        found = objective.loss(given, seeded(), 0)
        assert isinstance(found, LossOut)
        return found.loss.item()

    plain = loss(None)
    assert loss(torch.ones(3, 1, 8, 8)) == plain
    assert loss(torch.full((3, 1, 8, 8), 1.5)) == pytest.approx(1.5 * plain, rel=1e-6)
    halves = [torch.zeros(3, 1, 8, 8), torch.ones(3, 1, 8, 8)]
    halves[0][:, :, :3, 1:4], halves[1][:, :, :3, 1:4] = 1, 0
    assert loss(halves[0]) + loss(halves[1]) == pytest.approx(plain, rel=1e-6)
    assert 0 < loss(halves[0]) < 0.5 * plain


def test_any_size_and_a_batch_is_its_rows(tiny_prior) -> None:
    sensor = SensorSimulator([make(tiny_prior), make(tiny_prior, 2)])
    clean = clean_depth(13, 19)[:, 0]
    both = sensor(clean, seed=[3, 8])
    assert both.depth_m.shape == (2, 13, 19)
    assert both.nfe == 2 * 2 * 3
    for i, seed in enumerate((3, 8)):
        alone = sensor(clean[i], seed=seed)
        np.testing.assert_allclose(alone.depth_m[0], both.depth_m[i], atol=2e-4)
    again = sensor(clean, generator_of=[seeded(3), seeded(8)])
    np.testing.assert_array_equal(again.depth_m, both.depth_m)
    assert not np.array_equal(sensor(clean, seed=5).depth_m, both.depth_m)
    assert not (both.valid & (clean.numpy()[..., None] <= 0)).any()


def test_windows_of_a_network_that_sees_nothing_around_are_the_whole(tiny_prior) -> None:
    """Blended x0 of windows of one state equals x0 of the state where a window's answer is local."""
    stage = make(tiny_prior, tile=6, overlap=2)
    hint = stage.hint(clean_depth(20, 28), None)

    class Local:
        def __init__(self, hint):
            self.hint = hint

        def __call__(self, x, level):
            return Prediction(x, level, x.tanh() + self.hint.repeat(1, 2, 1, 1), "sample")

    stage.denoiser = Local
    x = torch.randn(2, 8, 10, 14, generator=seeded())
    level = stage.schedule.at_index(500)
    found = stage.windowed(hint)(x, level).x0
    torch.testing.assert_close(found, Local(hint)(x, level).x0, rtol=1e-5, atol=1e-6)


def test_a_sampler_that_knows_the_answer_has_no_spread(tiny_prior) -> None:
    """Of a deterministic sensor every seed is the same measurement."""
    stage = make(tiny_prior)
    clean = clean_depth(16, 16, 1)
    measured = torch.where(clean > 0, (clean * 50).round() / 50, 0.0)
    z0 = stage.encode(measured, clean)
    stage.denoiser = lambda hint: lambda x, level: Prediction(x, level, z0.expand_as(x), "sample")
    found = SensorSimulator([stage])(clean[:, 0], seed=2, ensemble_size=3)
    assert found.uncertainty is not None
    assert float(found.uncertainty.max()) < 1e-6
    answered = stage.codec.answered(measured, clean)[0, 0].numpy()
    np.testing.assert_allclose(found.depth_m[0][answered], measured[0, 0].numpy()[answered], rtol=1e-5)


def test_spread_is_that_of_what_was_measured() -> None:
    members = torch.tensor([[1.0, 0.0, 0.0, 2.0], [1.2, 0.0, 3.0, 2.0], [1.4, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(spread_of(members), torch.tensor([0.2, 0.0, 0.0, 0.0]))


def test_latents_of_patches_are_exact_and_those_of_the_vae_have_its_size(tiny_prior) -> None:
    clean = clean_depth()
    measured = sensed(clean)
    stage = make(tiny_prior, gain=3.0)
    back = stage.decode(stage.encode(measured, clean), clean)
    answered = stage.codec.answered(measured, clean)
    torch.testing.assert_close(back[answered], measured[answered], rtol=1e-5, atol=0)
    assert torch.equal(back > 0, answered)
    wide = make(tiny_prior, patch=4)  # whatever channels the prior has
    assert (wide.cell, wide.channels, wide.hint(clean, None).shape[1]) == (4, 32, 16)
    back = wide.decode(wide.encode(measured, clean), clean)
    torch.testing.assert_close(back[answered], measured[answered], rtol=1e-5, atol=0)
    large = make(tiny_prior, latents="vae", enlarge=2)
    assert (large.cell, large.latent_size(16, 24)) == (2, (8, 12))
    assert large.encode(measured, clean).shape == (2, 8, 8, 12)
    assert large.decode(large.encode(measured, clean), clean).shape == clean.shape
    drawn = large.encode(measured, clean, seeded()), large.encode(measured, clean, seeded(1))
    assert not torch.equal(*drawn)  # the card's draw from the posterior


def test_stage_two_needs_what_stage_one_drew(tiny_prior) -> None:
    clean = clean_depth()
    with pytest.raises(InputError, match="stage 2 got nothing"):
        make(tiny_prior, 2).hint(clean, None)
    with pytest.raises(InputError, match="stage 1 got a first measurement"):
        make(tiny_prior).hint(clean, clean)
    second = make(tiny_prior, 2)
    told = second.hint(clean, sensed(clean))
    assert told.shape[1] == 12
    torch.testing.assert_close(told[:, :4], functional.pixel_unshuffle(second.codec.clean_picture(clean)[:, :1], 2))


def test_what_was_found_out_weighs_more(tiny_prior) -> None:
    pairs = Pairs(6)
    flagged = FlaggedPairs(pairs, SensorSimulator([make(tiny_prior)]), CriticConfig(patch=4, steps=60, batch=32))
    batch = flagged.batch(np.array([1, 4]), None)
    assert batch["first"].shape == (2, 16, 16)
    again = flagged.batch(np.array([1, 4]), np.random.default_rng(0))
    np.testing.assert_array_equal(
        again["clean"], batch["clean"]
    )  # what was drawn belongs to these, not to mirrored ones
    assert batch["weights"].shape == (2, 1, 8, 8)
    assert set(np.unique(batch["weights"])) <= {1.5, 0.5, 1.0}
    assert (batch["weights"] == 1.5).mean() > 0.5  # an untrained stage is easily found out
    second = SensorObjective(make(tiny_prior, 2), flagged, validation=2)
    assert torch.isfinite(second.loss(batch, seeded(), 0).loss)
    assert set(second.validate()) == {"wasserstein_mm", "holes_real", "holes_drawn"}
    fresh = FlaggedPairs(pairs, flagged.first, CriticConfig(patch=4, steps=2, batch=8))
    assert SensorObjective(make(tiny_prior, 2), fresh, validation=2).validate()  # its critic learns here


def test_saved_stages_answer_as_before(tiny_prior, tmp_path) -> None:
    tiny_prior.save(tmp_path / "tiny")
    stages = [make(tiny_prior), make(tiny_prior, 2)]
    for stage in stages:
        for p in stage.tensors().values():
            p.data = (p.data + 0.01).half().float()
    sensor = SensorSimulator(stages)
    with pytest.raises(InputError, match="base=None"):
        sensor.save(tmp_path / "sensor")
    sensor.save(tmp_path / "sensor", "tiny", validation={"a": 1})
    loaded = load_sensor(tmp_path / "sensor")
    assert not any(p.requires_grad for stage in loaded.stages for p in stage.unet.parameters())
    clean = clean_depth(count=1)[:, 0]
    np.testing.assert_allclose(loaded(clean, 4).depth_m, sensor(clean, 4).depth_m, atol=2e-3)
    (tmp_path / "sensor" / "stage2.safetensors").unlink()
    with pytest.raises(InputError, match="not a whole sensor"):
        load_sensor(tmp_path / "sensor")


def test_messages_name_the_way_out(tiny_prior, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match="unproject train sim2real"):
        load_sensor("toybox")
    with pytest.raises(InputError, match="the sensor's name is empty"):
        load_sensor("")
    sensor = SensorSimulator([make(tiny_prior)])
    with pytest.raises(InputError, match="is it in metres"):
        sensor(np.full((8, 8), 1500.0))
    with pytest.raises(InputError, match=r"expected \(H, W\)"):
        sensor(np.ones((8, 8, 1, 3)))
    with pytest.raises(InputError, match="2 seeds for 1 maps"):
        sensor(np.ones((8, 8)), seed=[1, 2])
    with pytest.raises(InputError, match="stage 1, or stage 1 and stage 2"):
        SensorSimulator([make(tiny_prior, 2)])


def test_wasserstein_of_a_shift_is_the_shift() -> None:
    values = np.random.default_rng(0).normal(size=500)
    assert wasserstein(values, values + 0.3) == pytest.approx(0.3)
    assert wasserstein(values, np.zeros(0)) == math.inf


def test_a_stage_of_adapters_begins_like_a_whole_one_and_is_small(tiny_prior, tmp_path) -> None:
    whole, lean = (make(tiny_prior, rank=rank) for rank in (0, 2))
    clean, rngs = clean_depth(), [seeded(5), seeded(6)]
    again = [seeded(5), seeded(6)]
    torch.testing.assert_close(lean.draw(clean, None, rngs), whole.draw(clean, None, again), rtol=1e-4, atol=1e-4)
    names = set(lean.tensors())
    assert {"unet.conv_in.weight", "unet.conv_out.bias"} <= names  # other latents than the prior's are read and written
    assert any("up_blocks" in name for name in names) and any(name.startswith("control.body.down") for name in names)
    assert all(".parametrizations." in name or name.startswith(("unet.conv_", "control.merge")) for name in names)
    sizes = [sum(p.numel() for p in stage.tensors().values()) for stage in (lean, whole)]
    assert sizes[0] < 0.4 * sizes[1]
    objective = SensorObjective(lean)
    objective.loss(Pairs().batch(np.arange(4), None), seeded(), 0).loss.backward()
    learnt = {name for name, p in lean.tensors().items() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert any("up_blocks" in name for name in learnt) and any(name.startswith("control.body") for name in learnt)
    others = [p for n, p in torch.nn.ModuleDict(lean.modules()).named_parameters() if n not in names]
    assert others and all(p.grad is None for p in others)
    with torch.no_grad():
        for name, parameter in lean.tensors().items():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded(len(name))))
    tiny_prior.save(tmp_path / "tiny")
    back = load_sensor(SensorSimulator([lean]).save(tmp_path / "sensor", "tiny")).stages[0]
    one, other = (stage.draw(clean, None, [seeded(5), seeded(6)]) for stage in (lean, back))
    assert float(((one - other).abs() < 0.02).float().mean()) > 0.97  # fp16 on the disk; a pixel may just get lost
    SensorSimulator([back]).save(tmp_path / "again", "tiny")  # frozen as it is: stage 2 is written with such a stage 1
    kept = [(tmp_path / name / "stage1.safetensors").stat().st_size for name in ("sensor", "again")]
    assert kept[0] == kept[1] > 1000
    with pytest.raises(InputError, match="rank=-1"):
        SensorConfig(rank=-1)
