"""Who moves in an optimisation, and how: the parts of the one loop (`loop.Loop`) that every training here is.

    Player(name, owns, optimizer, rate=, ema=, clip=, moves=, grows=, before_backward=, before_step=, after_step=)
        owns: a module, or modules by name (all in them that requires gradients), or a function that gives named
              groups, read again after growth: [{"params": {"means": parameter}, "lr": 1e-2, ...}];
              `named_groups(module, groups)` makes them.
        optimizer: what makes one out of torch's groups: partial(torch.optim.Adam, betas=..., eps=...), partial(Muon).
        rate: factor on the groups' own rates at an outer step, one for all or one for each; None: they stay.
        moves: Moves(every=, times=, start=, after=); players take turns in the order in which they are given.
        before_backward(turn, out), before_step(turn), after_step(turn) -> Regrown | None: hooks. Between backward and
              step, gradients are complete, unscaled and not yet clipped.
    Loop(players, losses)  losses: player name -> function of a `Turn` that gives (loss, logs); no accelerate needed.
        .advance() -> logs: one outer step; .run(steps, on_step); .step; .players; .averaged(); .state(), .load(...)

A turn is: zero -> accumulate (loss -> before_backward -> backward) -> before_step -> clip -> step -> average ->
after_step. Only the player whose turn it is gets gradients. A hook that changed the number of rows of parameters (by
putting new ones under the same names) returns `Regrown`, and the optimiser's rows and the average's follow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ...utils.errors import InputError
from ...utils.regrown import Regrown
from .checkpoints import Tensors, copy_into, load_optimizer_state, optimizer_state
from .loss import Loss

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

Group = dict[str, Any]  # "params": {name: parameter}, and options of the optimiser such as "lr"
Groups = Callable[[], list[Group]]
MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class Turn(NamedTuple):
    """Which gradient step this is."""

    step: int  # outer step
    repeat: int = 0  # of the player's gradient steps within it
    micro: int = 0  # of the losses accumulated for one gradient step


@dataclass(frozen=True)
class Moves:
    """When a player moves."""

    every: int = 1  # outer steps from turn to turn
    times: int = 1  # gradient steps in a turn
    start: int = 0  # first outer step
    after: str = ""  # only in outer steps in which this player has taken its turn before

    def __post_init__(self) -> None:
        if self.every < 1 or self.times < 1:
            raise InputError(f"moves: every={self.every} and times={self.times} must be at least 1")

    def due(self, step: int, moved: Iterable[str]) -> bool:
        """Whether it is this player's turn; `moved` are those that had theirs in this step."""
        regular = step >= self.start and (step - self.start) % self.every == 0
        return regular and (not self.after or self.after in moved)


