"""How many threads compute, how they wait for each other, and in which order they add.

Networks this small gain a fifth from a second thread on an idle machine and lose a multiple when anything else runs:
OpenMP's threads spin while they wait, and take the time from each other.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}  # of GNU's OpenMP and of Intel's and LLVM's
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def wait_passively() -> None:
    """Lets idle threads sleep, unless the environment says otherwise; OpenMP reads it when torch is first imported."""
    for name, value in PASSIVE.items():
        os.environ.setdefault(name, value)


def pin(count: int) -> int:
    """Computes with so many threads in this process and those it starts; returns the number."""
    import torch

    torch.set_num_threads(count)
    os.environ.update({name: str(count) for name in COUNTS})
    return count


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Inside, what a processor computes with one number of threads has the same bits each time.

    Otherwise threads add gradients of rows taken by index in the order in which they come, which changes the last bits;
    steps that build on each other make another mesh of these. It costs nothing: one thread adds, without locks. Nothing
    changes on other devices, nor where the caller has chosen already.
    """
    import torch

    if device.type != "cpu" or torch.are_deterministic_algorithms_enabled():
        yield
        return
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
