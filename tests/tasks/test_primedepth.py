"""PrimeDepth's published checkpoint on random weights: every key in its place, and the answer of the published code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from unproject.pipelines.image_to_geometry import ImageToDepth
from unproject.tasks import primedepth
from unproject.tasks.preimage_head import PreimageConfig, PreimageHead
from unproject.tasks.primedepth import last_layer, load_primedepth
from unproject.tasks.refiner import RefinerConfig
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

State = dict[str, torch.Tensor]
INNER = {v: k for k, v in primedepth.BLOCK.items()}
OUTER = {v: k for k, v in primedepth.FUSED.items()}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


def published_name(name: str) -> str:
    """The published name of one of our reader's weights."""
    if name.startswith(("norm.", "last.")):
        return f"labeller.refiner.out.{0 if name.startswith('norm') else 2}.{name.split('.')[1]}"
    _, k, part, rest = name.split(".", 3)
    if part in OUTER:
        return f"labeller.{OUTER[part]}.{k}.{rest}"
    if part == "block":
        layer, _, last = rest.rpartition(".")
        return f"labeller.refiner.output_blocks.{k}.0.{INNER[layer]}.{last}"
    if part == "up":
        before = int(k) - 1
        place = 2 if before == 1 else 1  # behind the transformer of the tiny prior's first level
        return f"labeller.refiner.output_blocks.{before}.{place}.conv.{rest}"
    return f"labeller.refiner.output_blocks.{k}.1.{rest}"


def branch_name(key: str) -> str:
    for block in range(3):
        key = key.replace(f"up_blocks.{block}.", f"up.{2 - block}.")
    for ours, theirs in (
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("resnets", "block"),
        ("upsamplers.0", "upsample"),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    ):
        key = key.replace(ours, theirs)
    return f"labeller.depth_predictor.{key}"


