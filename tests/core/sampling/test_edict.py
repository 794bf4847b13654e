"""Exact inversion: round trips on networks of every family, limits, orders, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook

from unproject.core.priors import FLOW_SCHEDULE, SD_SCHEDULE, GaussianMixturePrior, load_prior
from unproject.core.sampling import DDIM, ClassifierFree, Denoiser, NoiseSchedule, Prediction, Sampler
from unproject.core.sampling.inversion import ddim_invert, edit, invert, regenerate, truncated
from unproject.core.sampling.solvers import advanced
from unproject.core.sampling.solvers.edict import EDICT
from unproject.utils.errors import InputError


def mixture(config=SD_SCHEDULE) -> GaussianMixturePrior:
    rng = torch.Generator().manual_seed(5)
    means = torch.randn(2, 2, 3, 3, generator=rng, dtype=torch.float64)
    return GaussianMixturePrior(means, torch.tensor([0.3, 0.8]), names=("left", "right"), scheduler_config=config)


def noise(shape=(3, 2, 3, 3)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def frozen(kind="epsilon"):
    """A denoiser whose raw output ignores the state."""
    return lambda x, level: Prediction(x, level, 0.3 * torch.ones_like(x), kind)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
@pytest.mark.parametrize("mixing", [0.8, 0.93, 1.0])
@pytest.mark.parametrize("steps", [6, 7])
def test_round_trips_from_an_image_and_from_noise(config, mixing, steps):
    prior = mixture(config)
    denoiser = Denoiser(prior, prior.encode_text(["left", "right", ""]), 3.0)
    levels = NoiseSchedule.from_config(config).grid(steps)
    image = prior.means[[0, 1, 0]] + 0.1 * noise()
    back = regenerate(denoiser, invert(denoiser, image, levels, mixing))
    torch.testing.assert_close(back, image, rtol=0, atol=1e-9)
    solver = EDICT(mixing)
    made = Sampler(solver).run(denoiser, noise(), levels)
    again = EDICT(mixing, solver.partner)
    start = Sampler(again).run(denoiser, made, levels[::-1])
    torch.testing.assert_close(start, noise(), rtol=0, atol=1e-9)
    torch.testing.assert_close(again.partner, noise(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_round_trip_on_the_real_classes(tiny_folders, name):
    prior = load_prior(tiny_folders[name]).to(dtype=torch.float64)
    condition = prior.encode_text("a red chair", "" if name == "flux" else None)
    channels = prior.latent_shape[0]
    x = noise((1, channels, 8, 8))
    denoiser = Denoiser(prior, condition, 3.0)
    levels = truncated(denoiser.schedule.grid(5, "trailing"), 0.8)
    with torch.no_grad():
        inversion = invert(denoiser, x, levels)
        torch.testing.assert_close(regenerate(denoiser, inversion), x, rtol=0, atol=1e-9)
    assert denoiser.nfe == 2 * 2 * 2 * 4  # branches, directions, calls a step, steps


def test_round_off_stays_below_the_growth_of_the_copies_distance():
    prior = mixture()
    denoiser = Denoiser(prior, prior.encode_text(["left", "right", ""]), 3.0)
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(50)
    solver = EDICT(0.93)
    made = Sampler(solver).run(denoiser, noise(), levels)
    start = Sampler(EDICT(0.93, solver.partner)).run(denoiser, made, levels[::-1])
    assert float((start - noise()).abs().max()) < 1e-16 * 0.93**-100 * 1e3


@pytest.mark.parametrize(("config", "kind"), [(SD_SCHEDULE, "epsilon"), (FLOW_SCHEDULE, "flow_prediction")])
def test_a_constant_prediction_makes_it_ddim(config, kind):
    levels = NoiseSchedule.from_config(config).grid(9)
    ours = Sampler(EDICT(1.0)).run(frozen(kind), noise(), levels)
    torch.testing.assert_close(ours, Sampler(DDIM()).run(frozen(kind), noise(), levels), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("config", [SD_SCHEDULE, FLOW_SCHEDULE])
def test_it_approaches_ddim_with_order_one(config):
    prior, schedule = mixture(config), NoiseSchedule.from_config(config)
    denoiser = Denoiser(prior, prior.encode_text([""] * 3))
    top, low = schedule.at_index(900).lam, schedule.at_index(100).lam

    def gap(steps: int) -> float:
        levels = [schedule.at_lambda(top + (low - top) * k / steps) for k in range(steps + 1)]
        pair = [Sampler(solver).run(denoiser, noise(), levels) for solver in (EDICT(), DDIM())]
        return float((pair[0] - pair[1]).norm())

    assert 0.8 < math.log2(gap(64) / gap(128)) < 1.2


def test_one_step_is_the_written_formula():
    """Two steps by hand: the copies swap roles in the second."""
    prior, p = mixture(), 0.9
    denoiser = Denoiser(prior, prior.encode_text([""] * 3))
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(2, "trailing")
    x = y = noise()
    for i, (here, there) in enumerate(zip(levels, levels[1:])):
        a = there.alpha / here.alpha
        b = there.sigma - here.sigma * a
        if i % 2 == 0:
            x = a * x + b * denoiser(y, here).eps
            y = a * y + b * denoiser(x, here).eps
        else:
            y = a * y + b * denoiser(x, here).eps
            x = a * x + b * denoiser(y, here).eps
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
    solver = EDICT(p)
    torch.testing.assert_close(Sampler(solver).run(denoiser, noise(), levels), x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(solver.partner, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("twice", [False, True])
def test_a_state_put_in_place_is_one_copy_within_a_step_and_both_between(twice, back):
    """The second of two steps by hand, in either direction, with a state put in place before it (and in its middle)."""
    prior, p = mixture(), 0.9
    denoiser = Denoiser(prior, prior.encode_text([""] * 3))
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(2, "trailing", "index0")
    within, between = noise() + 1, noise().flip(0)

    def moved(state, asked, here, there):
        a = there.alpha / here.alpha
        step = (there.sigma - here.sigma * a) * denoiser(asked, here).eps
        return (state - step) / a if back else a * state + step

    here, there = (levels[0], levels[1]) if back else (levels[1], levels[2])
    y = within if twice else moved(between, between, here, there)
    x = moved(between, y, here, there)
    if not back:
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
    solver = EDICT(p, noise() - 0.5)
    puts = {1: between, 2: within} if twice else {1: between}
    grid = levels[::-1] if back else levels
    made = Sampler(solver).run(denoiser, noise(), grid, callback=lambda call, level, state: puts.get(call))
    torch.testing.assert_close(made, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(solver.partner, y, rtol=1e-12, atol=1e-12)


def test_a_state_put_at_the_end_of_an_inversion_is_both_copies():
    prior = mixture()
    denoiser, levels = Denoiser(prior, prior.encode_text([""] * 3)), NoiseSchedule.from_config(SD_SCHEDULE).grid(3)
    found = invert(denoiser, noise(), levels, callback=lambda call, level, x: noise() if call == 5 else None)
    assert torch.equal(found.x, noise()) and torch.equal(found.partner, noise())


def test_exactness_beats_ddim_inversion_and_survives_guidance():
    prior = mixture()
    condition = prior.encode_text(["left", "right", "left"])
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(20)
    image = prior.means[[0, 1, 0]] + 0.1 * noise()
    for scale in (1.0, 3.0, 7.0):
        denoiser = Denoiser(prior, condition, scale)
        exact = (regenerate(denoiser, invert(denoiser, image, levels)) - image).square().mean()
        walked = Sampler(DDIM()).run(denoiser, ddim_invert(denoiser, image, levels), levels)
        assert float(exact) < 1e-10
        assert float((walked - image).square().mean()) > 100 * float(exact)


def test_ddim_inversion_of_a_constant_prediction_is_exact():
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(9)
    image = noise()
    x = ddim_invert(frozen(), image, levels)
    torch.testing.assert_close(Sampler(DDIM()).run(frozen(), x, levels), image, rtol=1e-10, atol=1e-10)


def test_both_copies_are_needed():
    prior = mixture()
    denoiser = Denoiser(prior, prior.encode_text(["left"] * 3), 3.0)
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(10)
    inversion = invert(denoiser, noise(), levels)
    halved = Sampler(EDICT(inversion.mixing)).run(denoiser, inversion.x, levels)
    assert float((halved - noise()).abs().max()) > 1e-4


def test_edit_with_the_same_words_keeps_the_image_and_others_change_it():
    prior = mixture()
    prior.means = prior.means.repeat_interleave(3, 0)[[0, 3]]
    images = torch.rand(2, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.2 + 0.4
    same = edit(prior, images, "left", "left", steps=10)
    torch.testing.assert_close(same, images, rtol=0, atol=1e-9)
    other = edit(prior, images, "left", "right", steps=10)
    assert float((other - images).abs().mean()) > 0.01
    alone = edit(prior, images[:1], "left", "right", steps=10)
    torch.testing.assert_close(alone[0], other[0], rtol=1e-9, atol=1e-9)


def test_a_callback_that_returns_the_state_it_got_changes_nothing():
    prior = mixture()
    denoiser = Denoiser(prior, prior.encode_text([""] * 3))
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(5)
    plain = Sampler(EDICT()).run(denoiser, noise(), levels)
    echoed = Sampler(EDICT()).run(denoiser, noise(), levels, callback=lambda call, level, x: x)
    assert torch.equal(plain, echoed)
    fixed = noise().flip(0)
    replaced = Sampler(EDICT()).run(denoiser, noise(), levels, callback=lambda call, level, x: fixed.clone())
    assert torch.equal(replaced, fixed)
    assert EDICT().calls(5) == 10


def test_refusals_give_the_reason(tiny_folders):
    prior = mixture()
    levels = NoiseSchedule.from_config(SD_SCHEDULE).grid(5)
    with pytest.raises(InputError, match=r"rescale=0\.7.*spread"):
        invert(Denoiser(prior, prior.encode_text([""] * 3), ClassifierFree(3.0, rescale=0.7)), noise(), levels)
    with pytest.raises(InputError, match="mixing=0"):
        EDICT(0.0)
    with pytest.raises(InputError, match="partner has shape"):
        EDICT(0.9, noise()[:1])(noise(), levels)
    with pytest.raises(InputError, match="strength=0"):
        truncated(levels, 0.0)
    with pytest.raises(InputError, match="2 prompts for 3"):
        edit(prior, noise(), ["a", "b"], "c")
    network = load_prior(tiny_folders["sd"])

    class Remembering(ModelHook):
        _is_stateful = True

    block = network.network.mid_block
    HookRegistry.check_if_exists_or_initialize(block).register_hook(Remembering(), "some_store")
    with pytest.raises(InputError, match=r"cache.*no step can be undone"):
        invert(Denoiser(network, network.encode_text("a dog")), noise((1, 4, 8, 8)), levels)


def test_the_questions_are_foretold():
    schedule = NoiseSchedule.from_config(SD_SCHEDULE)
    grid = schedule.grid(3)
    for levels in (grid, grid[::-1]):
        solver, asked = EDICT(), []
        run = solver(torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)), levels)
        x, level = advanced(run)
        while level is not None:
            asked.append(level)
            x, level = advanced(run, Prediction(x, level, x, "epsilon"))
        assert [levels[k] for k in solver.asks(levels)] == asked
