"""The loop of players: turns, hooks, clipping, averages, resumption; on toy objectives whose answers are known."""

from __future__ import annotations

import math
import time
from functools import partial

import pytest
import torch
from torch import nn

from unproject.core.training.loop import Loop, Plain
from unproject.core.training.loss import LossOut
from unproject.core.training.players import Moves, Player, Turn, named_groups
from unproject.utils.errors import InputError, UnprojectError

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


def alone(net: Net, loss=None, engine=None, max_skips=None, optimizer=SGD, **options) -> Loop:
    return Loop([Player("net", net, optimizer, **options)], {"net": loss or square(net)}, engine, max_skips)


def test_one_player_descends_as_by_hand():
    net = Net(w=[3.0, -1.0])
    loop = alone(net)
    logs = loop.advance()
    assert logs == {"loss": pytest.approx(4.0), "lr": 0.1}
    torch.testing.assert_close(net.w.data, torch.tensor([2.8, -0.8]))
    seen = []
    loop.run(20, lambda step, logs: seen.append(step))
    assert seen == list(range(2, 21)) and loop.players["net"].updates == 20
    torch.testing.assert_close(net.w.data, 1 + 0.9**20 * torch.tensor([2.0, -2.0]))


def test_groups_keep_their_rates_and_follow_the_factor():
    net = Net(a=[1.0], b=[1.0], c=[1.0])
    net.c.requires_grad_(False)
    groups = partial(named_groups, net, [{"params": [net.a], "lr": 0.5}, {"params": [net.b]}])
    player = Player("net", groups, SGD, rate=lambda step: 1 / (1 + step))
    loop = Loop([player], {"net": lambda turn: LossOut(net.a.sum() + net.b.sum(), {"other": 2.0})})
    assert list(player.named) == ["a", "b"]
    logs = [loop.advance() for _ in range(2)]
    assert [log["lr"] for log in logs] == [0.5, 0.25] and logs[0]["other"] == 2.0
    torch.testing.assert_close(torch.cat([net.a, net.b, net.c]).detach(), torch.tensor([0.25, 0.85, 1.0]))


@pytest.mark.parametrize(("size", "moved"), [(10.0, 0.05), (0.2, 0.02)])
def test_the_gradient_is_clipped_to_its_norm_and_never_lengthened(size, moved):
    net = Net(a=[0.0], b=[0.0])
    logs = alone(net, lambda turn: LossOut(size * (0.6 * net.a.sum() + 0.8 * net.b.sum()), {}), clip=0.5).advance()
    assert logs["grad_norm"] == pytest.approx(size)
    torch.testing.assert_close(torch.stack([net.a, net.b]).detach()[:, 0], -moved * torch.tensor([0.6, 0.8]))


def test_the_average_decays_at_most_as_asked():
    net = Net(w=[4.0])
    loop = alone(net, ema=0.3)
    average = 4.0
    for n in range(8):
        loop.advance()
        decay = 0.0 if n == 0 else min((1 + n) / (10 + n), 0.3)
        average = decay * average + (1 - decay) * float(net.w.detach())
        assert float(loop.players["net"].average["w"]) == pytest.approx(average, rel=1e-6)
    with loop.averaged():
        assert float(net.w) == pytest.approx(average, rel=1e-6)
    assert float(net.w.detach()) == pytest.approx(1 + 3 * 0.9**8)


def test_hooks_see_what_they_are_promised():
    net, seen = Net(w=[2.0]), []
    player = Player(
        "net",
        net,
        SGD,
        clip=0.5,
        before_backward=lambda turn, out: seen.append(("backward", turn, out.loss.item(), net.w.grad is None)),
        before_step=lambda turn: (seen.append(("step", turn, float(net.w.grad))), net.w.grad.mul_(0.25))[0],
        after_step=lambda turn: seen.append(("after", turn, float(net.w.detach()))),
    )
    loop = Loop([player], {"net": lambda turn: LossOut((turn.micro + 1) * net.w.sum(), {})}, Plain(accumulate=2))
    loop.step = 3
    logs = loop.advance()
    assert seen[:2] == [("backward", Turn(3, 0, 0), 2.0, True), ("backward", Turn(3, 0, 1), 4.0, False)]
    assert seen[2:] == [("step", Turn(3), 1.5), ("after", Turn(3), pytest.approx(2 - 0.1 * 0.375))]
    assert logs == {"loss": 3.0, "grad_norm": 0.375, "lr": 0.1}


def test_accumulated_losses_are_their_mean():
    net = Net(w=[0.0])
    alone(net, lambda turn: LossOut((turn.micro + 1.0) * net.w.sum(), {}), Plain(accumulate=3)).advance()
    assert float(net.w.detach()) == pytest.approx(-0.2)


def game(**options) -> tuple[Loop, Net, Net, list]:
    """A critic c learns to track the actor's a, the actor is pulled through the critic to 0: loss a c."""
    actor, critic, turns = Net(a=[2.0]), Net(c=[0.5]), []

    def loss_actor(turn):
        turns.append(("actor", turn.step, turn.repeat))
        return LossOut((actor.a * critic.c).sum(), {})

    def loss_critic(turn):
        turns.append(("critic", turn.step, turn.repeat))
        return LossOut(0.5 * (critic.c - actor.a).square().sum(), {"gap": (critic.c - actor.a).detach().abs()})

    players = [Player("actor", actor, SGD, **options.pop("actor", {})), Player("critic", critic, SGD, **options)]
    return Loop(players, {"actor": loss_actor, "critic": loss_critic}), actor, critic, turns


