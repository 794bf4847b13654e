"""Parameters that grow and shrink: the rows of optimiser and average follow, and a resumed run has the same bits."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unproject.core.training.checkpoints import latest_checkpoint, read_document, read_tensors, save_checkpoint
from unproject.core.training.loop import Loop
from unproject.core.training.loss import LossOut
from unproject.core.training.players import Player, Regrown, named_groups
from unproject.utils.errors import InputError

ADAM = partial(torch.optim.Adam, betas=(0.8, 0.9), eps=1e-4)
INDEX = partial(torch.tensor, dtype=torch.int64)


class Points(nn.Module):
    """Rows that follow targets; `paint` is one colour for all of them and never grows."""

    def __init__(self, rows: int = 4) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.means = nn.Parameter(torch.randn(rows, 3, generator=rng))
        self.sizes = nn.Parameter(torch.rand(rows, generator=rng))
        self.paint = nn.Parameter(torch.rand(3, generator=rng))

    def groups(self):
        rates = [("means", 0.1), ("sizes", 0.02), ("paint", 0.05)]
        return named_groups(self, [{"params": [getattr(self, name)], "lr": lr} for name, lr in rates])

    def loss(self, turn) -> LossOut:
        """Independent of the number and the order of rows, row by row."""
        paint = (self.paint - 1).square().sum()
        return LossOut((self.means**2).sum() + ((self.sizes - 0.3) ** 2).sum() + paint, {})


def regrow(points: Points, change: Regrown) -> Regrown:
    """Puts the new rows: copies where they were, split ones a little off."""
    rows = torch.cat([change.kept, change.cloned, change.split])
    for name in change.names:
        new = getattr(points, name).detach()[rows].clone()
        new[len(change.kept) + len(change.cloned) :] += 0.25
        setattr(points, name, nn.Parameter(new))
    return change


CHANGE = Regrown(INDEX([3, 0]), INDEX([0]), INDEX([2, 2]), ("means", "sizes"))  # row 1 goes, row 2 becomes two


def loop_of(points: Points, changes: dict[int, Regrown], ema: float | None = 0.5) -> Loop:
    def after_step(turn):
        return regrow(points, changes[turn.step]) if turn.step in changes else None

    player = Player("points", points.groups, ADAM, ema=ema, grows=True, after_step=after_step)
    return Loop([player], {"points": points.loss})


def test_moments_and_averages_follow_their_rows():
    points = Points()
    loop = loop_of(points, {2: CHANGE})
    loop.run(2)
    player, before = loop.players["points"], {}
    player.before_step = lambda turn: before.update(old=dict(player.named))
    step = player.applied

    def applied():
        step()
        before.update(average={n: a.clone() for n, a in player.average.items()})
        before.update(slots={n: {k: v.clone() for k, v in player.optimizer.state[p].items()} for n, p in before["old"].items()})  # noqa: E501  # fmt: skip

    player.applied = applied
    loop.advance()
    assert player.named["means"] is points.means and points.means.shape == (5, 3)
    assert all(p in player.optimizer.state for p in player.named.values()) and len(player.optimizer.state) == 3
    for name in ("means", "sizes"):
        slots, was = player.optimizer.state[player.named[name]], before["slots"][name]
        for slot in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(slots[slot][:2], was[slot][[3, 0]]) and slots[slot][:2].abs().min() > 0
            assert slots[slot].shape == player.named[name].shape and slots[slot][2:].abs().max() == 0
        assert slots["step"] == was["step"] == 3
        average = player.average[name]
        assert torch.equal(average[:3], before["average"][name][[3, 0, 0]])
        assert torch.equal(average[3:], player.named[name].detach()[3:])
        assert not torch.equal(average[:3], player.named[name].detach()[:3])
    assert torch.equal(player.optimizer.state[points.paint]["exp_avg"], before["slots"]["paint"]["exp_avg"])
    assert torch.equal(player.average["paint"], before["average"]["paint"])


def test_kept_rows_go_on_as_if_nothing_had_happened():
    points, quiet = Points(), Points()
    grown, still = loop_of(points, {2: CHANGE}), loop_of(quiet, {})
    grown.run(9)
    still.run(9)
    for name in ("means", "sizes"):
        assert torch.equal(getattr(points, name)[:2], getattr(quiet, name)[[3, 0]])
        pairs = grown.players["points"].average[name][:2], still.players["points"].average[name][[3, 0]]
        torch.testing.assert_close(*pairs, rtol=0, atol=0)
    assert torch.equal(points.paint, quiet.paint)


CHANGES = {1: CHANGE, 4: Regrown(INDEX([0, 1, 2, 3, 4]), INDEX([4, 4]), names=("means",)), 6: Regrown(INDEX([5, 2]), names=("means",))}  # noqa: E501  # fmt: skip


@pytest.mark.parametrize("stop", [1, 2, 5, 7])
def test_growth_resumes_to_the_bit(tmp_path: Path, stop: int):
    whole, first, second = (loop_of(Points(), CHANGES) for _ in range(3))
    whole.run(9)
    first.run(stop)
    tensors, document = first.state()
    save_checkpoint(tmp_path, stop, tensors, {"loop": document})
    found = latest_checkpoint(tmp_path)
    parts = {name: read_tensors(found, name) for name in tensors}
    second.load(parts, read_document(found, "loop"), str(found))
    second.run(9)
    (ours, plain), (theirs, other) = whole.state(), second.state()
    assert plain == other and plain["players"]["points"]["updates"] == 9 and ours["parameters"]["means"].shape == (2, 3)
    for part, values in ours.items():
        assert values.keys() == theirs[part].keys()
        assert all(torch.equal(value, theirs[part][name]) for name, value in values.items()), part


def test_only_a_player_that_grows_takes_other_rows():
    first, second = loop_of(Points(), {1: CHANGE}), loop_of(Points(), {})
    first.run(2)
    second.players["points"].grows = False
    with pytest.raises(InputError, match=r"here: means is \(5, 3\), the model has \(4, 3\)"):
        second.load(*first.state(), "here")


@pytest.mark.parametrize("wrong", ["rows", "names"])
def test_growth_that_is_not_what_was_said_is_noticed(wrong: str):
    points = Points()
    player = Player("points", lambda: points.groups(), ADAM)

    def lies(turn):
        if wrong == "rows":
            regrow(points, CHANGE)
            return Regrown(INDEX([0]), names=CHANGE.names)
        points.groups = lambda: [{"params": {"other": points.paint}}]
        return CHANGE

    player.after_step = lies
    with pytest.raises(
        ValueError, match=r"but what is said of its rows makes \(1, 3\)" if wrong == "rows" else "not the names"
    ):
        Loop([player], {"points": points.loss}).advance()


def test_rows_of_a_slot_and_an_average() -> None:
    change = Regrown(INDEX([2]), INDEX([0]), INDEX([1]))
    old, now = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[30.0], [10.0], [21.0]])
    assert len(change) == 3
    assert change.moments(old).flatten().tolist() == [3.0, 0.0, 0.0]
    found: Tensor = change.averages(old, now)
    assert found.flatten().tolist() == [3.0, 1.0, 21.0]


def test_rows_between_two_others_have_the_mean_of_both():
    change = Regrown(INDEX([2]), INDEX([0]), INDEX([1]), between=INDEX([[0, 3], [3, 3]]))
    old = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [5.0, 50.0]])
    moments = torch.tensor([[3.0, 30.0], [0.0, 0.0], [0.0, 0.0], [3.0, 30.0], [5.0, 50.0]])
    averages = torch.tensor([[3.0, 30.0], [1.0, 10.0], [9.0, 9.0], [3.0, 30.0], [5.0, 50.0]])
    now = torch.full((5, 2), 9.0)
    assert len(change) == 5 and torch.equal(change.moments(old), moments)
    assert torch.equal(change.averages(old, now), averages)
    assert torch.equal(Regrown(INDEX([1])).moments(old), old[1:2])
