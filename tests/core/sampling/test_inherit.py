"""Feature inheritance: plans, output and delta modes, profiling, and DeepCache as its special case."""

from __future__ import annotations

import pytest
import torch

from unproject.core.priors import load_prior
from unproject.core.sampling.caches import (
    DeepCache,
    HoldEvery,
    HoldPlan,
    Inherit,
    Profile,
    Refresh,
    apply_deep_cache,
    apply_inheritance,
    branch_units,
    count_macs,
    greedy_plan,
    profile_units,
    remove_deep_cache,
    remove_inheritance,
    unit_macs,
    units_at,
)
from unproject.utils.errors import InputError

TIMES = (900, 800, 700, 600, 500, 400)


def batch(rows=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, 8, 8, generator=rng), torch.randn(rows, 5, 32, generator=rng)


def trajectory(unet, x, text):
    with torch.no_grad():
        return [unet(x * (1 - i / 20), t, text).sample for i, t in enumerate(TIMES)]


def test_the_empty_plan_and_interval_one_are_plain(make_unet):
    unet = make_unet()
    x, text = batch()
    plain = trajectory(unet, x, text)
    for config in (HoldPlan({}), Inherit("unit", Refresh(interval=1)), HoldEvery(frozenset(), Refresh(interval=2))):
        cache = apply_inheritance(unet, config, steps=len(TIMES))
        assert all(torch.equal(a, b) for a, b in zip(trajectory(unet, x, text), plain))
        assert cache.bytes == 0
        remove_inheritance(unet)


@pytest.mark.parametrize("branch", [0, 1, 2, 3])
def test_everything_behind_a_branch_is_deepcache(make_unet, branch):
    unet = make_unet()
    x, text = batch()
    apply_deep_cache(unet, DeepCache(branch, Refresh(interval=3)))
    deep = trajectory(unet, x, text)
    remove_deep_cache(unet)
    units = frozenset(branch_units(unet, branch)[0])
    apply_inheritance(unet, HoldEvery(units, Refresh(interval=3)), mode="output")
    assert all(torch.equal(a, b) for a, b in zip(trajectory(unet, x, text), deep))
    remove_inheritance(unet)
    held = {step: units for step in range(len(TIMES)) if step % 3}
    apply_inheritance(unet, HoldPlan(held), mode="output", steps=len(TIMES))
    assert all(torch.equal(a, b) for a, b in zip(trajectory(unet, x, text), deep))


def test_output_and_delta_agree_when_the_input_is_held_too(make_unet):
    unet = make_unet()
    x, text = batch()
    units = frozenset({"down.0", "down.1", "mid"})
    found = {}
    for mode in ("output", "auto"):
        apply_inheritance(unet, HoldEvery(units, Refresh(interval=2)), mode=mode)
        found[mode] = trajectory(unet, x, text)
        remove_inheritance(unet)
    for a, b in zip(found["output"], found["auto"]):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_delta_adds_the_stored_difference_to_the_current_input(make_unet):
    unet = make_unet()
    x, text = batch()
    seen = []
    middle = unet.mid_block
    apply_inheritance(unet, HoldEvery(frozenset({"mid"}), Refresh(interval=2)), mode="delta")
    handle = middle.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    trajectory(unet, x, text)
    handle.remove()
    (input_0, output_0), (input_1, output_1) = seen[:2]
    assert not torch.equal(input_0, input_1)
    torch.testing.assert_close(output_1 - input_1, output_0 - input_0, rtol=1e-5, atol=1e-6)


def test_holding_attention_keeps_the_current_input(make_unet):
    """A held residual branch is stale, the sum around it is not: its error is smaller than that of the held sum."""
    unet = make_unet()
    x, text = batch()
    plain = trajectory(unet, x, text)
    path = "up.1.attentions.1.transformer_blocks.0"
    errors = {}
    for name, units, mode in (("branch", {f"{path}.attn1"}, "auto"), ("sum", {path}, "output")):
        apply_inheritance(unet, HoldEvery(frozenset(units), Refresh(interval=6)), mode=mode)
        errors[name] = sum(float((a - b).norm()) for a, b in zip(trajectory(unet, x, text), plain))
        remove_inheritance(unet)
    assert 0 < errors["branch"] < errors["sum"]


def test_units_by_depth(make_unet, tiny_folders):
    unet = make_unet()
    assert units_at(unet, "block") == ["down.1", "up.0", "mid"]
    assert units_at(unet, "block", outermost=True) == ["down.0", "down.1", "up.0", "up.1", "mid"]
    assert units_at(unet, "layer") == [
        *("down.1.attentions.0", "down.1.resnets.0", "up.0.attentions.0", "up.0.attentions.1"),
        *("up.0.resnets.0", "up.0.resnets.1", "mid"),
    ]
    assert "mid.attentions.0.transformer_blocks.0.attn2" in units_at(unet, "unit")
    dit = load_prior(tiny_folders["sd3"]).network
    assert units_at(dit, "block", outermost=True) == ["blocks.0", "blocks.1"]
    assert all(name.rpartition(".")[2] in ("attn", "ff", "ff_context") for name in units_at(dit, "unit", True))


