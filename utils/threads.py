"""How many threads compute, and how they wait for each other.

Networks this small gain a fifth from a second thread on an idle machine and lose a multiple when anything else runs:
OpenMP's threads spin while they wait, and take the time from each other.
"""

from __future__ import annotations

import os

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
