"""The one training loop: accelerate for devices and processes, diffusers for the schedule and the average.

A run is a pure function of (config, objective, data): the samples and the random numbers of step s depend on
(seed, s) only, so a run that was killed and resumed equals an uninterrupted one bit for bit on the CPU.
A `step` is one update of the weights from `accumulate` batches; the average ticks on updates that were applied.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from ...utils.configs import to_dict
from ...utils.errors import InputError, UnprojectError
from ...utils.files import write_json
from ...utils.progress import Progress
from .checkpoints import (
    copy_into,
    latest_checkpoint,
    load_optimizer_state,
    optimizer_state,
    read_document,
    read_tensors,
    remove_broken,
    save_checkpoint,
)
from .loop_parts import FloatAttention, Window, check_recipe, drop_newer, stop_signals
from .muon import Muon, split_parameters
from .objectives.base import Loss, Trainable
from .sampling_order import Data, SampleOrder, fetch, seed_of


@dataclass(frozen=True)
class TrainerConfig:
    """How to train; what to train is the objective's own config."""

    steps: int = 1000
    """updates of the weights; the learning-rate schedule spans them; may grow when a run is resumed"""
    batch: int = 32
    """samples per process and accumulation step"""
    accumulate: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: matrices by orthogonalised momentum, the rest by AdamW"""
    lr: float = 1e-3
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup: int = 0
    """steps of linear warm-up"""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    """largest gradient norm"""
    ema: float = 0.999
    """largest decay of the average; it starts as (1 + n) / (10 + n)"""
    seed: int = 0
    channels_last: bool = False
    precision: Literal["no", "fp16", "bf16"] = "no"
    """autocast; on the CPU bf16 pays with AVX512-BF16 or AMX, and with channels_last off"""
    max_minutes: float | None = None
    """stop cleanly with a checkpoint after this time; the schedule does not change"""
    max_skips: int = 20
    """abort after this many updates in a row without a finite loss and gradient"""
    log_every: int = 50
    save_every: int = 1000
    validate_every: int = 0
    """0 = at the end only"""
    preview_every: int = 0
    """0 = never"""
    keep: int = 2
    """checkpoints kept"""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "save_every", "keep", "max_skips"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0.0 <= self.ema < 1.0:
            raise InputError(f"ema={self.ema} must lie in [0, 1)")


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: the step reached, why it stopped ("done", "time" or "signal") and the last validation."""

    step: int
    reason: str
    validation: dict[str, float]


