"""Calibrations of a prior whose answers are exact: made on its own samples, kept, used, refused elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unproject.core.priors import GaussianMixturePrior, Prior
from unproject.core.sampling import (
    AttentionCost,
    FixedNoiseInit,
    GaussianPrior,
    NoiseSchedule,
    TeleportInit,
    VelocityControl,
)
from unproject.core.sampling.caches import DeepCache
from unproject.core.sampling.dpm_v3_statistics import ModelStatistics
from unproject.core.sampling.model_schedule import ScheduledPrior
from unproject.core.sampling.optimal_boundary import BoundaryNoise, grid_lambdas
from unproject.core.sampling.plan import SamplingPlan
from unproject.core.sampling.usf_search import SearchSpace
from unproject.pipelines.calibrations import (
    Sizes,
    choose_boundary,
    fit_gaussian,
    fit_time_remap,
    known_solvers,
    measure_statistics,
    own_samples,
    search_solver,
    setting,
)
from unproject.pipelines.text_to_image import TextToImage
from unproject.utils.errors import InputError

PROMPTS = ["dark", "light", "dark", "light"]
SHAPE = (3, 4, 4)


def mixture(std: float = 0.3) -> GaussianMixturePrior:
    means = torch.stack([torch.full(SHAPE, -0.5), torch.full(SHAPE, 0.5)])
    return GaussianMixturePrior(means, torch.tensor([std, std]), names=("dark", "light"))


@pytest.fixture
def pipe() -> TextToImage:
    return TextToImage(mixture())


@pytest.fixture
def sizes(tmp_path: Path) -> Sizes:
    return Sizes(guidance=2.0, steps=4, batch=3, work=tmp_path / "work")


def test_samples_are_kept_for_their_prompts_and_settings(pipe: TextToImage, sizes: Sizes) -> None:
    first = own_samples(pipe, PROMPTS, sizes)
    spent = pipe.prior.nfe
    assert first.shape == (4, *SHAPE)
    assert torch.equal(own_samples(pipe, PROMPTS, sizes), first)
    assert pipe.prior.nfe == spent
    for other in (replace(sizes, seed=9), replace(sizes, guidance=1.0), replace(sizes, steps=5)):
        assert not torch.equal(own_samples(pipe, PROMPTS, other), first)
    assert not torch.equal(own_samples(pipe, PROMPTS[1:] + PROMPTS[:1], sizes), first)
    with pytest.raises(InputError, match="prompts is empty"):
        own_samples(pipe, [], sizes)


def test_a_negative_prompt_goes_into_samples_and_fingerprint(pipe: TextToImage, sizes: Sizes) -> None:
    first, against = own_samples(pipe, PROMPTS, sizes), replace(sizes, negative="light")
    fine = {"num_inference_steps": 4, "solver": "dpm++", "spacing": "logsnr", "batch_size": 3}
    drawn = pipe(PROMPTS, "light", guidance_scale=2.0, seed=0, **fine)
    assert torch.equal(own_samples(pipe, PROMPTS, against), drawn.latents)
    assert not torch.equal(drawn.latents, first)
    assert setting(pipe, PROMPTS, against).fingerprint.guidance == "2 against 'light'"


def test_statistics_go_on_where_they_stopped_and_serve_the_solver(
    pipe: TextToImage, sizes: Sizes, tmp_path: Path
) -> None:
    made = measure_statistics(pipe, PROMPTS, sizes, cells=3)
    spent = pipe.prior.nfe
    again = measure_statistics(pipe, PROMPTS, sizes, cells=3)
    assert pipe.prior.nfe == spent
    assert torch.equal(made.ell, again.ell)
    file = made.save(tmp_path / "statistics.safetensors")
    draw = {"num_inference_steps": 5, "seed": 0, "output_type": "latent", "guidance_scale": 2.0}
    by_file = pipe("dark", solver="dpm-v3:2", statistics=file, **draw).latents
    by_object = pipe("dark", solver="dpm-v3:2", statistics=ModelStatistics.load(file), **draw).latents
    assert torch.equal(by_file, by_object)
    assert not torch.equal(by_file, pipe("dark", **draw).latents)
    with pytest.raises(InputError, match=r"made for guidance 2 \(now 3\)"):
        pipe("dark", solver="dpm-v3", statistics=file, **{**draw, "guidance_scale": 3.0})
    with pytest.raises(InputError, match=r"made for guidance 2 \(now 2 against 'light'\)"):
        pipe("dark", "light", solver="dpm-v3", statistics=file, **draw)
    with pytest.raises(InputError, match=r"guidance 2 \(now 2 rescale 0.5\)"):
        pipe("dark", solver="dpm-v3", statistics=file, guidance_rescale=0.5, **draw)
    with pytest.raises(InputError, match="network weights"):
        TextToImage(mixture(0.4))("dark", solver="dpm-v3", statistics=file, **draw)
    with pytest.raises(InputError, match=r"statistics serves solver=dpm-v3 or usf:FILE, not unipc"):
        pipe("dark", statistics=file, **draw)


def test_strong_guidance_is_measured_on_trajectories(pipe: TextToImage) -> None:
    for guidance, states in ((3.0, "noised"), (3.1, "trajectory")):
        sizes = Sizes(guidance, steps=4, seed=3)
        chosen = measure_statistics(pipe, PROMPTS[:2], sizes, cells=2)
        assert chosen.settings["states"] == states
        told = measure_statistics(pipe, PROMPTS[:2], sizes, cells=2, states="noised")
        assert torch.equal(told.b, chosen.b) == (states == "noised")


def test_a_guidance_that_is_an_input_is_told_apart_too(sizes: Sizes, tmp_path: Path) -> None:
    prior = mixture()
    prior.guidance_embedded = True
    pipe = TextToImage(prior)
    made = measure_statistics(pipe, PROMPTS[:2], replace(sizes, guidance=3.5), cells=2)
    assert made.fingerprint is not None and made.fingerprint.guidance == "3.5"
    file = made.save(tmp_path / "statistics.safetensors")
    draw = {"num_inference_steps": 3, "seed": 0, "output_type": "latent", "solver": "dpm-v3", "statistics": file}
    assert pipe("dark", guidance_scale=3.5, **draw).nfe == 3
    with pytest.raises(InputError, match="now 4"):
        pipe("dark", guidance_scale=4.0, **draw)


def test_the_gaussian_of_samples_replaces_steps(sizes: Sizes, tmp_path: Path) -> None:
    alone = GaussianMixturePrior(torch.full((1, *SHAPE), 0.3), torch.tensor([0.4]))
    pipe = TextToImage(alone)
    wide = replace(sizes, guidance=1.0, steps=20, batch=64)
    gaussian = fit_gaussian(pipe, ["x"] * 400, wide)
    assert float(gaussian.mean.mean()) == pytest.approx(0.3, abs=0.02)
    assert float(gaussian.variances.mean()) == pytest.approx(0.16, rel=0.06)
    file = gaussian.save(tmp_path / "g.safetensors", setting(pipe, ["x"], wide).fingerprint)
    draw = {"seed": 0, "output_type": "latent", "guidance_scale": 1.0, "num_inference_steps": 20}
    found = {"gaussian": file, "teleport": 0.3}
    jumped, full = pipe("x", **found, **draw), pipe("x", **draw)
    assert (jumped.nfe, full.nfe) == (14, 20)
    torch.testing.assert_close(jumped.latents, full.latents, atol=0.1, rtol=0)
    with pytest.raises(InputError, match=r"guidance 1 \(now 7.5\)"):
        pipe("x", **found)


def test_the_chosen_noise_is_the_one_a_short_run_serves_best(pipe: TextToImage, sizes: Sizes, tmp_path: Path) -> None:
    sizes = replace(sizes, steps=30)
    noise, search = choose_boundary(pipe, PROMPTS[:2], sizes, "ddim", steps=3, count=5)
    assert noise.loss == pytest.approx(float(search.means.min()))
    file = noise.save(tmp_path / "b.safetensors", setting(pipe, PROMPTS[:1], sizes).fingerprint)
    draw = {"guidance_scale": 2.0, "output_type": "latent", "seed": 0}
    found = {"boundary": file}
    short = pipe(PROMPTS[:2], solver="ddim", num_inference_steps=3, **found, **draw).latents
    begin = {"latents": noise.noise.expand(2, *SHAPE).double(), **draw, "seed": None}
    long = pipe(PROMPTS[:2], solver="dpm++", spacing="logsnr", num_inference_steps=30, **begin).latents
    assert float((short - long).square().mean()) == pytest.approx(noise.loss, rel=1e-4)
    with pytest.raises(InputError, match="for 3 steps, not 4"):
        pipe("dark", solver="ddim", num_inference_steps=4, **found, **draw)


def test_a_searched_solver_is_used_by_its_file_alone(pipe: TextToImage, sizes: Sizes, tmp_path: Path) -> None:
    known = known_solvers(
        SearchSpace(3, predictions=("noise", "data")), NoiseSchedule.from_config(pipe.prior.scheduler_config)
    )
    found = search_solver(pipe, PROMPTS[:2], sizes, nfe=3, budget=len(known) + 4, reference_steps=12)
    assert found.result.score <= found.fixed_score
    assert found.fixed in known and found.result.best.nfe == 3
    assert len({schedule for schedule, _ in found.result.history[: len(known)]}) == len(known)
    file = found.result.best.save(tmp_path / "s.safetensors", setting(pipe, PROMPTS, sizes).fingerprint)
    out = pipe("dark", solver=f"usf:{file}", guidance_scale=2.0, seed=0)
    assert out.nfe == 2 * 3
    spent = pipe.prior.nfe
    again = search_solver(pipe, PROMPTS[:2], sizes, nfe=3, budget=len(known), reference_steps=12)
    assert again.fixed_score == found.fixed_score
    assert pipe.prior.nfe - spent == 2 * 2 * 3 * len(known)  # the long run was kept
    with pytest.raises(InputError, match=f"budget=2 must be at least {len(known)}"):
        search_solver(pipe, PROMPTS[:2], sizes, nfe=3, budget=2, reference_steps=12)


def test_a_time_table_needs_no_more_than_the_own_size(pipe: TextToImage, sizes: Sizes) -> None:
    remap = fit_time_remap(pipe, PROMPTS, sizes)
    assert remap.times[-1] == 999 and abs(remap.shift) < 0.1
    with pytest.raises(InputError, match="size=8 is above the prior's own 4 px"):
        fit_time_remap(pipe, PROMPTS, replace(sizes, size=8))


def test_starts_follow_one_another(pipe: TextToImage) -> None:
    gaussian = GaussianPrior(torch.zeros(SHAPE), torch.eye(48), torch.ones(48))
    fixed, teleport = FixedNoiseInit(torch.ones(SHAPE)), TeleportInit(gaussian, 0.5)
    chosen = BoundaryNoise(fixed.noise, "ddim", grid_lambdas(pipe.drawing(SamplingPlan("ddim", 4)).levels), 0, 0.0)
    plan = SamplingPlan("ddim", 4, boundary=chosen, gaussian=gaussian, teleport=0.5)
    draw, noise = pipe.drawing(plan), torch.zeros(2, *SHAPE)
    start, alone = draw.started(noise), teleport(torch.ones(2, *SHAPE), draw.levels)
    assert torch.equal(start.x, alone.x) and list(start.levels) == list(alone.levels)
    last = pipe.drawing(plan.changed(init=fixed)).started(noise)
    assert torch.equal(last.x, torch.ones(2, *SHAPE)) and len(last.levels) == 3
    assert torch.equal(pipe.drawing().started(noise).x, noise)


@pytest.mark.parametrize(("share", "counts"), [(0.0, (0, 4)), (0.5, (2, 2)), (1.0, (4, 0))])
def test_the_first_model_takes_the_noisy_share(share: float, counts: tuple[int, int]) -> None:
    small, large = mixture(), mixture()
    pipe = TextToImage(large)
    assert isinstance(pipe.drawing(SamplingPlan(model_schedule=(small, share))).prior, ScheduledPrior)
    draw = {"num_inference_steps": 4, "seed": 0, "output_type": "latent", "guidance_scale": 1.0}
    made = pipe("dark", model_schedule=(small, share), **draw)
    assert (small.nfe, large.nfe, made.nfe) == (*counts, 4)
    assert torch.equal(made.latents, TextToImage(mixture())("dark", **draw).latents)


def test_a_cache_under_a_control_that_reads_attention_is_refused(pipe: TextToImage) -> None:
    control = VelocityControl(AttentionCost([[1], [2]]))
    for cache in ("deep:3", DeepCache()):
        with pytest.raises(InputError, match="control=of attention does not go with cache="):
            pipe("dark", controls=[control], cache=cache)
    with pytest.raises(InputError, match="no network whose attention"):  # without a cache it reaches the control
        pipe("dark", controls=[control], cache="none", num_inference_steps=1)


def test_recommended_settings_are_those_of_the_main_prior() -> None:
    first: Prior = mixture()
    main = mixture()
    main.recommended = replace(main.recommended, steps=3, guidance=1.0)
    draw = TextToImage(main, "native").drawing(SamplingPlan(model_schedule=(first, 0.5)))
    assert draw.prior.recommended.steps == 3 and len(draw.levels) == 4
