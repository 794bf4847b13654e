"""The Gaussian-mixture oracle: its score is the gradient of its log-density."""

from __future__ import annotations

import pytest
import torch

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior
from unproject.core.sampling import NoiseSchedule, Prediction
from unproject.utils.errors import InputError


def mixture(config) -> GaussianMixturePrior:
    rng = torch.Generator().manual_seed(5)
    means = torch.randn(3, 2, 2, 2, generator=rng, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.5, 0.3])
    return GaussianMixturePrior(means, torch.tensor([0.3, 0.5, 0.8]), weights, ("a", "b", "c"), config)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
@pytest.mark.parametrize("prompt", ["", "b", "a c"])
def test_score_is_the_gradient_of_the_log_density(kind, prompt):
    config = FLOW_SCHEDULE if kind == "flow" else {**SD_SCHEDULE, "prediction_type": kind}
    prior = mixture(config)
    level = NoiseSchedule.from_config(config).at_index(torch.tensor([50.0, 300.5, 700.0, 950.0]))
    x = torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_(True)
    condition = prior.encode_text([prompt] * 4)
    log_density = prior.log_prob(x, level.model_time, condition["cond"]).sum()
    (gradient,) = torch.autograd.grad(log_density, x)
    raw = prior.predict(x, level.model_time, condition["cond"])
    score = Prediction(x, level, raw, prior.prediction_type).score
    torch.testing.assert_close(score, gradient, rtol=1e-9, atol=1e-9)


def test_single_gaussian_posterior_mean():
    """E[x0 | x] = alpha s^2 x / (alpha^2 s^2 + sigma^2) for a centred Gaussian."""
    prior = GaussianMixturePrior(torch.zeros(1, 1, 2, 2), torch.tensor([0.5]))
    level = NoiseSchedule.from_config(SD_SCHEDULE).at_index(400)
    x = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    raw = prior.predict(x, level.model_time, prior.encode_text(["", ""])["cond"])
    wanted = level.alpha * 0.25 * x / (level.alpha**2 * 0.25 + level.sigma**2)
    torch.testing.assert_close(Prediction(x, level, raw, "epsilon").x0, wanted)


def test_codec_round_trip_and_checks():
    prior = mixture(SD_SCHEDULE)
    images = torch.rand(1, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(prior.decode(prior.encode(images)), images)
    with pytest.raises(InputError, match="stds"):
        GaussianMixturePrior(torch.zeros(1, 1, 2, 2), torch.tensor([0.0]))