class _Net(nn.Module):
    """The objective's networks and its loss as one module, so that DDP sees a single forward pass."""

    def __init__(self, objective: Trainable) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(objective.modules)
        self._loss = objective.loss

    def forward(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> Loss:
        return self._loss(batch, rng, step)


class Trainer:
    """Minimises an objective on data and writes checkpoints, metrics.jsonl and previews into `out`."""

    def __init__(
        self, config: TrainerConfig, objective: Trainable, data: Data, out: str | Path, device: str = "auto"
    ) -> None:
        self.config, self.objective, self.data, self.out = config, objective, data, Path(out)
        self.accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision=config.precision,
            gradient_accumulation_steps=config.accumulate,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self._nets = _Net(objective)
        for net in objective.frozen.values():
            net.requires_grad_(False).eval().to(self.accelerator.device)
        for net in (self._nets, *objective.frozen.values()) if config.channels_last else ():
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._nets.to(self.accelerator.device).train()
        self.named = {n: p for n, p in self._nets.nets.named_parameters() if p.requires_grad}
        self._optimizer = self._make_optimizer()
        self._schedule = get_scheduler(
            config.schedule, self._optimizer, num_warmup_steps=config.warmup, num_training_steps=config.steps
        )
        self.ema = EMAModel(self.named.values(), decay=config.ema, foreach=True)
        self._net, self._stepper = self.accelerator.prepare(self._nets, self._optimizer)
        self._order = SampleOrder(len(data), config.seed)
        self.step, self.skips, self.skips_total, self._stop, self.seconds = 0, 0, 0, "", 0.0
        self.validation: dict[str, float] = {}

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
        if config.optimizer == "muon":
            half = torch.bfloat16 if config.precision == "bf16" else None
            return Muon(*split_parameters(self._nets.nets), **options, dtype=half)
        return torch.optim.AdamW(self.named.values(), fused=True, **options)

    def run(self, resume: bool = False) -> TrainResult:
        """Trains up to `config.steps`, a time budget, SIGINT or SIGTERM; always ends with a checkpoint.

        Raises InputError when `out` holds another run, UnprojectError after too many non-finite steps in a row.
        """
        self._open(resume)
        began, seconds_before = time.monotonic(), self.seconds
        window = Window()
        with stop_signals(self._request_stop), Progress(self.config.steps - self.step, "training") as bar:
            while self.step < self.config.steps and not self._agree(bool(self._stop)):
                logs = self._update(self.step)
                self.step += 1
                window.add(logs)
                self.seconds = seconds_before + time.monotonic() - began
                bar.advance(1, loss=window.last("loss"))
                self._housekeeping(window)
                if self.config.max_minutes is not None and time.monotonic() - began > 60 * self.config.max_minutes:
                    self._stop = self._stop or "time"
        reason = "done" if self.step >= self.config.steps else self._stop
        if reason == "done" and not self._due(self.config.validate_every):
            self._validate()
        self.save()
        return TrainResult(self.step, reason, self.validation)

    def _update(self, step: int) -> dict[str, float]:
        """One update of the weights. Returns loss parts, gradient norm and learning rate as floats."""
        config, accelerator = self.config, self.accelerator
        sums: dict[str, float] = {}
        for micro in range(config.accumulate):
            batch, rng = self._batch(step, micro)
            quiet = accelerator.no_sync(self._net) if micro < config.accumulate - 1 else contextlib.nullcontext()
            with quiet, self._attention():
                loss, logs = self._net(batch, rng, step)
                accelerator.backward(loss)
            for name, value in {"loss": loss.detach(), **logs}.items():
                sums[name] = sums.get(name, 0.0) + float(value) / config.accumulate
        norm = float(accelerator.clip_grad_norm_(self.named.values(), config.clip))
        finite = not self._agree(not math.isfinite(sums["loss"]) or (not math.isfinite(norm) and not self._scaling()))
        rate = self._optimizer.param_groups[0]["lr"]
        if finite:
            self._stepper.step()
            self.ema.step(self.named.values())
        self._stepper.zero_grad()
        self._schedule.step()
        self._count_skips(finite, step)
        return {**sums, "grad_norm": norm, "lr": rate} if finite else {"skipped": 1.0}

    def _attention(self) -> contextlib.AbstractContextManager[Any]:
        half = self.config.precision != "no" and self.accelerator.device.type == "cpu"
        return FloatAttention() if half else contextlib.nullcontext()

    def _batch(self, step: int, micro: int) -> tuple[dict[str, Any], torch.Generator]:
        config, rank, ranks = self.config, self.accelerator.process_index, self.accelerator.num_processes
        position = (step * config.accumulate + micro) * ranks + rank
        indices = self._order.take(position * config.batch, config.batch)
        batch = fetch(self.data, indices, np.random.default_rng([config.seed, step, micro, rank]))
        return batch, torch.Generator().manual_seed(seed_of(config.seed, step, micro, rank))

    def _count_skips(self, finite: bool, step: int) -> None:
        self.skips = 0 if finite else self.skips + 1
        self.skips_total += not finite
        if self.skips >= self.config.max_skips:
            raise UnprojectError(
                f"the loss or its gradient was not finite for {self.skips} updates in a row, last at step {step}; "
                f"lower lr={self.config.lr} or resume from an older checkpoint in {self.out}"
            )

    def _housekeeping(self, window: Window) -> None:
        if self._due(self.config.validate_every):
            self._validate()
        if self._due(self.config.preview_every) and self.accelerator.is_main_process:
            with self.averaged():
                self.objective.preview(self.step, self.out / "preview")
        if self._due(self.config.log_every):
            batch = self.config.batch * self.config.accumulate * self.accelerator.num_processes
            self._log({**window.drain(batch), "seconds": round(self.seconds, 2), "skips": self.skips_total})
        if self._due(self.config.save_every):
            self.save()

    def _validate(self) -> None:
        with self.averaged():
            self.validation = self.objective.validate()
        if self.validation:
            self._log({f"val_{k}": v for k, v in self.validation.items()})

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The modules hold the averaged weights inside, in eval mode and without gradients."""
        self.ema.store(self.named.values())
        self.ema.copy_to(self.named.values())
        self._nets.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.ema.restore(self.named.values())
            self._nets.train()

    def recipe(self) -> dict[str, Any]:
        """Everything that decides the weights; a checkpoint written under another recipe does not resume."""
        return {
            "objective": type(self.objective).__name__,
            "model": to_dict(self.objective.config),
            "data": {"length": len(self.data), **getattr(self.data, "identity", {})},
            "trainer": {**to_dict(self.config), "processes": self.accelerator.num_processes},
        }

    def save(self) -> None:
        """Writes a checkpoint of this step (the main process writes, the others wait)."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            slots, groups = optimizer_state(self._optimizer, self.named)
            tensors = {
                "model": dict(self._nets.nets.state_dict()),
                "ema": dict(zip(self.named, self.ema.shadow_params, strict=True)),
                "optimizer": slots,
                "rng": {"torch": torch.get_rng_state()},
            }
            scaler = self.accelerator.scaler
            documents = {
                "optimizer": groups,
                "lr": {"last_epoch": self._schedule.last_epoch, "scaler": scaler.state_dict() if scaler else None},
                "trainer": {
                    "step": self.step,
                    "position": self.step * self.config.batch * self.config.accumulate * self.accelerator.num_processes,
                    "ema_updates": self.ema.optimization_step,
                    "skips": [self.skips, self.skips_total],
                    "seconds": self.seconds,
                    "validation": self.validation,
                    "recipe": self.recipe(),
                    "versions": {p: version(p) for p in ("torch", "diffusers", "accelerate")},
                },
            }
            save_checkpoint(self.out, self.step, tensors, documents, self.config.keep)
        self.accelerator.wait_for_everyone()

    def load(self, checkpoint: Path, goes_on: bool = True) -> None:
        """Restores a checkpoint. Raises InputError naming the keys in which its recipe differs.

        With goes_on=False the trainer's own settings may differ: good for reading the weights, not for training on.
        """
        state = read_document(checkpoint, "trainer")
        check_recipe(state["recipe"], self.recipe(), state["step"], checkpoint, goes_on)
        copy_into(self._nets.nets.state_dict(), read_tensors(checkpoint, "model"), f"{checkpoint}/model.safetensors")
        shadows = dict(zip(self.named, self.ema.shadow_params, strict=True))
        copy_into(shadows, read_tensors(checkpoint, "ema"), f"{checkpoint}/ema.safetensors")
        self.ema.optimization_step = state["ema_updates"]
        slots, groups = read_tensors(checkpoint, "optimizer"), read_document(checkpoint, "optimizer")
        load_optimizer_state(self._optimizer, self.named, slots, groups)
        rates = read_document(checkpoint, "lr")
        self._schedule.last_epoch = rates["last_epoch"]
        factors = [factor(self._schedule.last_epoch) for factor in self._schedule.lr_lambdas]
        for group, base, factor in zip(self._optimizer.param_groups, self._schedule.base_lrs, factors, strict=True):
            group["lr"] = base * factor
        if rates["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(rates["scaler"])
        torch.set_rng_state(read_tensors(checkpoint, "rng")["torch"])
        self.step, (self.skips, self.skips_total) = state["step"], state["skips"]
        self.seconds, self.validation = state["seconds"], state["validation"]

    def _open(self, resume: bool) -> None:
        """Starts or resumes in `out`: removes broken writes and log lines newer than the checkpoint."""
        found = latest_checkpoint(self.out)
        if found is not None and not resume:
            raise InputError(f"{self.out} already holds {found.name}; resume it (--resume) or choose another --out")
        if found is not None:
            self.load(found)
        if self.accelerator.is_main_process:
            remove_broken(self.out)
            write_json(self.out / "recipe.json", self.recipe())
            drop_newer(self.out / "metrics.jsonl", self.step)
        self.accelerator.wait_for_everyone()

    def _request_stop(self) -> None:
        self._stop = "signal"

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _scaling(self) -> bool:
        """With fp16 the gradient scaler itself skips infinite gradients and lowers its scale."""
        return self.accelerator.scaler is not None

    def _agree(self, flag: bool) -> bool:
        """True on every process when any of them says so."""
        if self.accelerator.num_processes == 1:
            return flag
        total = self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), reduction="sum")
        return bool(total.item() > 0) if isinstance(total, Tensor) else flag

    def _log(self, row: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            with open(self.out / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step, **row, "peak_bytes": peak}) + "\n")
