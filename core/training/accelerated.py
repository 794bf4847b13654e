"""The engine of the trainer: accelerate for devices and processes, torch's own autocast and scaler for half precision.

accelerate keeps one precision and one accumulation count a process, in singletons that the second trainer of a process
would trip over; both live here instead.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from .loop_parts import FloatAttention

Precision = Literal["no", "fp16", "bf16"]
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
M = TypeVar("M", bound=nn.Module)


class Accelerated:
    """Gradients averaged over processes, of losses computed in half precision where asked; see `loop.Engine`."""

    def __init__(self, device: str = "auto", precision: Precision = "no", accumulate: int = 1) -> None:
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # a player's turn leaves others out
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no", kwargs_handlers=[unused])
        self.device = self.accelerator.device
        self.rank, self.ranks = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.accumulate, self.half = accumulate, HALVES.get(precision)
        self.scaler = torch.amp.GradScaler(self.device.type) if precision == "fp16" else None
        self._network: nn.Module | None = None

    def prepare(self, network: M) -> M:
        """The network whose forward pass makes the losses, ready for several processes."""
        self._network = self.accelerator.prepare(network)
        return self._network  # type: ignore[return-value]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """What a forward pass runs in."""
        return torch.autocast(self.device.type, self.half) if self.half else contextlib.nullcontext()

    @contextlib.contextmanager
    def around(self, last: bool) -> Iterator[None]:
        """Gradients travel between processes with the last loss only; attention as `FloatAttention` says."""
        with contextlib.ExitStack() as stack:
            if not last:
                stack.enter_context(self.accelerator.no_sync(self._network))
            if self.half and self.device.type == "cpu":
                stack.enter_context(FloatAttention())
            yield

    def backward(self, loss: Tensor) -> None:
        """See Engine."""
        loss = loss / self.accumulate
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """See Engine."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, good: bool) -> bool:
        """See Engine. The scaler leaves infinite gradients out by itself and lowers its scale."""
        if self.scaler is None:
            if good:
                optimizer.step()
            return good
        before = self.scaler.get_scale()
        if good:
            self.scaler.step(optimizer)
        self.scaler.update()
        return good and self.scaler.get_scale() >= before

    def finite(self, loss: float, norm: float) -> bool:
        """See Engine; with a scaler, infinite gradients are its own business."""
        bad = not math.isfinite(loss) or (self.scaler is None and not math.isfinite(norm))
        return not self.agree(bad)

    def agree(self, flag: bool) -> bool:
        """True on every process when any of them says so."""
        if self.ranks == 1:
            return flag
        total = self.accelerator.reduce(torch.tensor(float(flag), device=self.device), reduction="sum")
        return bool(total.item() > 0) if isinstance(total, Tensor) else flag

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()
