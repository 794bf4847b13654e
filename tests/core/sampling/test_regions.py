"""Region-adaptive sampling: the selector's promises, exact limits, and stock SD3 and FLUX pipelines."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoPipelineForImage2Image

from unproject.core.priors import load_prior
from unproject.core.sampling import Denoiser, NoiseSchedule, Sampler, make_solver
from unproject.core.sampling.caches import Regions, apply_regions, cache_of, caching, count_macs, remove_regions
from unproject.core.sampling.caches.regions import RegionRoot
from unproject.core.sampling.caches.selector import importance, select_tokens
from unproject.utils.errors import InputError


def measures(rows=2, tokens=32, seed=0):
    return torch.rand(rows, tokens, generator=torch.Generator().manual_seed(seed)) + 0.05


def test_the_schedule_is_that_of_the_released_sd3_script():
    dense = [step for step in range(28) if Regions(0.5, 4, 8).dense(step)]
    assert dense == [0, 1, 2, 3, 12, 20]
    assert not any(Regions(0.5, 4, 0).dense(step) for step in range(4, 28))
    assert all(Regions(1.0).dense(step) for step in range(28))


def test_importance():
    moved = torch.tensor([[[[3.0], [-3.0]], [[1.0], [1.0]]]])  # (1, 2 tokens, 2 channels, 1 pixel)
    assert importance(moved, "std").tolist() == [[3.0, 0.0]]
    torch.testing.assert_close(importance(moved, "l2"), torch.tensor([[18**0.5, 2**0.5]]))


@pytest.mark.parametrize("ratio", [0.5, 0.25, 0.03])
def test_the_number_of_active_tokens(ratio):
    active, dropped = select_tokens(measures(), torch.zeros(2, 32), Regions(ratio))
    kept = 32 - int(32 * (1 - ratio))
    assert active.shape == (2, kept)
    assert bool((active[:, 1:] > active[:, :-1]).all())
    assert dropped.sum(1).tolist() == [32 - kept] * 2


def test_focus_high_and_low_are_opposite_without_starvation():
    m = measures()
    high = select_tokens(m, torch.zeros(2, 32), Regions(0.5, starvation=0.0))[0]
    low = select_tokens(m, torch.zeros(2, 32), Regions(0.5, starvation=0.0, focus="low"))[0]
    for row in range(2):
        assert not set(high[row].tolist()) & set(low[row].tolist())
        assert m[row, high[row]].min() >= m[row, low[row]].max()


def test_selection_commutes_with_permutation_and_samples_do_not_mix():
    m, dropped = measures(), torch.randint(0, 4, (2, 32), generator=torch.Generator().manual_seed(1)).float()
    order = torch.randperm(32, generator=torch.Generator().manual_seed(2))
    config = Regions(0.4)
    active, after = select_tokens(m, dropped, config)
    moved, moved_after = select_tokens(m[:, order], dropped[:, order], config)
    for row in range(2):
        assert set(order[moved[row]].tolist()) == set(active[row].tolist())
    assert torch.equal(moved_after, after[:, order])
    alone, _ = select_tokens(m[1:], dropped[1:], config)
    assert torch.equal(alone[0], active[1])


def waits(starvation: float, steps: int = 200, focus="high") -> torch.Tensor:
    """Longest wait of every token under a constant measure."""
    m, config = measures(1), Regions(0.5, starvation=starvation, focus=focus)
    dropped, wait, longest = torch.zeros(1, 32), torch.zeros(32), torch.zeros(32)
    for _ in range(steps):
        active, dropped = select_tokens(m, dropped, config)
        wait += 1
        wait[active[0]] = 0
        longest = torch.maximum(longest, wait)
    return longest


@pytest.mark.parametrize("focus", ["high", "low"])
def test_no_token_starves_unless_allowed_to(focus):
    m = measures(1)
    bound = float((m.max().log() - m.min().log()) / (0.1 * 0.5)) + 3
    assert float(waits(0.1, focus=focus).max()) <= bound
    assert float(waits(0.0, focus=focus).max()) == 200


@pytest.fixture(params=["sd3", "flux"])
def prior(request, tiny_folders):
    return load_prior(tiny_folders[request.param])


def states(prior, steps=6, rows=2):
    rng = torch.Generator().manual_seed(4)
    x = torch.randn(rows, 4, 8, 8, generator=rng)
    drift = torch.randn(rows, 4, 8, 8, generator=rng)
    return [(x + 0.1 * i * drift, 900.0 - 100 * i) for i in range(steps)]


def walk(prior, path):
    condition = prior.encode_text(["a dog", "the wagon"])
    with torch.no_grad():
        return [prior.predict(x, time, condition["cond"]) for x, time in path]


def test_ratio_one_is_bit_identical(prior):
    path = states(prior)
    plain = walk(prior, path)
    cache = apply_regions(prior, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(walk(prior, path), plain))
    assert cache.bytes == 0 and cache.reused_steps == 0


def test_all_tokens_active_on_the_sparse_path_is_the_dense_answer(prior, monkeypatch):
    path = states(prior)
    plain = walk(prior, path)
    monkeypatch.setattr(Regions, "kept", lambda self, tokens: tokens)
    cache = apply_regions(prior, Regions(0.5, start=1, refresh=0))
    found = walk(prior, path)
    assert cache.reused_steps == 5
    for a, b in zip(found, plain):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_sparse_step_on_an_unchanged_state_is_the_dense_answer(prior):
    """Cached keys are those of the same input, so the active tokens come out as in the dense step."""
    x, time = states(prior)[0]
    (plain,) = walk(prior, [(x, time)])
    cache = apply_regions(prior, Regions(0.5, start=1, refresh=0))
    found = walk(prior, [(x, time)] * 3)
    assert cache.reused_steps == 2
    for answer in found:
        torch.testing.assert_close(answer, plain, rtol=1e-5, atol=1e-6)


def by_token(x):
    """(B, P, values) of 2x2 patches."""
    return x.reshape(x.shape[0], 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(x.shape[0], 16, 16)


def test_without_attention_a_dropped_token_has_the_velocity_of_its_last_turn(prior):
    """Blocks switched off: every token's velocity depends on itself alone, so the stale error is known exactly."""
    for block in [*prior.network.transformer_blocks, *getattr(prior.network, "single_transformer_blocks", [])]:
        norm = block.norm1 if hasattr(block, "norm1") else block.norm
        norm.linear.weight.data.zero_()
        norm.linear.bias.data.zero_()
    path = [(x, 500.0) for x, _ in states(prior)]
    fresh = [by_token(v) for v in walk(prior, path)]
    apply_regions(prior, Regions(0.5, start=2, refresh=0))
    root: RegionRoot = prior.network._diffusers_hook.get_hook("unproject_cache")
    chosen = []
    prior.network.proj_out.register_forward_pre_hook(lambda m, args: chosen.append(root.active))
    found = [by_token(v) for v in walk(prior, path)]
    turn = torch.zeros(2, 16, dtype=torch.long)
    for step, active in enumerate(chosen):
        if active is None:
            turn[:] = step
        else:
            turn.scatter_(1, active, step)
        for row in range(2):
            wanted = torch.stack([fresh[int(turn[row, p])][row, p] for p in range(16)])
            torch.testing.assert_close(found[step][row], wanted, rtol=1e-5, atol=1e-6)
    assert int((turn < len(path) - 1).sum()) == 16


