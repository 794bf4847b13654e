"""The memory of accelerators, asked without loading torch or waking a device that nobody uses; and of the host."""

from __future__ import annotations

import ctypes
import sys
from typing import Any


def peak_device_memory_mb() -> float | None:
    """The most memory that this process had on one accelerator so far, in MB; None where it used none."""
    cuda = _cuda()
    if cuda is None:
        return None
    peaks = [cuda.max_memory_allocated(number) for number in range(cuda.device_count())]
    return round(max(peaks) / 1e6, 1) if any(peaks) else None


def release_device_memory() -> None:
    """Gives back to the devices what is reserved and not in use."""
    cuda = _cuda()
    if cuda is not None:
        cuda.empty_cache()


def release_host_memory() -> None:
    """Gives back to the system what is free and only kept by the C library (glibc: tens of MB after a stage)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def _cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None
