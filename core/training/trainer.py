"""Training on data: the loop of players with batches, checkpoints, validation, previews and a log around it.

A run is a pure function of (config, objective, data): the samples and the random numbers of step s depend on
(seed, s) only, so a run that was killed and resumed equals an uninterrupted one bit for bit on the CPU.
A `step` is one update of the weights from `accumulate` batches, or one turn of each player whose turn it is.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...utils.configs import to_dict
from ...utils.errors import InputError, UnprojectError
from ...utils.files import write_json
from ...utils.progress import Progress
from .accelerated import Accelerated
from .checkpoints import (
    Tensors,
    copy_into,
    latest_checkpoint,
    read_document,
    read_tensors,
    remove_broken,
    save_checkpoint,
)
from .config import TrainerConfig, learning_rate, optimizer_of
from .loop import Loop
from .loop_parts import Window, check_recipe, drop_newer, stop_signals
from .loss import Loss, LossOut
from .objectives.base import BatchLoss, Playing, Trainable
from .players import Player, Turn
from .sampling_order import ORDER, Data, SampleOrder, fetch, seed_of

MODEL = "model"  # the player of an objective that names none


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: the step reached, why it stopped ("done", "time" or "signal"), the last validation, and the
    signal's number."""

    step: int
    reason: str
    validation: dict[str, float]
    signal: int = 0


class _Net(nn.Module):
    """The objective's networks and its losses as one module, so that DDP sees a single forward pass."""

    def __init__(self, objective: Trainable, losses: Mapping[str, BatchLoss]) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(objective.modules)
        self._losses = losses

    def forward(self, player: str, batch: dict[str, Any], rng: torch.Generator, step: int) -> Loss:
        return self._losses[player](batch, rng, step)


