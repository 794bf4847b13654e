"""Starts of a run: limits, chaining, and what each leaves to do."""

from __future__ import annotations

import pytest
import torch

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE
from unproject.core.sampling import DDIM, NoiseSchedule, Sampler
from unproject.core.sampling.init import FixedNoiseInit, ImageInit, NoiseInit, TeleportInit, sample_from
from unproject.core.sampling.teleport import GaussianPrior
from unproject.utils.errors import InputError

SHAPE = (1, 2, 3)
SCHEDULE = NoiseSchedule.from_config(SD_SCHEDULE)
LEVELS = SCHEDULE.grid(20)


@pytest.fixture
def gaussian():
    mean = torch.arange(6.0).reshape(SHAPE)
    return GaussianPrior(mean, torch.eye(6), torch.linspace(2, 0.1, 6))


@pytest.fixture
def noise():
    return torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_plain_start_is_the_noise(noise):
    start = NoiseInit()(noise, LEVELS)
    assert start.x is noise and start.levels is LEVELS


def test_teleport_zero_is_the_plain_start(noise, gaussian):
    start = TeleportInit(gaussian, 0.0)(noise, LEVELS)
    assert start.x is noise and len(start.levels) == 21


@pytest.mark.parametrize(("fraction", "left"), [(0.25, 15), (0.4, 12), (0.99, 1), (0.02, 20)])
def test_teleport_skips_steps(noise, gaussian, fraction, left):
    start = TeleportInit(gaussian, fraction)(noise, LEVELS)
    assert len(start.levels) == left + 1
    wanted = gaussian.transport(noise, LEVELS[0], LEVELS[20 - left])
    torch.testing.assert_close(start.x, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_on_gaussian_data_teleporting_only_removes_error(noise, gaussian, config):
    levels = NoiseSchedule.from_config(config).grid(20)
    exact = gaussian.transport(noise, levels[0], levels[-1])
    errors = [
        float((sample_from(TeleportInit(gaussian, f), Sampler(DDIM()), gaussian, noise, levels) - exact).norm())
        for f in (0.0, 0.3, 0.6, 0.9)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]


def test_fixed_noise_serves_every_row_and_wraps(noise):
    fixed = noise[0].float()
    start = FixedNoiseInit(fixed)(noise.float(), LEVELS)
    assert all(torch.equal(row, fixed) for row in start.x)
    larger = FixedNoiseInit(fixed)(torch.zeros(2, 1, 5, 7), LEVELS).x
    assert torch.equal(larger[1, :, 2:4, 3:6], fixed)
    assert torch.equal(larger[0, :, 4, 6], fixed[:, 0, 0])


def test_fixed_noise_can_be_teleported(noise, gaussian):
    start = TeleportInit(gaussian, 0.5)(*FixedNoiseInit(noise[0])(noise, LEVELS))
    wanted = gaussian.transport(noise[:1], LEVELS[0], LEVELS[10])
    torch.testing.assert_close(start.x, wanted.expand(4, -1, -1, -1))


def test_image_start_at_its_limits(noise, gaussian):
    image = noise.flip(0)
    same = sample_from(ImageInit(image, 0.0), Sampler(DDIM()), gaussian, noise, LEVELS)
    assert torch.equal(same, image)
    start = ImageInit(image, 1.0)(noise, LEVELS)
    torch.testing.assert_close(start.x, SCHEDULE.add_noise(image, noise, LEVELS[0]))
    assert len(start.levels) == 21
    flow = NoiseSchedule.from_config(FLOW_SCHEDULE).grid(10)
    torch.testing.assert_close(ImageInit(image, 1.0)(noise, flow).x, noise)


def test_image_start_noises_to_the_level_that_is_left(noise):
    image = torch.ones(1, *SHAPE, dtype=torch.float64)
    start = ImageInit(image, 0.3)(noise, LEVELS)
    assert len(start.levels) == 7
    torch.testing.assert_close(start.x, SCHEDULE.add_noise(image, noise, LEVELS[14]))


def test_bad_input_is_named(noise, gaussian):
    with pytest.raises(InputError, match="fraction=1"):
        TeleportInit(gaussian, 1.0)
    with pytest.raises(InputError, match=r"strength=1\.5"):
        ImageInit(noise, 1.5)
    with pytest.raises(InputError, match="fixed noise has shape"):
        FixedNoiseInit(noise)
    with pytest.raises(InputError, match="3 channels"):
        FixedNoiseInit(torch.zeros(3, 2, 2))(noise, LEVELS)
    with pytest.raises(InputError, match="image latents"):
        ImageInit(noise[:2])(noise, LEVELS)
