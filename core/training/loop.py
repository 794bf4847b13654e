"""The one loop of every optimisation: players in turn, several gradient steps each, same bits after a resume.

Where the gradients come from is an engine's business: `Plain` here, `accelerated.Accelerated` for devices, processes
and half precision.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ...utils.errors import UnprojectError
from .checkpoints import Tensors, copy_into
from .loss import Loss
from .players import Player, Turn

LossOf = Callable[[Turn], Loss]
StepEnd = Callable[[int, dict[str, float]], None]
Recover = Callable[[str, Exception], bool]  # of a player's name and what was raised
Watch = Callable[[str, Turn, float, dict[str, float]], None]  # of its name, the turn, the loss and the logs


class Engine(Protocol):
    """How a loss becomes gradients and gradients a step."""

    accumulate: int  # losses of one gradient step

    def around(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """What one of the accumulated losses and its backward pass run in."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of loss / accumulate."""

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """The gradients have their true size afterwards."""

    def step(self, optimizer: torch.optim.Optimizer, good: bool) -> bool:
        """One step of the optimiser if the gradients are good. Whether it was made."""

    def finite(self, loss: float, norm: float) -> bool:
        """Whether an update with this loss and gradient norm may be tried; all processes get the same answer."""


class Plain:
    """One device, one process, the precision of the parameters."""

    def __init__(self, accumulate: int = 1) -> None:
        self.accumulate = accumulate

    def around(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Nothing."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """See Engine."""
        (loss / self.accumulate if self.accumulate > 1 else loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """They have it."""

    def step(self, optimizer: torch.optim.Optimizer, good: bool) -> bool:
        """See Engine."""
        if good:
            optimizer.step()
        return good

    def finite(self, loss: float, norm: float) -> bool:
        """See Engine."""
        return math.isfinite(loss) and math.isfinite(norm)


class Loop:
    """Players that take turns at their losses."""

    def __init__(
        self,
        players: Sequence[Player],
        losses: Mapping[str, LossOf],
        engine: Engine | None = None,
        max_skips: int | None = None,
        recover: Recover | None = None,
        watch: Watch | None = None,
    ) -> None:
        """`max_skips`: updates without a finite loss and gradient are left out, so many in a row of a player raise
        UnprojectError; None: nobody looks. `recover`: asked when a loss or its gradients fail; after a True they are
        made again from nothing. `watch`: told the numbers of every turn before its step, which it may refuse by
        raising."""
        self.players = {player.name: player for player in players}
        self.recover, self.watch = recover, watch
        self.losses, self.engine, self.max_skips, self.step = dict(losses), engine or Plain(), max_skips, 0
        names = [name for player in players for name in player.named]
        if len(self.players) < len(players) or len(set(names)) < len(names):
            raise ValueError("players, and the parameters of all of them, need different names")
        if self.losses.keys() != self.players.keys():
            raise ValueError(f"there are losses for {sorted(self.losses)} and players {sorted(self.players)}")
        early: list[str] = []
        for player in players:
            if player.moves.after and player.moves.after not in early:
                raise ValueError(f"player {player.name!r} moves after {player.moves.after!r}, which is not before it")
            early.append(player.name)

    def run(self, steps: int, on_step: StepEnd | None = None) -> None:
        """Outer steps until `steps` of them are made; `on_step(step, logs)` after each."""
        while self.step < steps:
            logs = self.advance()
            if on_step is not None:
                on_step(self.step, logs)

    def advance(self) -> dict[str, float]:
        """One outer step. Returns each player's logs of its last gradient step, named PLAYER/NAME among several."""
        logs: dict[str, float] = {}
        moved: list[str] = []
        for player in self.players.values():
            if not player.moves.due(self.step, moved):
                continue
            with self._alone(player):
                for repeat in range(player.moves.times):
                    found = self.turn(player, repeat)
            moved.append(player.name)
            logs |= found if len(self.players) == 1 else {f"{player.name}/{k}": v for k, v in found.items()}
        self.step += 1
        return logs

    def turn(self, player: Player, repeat: int = 0) -> dict[str, float]:
        """One gradient step of a player. Returns the means of its logs, "loss", "lr" and, when clipped, "grad_norm"."""
        engine, turn = self.engine, Turn(self.step, repeat)
        player.set_rate(self.step)
        loss, logs = self._tried(player, turn)
        if self.watch is not None:
            self.watch(player.name, turn, loss, logs)
        engine.unscale(player.optimizer)
        if player.before_step is not None:
            player.before_step(turn)
        norm = 0.0
        if player.clip is not None:
            norm = float(torch.nn.utils.clip_grad_norm_(player.named.values(), player.clip))
            logs["grad_norm"] = norm
        logs["lr"] = float(player.optimizer.param_groups[0]["lr"])
        good = self.max_skips is None or engine.finite(loss, norm)
        made = engine.step(player.optimizer, good)
        self._count(player, good)
        if made:
            player.applied()
            change = None if player.after_step is None else player.after_step(turn)
            if change is not None:
                player.regrow(change)
        return logs if good else {"skipped": 1.0}

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """All parameters with an average hold it inside, without gradients."""
        with contextlib.ExitStack() as stack, torch.no_grad():
            for player in self.players.values():
                stack.enter_context(player.averaged())
            yield

    def parameters(self) -> Tensors:
        """The parameters of all players by name."""
        return {name: p for player in self.players.values() for name, p in player.named.items()}

    def state(self) -> tuple[dict[str, Tensors], dict[str, Any]]:
        """({"parameters", "optimizer", "ema"} of all players, plain values): what `load` wants back."""
        tensors: dict[str, Tensors] = {"parameters": self.parameters(), "optimizer": {}, "ema": {}}
        document: dict[str, Any] = {"step": self.step, "players": {}}
        for name, player in self.players.items():
            slots, document["players"][name] = player.state()
            tensors["optimizer"] |= slots
            tensors["ema"] |= player.average
        return tensors, document

    def load(self, tensors: Mapping[str, Tensors], document: Mapping[str, Any], where: str = "the checkpoint") -> None:
        """Continues from a state. Raises InputError naming `where` when it is one of other players."""
        values = tensors["parameters"]
        for player in self.players.values():
            player.fit_to(values)
        copy_into(self.parameters(), values, where)
        self.load_optimizers(tensors, document)

    def load_optimizers(self, tensors: Mapping[str, Tensors], document: Mapping[str, Any]) -> None:
        """The same for parameters that are there already."""
        for name, player in self.players.items():
            slots = {k: v for k, v in tensors["optimizer"].items() if k.rsplit(":", 1)[0] in player.named}
            average = {k: v for k, v in tensors["ema"].items() if k in player.named}
            player.load(average, slots, document["players"][name])
        self.step = int(document["step"])

    def _tried(self, player: Player, turn: Turn) -> tuple[float, dict[str, float]]:
        """The gradients of a turn, tried again for as long as `recover` thinks that this helps."""
        while True:
            player.optimizer.zero_grad(set_to_none=True)
            try:
                return self._gradients(player, turn)
            except Exception as error:
                if self.recover is None or not self.recover(player.name, error):
                    raise
            gc.collect()  # what failed may hang in cycles of its traceback

    def _gradients(self, player: Player, turn: Turn) -> tuple[float, dict[str, float]]:
        """Accumulates the player's gradients. Returns the mean loss and the means of all logs, which may call another
        number "loss"."""
        losses, sums = 0.0, {"loss": 0.0}
        count = self.engine.accumulate
        for micro in range(count):
            now = turn._replace(micro=micro)
            with self.engine.around(last=micro == count - 1):
                out = self.losses[player.name](now)
                if player.before_backward is not None:
                    player.before_backward(now, out)
                self.engine.backward(out.loss)
            loss, *values = as_numbers([out.loss, *out.logs.values()])
            losses += loss / count
            for name, value in {"loss": loss, **dict(zip(out.logs, values, strict=True))}.items():
                sums[name] = sums.get(name, 0.0) + value / count
        return losses, sums

    def _count(self, player: Player, good: bool) -> None:
        player.skips = 0 if good else player.skips + 1
        player.skips_total += not good
        if self.max_skips is not None and player.skips >= self.max_skips:
            raise UnprojectError(
                f"the loss or its gradient was not finite for {player.skips} updates in a row, last at step "
                f"{self.step}; lower lr={max(player.rates)} or resume from an older checkpoint"
            )

    @contextlib.contextmanager
    def _alone(self, player: Player) -> Iterator[None]:
        """Only this player's parameters collect gradients inside: a loss may pass through others."""
        others = [p for other in self.players.values() if other is not player for p in other.named.values()]
        for p in others:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in others:
                p.requires_grad_(True)


def as_numbers(values: Sequence[Tensor | float]) -> list[float]:
    """The values of scalars; the host waits for the device once for all of them."""
    tensors = [value.detach() for value in values if isinstance(value, Tensor)]
    if not tensors:
        return [float(value) for value in values]
    kind = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    found = iter(torch.stack([tensor.to(tensors[0].device, kind).reshape(()) for tensor in tensors]).tolist())
    return [next(found) if isinstance(value, Tensor) else float(value) for value in values]