class Player:
    """Named parameters with their optimiser and average; see the top of this file."""

    def __init__(
        self,
        name: str,
        owns: nn.Module | Mapping[str, nn.Module] | Groups,
        optimizer: MakeOptimizer,
        *,
        rate: Callable[[int], float | Sequence[float]] | None = None,
        ema: float | None = None,
        clip: float | None = None,
        moves: Moves = Moves(),
        grows: bool = False,
        before_backward: Callable[[Turn, Loss], None] | None = None,
        before_step: Callable[[Turn], None] | None = None,
        after_step: Callable[[Turn], Regrown | None] | None = None,
    ) -> None:
        """`ema`: largest decay of the average, which begins as (1 + n) / (10 + n); None: no average.

        `clip`: largest gradient norm. `grows`: checkpoints may have another number of rows than the parameters.
        """
        self.name, self.rate, self.clip, self.moves, self.grows = name, rate, clip, moves, grows
        self.before_backward, self.before_step, self.after_step = before_backward, before_step, after_step
        if isinstance(owns, Mapping):
            owns = nn.ModuleDict(owns)
        self._groups: Groups = partial(_one_group, owns) if isinstance(owns, nn.Module) else owns
        groups = self._groups()
        self.named: dict[str, nn.Parameter] = _names(groups)
        if not self.named:
            raise InputError(f"player {name!r} has nothing to train: no parameter requires gradients")
        self.optimizer = optimizer([{**group, "params": list(group["params"].values())} for group in groups])
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.ema = None if ema is None else _average(self.named, ema)
        self.updates = 0  # applied
        self.skips = 0  # in a row
        self.skips_total = 0

    def recipe(self) -> dict[str, Any]:
        """What decides how it moves, as plain values."""
        ema = None if self.ema is None else self.ema.decay
        settings = {"optimizer": type(self.optimizer).__name__, "rates": self.rates, "clip": self.clip, "ema": ema}
        return {**settings, "moves": asdict(self.moves)}

    def set_rate(self, step: int) -> None:
        """Sets the learning rates of an outer step."""
        if self.rate is not None:
            factor = self.rate(step)
            factors = factor if isinstance(factor, Sequence) else [factor] * len(self.rates)
            for group, base, own in zip(self.optimizer.param_groups, self.rates, factors, strict=True):
                group["lr"] = base * own

    def applied(self) -> None:
        """Counts an update of the weights and lets the average follow."""
        self.updates += 1
        if self.ema is not None:
            self.ema.step(self.named.values())

    def regrow(self, change: Regrown) -> None:
        """Lets the optimiser and the average follow parameters that were replaced under their names."""
        before, groups = self.named, self._groups()
        self.named = _names(groups)
        if list(self.named) != list(before):
            raise ValueError(f"player {self.name!r}: growth may change rows, not the names of parameters")
        for kept, group in zip(self.optimizer.param_groups, groups, strict=True):
            kept["params"] = list(group["params"].values())
        grown = set(change.names or self.named)
        for name, now in self.named.items():
            old = before[name]
            wanted = (len(change), *old.shape[1:]) if name in grown else tuple(old.shape)
            if tuple(now.shape) != wanted:
                raise ValueError(f"{name} has shape {tuple(now.shape)}, but what is said of its rows makes {wanted}")
            change.carry(self.optimizer, old, now, name in grown)
        if self.ema is not None:
            pairs = zip(self.named.items(), self.ema.shadow_params, strict=True)
            self.ema.shadow_params = [change.averages(a, p) if n in grown else a for (n, p), a in pairs]

    @property
    def average(self) -> Tensors:
        """The averaged parameters by name; empty without an average."""
        return {} if self.ema is None else dict(zip(self.named, self.ema.shadow_params, strict=True))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The parameters hold their average inside."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.named.values())
        self.ema.copy_to(self.named.values())
        try:
            yield
        finally:
            self.ema.restore(self.named.values())

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """(tensors of the optimiser as "name:slot", plain values); the parameters and the average are not in it."""
        slots, document = optimizer_state(self.optimizer, self.named)
        ticks = 0 if self.ema is None else self.ema.optimization_step
        return slots, {**document, "updates": self.updates, "ema": ticks, "skips": [self.skips, self.skips_total]}

    def fit_to(self, values: Tensors) -> None:
        """Gives the parameters of a player that grows as many rows as `values` have, before these are copied."""
        for name, p in self.named.items() if self.grows else ():
            if name in values and values[name].shape != p.shape and values[name].shape[1:] == p.shape[1:]:
                p.data = p.data.new_zeros(values[name].shape)
        if self.grows and self.ema is not None:
            self.ema.shadow_params = [p.detach().clone() for p in self.named.values()]

    def load(self, average: Tensors, slots: Tensors, document: Mapping[str, Any]) -> None:
        """The inverse of `state`, for parameters that are there already; `average` by name."""
        copy_into(self.average, average, f"the average of player {self.name!r}")
        load_optimizer_state(self.optimizer, self.named, slots, document)
        self.updates, (self.skips, self.skips_total) = int(document["updates"]), document["skips"]
        if self.ema is not None:
            self.ema.optimization_step = int(document["ema"])


def trainable(module: nn.Module) -> Group:
    """One group of all parameters of a module that require gradients."""
    return {"params": {name: p for name, p in module.named_parameters() if p.requires_grad}}


def _one_group(module: nn.Module) -> list[Group]:
    return [trainable(module)]


def named_groups(module: nn.Module, groups: list[dict[str, Any]]) -> list[Group]:
    """Torch's groups of a module's parameters, with the module's names for them."""
    names = {id(p): name for name, p in module.named_parameters()}
    return [{**group, "params": {names[id(p)]: p for p in group["params"]}} for group in groups]


def _names(groups: list[Group]) -> dict[str, nn.Parameter]:
    named: dict[str, nn.Parameter] = {}
    for group in groups:
        twice = named.keys() & group["params"].keys()
        if twice:
            raise ValueError(f"{sorted(twice)[0]!r} is in two groups")
        named |= group["params"]
    return named


def _average(named: Mapping[str, nn.Parameter], decay: float) -> EMAModel:
    """Diffusers' average with its warm-up; torch's AveragedModel copies whole modules, what is frozen in them too."""
    from diffusers.training_utils import EMAModel  # heavy: not every player has an average

    return EMAModel(named.values(), decay=decay, foreach=True)
