"""Orbits as training data, and the objective that teaches a prior of single images to draw them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unproject.core.priors import from_pipeline
from unproject.core.priors.orbits import ANGLES, OrbitPrior
from unproject.core.priors.temporal import TemporalConfig
from unproject.core.priors.video import TOKEN
from unproject.core.sampling import Denoiser
from unproject.core.training.config import TrainerConfig
from unproject.core.training.objectives.orbits import OrbitConfig, OrbitObjective
from unproject.core.training.orbit_clips import elevations, encoded_orbits, motion
from unproject.core.training.trainer import Trainer
from unproject.geometry.cameras import Camera
from unproject.scripts.random_backbones import tiny_sd
from unproject.toybox.dataset import RenderedSet, RenderJob, render_set
from unproject.utils.errors import InputError

CONFIG = OrbitConfig(frames=4, temporal=TemporalConfig(share=0.25, rank=2), validation_orbits=2, preview_steps=1)


class Turns:
    """Three orbits of four frames, the second of which stands still."""

    def __init__(self) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
        self.pixels[4:8] = self.pixels[4]

    def __len__(self) -> int:
        return 12

    def images(self, indices):
        return self.pixels[indices]

    def groups(self):
        return np.arange(12).reshape(3, 4)

    def cameras(self, indices):
        heights = 10.0 * (1 + torch.as_tensor(indices) // 4)
        orbit = Camera.orbit(torch.as_tensor(indices) * 90.0, heights, 3.0, 40.0, 8, 8)
        return orbit.c2w.numpy(), orbit.K.numpy()


def prior(**options):
    base = from_pipeline(tiny_sd("v_prediction", block_out_channels=(32, 64)))
    return OrbitPrior(base, CONFIG.temporal, 4, frozen=False, **options)


@pytest.fixture(scope="module")
def clips():
    return encoded_orbits(prior().vae, Turns(), 4)


def test_an_orbit_begins_at_any_of_its_frames(clips):
    plain = clips.batch(np.array([0, 2]), None)
    assert plain["latents"].shape == (2, 4, 4, 8, 8) and plain["elevation"].tolist() == pytest.approx(
        [math.radians(10), math.radians(30)], abs=1e-5
    )
    turned = clips.batch(np.zeros(40, int), np.random.default_rng(0))
    starts = [int(np.flatnonzero((clips.pictures[0] == one).all((1, 2, 3)))[0]) for one in turned["pictures"]]
    assert set(starts) == {0, 1, 2, 3}
    for start, latents in zip(starts, turned["latents"], strict=True):
        assert np.array_equal(latents, np.roll(clips.latents[0].astype(np.float32), -start, axis=0))


def test_what_stands_still_is_left_out(clips):
    assert motion(Turns().pixels[4:8]) == 0 and motion(
        np.array([0, 51, 0], np.uint8).reshape(3, 1, 1, 1)
    ) == pytest.approx(0.2)
    moving = encoded_orbits(prior().vae, Turns(), 4, least_motion=0.01)
    assert len(clips) == 3 and len(moving) == 2
    assert np.array_equal(moving.latents, clips.latents[[0, 2]])
    with pytest.raises(InputError, match=r"least_motion=0\.9 leaves none of 3"):
        encoded_orbits(prior().vae, Turns(), 4, least_motion=0.9)
    with pytest.raises(InputError, match=r"groups of 4 views, not orbits of 8.*--kind orbit"):
        encoded_orbits(prior().vae, Turns(), 8)


def test_orbits_of_the_toybox_are_eight_views_of_one_object(tmp_path):
    rendered = RenderedSet(render_set(RenderJob("orbit", "val", 2, 16), tmp_path / "orbit", 1))
    groups = rendered.groups()
    assert groups.shape == (2, 8) and len({str(rendered.program(i)) for i in groups[0]}) == 1
    turns = [rendered.records[i]["azimuth_deg"] for i in groups[0]]
    assert np.diff(turns) % 360 == pytest.approx([45.0] * 7)
    heights = np.rad2deg(elevations(rendered.cameras(groups[1])[0]))
    assert heights == pytest.approx([rendered.records[groups[1][0]]["elevation_deg"]] * 8, abs=1e-3)
    both = [tmp_path / "orbit", render_set(RenderJob("object", "val", 1, 16), tmp_path / "object", 1)]
    with pytest.raises(InputError, match="objects and orbits"):
        RenderedSet(both).groups()


def test_the_loss_by_hand(clips):
    """One level an orbit, the picture first, D of the EDM formula against the scaled latents."""
    objective = OrbitObjective(replace(CONFIG, null_share=0.0, cond_aug=(0.1, 0.1)), prior(), clips)
    seen = {}

    class Watching(OrbitPrior):
        def _forward(self, x, time, rows):
            seen.update(x=x.detach(), time=time, rows=rows)
            return super()._forward(x, time, rows)

    objective.prior.__class__ = Watching
    out = objective.loss(clips.batch(np.array([0, 2]), None), torch.Generator().manual_seed(3), 0)
    again = objective.loss(clips.batch(np.array([0, 2]), None), torch.Generator().manual_seed(3), 0)
    assert out.loss.item() == again.loss.item() and seen["rows"].frames == 4
    assert len(seen["time"].unique()) == 2 and torch.equal(seen["time"][:4], seen["time"][:1].expand(4))
    angles = seen["rows"][ANGLES]
    torch.testing.assert_close(angles[4:, 2], torch.arange(4) * math.pi / 2)
    torch.testing.assert_close(angles[:, 0], torch.full((8,), 0.1))
    torch.testing.assert_close(angles[::4, 1], torch.deg2rad(torch.tensor([10.0, 30.0])), rtol=1e-4, atol=1e-5)
    level = objective.schedule.at_time(seen["time"])
    alpha, sigma = level.coefficients(seen["x"])
    x0 = torch.from_numpy(clips.latents[[0, 2]].astype(np.float32)).flatten(0, 1)
    x0 = x0 * objective.prior.vae.config.scaling_factor
    raw = objective.prior.predict(seen["x"], seen["time"], seen["rows"])
    denoised = alpha * seen["x"] - sigma * raw
    weight = 1 / sigma**2  # (1 + s^2) / s^2 of s = sigma / alpha
    assert out.loss.item() == pytest.approx((weight * (denoised - x0).square()).mean().item(), rel=1e-3)


def test_pictures_are_hidden_from_a_share_of_orbits(clips):
    made = prior()
    objective = OrbitObjective(replace(CONFIG, null_share=1.0), made, clips)
    asked = []
    made.network.register_forward_pre_hook(lambda _, args: asked.append(args))
    objective.loss(clips.batch(np.array([0]), None), torch.Generator().manual_seed(0), 0)
    assert not asked[0][3].any() and not asked[0][4].any()  # token, concat
    objective.config = replace(CONFIG, null_share=0.0)
    objective.loss(clips.batch(np.array([0]), None), torch.Generator().manual_seed(0), 0)
    assert asked[1][3].any() and asked[1][4].any()


def test_a_stopped_training_equals_a_whole_one_and_exports_an_adapter(clips, tmp_path):
    config = TrainerConfig(steps=2, batch=1, lr=1e-2, save_every=1, ema=0.5, warmup=0)
    Trainer(config, OrbitObjective(CONFIG, prior(), clips), clips, tmp_path / "whole", "cpu").run()
    Trainer(
        replace(config, max_minutes=0.0), OrbitObjective(CONFIG, prior(), clips), clips, tmp_path / "part", "cpu"
    ).run()
    objective = OrbitObjective(CONFIG, prior(), clips)
    trainer = Trainer(config, objective, clips, tmp_path / "part", "cpu")
    before = {name: value.clone() for name, value in objective.prior.base.network.state_dict().items()}
    assert trainer.run(resume=True).step == 2
    whole, part = (sorted((tmp_path / name).rglob("*.safetensors")) for name in ("whole", "part"))
    assert whole[-1].name == part[-1].name
    for name, value in load_file(whole[-1]).items():
        assert torch.equal(value, load_file(part[-1])[name]), name
    assert all(torch.equal(v, before[name]) for name, v in objective.prior.base.network.state_dict().items())
    folder = objective.save(tmp_path / "export", "nowhere")
    back = OrbitPrior(objective.prior.base, CONFIG.temporal, 4).take(folder)
    for name, value in back.parts.state_dict().items():
        torch.testing.assert_close(value, objective.prior.parts.state_dict()[name], rtol=1e-3, atol=1e-4)
    assert objective.preview(2, tmp_path)[0].is_file()


def test_a_network_that_learns_as_a_whole_is_saved_as_a_whole(clips, tmp_path):
    objective = OrbitObjective(replace(CONFIG, trained="all"), prior(), clips)
    assert objective.modules.keys() == {"parts", "unet"}
    loss = objective.loss(clips.batch(np.array([0]), None), torch.Generator().manual_seed(0), 0).loss
    loss.backward()
    assert objective.prior.base.network.conv_out.weight.grad.abs().sum() > 0
    folder = objective.save(tmp_path / "whole")
    assert (folder / "base" / "model_index.json").is_file() and (folder / "orbit.safetensors").is_file()


def test_batches_of_two_are_two_batches_of_one():
    made = prior()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    angles = torch.rand(8, 3, generator=torch.Generator().manual_seed(2))
    x = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    for parameter in made.parts.parameters():
        parameter.data += 0.05
    with torch.no_grad():
        both = made.told(latents, angles, 4)
        level = Denoiser(made, both).schedule.at_index(600)
        together = Denoiser(made, both, 2.0)(x, level).x0
        alone = Denoiser(made, made.told(latents[1:], angles[4:], 4), 2.0)(x[4:], level).x0
    torch.testing.assert_close(together[4:], alone, rtol=1e-3, atol=1e-4)
    assert both["cond"][TOKEN].shape == (8, 1, 32)
