"""The published checkpoint's layout: read key by key, and equal to a slow reading of what its names mean."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unproject.core.priors import StableDiffusionPrior
from unproject.generate.turbo import TriplaneTurbo
from unproject.generate.turbo_published import from_published, load_published
from unproject.scripts.random_backbones import tiny_sd
from unproject.utils.errors import InputError

RANK, FEATURES, WIDTH = 2, 3, 5
LAYERS = "geometry.space_generator.peft_layers.layers."
AXES = ("xy", "xz", "yz")


@pytest.fixture(scope="module")
def prior() -> StableDiffusionPrior:
    return StableDiffusionPrior(tiny_sd(), "tiny")


def weighted(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=rng) / math.sqrt(max(math.prod(shape[1:]), 1))


def published(prior: StableDiffusionPrior) -> dict[str, Tensor]:
    """A checkpoint of random numbers, its keys written by hand from the networks' modules in the order of the page."""
    rng, found, unet = torch.Generator().manual_seed(0), dict[str, Tensor](), prior.network
    layers: list[dict[str, tuple[int, ...]]] = []
    for part in ("down_blocks", "up_blocks", "mid_block"):
        for name, module in getattr(unet, part).named_modules():
            if name.endswith(("attn1", "attn2")):
                width, context = module.to_q.in_features, module.to_k.in_features
                ends = [f"to_{{}}_{axis}_lora_{kind}" for kind in ("geo", "tex") for axis in AXES]
                shapes = {}
                for end in ends if name.endswith("attn1") else ["to_{}_lora"]:
                    for which in ("q", "k", "v", "out"):
                        inside = context if which in "kv" else width
                        shapes[f"{end.format(which)}.down.weight"] = (RANK, inside)
                        shapes[f"{end.format(which)}.up.weight"] = (width, RANK)
                layers.append(shapes)
    for conv in convolutions(prior):
        shapes = {
            "down.weight": (RANK, conv.in_channels, *conv.kernel_size),
            "up.weight": (conv.out_channels, RANK, 1, 1),
        }
        layers.append(shapes)
    last = prior.vae.decoder.conv_out
    layers.append({"weight": (2 * FEATURES, last.in_channels, 3, 3), "bias": (2 * FEATURES,)})
    for number, shapes in enumerate(layers):
        found |= {f"{LAYERS}{number}.{name}": weighted(shape, rng) for name, shape in shapes.items()}
    for name, (inside, outside) in {
        "sdf": (FEATURES, 1),
        "feature": (3 * FEATURES, 3),
        "deformation": (FEATURES, 3),
    }.items():
        sizes = [(WIDTH, inside), (WIDTH, WIDTH), (outside, WIDTH)]
        for place, shape in zip((0, 2, 4), sizes, strict=True):
            found[f"geometry.{name}_network.layers.{place}.weight"] = weighted(shape, rng)
    return {**found, "geometry.bbox": torch.tensor([[-1.0] * 3, [1.0] * 3])}


def convolutions(prior: StableDiffusionPrior) -> list[torch.nn.Conv2d]:
    """Those with an adapter, in the order in which the modules were registered: residual blocks and samplers."""
    found = []
    parts = [
        (prior.network, ("down_blocks", "up_blocks", "mid_block")),
        (prior.vae.decoder, ("up_blocks", "mid_block")),
    ]
    for network, blocks in parts:
        for block in blocks:
            for name, module in getattr(network, block).named_modules():
                inner = name.rsplit(".", 1)[-1]
                sampler = "samplers." in name and inner == "conv"
                if sampler or ("resnets." in name and inner in ("conv1", "conv2", "conv_shortcut")):
                    found.append(module)
    return found


