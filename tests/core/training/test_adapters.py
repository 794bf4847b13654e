"""Adapters inside weights: what they add, what learns, what is lent, what files hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unproject.core.training.adapters import adapted, learning, own_weights, packed
from unproject.core.training.objectives.base import fixed_init
from unproject.utils.errors import InputError


def network(seed: int = 0) -> nn.Sequential:
    with fixed_init(seed):
        inner = nn.ModuleDict({"map": nn.Linear(6, 4), "norm": nn.LayerNorm(4)})
        made = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1))
        made.add_module("inner", inner)
        return made


def convolved(net: nn.Sequential, x: Tensor) -> Tensor:
    first, second = net[0](x), net[1]
    out: Tensor = second(first)
    return out


def test_the_weight_is_the_lent_one_plus_a_product_and_at_first_the_same() -> None:
    plain, lean = network(), network()
    adapted(lean, 2, seed=3)
    x = torch.randn(2, 2, 7, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(convolved(lean, x), convolved(plain, x))
    own = own_weights(lean)
    up, down = (own[f"1.parametrizations.weight.0.{name}"] for name in ("up", "down"))
    assert up.shape == (5, 2) and down.shape == (2, 27)
    with torch.no_grad():
        up.copy_(torch.arange(10.0).reshape(5, 2) / 10)
    by_hand = plain[1].weight + torch.einsum("or,ricd->oicd", up, down.reshape(2, 3, 3, 3))
    torch.testing.assert_close(lean[1].weight, by_hand)
    torch.testing.assert_close(lean[0].weight, plain[0].weight)


def test_only_what_is_its_own_learns_whatever_was_frozen_in_between() -> None:
    net = network()
    adapted(net, 2, parts=("1", "inner"), whole=("0",))
    own = set(own_weights(net))
    assert {"0.weight", "0.bias"} <= own  # whole
    assert not any(name.startswith("0.parametrizations") for name in own)
    assert "1.parametrizations.weight.original" not in own and "inner.norm.weight" not in own and "1.bias" not in own
    assert "inner.map.parametrizations.weight.0.up" in own
    net.requires_grad_(False)
    assert set(own_weights(net)) == own  # what is lent is remembered
    learning(net)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == own
    convolved(net, torch.ones(1, 2, 4, 4)).square().sum().backward()
    assert net[1].parametrizations.weight[0].up.grad.abs().sum() > 0  # type: ignore[union-attr, index]
    assert net[1].parametrizations.weight.original.grad is None  # type: ignore[union-attr]


def test_parts_are_names_of_modules_not_beginnings_of_names() -> None:
    net = nn.ModuleDict({"up": nn.Linear(3, 3), "up_too": nn.Linear(3, 3)})
    adapted(net, 1, parts=("up",))
    assert set(own_weights(net)) == {"up.parametrizations.weight.0.down", "up.parametrizations.weight.0.up"}


def test_without_a_rank_only_the_whole_parts_learn_and_of_others_everything_is_its_own() -> None:
    net = network()
    assert set(own_weights(net)) == set(net.state_dict())
    adapted(net, 0, whole=("inner.norm",))
    assert set(own_weights(net)) == {"inner.norm.weight", "inner.norm.bias"}
    assert {name for name, p in net.named_parameters() if p.requires_grad} == set(own_weights(net))
    with pytest.raises(InputError, match="rank=-1"):
        adapted(net, -1)


def test_files_hold_half_precision_and_the_seed_decides_the_matrices() -> None:
    nets = [network() for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        adapted(net, 2, seed=seed)
    one, same, other = (packed(own_weights(net)) for net in nets)
    assert all(value.dtype == torch.float16 and not value.requires_grad for value in one.values())
    name = "1.parametrizations.weight.0.down"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])
    assert float(one[name].abs().max()) > 0
