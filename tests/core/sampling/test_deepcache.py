"""DeepCache: branches against an independent replay rule, exact cases, stock pipelines and our own loop."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoPipelineForImage2Image, DPMSolverMultistepScheduler, HeunDiscreteScheduler

from unproject.core.priors import load_prior
from unproject.core.sampling import Denoiser, NoiseSchedule, Sampler, make_solver
from unproject.core.sampling.caches import (
    DeepCache,
    Refresh,
    apply_deep_cache,
    branch_units,
    caching,
    count_macs,
    remove_deep_cache,
)
from unproject.utils.errors import InputError

DEEP = {
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 2,
    "sample_size": 16,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}


def batch(rows=2, side=16, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, side, side, generator=rng), torch.randn(rows, 5, 32, generator=rng)


class Replay:
    """The rule written plainly: every wrapped layer behind (block, layer) answers with its last output."""

    def __init__(self, unet, branch: int, layers: int = 3):
        self.block, self.layer, self.full, self.kept, self.undo = branch // layers, branch % layers, True, {}, []
        for i, block in enumerate(unet.down_blocks):
            for j in range(len(block.resnets)):
                self.wrap(block.resnets[j], i, j, "down")
                if hasattr(block, "attentions"):
                    self.wrap(block.attentions[j], i, j, "down")
            for sampler in block.downsamplers or []:
                self.wrap(sampler, i, len(block.resnets), "down")
        self.wrap(unet.mid_block, 0, 0, "mid")
        for i, block in enumerate(reversed(unet.up_blocks)):
            for j, resnet in enumerate(reversed(block.resnets)):
                self.wrap(resnet, i, j, "up")
                if hasattr(block, "attentions"):
                    self.wrap(block.attentions[len(block.resnets) - 1 - j], i, j, "up")
            for sampler in block.upsamplers or []:
                self.wrap(sampler, i, 0, "up")

    def skips(self, block: int, layer: int, side: str) -> bool:
        if side == "mid" or block > self.block:
            return True
        if block < self.block:
            return False
        return layer >= self.layer if side == "down" else layer > self.layer

    def wrap(self, module, block, layer, side):
        original, key = module.forward, (side, block, layer, type(module).__name__)

        def forward(*args, **kwargs):
            if self.full or not self.skips(block, layer, side):
                self.kept[key] = original(*args, **kwargs)
            return self.kept[key]

        module.forward = forward
        self.undo.append(module)

    def remove(self):
        for module in self.undo:
            del module.forward


@pytest.mark.parametrize("branch", range(12))
def test_every_branch_equals_the_plain_replay_rule(make_unet, branch):
    unet = make_unet(**DEEP)
    (x, text), (y, _) = batch(), batch(seed=1)
    with torch.no_grad():
        plain = Replay(unet, branch)
        unet(x, 500, text)
        plain.full = False
        wanted = [unet(y, 480, text).sample, unet(x - y, 460, text).sample]
        plain.remove()
        apply_deep_cache(unet, DeepCache(branch, Refresh(interval=3)))
        unet(x, 500, text)
        found = [unet(y, 480, text).sample, unet(x - y, 460, text).sample]
    for a, b in zip(found, wanted):
        assert torch.equal(a, b)


def test_branch_zero_is_the_last_layer_alone(make_unet):
    """b = 0: conv_in, the last resnet and attention of the up path, the output layers; written out by hand."""
    unet = make_unet(**DEEP)
    (x, text), (y, _) = batch(), batch(seed=1)
    kept = {}
    block = unet.up_blocks[-1]
    handle = block.attentions[-2].register_forward_hook(lambda m, a, out: kept.update(feature=out[0]))
    with torch.no_grad():
        cache = apply_deep_cache(unet, DeepCache(0, Refresh(interval=2)))
        unet(x, 500, text)
        handle.remove()
        found = unet(y, 480, text).sample
        time = unet.time_embedding(unet.time_proj(torch.tensor([480, 480])).to(y.dtype))
        hidden = torch.cat([kept["feature"], unet.conv_in(y)], 1)
        hidden = block.attentions[-1](block.resnets[-1](hidden, time), encoder_hidden_states=text).sample
        wanted = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    stand_ins = cache.bytes - kept["feature"].numel() * 4
    assert 0 < stand_ins < 1024, "one feature of (2B, C, h, w) is all that is held"


def test_unit_lists(make_unet):
    unet = make_unet(**DEEP)
    assert branch_units(unet, 0) == (
        ["down.0", "down.1", "down.2", "down.3", "mid", "up.3.resnets.0", "up.3.attentions.0", "up.3.resnets.1"]
        + ["up.3.attentions.1", "up.2", "up.1", "up.0"],
        "up.3.attentions.1",
    )
    assert branch_units(unet, 2) == (
        ["down.0.downsamplers.0", "down.1", "down.2", "down.3", "mid", "up.2", "up.1", "up.0"],
        "up.2",
    )
    assert branch_units(unet, 11) == (["mid"], "mid")
    with pytest.raises(InputError, match=r"branch=12 does not exist: this U-Net has 12 skips \(0 to 11\)"):
        branch_units(unet, 12)


@pytest.mark.parametrize("branch", [0, 2, 3])
def test_interval_one_and_repeated_steps_are_bit_identical(make_unet, branch):
    unet = make_unet()
    (x, text), levels = batch(side=8), (900, 700, 500)
    with torch.no_grad():
        plain = [unet(x, t, text).sample for t in levels]
        cache = apply_deep_cache(unet, DeepCache(branch, Refresh(interval=1)))
        assert all(torch.equal(unet(x, t, text).sample, p) for t, p in zip(levels, plain))
        assert cache.bytes == 0
        remove_deep_cache(unet)
        apply_deep_cache(unet, DeepCache(branch, Refresh(interval=2)))
        full, again = unet(x, 500, text).sample, unet(x, 500, text).sample
        assert torch.equal(full, again) and torch.equal(full, plain[2])


def test_cost_is_the_mean_of_full_and_branch_steps(make_unet):
    unet = make_unet(**DEEP)
    x, text = batch()
    with torch.no_grad():
        full = count_macs(lambda: unet(x, 999, text))
        apply_deep_cache(unet, DeepCache(0, Refresh(interval=3)))
        unet(x, 900, text)
        branch = count_macs(lambda: unet(x, 800, text))
        remove_deep_cache(unet)
        apply_deep_cache(unet, DeepCache(0, Refresh(interval=3)))
        run = count_macs(lambda: [unet(x, 900 - i, text) for i in range(6)])
    assert run == 2 * full + 4 * branch
    assert branch < 0.5 * full


def test_error_grows_with_the_interval(make_unet):
    prior_unet = make_unet(**DEEP)
    x, text = batch()
    times = range(900, 840, -5)
    errors = []
    with torch.no_grad():
        states = [x * (1 - i / 40) for i in range(len(times))]
        plain = [prior_unet(s, t, text).sample for s, t in zip(states, times)]
        for interval in (2, 4, 12):
            apply_deep_cache(prior_unet, interval)
            found = [prior_unet(s, t, text).sample for s, t in zip(states, times)]
            errors.append(sum(float((a - b).norm()) for a, b in zip(found, plain)))
            remove_deep_cache(prior_unet)
    assert 0 < errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_stock_pipelines(tiny_folders, family):
    pipe = load_prior(tiny_folders[family]).pipe
    pipe.set_progress_bar_config(disable=True)

    def draw(seed=0, prompt="a red chair", steps=8):
        rng = torch.Generator().manual_seed(seed)
        return pipe(prompt, num_inference_steps=steps, generator=rng, output_type="latent").images

    plain = draw()
    cache = apply_deep_cache(pipe, DeepCache(0, Refresh("centred", 2, centre=2)))
    cached = draw()
    assert not torch.equal(cached, plain)
    assert (cache.full_steps, cache.reused_steps) == (4, 4)
    draw(1, "a tall blue dog")
    assert torch.equal(draw(), cached), "no feature of another run leaks in"
    with pytest.warns(UserWarning, match=r"the cache is off: in a run of 7 calls .* from 8 calls on"):
        few = draw(steps=7)
    assert cache.off and torch.equal(draw(), cached) and not cache.off
    assert cache.bytes < cache.peak_bytes * 1.01
    remove_deep_cache(pipe)
    assert torch.equal(draw(), plain) and torch.equal(draw(steps=7), few)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_image_to_image_after_another_strength(tiny_folders, family):
    base = load_prior(tiny_folders[family]).pipe
    pipe = AutoPipelineForImage2Image.from_pipe(base)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))

    def draw(strength):
        rng = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 20, "generator": rng, "output_type": "latent"}
        return pipe("a dog", image=image, strength=strength, **options).images

    cache = apply_deep_cache(pipe, 2)
    draw(0.9)
    assert (cache.full_steps, cache.reused_steps) == (9, 9)
    after = draw(0.6)
    remove_deep_cache(pipe)
    cache = apply_deep_cache(pipe, 2)
    assert torch.equal(draw(0.6), after)
    assert (cache.full_steps, cache.reused_steps) == (6, 6)


@pytest.mark.parametrize("scheduler", [HeunDiscreteScheduler, DPMSolverMultistepScheduler])
def test_schedulers_that_repeat_timesteps_and_multistep_ones(tiny_folders, scheduler):
    pipe = load_prior(tiny_folders["sd"]).pipe
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    cache = apply_deep_cache(pipe, 3)
    pipe("a dog", num_inference_steps=8, output_type="latent")
    calls = 15 if scheduler is HeunDiscreteScheduler else 8
    assert cache.full_steps == -(-calls // 3)
    assert cache.full_steps + cache.reused_steps == calls


@pytest.mark.parametrize("name", ["ddim", "heun", "dpm++"])
def test_our_own_loop(tiny_folders, name):
    prior = load_prior(tiny_folders["sd"])
    levels = NoiseSchedule.from_config(prior.scheduler_config).grid(8)
    solver = make_solver(name)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    condition = prior.encode_text(["a dog", "the wagon"])

    def draw(rows=slice(0, 2)):
        with torch.no_grad():
            return Sampler(solver).run(Denoiser(prior, condition.index(rows), 3.0), noise[rows], levels)

    plain = draw()
    with caching(prior, "deep:1", steps=8, solver=solver):
        assert torch.equal(draw(), plain)
    with caching(prior, DeepCache(1, Refresh("growing", 2)), steps=8, solver=solver) as cache:
        both = draw()
        assert cache.calls == solver.calls(8)
        assert cache.reused_steps > 0
        single = torch.cat([draw(slice(0, 1)), draw(slice(1, 2))])
    torch.testing.assert_close(single, both, rtol=1e-4, atol=1e-4)
    assert torch.equal(draw(), plain)
