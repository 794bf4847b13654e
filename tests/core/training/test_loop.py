"""The loop of players: turns, hooks, growth, averages, resumption; on toy objectives whose answers are known."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch
from torch import nn

from unproject.core.training.loop import Loop
from unproject.core.training.objectives.base import LossOut
from unproject.core.training.players import Player, named_groups, trainable

SGD = partial(torch.optim.SGD, lr=0.1)
ADAM = partial(torch.optim.Adam, lr=0.1, betas=(0.8, 0.9), eps=1e-4)


class Net(nn.Module):
    """Named numbers."""

    def __init__(self, **values: list[float]) -> None:
        super().__init__()
        for name, value in values.items():
            setattr(self, name, nn.Parameter(torch.tensor(value)))


def square(net: Net, goal: float = 1.0):
    """0.5 |w - goal|^2 of all parameters."""
    return lambda turn: LossOut(sum(0.5 * (p - goal).square().sum() for p in net.parameters()), {})


def test_one_player_descends_as_by_hand():
    net = Net(w=[3.0, -1.0])
    loop = Loop([Player("net", net, SGD)], {"net": square(net)})
    logs = loop.advance()
    assert logs == {"loss": pytest.approx(4.0), "lr": 0.1}
    torch.testing.assert_close(net.w.data, torch.tensor([2.8, -0.8]))
    loop.run(20)
    assert loop.step == 20 and loop.players["net"].updates == 20
    torch.testing.assert_close(net.w.data, 1 + 0.9**20 * torch.tensor([2.0, -2.0]))


def test_groups_keep_their_rates_and_follow_the_factor():
    net = Net(a=[1.0], b=[1.0], c=[1.0])
    net.c.requires_grad_(False)
    groups = lambda: named_groups(net, [{"params": [net.a], "lr": 0.5}, {"params": [net.b]}])  # noqa: E731
    player = Player("net", groups, SGD, rate=lambda step: 1 / (1 + step))
    loop = Loop([player], {"net": lambda turn: LossOut(net.a.sum() + net.b.sum(), {"other": 2.0})})
    assert list(player.named) == ["a", "b"]
    assert [loop.advance()["lr"] for _ in range(2)] == [0.5, 0.25]
    torch.testing.assert_close(torch.cat([net.a, net.b, net.c]).detach(), torch.tensor([0.25, 0.85, 1.0]))
    assert list(trainable(net)["params"]) == ["a", "b"]


def test_the_loop_costs_next_to_nothing():
    net, bare = Net(w=[1.0]), Net(w=[1.0])
    loop, by_hand = Loop([Player("net", net, SGD)], {"net": square(net)}), SGD(bare.parameters())

    def by_itself() -> None:
        by_hand.zero_grad(set_to_none=True)
        loss = square(bare)(None).loss
        loss.backward()
        by_hand.step()

    def fastest(step) -> float:
        took = []
        for _ in range(60):
            began = time.perf_counter()
            step()
            took.append(time.perf_counter() - began)
        return min(took)

    assert fastest(loop.advance) - fastest(by_itself) < 0.3e-3
    assert torch.equal(net.w, bare.w)