@pytest.fixture
def state(tiny_prior) -> State:
    """Random weights in the published names."""
    like = PreimageHead(tiny_prior, PreimageConfig(refiner=RefinerConfig(0.5, 6, layout="published")), seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(1)
        ours = {k: v + 0.1 * torch.randn_like(v) for k, v in like.refiner.state_dict().items()}
        branch = {k: v + 0.05 * torch.randn_like(v) for k, v in like.branch.decoder.state_dict().items()}
    found = {published_name(k): v for k, v in ours.items()} | {branch_name(k): v for k, v in branch.items()}
    return {
        **found,
        "labeller.label_predictor.conv_in.weight": torch.zeros(2),
        "model.diffusion_model.x": torch.ones(1),
    }


@pytest.fixture
def head(state, tiny_prior, tmp_path: Path, monkeypatch) -> PreimageHead:
    monkeypatch.setenv("UNPROJECT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(primedepth, "load_prior", lambda path, *_, **__: tiny_prior)
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "PrimeDepth.ckpt")
    return load_primedepth(tmp_path / "PrimeDepth.ckpt")


def most(channels: int, start: int) -> int:
    return next(n for n in range(min(start, channels), 0, -1) if channels % n == 0)


def published_refiner(state: State, seen, emb: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """The labeller of the published code, written out on its own names."""
    w = {k.removeprefix("labeller."): v for k, v in state.items()}

    def conv(name: str, x: torch.Tensor, pad: int = 0) -> torch.Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=pad)

    def norm(name: str, x: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
        return F.group_norm(x, most(x.shape[1], 32), w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def attend(name: str, x: torch.Tensor, y: torch.Tensor, heads: int) -> torch.Tensor:
        q, k, v = (
            linear(f"{name}.to_{n}", z).unflatten(-1, (heads, -1)).transpose(1, 2)
            for n, z in zip("qkv", (x, y, y), strict=True)
        )
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return linear(f"{name}.to_out.0", (weights @ v).transpose(1, 2).flatten(2))

    def transformer(name: str, x: torch.Tensor) -> torch.Tensor:
        b, c, h, wide = x.shape
        heads = c // most(c, 64)
        y = linear(f"{name}.proj_in", norm(f"{name}.norm", x, 1e-6).flatten(2).transpose(1, 2))
        t = f"{name}.transformer_blocks.0"
        normed = [lambda z, n=n: F.layer_norm(z, (c,), w[f"{t}.norm{n}.weight"], w[f"{t}.norm{n}.bias"]) for n in "123"]
        own = normed[0](y)
        y = y + attend(f"{t}.attn1", own, own, heads)
        y = y + attend(f"{t}.attn2", normed[1](y), words, heads)
        value, gate = linear(f"{t}.ff.net.0.proj", normed[2](y)).chunk(2, -1)
        y = y + linear(f"{t}.ff.net.2", value * F.gelu(gate))
        return x + linear(f"{name}.proj_out", y).transpose(1, 2).reshape(b, c, h, wide)

    r = None
    for k, (h, a) in enumerate(zip(seen.features, seen.attention, strict=True)):
        parts = [conv(f"convs_features.{k}", h)]
        if f"convs_attentions.{k}.weight" in w:
            parts.append(conv(f"convs_attentions.{k}", a))
        merged = conv(f"convs_merge.{k}", torch.cat(parts, 1))
        x, block = merged if r is None else torch.cat([r, merged], 1), f"refiner.output_blocks.{k}"
        y = conv(f"{block}.0.in_layers.2", F.silu(norm(f"{block}.0.in_layers.0", x)), 1)
        y = y + linear(f"{block}.0.emb_layers.1", F.silu(emb))[..., None, None]
        y = conv(f"{block}.0.out_layers.3", F.silu(norm(f"{block}.0.out_layers.0", y)), 1)
        r = y + (conv(f"{block}.0.skip_connection", x) if f"{block}.0.skip_connection.weight" in w else x)
        if f"{block}.1.norm.weight" in w:
            r = transformer(f"{block}.1", r)
        for place in (1, 2):
            if f"{block}.{place}.conv.weight" in w:
                size = seen.features[k + 1].shape[2:]
                r = conv(f"{block}.{place}.conv", F.interpolate(r, size, mode="nearest"), 1)
    return conv("refiner.out.2", F.silu(norm("refiner.out.0", r)), 1)


def test_it_answers_as_the_published_code(head, state, tiny_prior) -> None:
    z, emb, words = noise(2, 4, 8, 8), noise(2, 64, seed=1), head.text["cond"]["text"].expand(2, -1, -1)
    seen = head.seen(z)
    found = head.refiner(seen, emb, words, (8, 8))
    torch.testing.assert_close(found, published_refiner(state, seen, emb, words), rtol=1e-3, atol=1e-3)
    assert float(found.std()) > 0.1
    weights = head.branch.decoder.state_dict()
    assert all(torch.equal(weights[k], state[branch_name(k)]) for k in weights)


def test_its_range_is_its_own(head) -> None:
    made = ImageToDepth(head)(torch.rand(3, 32, 32, generator=generator(2)), processing_resolution=32)
    assert made.space == "disparity" and made.depth.min() == pytest.approx(0, abs=1e-5)
    assert made.depth.max() == pytest.approx(1, abs=1e-5)


def test_what_is_not_understood_is_named(state, tmp_path: Path, head) -> None:
    for key, told in (
        ("labeller.magic.0.weight", "'labeller.magic.0.weight' has no place"),
        ("labeller.refiner.output_blocks.1.0.extra.weight", "stages.1.block.extra.weight"),
    ):
        torch.save({"state_dict": {**state, key: torch.zeros(1)}}, tmp_path / f"{len(key)}.ckpt")
        with pytest.raises(InputError, match=told.replace(".", r"\.")):
            load_primedepth(tmp_path / f"{len(key)}.ckpt")
    torch.save({"state_dict": {"model.diffusion_model.x": torch.ones(1)}}, tmp_path / "plain.ckpt")
    with pytest.raises(InputError, match="no checkpoint of PrimeDepth"):
        load_primedepth(tmp_path / "plain.ckpt")


def test_words_go_through_the_last_layer(tiny_prior) -> None:
    """Beside torch's own layer of a transformer, which OpenCLIP's is."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(4)
        layer = torch.nn.TransformerEncoderLayer(32, 4, 64, 0.0, F.gelu, batch_first=True, norm_first=True).eval()
        ending = torch.nn.LayerNorm(32)
    names = {
        "self_attn.in_proj_weight": "attn.in_proj_weight",
        "self_attn.in_proj_bias": "attn.in_proj_bias",
        "self_attn.out_proj": "attn.out_proj",
        "linear1": "mlp.c_fc",
        "linear2": "mlp.c_proj",
        "norm1": "ln_1",
        "norm2": "ln_2",
    }
    state = {f"{primedepth.WORDS}ln_final.{k}": v for k, v in ending.state_dict().items()}
    for key, value in layer.state_dict().items():
        name = next(theirs + key.removeprefix(ours) for ours, theirs in names.items() if key.startswith(ours))
        state[f"{primedepth.LAST}{name}"] = value
    pipe = tiny_prior.pipe
    ids = pipe.tokenizer("", padding="max_length", max_length=8, return_tensors="pt").input_ids
    with torch.no_grad():
        before = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-1]
        mask = torch.nn.Transformer.generate_square_subsequent_mask(8)
        wanted = ending(layer(before, src_mask=mask, is_causal=True))
    torch.testing.assert_close(last_layer(tiny_prior, state), wanted, rtol=1e-4, atol=1e-5)