def test_a_batch_equals_its_samples(prior):
    path = states(prior)
    config = Regions(0.5, start=2, refresh=0)
    apply_regions(prior, config)
    both = walk(prior, path)
    for row, text in enumerate(("a dog", "the wagon")):
        condition = prior.encode_text(text)
        with torch.no_grad():
            alone = [prior.predict(x[row : row + 1], time, condition["cond"]) for x, time in path]
        for a, b in zip(alone, both):
            torch.testing.assert_close(a[0], b[row], rtol=1e-4, atol=1e-5)


def test_a_sparse_step_costs_less_and_memory_is_reported(prior):
    path = states(prior)
    cache = apply_regions(prior, Regions(0.25, start=2, refresh=0))
    dense = count_macs(lambda: walk(prior, path[:2])) / 2
    sparse = count_macs(lambda: walk(prior, path)) / 6
    assert sparse < 0.9 * dense
    layers = sum(hasattr(module, "to_k") for module in prior.network.modules())
    width = prior.network.inner_dim
    assert cache.bytes >= 2 * 2 * layers * 16 * width * 4
    assert cache.bytes < 3 * 2 * layers * 16 * width * 4 + 40_000


def draw(pipe, **options):
    rng = torch.Generator().manual_seed(0)
    settings = {"num_inference_steps": 8, "output_type": "latent", "generator": rng}
    return pipe("a red chair", **{**settings, **options}).images