@pytest.mark.parametrize("depth", ["block", "layer", "unit"])
def test_cost_is_the_analytic_sum(make_unet, depth):
    unet = make_unet()
    x, text = batch()
    units = units_at(unet, depth)
    with torch.no_grad():
        each = unit_macs(unet, units, lambda: unet(x, 999, text))
        full = count_macs(lambda: unet(x, 999, text))
    apply_inheritance(unet, Inherit(depth, Refresh(interval=2)))
    spent = count_macs(lambda: trajectory(unet, x, text))
    assert spent == len(TIMES) * full - 3 * sum(each.values())
    plan = HoldPlan(dict.fromkeys((1, 3, 5), units))
    whole = {**each, "rest": full - sum(each.values())}
    assert plan.saving(whole, len(TIMES)) == pytest.approx(len(TIMES) * full / spent)


def test_profile_and_greedy_plan_reach_the_target(make_unet):
    unet = make_unet()
    x, text = batch()
    units = units_at(unet, "layer", outermost=True)
    profile = profile_units(unet, units, lambda: trajectory(unet, x, text))
    assert profile.calls == len(TIMES)
    assert all(change[0] == 0 and min(change[1:]) > 0 for change in profile.change.values())
    assert all(0.5 < min(c) <= max(c) < 1 + 1e-6 for c in profile.cosine.values())
    with torch.no_grad():
        full = count_macs(lambda: unet(x, 999, text))
    plan = greedy_plan(profile, 1.3, full)
    assert 0 not in plan.held and len(TIMES) - 1 not in plan.held
    apply_inheritance(unet, plan, steps=len(TIMES))
    speedup = len(TIMES) * full / count_macs(lambda: trajectory(unet, x, text))
    assert 1.3 <= speedup < 1.6
    with pytest.raises(InputError, match=r"target=50.0 is out of reach: these units save at most a factor \d"):
        greedy_plan(profile, 50.0, full)


def test_greedy_takes_the_least_change_per_mac():
    profile = Profile({"a": [0, 0.1, 0.9, 0.1], "b": [0, 0.1, 0.1, 0.1]}, {}, {"a": 10, "b": 1})
    assert greedy_plan(profile, 44 / 33.5, 11, keep_last=False).held == {1: frozenset("a"), 3: frozenset("a")}
    assert greedy_plan(profile, 1.28, 11, longest=1, keep_last=False).held[1] == frozenset("a")


@pytest.mark.parametrize(
    ("config", "mode", "message"),
    [
        (HoldPlan({1: {"down.7"}}), "auto", "no unit 'down.7'"),
        (HoldPlan({9: {"mid"}}), "auto", "plan holds at step 9, but the run has steps=6"),
        (HoldEvery(frozenset({"mid.attentions.0.transformer_blocks.0.ff"}), Refresh()), "delta", "residual branch"),
    ],
)
def test_messages(make_unet, config, mode, message):
    with pytest.raises(InputError, match=message):
        apply_inheritance(make_unet(), config, mode, steps=6)


def test_shapes_that_change_refuse_delta_and_step_zero_cannot_hold(make_unet):
    unet = make_unet()
    apply_inheritance(unet, HoldEvery(frozenset({"down.1.resnets.0"}), Refresh(interval=2)), "delta")
    with pytest.raises(InputError, match=r"'down\.1\.resnets\.0' changes the shape of its input"):
        trajectory(unet, *batch())
    with pytest.raises(InputError, match="cannot hold at step 0"):
        HoldPlan({0: {"mid"}})


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_stock_pipelines(tiny_folders, family):
    pipe = load_prior(tiny_folders[family]).pipe
    pipe.set_progress_bar_config(disable=True)

    def draw(prompt="a red chair"):
        options = {"num_inference_steps": 6, "output_type": "latent", "height": 32, "width": 32}
        return pipe(prompt, generator=torch.Generator().manual_seed(0), **options).images

    plain = draw()
    depth = "block" if family in ("sd3", "flux") else "layer"
    units = units_at(pipe.unet if hasattr(pipe, "unet") else pipe.transformer, depth, outermost=True)
    cache = apply_inheritance(pipe, HoldEvery(frozenset(units), Refresh(interval=2)))
    held = draw()
    assert (cache.full_steps, cache.reused_steps) == (3, 3)
    assert torch.isfinite(held).all() and not torch.equal(held, plain)
    draw("the wagon")
    assert torch.equal(draw(), held)
    remove_inheritance(pipe)
    assert torch.equal(draw(), plain)