class Trainer:
    """Minimises an objective on data and writes checkpoints, metrics.jsonl and previews into `out`."""

    def __init__(
        self, config: TrainerConfig, objective: Trainable, data: Data, out: str | Path, device: str = "auto"
    ) -> None:
        self.config, self.objective, self.data, self.out = config, objective, data, Path(out)
        self.engine = Accelerated(device, config.precision, config.accumulate)
        losses: Mapping[str, BatchLoss] = {MODEL: objective.loss}
        if isinstance(objective, Playing):
            losses = objective.losses()
        self._nets = _Net(objective, losses)
        for net in objective.frozen.values():
            net.requires_grad_(False).eval().to(self.engine.device)
        for net in (self._nets, *objective.frozen.values()) if config.channels_last else ():
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._nets.to(self.engine.device).train()
        asked = {name: partial(self._loss, name) for name in losses}
        self.loop = Loop(self._players(), asked, self.engine, config.max_skips)
        self._net = self.engine.prepare(self._nets)
        self._order = SampleOrder(len(data), config.seed)
        self._repeats = max(player.moves.times for player in self.loop.players.values())
        self._stop, self.signal, self.seconds = "", 0, 0.0
        self.validation: dict[str, float] = {}

    @property
    def step(self) -> int:
        """Steps made."""
        return self.loop.step

    def _players(self) -> Sequence[Player]:
        """The objective's own players, or one of all its networks."""
        config, rate = self.config, learning_rate(self.config)
        if not isinstance(self.objective, Playing):
            owns, make = optimizer_of(config, self._nets.nets)
            return [Player(MODEL, owns, make, rate=rate, ema=config.ema, clip=config.clip)]
        players = self.objective.players(config)
        known = {name for name, _ in self._nets.nets.named_parameters()}
        for player in players:
            player.rate = player.rate or rate
            if not player.named.keys() <= known:
                raise ValueError(f"player {player.name!r} must be given its modules by their names in `modules`")
            if player.grows and self.engine.ranks > 1:
                raise InputError(f"player {player.name!r} grows, which several processes cannot; use one")
        return players

    def run(self, resume: bool = False) -> TrainResult:
        """Trains up to `config.steps`, a time budget, SIGINT or SIGTERM; always ends with a checkpoint.

        Raises InputError when `out` holds another run, UnprojectError when the run diverged (`check_sound`).
        """
        self._open(resume)
        began, seconds_before = time.monotonic(), self.seconds
        window, first = Window(), next(iter(self.loop.players))
        shown = "loss" if len(self.loop.players) == 1 else f"{first}/loss"
        with stop_signals(self._request_stop), Progress(self.config.steps, "training", self.step) as bar:
            while self.step < self.config.steps and not self.engine.agree(bool(self._stop)):
                window.add(self.loop.advance())
                self.seconds = seconds_before + time.monotonic() - began
                bar.advance(1, loss=window.last(shown))
                self._housekeeping(window)
                if self.config.max_minutes is not None and time.monotonic() - began > 60 * self.config.max_minutes:
                    self._stop = self._stop or "time"
        reason = "done" if self.step >= self.config.steps else self._stop
        if reason == "done" and not self._due(self.config.validate_every):
            self._validate()
        self.save()
        self.check_sound()
        return TrainResult(self.step, reason, self.validation, self.signal)

    def check_sound(self) -> None:
        """Raises UnprojectError when the run diverged: its last validation, its last update or its averaged weights
        are not finite."""
        wrong = [f"validation {name} is {value}" for name, value in self.validation.items() if not math.isfinite(value)]
        skips, _ = self._skips()
        wrong += [f"the last {skips} updates had no finite loss and gradient"] if skips else []
        with self.averaged():
            broken = [name for name, value in self._weights().items() if not bool(torch.isfinite(value).all())]
        wrong += [f"{len(broken)} averaged weights are not finite, first {broken[0]}"] if broken else []
        if wrong:
            raise UnprojectError(
                f"the training in {self.out} diverged at step {self.step}: {'; '.join(wrong)}; nothing is exported. "
                f"Lower lr={self.config.lr}, or delete its last checkpoints and resume from an older one"
            )

    def _loss(self, player: str, turn: Turn) -> Loss:
        """The loss of a player on the batch of its turn: players of a step see the same samples."""
        config, rank, ranks = self.config, self.engine.rank, self.engine.ranks
        update = turn.step * self._repeats + turn.repeat
        position = (update * config.accumulate + turn.micro) * ranks + rank
        indices = self._order.take(position * config.batch, config.batch)
        number = list(self.loop.players).index(player)  # the first one's is left out
        parts = [config.seed, update, turn.micro, rank, *([number] if number else [])]
        batch = fetch(self.data, indices, np.random.default_rng(parts))
        with self.engine.autocast():
            out = self._net(player, batch, torch.Generator().manual_seed(seed_of(*parts)), turn.step)
        return LossOut(out.loss.float(), out.logs)

    def _housekeeping(self, window: Window) -> None:
        if self._due(self.config.validate_every):
            self._validate()
        if self._due(self.config.preview_every) and self.engine.main:
            with self.averaged():
                self.objective.preview(self.step, self.out / "preview")
        if self._due(self.config.log_every):
            batch = self.config.batch * self.config.accumulate * self.engine.ranks
            self._log({**window.drain(batch), "seconds": round(self.seconds, 2), "skips": self._skips()[1]})
        if self._due(self.config.save_every) and self.step < self.config.steps:  # the end comes after validation
            self.save()

    def _skips(self) -> tuple[int, int]:
        """Updates without a finite loss: the longest row that goes on, and all."""
        players = self.loop.players.values()
        return max(player.skips for player in players), sum(player.skips_total for player in players)

    def _validate(self) -> None:
        with self.averaged():
            self.validation = self.objective.validate()
        if self.validation:
            self._log({f"val_{k}": v for k, v in self.validation.items()})

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The modules hold the averaged weights inside, in eval mode and without gradients."""
        self._nets.eval()
        try:
            with self.loop.averaged():
                yield
        finally:
            self._nets.train()

    def recipe(self) -> dict[str, Any]:
        """Everything that decides the weights; a checkpoint written under another recipe does not resume."""
        playing = isinstance(self.objective, Playing)
        return {
            "objective": type(self.objective).__name__,
            "model": to_dict(self.objective.config),
            "data": {"length": len(self.data), **getattr(self.data, "identity", {})},
            "order": ORDER,
            "players": {name: player.recipe() for name, player in self.loop.players.items()} if playing else {},
            "trainer": {**to_dict(self.config), "processes": self.engine.ranks},
        }

    def _weights(self) -> Tensors:
        """Weights and statistics that change; what is frozen within a trained module belongs to no checkpoint."""
        frozen = {name for name, p in self._nets.nets.named_parameters() if not p.requires_grad}
        return {name: value for name, value in self._nets.nets.state_dict().items() if name not in frozen}

    def save(self) -> None:
        """Writes a checkpoint of this step (the main process writes, the others wait)."""
        self.engine.wait()
        if self.engine.main:
            tensors, document = self.loop.state()
            del tensors["parameters"]  # with the buffers, in the model
            tensors |= {"model": self._weights(), "rng": {"torch": torch.get_rng_state()}}
            batch = self.config.batch * self.config.accumulate * self.engine.ranks * self._repeats
            scaler = self.engine.scaler
            facts = {
                "step": self.step,
                "position": self.step * batch,
                "skips": self._skips(),
                "seconds": self.seconds,
                "validation": self.validation,
                "scaler": scaler.state_dict() if scaler else None,
                "recipe": self.recipe(),
                "versions": {p: version(p) for p in ("torch", "diffusers", "accelerate")},
            }
            documents = {"loop": document, "trainer": facts}
            save_checkpoint(self.out, self.step, tensors, documents, self.config.keep)
        self.engine.wait()

    def load(self, checkpoint: Path, goes_on: bool = True) -> None:
        """Restores a checkpoint. Raises InputError naming the keys in which its recipe differs.

        With goes_on=False the trainer's own settings may differ and the optimisers stay as they are: good for reading
        the weights, not for training on.
        """
        state = read_document(checkpoint, "trainer")
        check_recipe(state["recipe"], self.recipe(), state["step"], checkpoint, goes_on)
        model, ema = read_tensors(checkpoint, "model"), read_tensors(checkpoint, "ema")
        for player in self.loop.players.values():
            player.fit_to(model)
        copy_into(self._weights(), model, f"{checkpoint}/model.safetensors")
        self.loop.step, self.seconds, self.validation = state["step"], state["seconds"], state["validation"]
        if not goes_on:
            averages = {name: value for p in self.loop.players.values() for name, value in p.average.items()}
            copy_into(averages, ema, f"{checkpoint}/ema.safetensors")
            for player in self.loop.players.values():
                player.skips = state["skips"][0]
            return
        tensors = {"optimizer": read_tensors(checkpoint, "optimizer"), "ema": ema}
        self.loop.load_optimizers(tensors, read_document(checkpoint, "loop"))
        if state["scaler"] and self.engine.scaler:
            self.engine.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(read_tensors(checkpoint, "rng")["torch"])

    def _open(self, resume: bool) -> None:
        """Starts or resumes in `out`: removes broken writes and log lines newer than the checkpoint."""
        found = latest_checkpoint(self.out)
        if found is not None and not resume:
            raise InputError(f"{self.out} already holds {found.name}; resume it (--resume) or choose another --out")
        if found is not None:
            self.load(found)
        if self.engine.main:
            remove_broken(self.out)
            write_json(self.out / "recipe.json", self.recipe())
            drop_newer(self.out / "metrics.jsonl", self.step)
        self.engine.wait()

    def _request_stop(self, signal: int) -> None:
        self._stop, self.signal = "signal", signal

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _log(self, row: dict[str, float]) -> None:
        if self.engine.main:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            with open(self.out / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, **row, "peak_bytes": peak}) + "\n")
