"""Layers that compute with integers: those of the rounded ones to rounding, whatever the bits, edges and times."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from unproject.core.distillation import integer
from unproject.core.distillation.integer import IntegerLayer, able, int_mm, suits, with_kernels
from unproject.core.distillation.packed import PackedLayer, packed_network
from unproject.core.distillation.quantised import Clock, QuantLayer, quantised, weight_scales
from unproject.core.distillation.quest import OUTER, Quantised, quant_layers
from unproject.core.priors import load_prior
from unproject.utils.errors import InputError


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(kind: str) -> nn.Linear | nn.Conv2d:
    made = {
        "linear": lambda: nn.Linear(11, 7),
        "no bias": lambda: nn.Linear(11, 7, bias=False),
        "conv": lambda: nn.Conv2d(5, 6, 3, padding=1),
        "strided": lambda: nn.Conv2d(5, 6, (3, 2), stride=(2, 1), padding=(1, 2)),
        "point": lambda: nn.Conv2d(5, 6, 1),
    }[kind]()
    with torch.no_grad():
        made.weight.uniform_(-0.1, 0.7, generator=rng(3))  # ranges that are not even around 0
    return made


def rounded_layer(kind: str, bits: tuple[int, int]) -> QuantLayer:
    clock = Clock(torch.tensor([900.0, 100.0]))
    made = QuantLayer(layer(kind), *bits, clock)
    for number in range(2):
        made.calibrate(number, (1 + number) * torch.randn(64, generator=rng(number)) + 0.5)
    clock.rows = torch.tensor([0, 1, 1])
    return made


@pytest.mark.parametrize("bits", [(4, 8), (8, 8), (3, 5), (8, 4)])
@pytest.mark.parametrize("kind", ["linear", "no bias", "conv", "strided", "point"])
@torch.no_grad()
def test_an_integer_layer_is_the_rounded_one(kind: str, bits: tuple[int, int]) -> None:
    few = rounded_layer(kind, bits)
    places = (4, 11) if isinstance(few.layer, nn.Linear) else (5, 7, 6)
    x = 2 * torch.randn(3, *places, generator=rng(5))
    wanted, found = few(x), IntegerLayer(few)(x)
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    assert torch.allclose(found, wanted, atol=2e-6 * float(wanted.abs().max()) + 1e-7, rtol=1e-5)
    assert not torch.allclose(found, few.layer(x), atol=1e-3)


@torch.no_grad()
def test_rows_have_the_scales_of_their_own_times() -> None:
    few = rounded_layer("conv", (4, 8))
    x = torch.randn(3, 5, 7, 6, generator=rng(6))
    whole, together = IntegerLayer(few), IntegerLayer(few)(x)
    for row, time in enumerate([0, 1, 1]):
        few._clock[0].rows = torch.tensor([time])
        assert torch.allclose(whole(x[row : row + 1]), together[row : row + 1], atol=1e-6)
    few._clock[0].rows = torch.tensor([1])  # one time for all rows
    assert torch.allclose(whole(x), few(x), atol=1e-5)
    few._clock[0].rows = None
    with pytest.raises(InputError, match="outside its network"):
        whole(x)


def test_what_has_no_integer_form_is_left_as_it_is() -> None:
    clock = Clock(torch.zeros(1))
    assert suits(QuantLayer(nn.Conv2d(4, 4, 3, padding=1), 4, 8, clock))
    assert not suits(QuantLayer(nn.Conv2d(4, 4, 3, groups=2), 4, 8, clock))
    assert not suits(QuantLayer(nn.Conv2d(4, 4, 3, dilation=2), 4, 8, clock))
    assert not suits(QuantLayer(nn.Conv2d(4, 4, 3, padding="same"), 4, 8, clock))
    assert not suits(QuantLayer(nn.Linear(4, 4), 4, 12, clock))
    with pytest.raises(InputError, match="no form"):
        IntegerLayer(QuantLayer(nn.Linear(4, 4), 4, 12, clock))


def test_a_product_of_integers_is_exact_beyond_what_floats_hold() -> None:
    x, weight = (torch.full((3, 9000), 127, dtype=torch.int8) for _ in range(2))
    weight[0, 0] = -128
    found = int_mm(x, weight)
    assert found.dtype == torch.int32 and int(found[0, 1]) == 9000 * 127**2
    assert int(found[2, 0]) == 8999 * 127**2 - 128 * 127 and able(torch.device("cpu"))


@torch.no_grad()
def test_a_student_with_integers_answers_as_the_one_of_reference(tiny_folders, monkeypatch) -> None:
    prior = load_prior(tiny_folders["sd"])
    student = Quantised(4, 8, times=2, runs=1, prompts=("a dog",)).fitted(prior, 0).freeze()
    fast = student.with_network(copy.deepcopy(student.network), student.prediction_type)
    kept = [name for name, one in quant_layers(fast.network) if not suits(one)]
    assert with_kernels(fast, "int8") > 20 and [name for name, _ in quant_layers(fast.network)] == kept
    x, text = torch.randn(2, *student.latent_shape, generator=rng(1)), student.encode_text(["a dog", "a cup"])["cond"]
    answers = [one.predict(x, torch.tensor([700.0, 90.0]), text) for one in (student, fast)]
    apart = (answers[0] - answers[1]).square().mean() / answers[0].square().mean()
    assert float(apart) < 1e-2  # a value between two steps may fall to the other side
    with pytest.raises(InputError, match="of few bits"):
        with_kernels(prior, "int8")
    monkeypatch.setattr(integer, "able", lambda device: False)
    with pytest.raises(InputError, match="multiplies no 8-bit integers on cpu"):
        with_kernels(student, "int8")


@pytest.mark.parametrize("kind", ["linear", "strided"])
@torch.no_grad()
def test_a_packed_layer_is_the_layer_with_rounded_weights(kind: str) -> None:
    plain = layer(kind)
    few = PackedLayer(plain, 4)
    assert few.values.numel() == (plain.weight.numel() + 1) // 2
    wanted = copy.deepcopy(plain)
    wanted.weight.copy_(quantised(plain.weight, *weight_scales(plain.weight, 4), 4))
    x = torch.randn(2, *((4, 11) if kind == "linear" else (5, 7, 6)), generator=rng(2))
    assert torch.allclose(few(x), wanted(x), atol=1e-6) and not torch.allclose(few(x), plain(x), atol=1e-3)


def test_a_packed_network_takes_an_eighth_but_for_its_ends(tiny_folders) -> None:
    network = load_prior(tiny_folders["sd"]).network
    made = packed_network(network, 4)
    layers = {name: one for name, one in made.named_modules() if isinstance(one, PackedLayer)}
    assert {name for name, one in layers.items() if one.bits == 8} == set(OUTER)
    held, whole = (sum(one.values.numel() for one in layers.values()),
                   sum(network.get_submodule(name).weight.numel() for name in layers))  # fmt: skip
    assert 0.5 * whole <= held < 0.55 * whole  # bytes, of four times as many
    assert not any(isinstance(one, (nn.Linear, nn.Conv2d)) for one in made.modules())