class SlowAttention:
    """An attention processor that follows the page word by word, plane by plane."""

    def __init__(self, state: dict[str, Tensor], number: int, joint: bool) -> None:
        self.state, self.prefix, self.joint = state, f"{LAYERS}{number}.", joint

    def low_rank(self, which: str, x: Tensor, row: int) -> Tensor:
        end = f"to_{which}_{AXES[row % 3]}_lora_{'geo' if row % 6 < 3 else 'tex'}" if self.joint else f"to_{which}_lora"
        down, up = (self.state[f"{self.prefix}{end}.{half}.weight"] for half in ("down", "up"))
        return x @ down.T @ up.T

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **rest):
        asked = {"q": attn.to_q, "k": attn.to_k, "v": attn.to_v}
        rows: list[dict[str, Tensor]] = []
        for row in range(len(hidden_states)):
            own = hidden_states[row]
            other = own if encoder_hidden_states is None else encoder_hidden_states[row]
            given = {"q": own, "k": other, "v": other}
            rows.append({w: asked[w](given[w]) + self.low_rank(w, given[w], row) for w in asked})
        out = []
        for row, mine in enumerate(rows):
            group = range(row // 6 * 6, row // 6 * 6 + 6) if self.joint else [row]
            keys, values = (torch.cat([rows[i][w] for i in group]) for w in ("k", "v"))
            heads = []
            for q, k, v in zip(*(t.chunk(attn.heads, -1) for t in (mine["q"], keys, values)), strict=True):
                heads.append(torch.softmax(q @ k.T / math.sqrt(q.shape[-1]), -1) @ v)
            h = torch.cat(heads, -1)
            projected = attn.to_out[0](h)
            out.append(projected + self.low_rank("out", projected if self.joint else h, row))
        return torch.stack(out)


def slow_planes(state: dict[str, Tensor], x: Tensor, time: float, text: Tensor) -> Tensor:
    """Planes (6 B, FEATURES, S, S) of x0 after one step at a time, on networks of its own."""
    prior = StableDiffusionPrior(tiny_sd(), "slow")
    unet, decoder = prior.network, prior.vae.decoder
    processors, number = {}, 0
    for part in ("down_blocks", "up_blocks", "mid_block"):
        for name in (n for n in unet.attn_processors if n.startswith(part)):
            processors[name] = SlowAttention(state, number, "attn1" in name)
            number += 1
    unet.set_attn_processor(processors)
    for conv in convolutions(prior):
        down, up = (state[f"{LAYERS}{number}.{half}.weight"] for half in ("down", "up"))

        def forward(inputs: Tensor, conv=conv, down=down, up=up) -> Tensor:
            plain = F.conv2d(inputs, conv.weight, conv.bias, conv.stride, conv.padding)
            return plain + F.conv2d(F.conv2d(inputs, down, None, conv.stride, conv.padding), up)

        conv.forward = forward
        number += 1
    eps = unet(x, torch.tensor(time), text.repeat_interleave(6, 0), return_dict=False)[0]
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)[int(time)]
    x0 = ((x - (1 - abar).sqrt() * eps) / abar.sqrt()).float()
    last = {half: state[f"{LAYERS}{number}.{half}"] for half in ("weight", "bias")}
    decoder.conv_out.forward = lambda inputs: F.conv2d(inputs, last["weight"], last["bias"], padding=1)
    both = decoder(prior.vae.post_quant_conv(x0))
    halves = [both[i, :FEATURES] if i % 6 < 3 else both[i, FEATURES:] for i in range(len(both))]
    return torch.stack(halves)


@torch.no_grad()
def test_random_published_weights_draw_what_a_slow_reading_draws(prior):
    state = published(prior)
    turbo = from_published(state, prior, "here")
    x = torch.randn(12, *prior.latent_shape, generator=torch.Generator().manual_seed(3))
    text = prior.encode_text(["a red chair", "a blue car"])["cond"]["text"]
    level = turbo.schedule.at_index(499)
    fast = turbo.decode(turbo.told(["a red chair", "a blue car"])(x, level).x0)
    slow = slow_planes(state, x, 499, text)
    torch.testing.assert_close(fast, slow, atol=1e-4 * float(slow.abs().max()), rtol=1e-3)
    sdf = turbo.shape.planes.heads.sdf_network
    assert torch.equal(sdf.layers[2].weight, state["geometry.sdf_network.layers.2.weight"])


def test_a_file_of_tensors_alone_is_read_and_every_key_has_its_place(prior, tmp_path: Path):
    state = published(prior)
    path = tmp_path / "turbo.pth"
    torch.save({"epoch": 3, "global_step": 7, "pytorch-lightning_version": "2", "state_dict": state}, path)
    assert isinstance(load_published(path, prior), TriplaneTurbo)
    for key, message in (
        ("geometry.space_generator.unet.conv_in.weight", "no place"),
        (f"{LAYERS}999.down.weight", "1 names differ"),
        ("background.encoding", "no place"),
    ):
        with pytest.raises(InputError, match=message):
            from_published({**state, key: torch.zeros(1)}, prior, "here")
    lacking = dict(state)
    del lacking[f"{LAYERS}1.to_k_lora.up.weight"]
    with pytest.raises(InputError, match="1 names differ"):
        from_published(lacking, prior, "here")
    wrong = {**state, f"{LAYERS}1.to_k_lora.up.weight": torch.zeros(1, RANK)}
    with pytest.raises(InputError, match="expected"):
        from_published(wrong, prior, "here")


def test_files_that_are_none_are_refused(prior, tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        load_published(tmp_path / "none.pth", prior)
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(InputError, match="without running code"):
        load_published(tmp_path / "text.pth", prior)
    torch.save({"weights": {}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="no tensors by name"):
        load_published(tmp_path / "other.pth", prior)
    with pytest.raises(InputError, match="lacks the key"):
        from_published({}, prior, "here")
