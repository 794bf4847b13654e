"""The memory of accelerators and of the machine, asked without loading torch or waking a device that nobody uses."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
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


def free_bytes(device: Any) -> int | None:
    """What new tensors on a torch device can have; None where that is not known."""
    if device.type == "cpu":
        return free_host_bytes()
    cuda = _cuda()
    if device.type != "cuda" or cuda is None:
        return None
    free, _ = cuda.mem_get_info(device)
    return int(free) + cuda.memory_reserved(device) - cuda.memory_allocated(device)


def free_host_bytes() -> int | None:
    """Memory of the machine that new processes can have; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def release_host_memory() -> None:
    """Gives back to the system what is free and only kept by the C library (glibc: tens of MB after a stage)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def _cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None