def test_two_players_alternate_and_only_the_mover_gets_gradients():
    loop, actor, critic, turns = game()
    grads = []
    loop.players["actor"].before_step = lambda turn: grads.append((actor.a.grad is None, critic.c.grad is None))
    loop.players["critic"].before_step = lambda turn: grads.append((actor.a.requires_grad, critic.c.grad is None))
    a, c = 2.0, 0.5
    for _ in range(3):
        logs = loop.advance()
        a -= 0.1 * c
        gap, c = abs(c - a), c - 0.1 * (c - a)
    assert (actor.a.item(), critic.c.item()) == (pytest.approx(a), pytest.approx(c))
    assert set(grads) == {(False, True), (False, False)} and actor.a.requires_grad and critic.c.requires_grad
    assert logs["critic/gap"] == pytest.approx(gap) and set(logs) == {
        f"{name}/{key}" for name, key in [("actor", "loss"), ("actor", "lr"), ("critic", "loss"), ("critic", "lr")]
    } | {"critic/gap"}
    assert turns == [(name, step, 0) for step in range(3) for name in ("actor", "critic")]


@pytest.mark.parametrize(
    ("moves", "wanted"),
    [
        (Moves(every=3), [(0, 0), (3, 0)]),
        (Moves(start=2, every=2), [(2, 0), (4, 0)]),
        (Moves(times=2, start=4), [(4, 0), (4, 1), (5, 0), (5, 1)]),
        (Moves(after="actor"), [(1, 0), (3, 0), (5, 0)]),
        (Moves(after="actor", every=3), [(3, 0)]),
    ],
)
def test_a_player_moves_when_it_says(moves, wanted):
    loop, *_, turns = game(actor={"moves": Moves(start=1, every=2)}, moves=moves)
    loop.run(6)
    assert [turn[1:] for turn in turns if turn[0] == "critic"] == wanted
    assert loop.players["critic"].updates == len(wanted)


def test_players_that_do_not_fit_are_refused():
    net, other = Net(a=[1.0]), Net(b=[1.0])
    with pytest.raises(InputError, match="every=0"):
        Moves(every=0)
    with pytest.raises(InputError, match="'still' has nothing to train"):
        Player("still", net.requires_grad_(False), SGD)
    net.requires_grad_(True)
    first, second = Player("x", net, SGD), Player("y", other, SGD, moves=Moves(after="x"))
    losses = {"x": square(net), "y": square(other)}
    with pytest.raises(ValueError, match="different names"):
        Loop([first, Player("y", net, SGD)], losses)
    with pytest.raises(ValueError, match="moves after 'x', which is not before it"):
        Loop([second, first], losses)
    with pytest.raises(ValueError, match=r"losses for \['x'\]"):
        Loop([first, second], {"x": square(net)})
    assert list(Player("z", {"x": net}, SGD).named) == ["x.a"]


def test_updates_that_are_not_finite_are_left_out_and_counted():
    net = Net(w=[2.0])
    strange = {1: math.nan, 2: math.inf, 4: math.nan}
    loop = alone(net, lambda turn: LossOut(net.w.sum() * strange.get(turn.step, 1.0), {}), None, 3, ema=0.5, clip=1.0)
    logs = [loop.advance() for _ in range(5)]
    player = loop.players["net"]
    assert [log.get("skipped") for log in logs] == [None, 1.0, 1.0, None, 1.0]
    assert (player.updates, player.ema.optimization_step, player.skips, player.skips_total) == (2, 2, 1, 3)
    assert float(net.w.detach()) == pytest.approx(1.8)
    strange |= {5: math.nan, 6: math.nan}
    with pytest.raises(UnprojectError, match=r"3 updates in a row, last at step 6; lower lr=0\.1"):
        loop.run(9)


@pytest.mark.parametrize("stop", [1, 4])
def test_players_resume_to_the_bit(stop):
    def fresh():
        loop, _, critic, _ = game(actor={"ema": 0.5, "rate": lambda step: 1 / (1 + step)}, moves=Moves(every=2))
        loop.players["critic"].optimizer = ADAM([critic.c])
        return loop

    whole, first, second = fresh(), fresh(), fresh()
    whole.run(7)
    first.run(stop)
    tensors, document = first.state()
    second.load({part: {k: v.clone() for k, v in values.items()} for part, values in tensors.items()}, document)
    assert second.step == stop
    second.run(7)
    (ours, plain), (theirs, other) = whole.state(), second.state()
    assert plain == other
    for part, values in ours.items():
        assert values.keys() == theirs[part].keys()
        assert all(torch.equal(value, theirs[part][name]) for name, value in values.items()), part


def test_the_loop_costs_next_to_nothing():
    net, bare = Net(w=[1.0]), Net(w=[1.0])
    loop, by_hand = alone(net), SGD(bare.parameters())

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