@pytest.mark.parametrize("options", [{}, {"true_cfg_scale": 2.0, "negative_prompt": "dog"}])
def test_stock_flux(tiny_folders, options):
    pipe = load_prior(tiny_folders["flux"]).pipe
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 32, "width": 48}
    plain = draw(pipe, **size, **options)
    cache = apply_regions(pipe, Regions(0.5, start=2, refresh=3))
    found = draw(pipe, **size, **options)
    branches = 2 if options else 1
    assert (cache.full_steps, cache.reused_steps) == (3 * branches, 5 * branches)
    assert torch.isfinite(found).all() and not torch.equal(found, plain)
    assert torch.equal(draw(pipe, **size, **options), found)
    remove_regions(pipe)
    assert torch.equal(draw(pipe, **size, **options), plain)


def test_stock_sd3_chooses_the_same_tokens_in_both_guidance_halves(tiny_folders):
    pipe = load_prior(tiny_folders["sd3"]).pipe
    pipe.set_progress_bar_config(disable=True)
    plain = draw(pipe)
    cache = apply_regions(pipe, Regions(0.5, start=2, refresh=3))
    root = pipe.transformer._diffusers_hook.get_hook("unproject_cache")
    chosen = []
    handle = pipe.transformer.proj_out.register_forward_pre_hook(lambda m, args: chosen.append(root.active))
    found = draw(pipe)
    handle.remove()
    assert (cache.full_steps, cache.reused_steps) == (3, 5)
    assert all(torch.equal(*active) for active in chosen if active is not None)
    assert not torch.equal(found, plain)
    remove_regions(pipe)
    assert torch.equal(draw(pipe), plain)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_image_to_image(tiny_folders, family):
    pipe = AutoPipelineForImage2Image.from_pipe(load_prior(tiny_folders[family]).pipe)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    options = {"image": image, "height": 32, "width": 32, "num_inference_steps": 10}
    cache = apply_regions(pipe, Regions(0.5, start=2, refresh=0))
    draw(pipe, strength=0.9, **options)
    steps = cache.full_steps + cache.reused_steps
    assert cache.full_steps == 2 and steps >= 8
    after = draw(pipe, strength=0.6, **options)
    remove_regions(pipe)
    apply_regions(pipe, Regions(0.5, start=2, refresh=0))
    assert torch.equal(draw(pipe, strength=0.6, **options), after)


@pytest.mark.parametrize("name", ["euler", "dpm++"])
def test_our_own_loop(tiny_folders, name):
    prior = load_prior(tiny_folders["sd3"])
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    condition = prior.encode_text(["a dog", "the wagon"])

    def sample():
        with torch.no_grad():
            return Sampler(make_solver(name, True)).run(Denoiser(prior, condition, 3.0), noise, schedule.grid(8))

    plain = sample()
    with caching(prior, "regions:1", steps=8):
        assert torch.equal(sample(), plain)
    with caching(prior, Regions(0.5, start=3), steps=8) as cache:
        assert not torch.equal(sample(), plain)
        assert cache.reused_steps == 5
    assert cache_of(prior) is None
    assert torch.equal(sample(), plain)


def test_the_choice_of_tokens_can_be_replaced(prior):
    def first(measure, dropped, config):
        return torch.arange(config.kept(16)).expand(len(measure), -1), dropped

    path = states(prior)
    apply_regions(prior, Regions(0.5, start=2, refresh=0, select=first))
    velocities = [by_token(v) for v in walk(prior, path)]
    for early, late in zip(velocities[1:], velocities[2:]):
        assert torch.equal(early[:, 8:], late[:, 8:])
        assert not torch.equal(early[:, :8], late[:, :8])


def test_messages(make_unet, tiny_folders):
    with pytest.raises(InputError, match="whose convolutions need the whole grid; use deep:3 there"):
        apply_regions(make_unet())
    with pytest.raises(InputError, match="start=0 must be at least 1"):
        Regions(start=0)
    with pytest.raises(InputError, match="metric='max' is unknown; have std, l2"):
        Regions(metric="max")
    network = load_prior(tiny_folders["sd3"]).network
    network.fuse_qkv_projections()
    with pytest.raises(InputError, match="FusedJointAttnProcessor2_0: regions need the stock attention"):
        apply_regions(network)
