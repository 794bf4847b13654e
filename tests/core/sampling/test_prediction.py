"""Parameterisations: every reading of a prediction leads back to it."""

from __future__ import annotations

import pytest
import torch

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE
from unproject.core.sampling import KINDS, NoiseSchedule, Prediction
from unproject.utils.errors import InputError

SD = NoiseSchedule.from_config(SD_SCHEDULE)
FLOW = NoiseSchedule.from_config(FLOW_SCHEDULE)


@pytest.fixture
def pair():
    rng = torch.Generator().manual_seed(3)
    return torch.randn(2, 3, 4, 5, 5, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("schedule", [SD, FLOW])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("through", KINDS)
def test_round_trips_in_float64(schedule, kind, through, pair):
    x0, eps = pair
    level = schedule.at_index(torch.tensor([100.0, 400.5, 900.0]))
    x = schedule.add_noise(x0, eps, level)
    raw = Prediction(x, level, eps, "epsilon").read(kind)
    passed = Prediction(x, level, Prediction(x, level, raw, kind).read(through), through)
    torch.testing.assert_close(passed.read(kind), raw, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(passed.x0, x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(passed.eps, eps, rtol=1e-12, atol=1e-12)


def test_definitions(pair):
    x0, eps = pair
    level = SD.at_index(321.0)
    prediction = Prediction(SD.add_noise(x0, eps, level), level, eps, "epsilon")
    torch.testing.assert_close(prediction.v, level.alpha * eps - level.sigma * x0)
    torch.testing.assert_close(prediction.u, eps - x0)
    torch.testing.assert_close(prediction.score, -eps / level.sigma)


def test_flow_is_division_free_at_pure_noise(pair):
    x0, eps = pair
    level = FLOW.at_index(999)
    assert level.alpha == 0
    prediction = Prediction(eps, level, eps - x0, "flow_prediction")
    torch.testing.assert_close(prediction.x0, x0)
    torch.testing.assert_close(prediction.eps, eps)


def test_half_precision_is_read_in_float32(pair):
    x0, eps = (t.half() for t in pair)
    prediction = Prediction(x0, SD.at_index(10), eps, "epsilon")
    assert prediction.x0.dtype == torch.float32


def test_unknown_kind_is_named(pair):
    with pytest.raises(InputError, match="'noise'"):
        Prediction(pair[0], SD.at_index(1), pair[1], "noise")
