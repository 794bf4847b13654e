"""Known parts that stay while the rest is drawn: the published loop, and what is exact at its ends."""

from __future__ import annotations

import pytest
import torch

from unproject.core.priors import SD_SCHEDULE, GaussianMixturePrior
from unproject.core.sampling import DDIM, Denoiser, NoiseSchedule, Sampler
from unproject.core.sampling.held_parts import HeldParts
from unproject.core.sampling.init import ImageInit
from unproject.core.sampling.levels import Level
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

SIZE, STEPS = 5, 6
SCHEDULE = NoiseSchedule.from_config(SD_SCHEDULE)
LEVELS = SCHEDULE.grid(STEPS)


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


KNOWN, NOISE = 0.5 * drawn(2, 3, SIZE, SIZE, seed=1), drawn(2, 3, SIZE, SIZE, seed=2)
FREE = torch.zeros(2, 1, SIZE, SIZE)
FREE[0, :, 1:4, 2:], FREE[1, :, :2] = 1.0, 1.0


def denoiser(kind: str, *controls: HeldParts) -> Denoiser:
    means = torch.stack([drawn(3, SIZE, SIZE, seed=3), drawn(3, SIZE, SIZE, seed=4)])
    config = {**SD_SCHEDULE, "prediction_type": kind}
    prior = GaussianMixturePrior(means, torch.tensor([0.4, 0.3]), scheduler_config=config)
    return Denoiser(prior, prior.encode_text("anything"), 1.0, controls=controls)


def run(kind: str, free: torch.Tensor) -> torch.Tensor:
    start = ImageInit(KNOWN, 1.0)(NOISE, LEVELS)
    return Sampler(DDIM()).run(denoiser(kind, HeldParts(KNOWN, free)), start.x, start.levels)


def published(free: torch.Tensor) -> torch.Tensor:
    """Direct2.5's loop: after every step the state outside of the mask is the known picture with the first noise."""

    def blend(call: int, asked: Level, x: torch.Tensor) -> torch.Tensor:
        alpha, sigma = LEVELS[call + 1].coefficients(x)
        return free * x + (1 - free) * (alpha * KNOWN + sigma * NOISE)

    alpha, sigma = LEVELS[0].coefficients(NOISE)
    return Sampler(DDIM()).run(denoiser("epsilon"), alpha * KNOWN + sigma * NOISE, LEVELS, callback=blend)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_it_is_the_blend_of_states_in_every_parameterisation(kind: str) -> None:
    found = run(kind, FREE)
    torch.testing.assert_close(found, published(FREE.double()), rtol=0, atol=1e-9)
    kept = FREE.expand_as(KNOWN) == 0
    assert float((found - KNOWN).abs()[~kept].mean()) > 0.2


def test_all_free_is_the_plain_run_and_none_is_the_known_picture() -> None:
    start = ImageInit(KNOWN, 1.0)(NOISE, LEVELS)
    plain = Sampler(DDIM()).run(denoiser("epsilon"), start.x, start.levels)
    assert torch.equal(run("epsilon", torch.ones_like(FREE)), plain)
    alpha, sigma = LEVELS[-1].coefficients(KNOWN)
    torch.testing.assert_close(run("epsilon", torch.zeros_like(FREE)), alpha * KNOWN + sigma * NOISE, rtol=0, atol=1e-9)


def test_masks_of_another_form_are_refused() -> None:
    with pytest.raises(InputError, match=r"free has shape \(2, 3, 5, 5\), expected \(2, 1, 5, 5\)"):
        HeldParts(KNOWN, FREE.expand(2, 3, SIZE, SIZE))
