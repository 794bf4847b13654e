"""The cache's bookkeeping, refresh schedules, hooks that leave no trace, refusals and counted cost."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel

from unproject.core.priors import GaussianMixturePrior, load_prior
from unproject.core.sampling.caches import (
    COMPUTE,
    Cache,
    DeepCache,
    HoldEvery,
    Inherit,
    Policy,
    Refresh,
    Regions,
    apply_cache,
    cache_of,
    caching,
    count_macs,
    parse_cache,
    remove_cache,
    unit_macs,
)
from unproject.core.sampling.caches.base import Signature, Told, telling, told_of_call
from unproject.core.sampling.caches.hooks import BranchName, find_unit, module_path, network_of, unit_address
from unproject.core.sampling.caches.refresh import MODES, centred_steps
from unproject.core.sampling.denoiser import Denoiser
from unproject.core.sampling.solvers import DDIM
from unproject.utils.errors import InputError


class Alternate(Policy):
    def decide(self, step, level, branch):
        return frozenset({"unit"}) if step % 2 else COMPUTE


def signature(rows=2, text=None) -> Signature:
    return Signature((rows, 4, 8, 8), torch.float32, torch.device("cpu"), text)


def call(cache: Cache, level: float, value: float = 1.0, branch: str = "all", sign: Signature | None = None):
    reused = cache.begin_step(branch, level, sign or signature())
    if "unit" not in reused:
        cache.save("unit", torch.full((3,), value))
    held = cache.load("unit")
    cache.end_step()
    return bool(reused), held


def test_store_is_kept_per_branch_and_counts_its_bytes():
    cache = Cache(Alternate())
    for branch, value in (("cond", 1.0), ("uncond", 2.0)):
        assert not call(cache, 900.0, value, branch)[0]
    for branch, value in (("cond", 1.0), ("uncond", 2.0)):
        reused, held = call(cache, 800.0, 9.0, branch)
        assert reused
        assert held.tolist() == [value] * 3
    assert cache.bytes == cache.peak_bytes == 2 * 3 * 4
    assert (cache.full_steps, cache.reused_steps) == (2, 2)


def test_a_new_run_is_seen_when_the_level_goes_up_or_anything_else_changes():
    text = torch.ones(2, 5)
    for change in (
        {"level": 950.0},
        {"sign": signature(4)},
        {"sign": signature(text=torch.ones(2, 5))},
    ):
        cache = Cache(Alternate())
        call(cache, 900.0)
        assert call(cache, **{"level": 800.0, **change})[0] is False
        assert cache.step == 0
    cache = Cache(Alternate())
    call(cache, 900.0, sign=signature(text=text))
    assert call(cache, 900.0, sign=signature(text=text.clone()))[0], "an equal text and a repeated level go on"


def test_the_announced_number_of_calls_ends_a_run():
    cache = Cache(Alternate(), calls=2)
    assert [call(cache, 500.0)[0] for _ in range(4)] == [False, True, False, True]


def test_uniform_refresh_and_thirds():
    assert sorted(Refresh("uniform", 3).full_steps(8)) == [0, 3, 6]
    assert Refresh("uniform", 3).full_steps(None) is None
    assert [Refresh("uniform", 3).is_full(i, None) for i in range(4)] == [True, False, False, True]
    assert sorted(Refresh("middle", 2).full_steps(9)) == [0, 1, 2, 4, 6, 7, 8]
    assert sorted(Refresh("uniform", 4, last=True).full_steps(8)) == [0, 4, 7]


def test_centred_refresh_is_the_released_rule_and_its_real_sibling():
    assert centred_steps(50, 5, 15, 1.2) == [0, 5, 10, 14, 18, 22, 27, 32, 38, 44]
    assert centred_steps(50, 5, 15, 1.2, complex_root=False) == [0, 6, 11, 15, 17, 21, 26, 32, 37, 43]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("calls", [5, 20, 51])
def test_every_refresh_starts_full_and_interval_one_is_always_full(mode, calls):
    full = Refresh(mode, 4, centre=3).full_steps(calls)
    assert 0 in full and full <= set(range(calls))
    assert Refresh(mode, 1).full_steps(calls) == set(range(calls))
    if mode in ("uniform", "centred", "centred-real", "growing", "shrinking"):
        assert len(full) == -(-calls // 4)


def test_growing_intervals_grow_and_shrinking_mirror_them():
    growing = sorted(Refresh("growing", 5, power=2.0).full_steps(60))
    gaps = [b - a for a, b in zip(growing, growing[1:])]
    assert gaps[-1] > gaps[0]
    shrinking = sorted(Refresh("shrinking", 5, power=2.0).full_steps(60))
    assert [60 - s for s in reversed(shrinking[1:])] == growing[1:]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Refresh("fast"), "'fast' is unknown; have uniform"),
        (lambda: Refresh(interval=0), "interval=0 must be at least 1"),
        (lambda: Refresh(power=0.5), r"power=0\.5 must be at least 1"),
        (lambda: Refresh("centred").full_steps(None), "needs the number of steps"),
        (lambda: parse_cache("deep"), "write none, deep:INTERVAL"),
        (lambda: parse_cache("deep:x"), "'deep:x' is unknown"),
        (lambda: parse_cache("regions:2"), r"ratio=2\.0 must lie"),
        (lambda: Inherit("cell"), "depth='cell' is unknown"),
        (lambda: network_of(3), "int has no U-Net or transformer"),
    ],
)
def test_messages(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_cache_texts():
    assert parse_cache(None) is None and parse_cache("none") is None
    assert parse_cache("deep:5,2,centred") == DeepCache(2, Refresh("centred", 5))
    assert parse_cache("inherit") == Inherit()
    assert parse_cache("inherit:3,unit") == Inherit("unit", Refresh(interval=3))
    assert parse_cache("regions:0.25") == Regions(0.25)


def test_addresses_and_the_nearest_unit(make_unet):
    unet = make_unet()
    for path in ("down_blocks.0.resnets.0", "mid_block", "up_blocks.1.attentions.1.transformer_blocks.0.attn1"):
        assert module_path(unit_address(path)) == path
        assert find_unit(unet, unit_address(path)) is unet.get_submodule(path)
    with pytest.raises(InputError, match=r"no unit 'down.0.resnet.0'; near: down.0.resnets.0"):
        find_unit(unet, "down.0.resnet.0")


def inputs(rows=2, side=8, cross=32):
    rng = torch.Generator().manual_seed(3)
    return torch.randn(rows, 4, side, side, generator=rng), torch.randn(rows, 7, cross, generator=rng)


def test_removal_leaves_no_trace(make_unet):
    unet = make_unet()
    x, text = inputs()
    before = {name: set(vars(module)) for name, module in unet.named_modules()}
    with torch.no_grad():
        plain = unet(x, 500, text).sample
        apply_cache(unet, DeepCache(1, Refresh(interval=2)))
        unet(x, 500, text)
        assert not torch.equal(unet(x + 1, 400, text).sample, plain)
        remove_cache(unet)
        assert torch.equal(unet(x, 500, text).sample, plain)
    assert {name: set(vars(module)) for name, module in unet.named_modules()} == before
    assert cache_of(unet) is None
    remove_cache(unet)


def test_one_cache_at_a_time(make_unet):
    unet = make_unet()
    apply_cache(unet, Inherit())
    with pytest.raises(InputError, match="has a cache already; remove it first"):
        apply_cache(unet, DeepCache())


def test_bypass_runs_in_full_and_changes_nothing(make_unet):
    unet = make_unet()
    x, text = inputs()
    with torch.no_grad():
        plain = unet(x + 1, 400, text).sample
        cache = apply_cache(unet, DeepCache(0, Refresh(interval=3)))
        unet(x, 500, text)
        held = cache.bytes
        with cache.bypass():
            assert torch.equal(unet(x + 1, 400, text).sample, plain)
        assert cache.bytes == held and cache.reused_steps == 0
        unet(x + 1, 400, text)
    assert cache.reused_steps == 1


def test_features_from_outside_are_refused(make_unet):
    unet = make_unet()
    x, text = inputs()
    apply_cache(unet, DeepCache())
    with pytest.raises(InputError, match="down_intrablock_additional_residuals adds features"):
        unet(x, 500, text, down_intrablock_additional_residuals=[x])
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    with pytest.raises(InputError, match="disable_freeu"):
        unet(x, 500, text)


def test_reused_features_carry_no_gradient_and_a_full_step_does(make_unet):
    unet = make_unet()
    x, text = inputs()
    x = x.requires_grad_()
    apply_cache(unet, HoldEvery(frozenset({"mid"}), Refresh(interval=2)))
    for level in (500, 400):
        (grad,) = torch.autograd.grad(unet(x, level, text).sample.square().sum(), x)
        assert float(grad.abs().sum()) > 0


def test_branch_names_come_from_the_pipeline(tiny_folders):
    prior = load_prior(tiny_folders["flux"])
    network: FluxTransformer2DModel = prior.network
    apply_cache(network, Regions(0.5))
    name = network._diffusers_hook.get_hook("unproject_cache").branch
    assert isinstance(name, BranchName) and name.name == "all"
    with network.cache_context("uncond"):
        assert name.name == "uncond"
    assert name.name == "all"


class Inverting(DDIM):
    exact_inverse = True


@pytest.mark.parametrize(
    ("text", "steps", "solver", "message"),
    [
        ("deep:3", 20, Inverting(), "Inverting inverts its steps exactly"),
        ("regions:0.5", 20, None, "not of a UNet2DConditionModel, whose convolutions need the whole grid"),
    ],
)
def test_refused_combinations(make_unet, text, steps, solver, message):
    unet = make_unet()
    with pytest.raises(InputError, match=message), caching(unet, text, steps, solver):
        pass
    assert cache_of(unet) is None


def test_a_scheduler_that_inverts_exactly_is_refused_when_its_pipeline_runs(tiny_folders):
    pipe = load_prior(tiny_folders["sd"]).pipe
    pipe.set_progress_bar_config(disable=True)
    apply_cache(pipe, DeepCache())
    pipe.scheduler.solver = Inverting()
    with pytest.raises(InputError, match="DDIMScheduler inverts its steps exactly"):
        pipe("a dog", num_inference_steps=8, output_type="latent")


@pytest.mark.parametrize(("family", "text"), [("sd", "deep:2"), ("sd", "inherit"), ("sd3", "regions:0.5")])
def test_short_runs_are_plain_ones(tiny_folders, text, family):
    prior = load_prior(tiny_folders[family])
    network, x = prior.network, torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = prior.encode_text("a dog")["cond"]

    def run(calls):
        with torch.no_grad():
            return [prior.predict(x, 900.0 - 100 * i, rows) for i in range(calls)]

    plain = run(8)
    with caching(network, text, steps=7) as cache, pytest.warns(UserWarning, match="the cache is off"):
        assert all(torch.equal(a, b) for a, b in zip(run(7), plain))
    assert cache is not None and cache.reused_steps == 0
    with caching(network, text, steps=8) as cache:
        assert not all(torch.equal(a, b) for a, b in zip(run(8), plain)) or family == "sd3"
    assert cache is not None and cache.reused_steps > 0


def test_deepcache_on_a_transformer_and_what_is_allowed(make_unet, tiny_folders):
    message = "not a SD3Transformer2DModel; for a diffusion transformer use regions"
    with pytest.raises(InputError, match=message), caching(load_prior(tiny_folders["sd3"]), "deep:3", steps=20):
        pass
    unet = make_unet()
    with caching(unet, "deep:1", steps=2) as cache:
        assert cache is not None
    with caching(unet, None) as cache:
        assert cache is None
    assert cache_of(unet) is None


def test_macs_are_the_analytic_sum(make_unet):
    linear = torch.nn.Linear(8, 16)
    assert count_macs(lambda: linear(torch.randn(2, 7, 8))) == 2 * 7 * 8 * 16
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 9, 8)
    attention = count_macs(lambda: torch.nn.functional.scaled_dot_product_attention(query, key, key))
    assert attention == 2 * 2 * 4 * 5 * 9 * 8
    unet = make_unet()
    x, text = inputs()
    units = ["down.0", "down.1", "mid", "up.0", "up.1"]
    with torch.no_grad():
        macs = unit_macs(unet, units, lambda: unet(x, 500, text))
        ends = 2 * 64 * 9 * 4 * 16 * 2 + 2 * (16 * 64 + 64 * 64)  # conv_in, conv_out, time embedding
        assert count_macs(lambda: unet(x, 500, text)) == sum(macs.values()) + ends


def test_told_calls_need_nothing_of_the_device_and_are_no_others():
    """Who asks tells the level and the rows of the text; calls nobody told are of another run, whose unit differs."""
    text, rows = torch.ones(2, 5), object()

    def told(of: object, words: torch.Tensor) -> Signature:
        return Signature((2, 4, 8, 8), torch.float32, torch.device("cpu"), words, of)

    assert told(rows, text).matches(told(rows, torch.zeros(2, 5))), "the same rows are not looked at"
    assert told(rows, text).matches(told(object(), text.clone()))
    assert not told(rows, text).matches(told(object(), torch.zeros(2, 5)))
    assert not told(None, text).matches(told(rows, text))
    assert told_of_call() is None
    with telling(Told(3.0, rows)):
        found = told_of_call()
        assert found is not None and (found.level, found.rows) == (3.0, rows)
    assert told_of_call() is None


def test_levels_of_a_run_are_those_of_the_sampler():
    """A denoiser tells its levels, one for each sample or one for all, and the largest counts."""
    prior = GaussianMixturePrior(torch.zeros(1, 1, 1, 1), torch.ones(1))
    asked: list[float] = []
    plain = prior.predict

    def noted(*arguments):
        found = told_of_call()
        assert found is not None
        asked.append(found.level)
        return plain(*arguments)

    prior.predict = noted
    denoiser = Denoiser(prior, prior.encode_text(["0", "0"]))
    for index in (700.0, torch.tensor([100.0, 300.0])):
        denoiser(torch.zeros(2, 1, 1, 1), denoiser.schedule.at_index(index))
    assert asked == [700.0, 300.0]
