"""A run on a representation: steps, checkpoints, clean stops, and going on to the bit on a CPU."""

from __future__ import annotations

import contextlib
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ..core.training.checkpoints import (
    Tensors,
    latest_checkpoint,
    read_document,
    read_tensors,
    remove_broken,
    save_checkpoint,
)
from ..core.training.loop import Loop
from ..core.training.loop_parts import stop_signals
from ..geometry.representation import Representation
from ..utils.configs import to_dict
from ..utils.errors import InputError, NotWrittenError, Stopped
from ..utils.ramps import Moment
from ..utils.seeds import generator as seeded
from ..utils.threads import repeatable

StepEnd = Callable[[int, dict[str, float]], None]


class RunConfig(Protocol):
    """What a run has to know of its settings."""

    @property
    def steps(self) -> int:
        """Of the whole run."""
        ...

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints; 0: none."""
        ...


class ResumableRun(ABC):
    """Whatever is done to one representation step by step; a subclass makes `shape` and `loop`."""

    document: ClassVar[str]  # of a checkpoint: what is said about the run
    log_every: ClassVar[int] = 1  # steps from one to the next that is kept in `history`
    shape: Representation
    loop: Loop

    def __init__(self, config: RunConfig, seed: int, device: torch.device | str) -> None:
        self.plan, self.seed, self.device = config, seed, torch.device(device)
        self.generator = seeded(seed)
        self.seconds = 0.0  # of the whole run, resumed or not
        self.history: list[dict[str, float]] = []  # the logs of steps

    @abstractmethod
    def identity(self) -> dict[str, Mapping[str, Any]]:
        """Plain values by name under which a checkpoint keeps them: runs that differ in them do not go on."""

    @abstractmethod
    def own_state(self) -> tuple[Tensors, dict[str, Any]]:
        """(tensors, plain values) of a checkpoint beyond shape, optimisers, generator and history."""

    @abstractmethod
    def take_state(self, tensors: Tensors, facts: Mapping[str, Any]) -> None:
        """The inverse of `own_state`; shape and optimisers are there already."""

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.loop.step

    @property
    def now(self) -> Moment:
        """Where the run is."""
        return Moment(self.loop.step, self.plan.steps)

    def go_on(self, out: Path | None, on_step: StepEnd | None, count: Callable[[], None] | None = None) -> None:
        """The remaining steps; with `out` the state goes to out/ckpt-N every `checkpoint_every` steps and at the end.

        count: called after each step, before anything is saved. on_step: after it.
        With `out` SIGINT and SIGTERM end the run after a whole step, which is saved: raises Stopped. A disk that
        refuses a checkpoint is told once and does not stop the work.
        """
        began = time.perf_counter() - self.seconds
        signals: list[int] = []

        lead = f"{next(iter(self.loop.players))}/"  # its logs go by their own names, also among several

        def after(step: int, log: dict[str, float]) -> None:
            log = {key.removeprefix(lead): value for key, value in log.items()}
            if step % self.log_every == 0 or step == self.plan.steps:
                self.history.append({"step": step, **{key: round(value, 6) for key, value in log.items()}})
            if count is not None:
                count()
            self.seconds = time.perf_counter() - began
            every = self.plan.checkpoint_every
            if out is not None and every and step % every == 0 and step < self.plan.steps:
                self._try_save(out)
            if on_step is not None:
                on_step(step, log)
            if out is not None and signals:
                self.save(out)
                raise Stopped(step, self.plan.steps, str(out), signals[0])

        stopping = stop_signals(signals.append) if out is not None else contextlib.nullcontext()
        with stopping, repeatable(self.shape.device):
            left = self.step < self.plan.steps
            self.loop.run(self.plan.steps, after)
            if out is not None and left and self.plan.checkpoint_every:
                self._try_save(out)
        self.shape.on_step(self.now, self.generator)
        self.seconds = time.perf_counter() - began

    def _try_save(self, out: Path) -> None:
        try:
            self.save(out)
        except NotWrittenError as error:
            warnings.warn(f"{error}; going on without it", stacklevel=2)

    def save(self, out: Path) -> Path:
        """Writes out/ckpt-STEP, whole or absent."""
        parts, players = self.loop.state()
        own, facts = self.own_state()
        state: dict[str, Tensor] = {"generator": self.generator.get_state(), **own}
        tensors = {"shape": dict(self.shape.state_dict()), "optimizer": parts["optimizer"], "state": state}
        facts = {"step": self.step, "seed": self.seed, **to_dict(self.identity()), **facts}
        facts |= {"seconds": self.seconds, "history": self.history}
        return save_checkpoint(out, self.step, tensors, {"players": players, self.document: facts})

    def resume(self, out: Path) -> bool:
        """Continues from the newest checkpoint in `out`; False when there is none.

        Raises InputError when it was made with another seed, or differs in what `identity` says.
        """
        remove_broken(out)
        checkpoint = latest_checkpoint(out)
        if checkpoint is None:
            return False
        facts = read_document(checkpoint, self.document)
        wanted = to_dict(self.identity())
        changed = [line for name, values in wanted.items() for line in differences(facts.get(name) or {}, values)]
        changed += differences(facts, {"seed": self.seed})
        if changed:
            raise InputError(
                f"{checkpoint} was made with another {', '.join(changed)}; choose another folder (out=, --work), "
                "or delete this one"
            )
        self.shape.restore(read_tensors(checkpoint, "shape"), str(checkpoint))
        slots = {"optimizer": read_tensors(checkpoint, "optimizer"), "ema": {}}
        self.loop.load_optimizers(slots, read_document(checkpoint, "players"))
        state = read_tensors(checkpoint, "state")
        self.generator.set_state(state.pop("generator"))
        self.seconds, self.history = float(facts["seconds"]), list(facts["history"])
        self.take_state(state, facts)
        return True


def differences(made: Mapping[str, Any], wanted: Mapping[str, Any], inside: str = "") -> list[str]:
    """The dotted names of `wanted` that have another value in `made`, with that value."""
    found: list[str] = []
    for name, value in wanted.items():
        other = made.get(name)
        if isinstance(value, Mapping):
            found += differences(other or {}, value, f"{inside}{name}.")
        elif value != other:
            found.append(f"{inside}{name} ({other!r})")
    return found
