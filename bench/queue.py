"""Runs many experiments, each in a process of its own: what is finished stays when the queue is stopped or killed.

The results themselves say what is left to do: a queue that starts again runs what is stale then.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..utils.device_memory import free_host_bytes
from ..utils.errors import InputError
from ..utils.files import read_json
from ..utils.progress import Progress
from ..utils.shares import alone

UNKNOWN_MB = 2500  # what an experiment may take that has never been measured
SPARE = 1.2  # times what it took the last time


def command(name: str, out: Path, threads: int = 1, prior: str | None = None, seed: int = 0) -> list[str]:
    """The command line that runs one experiment."""
    words = [sys.executable, "-m", "unproject", "bench", name, "--out", str(out)]
    words += ["--threads", str(threads), "--seed", str(seed)]
    return words + (["--prior", prior] if prior else [])


def needed_mb(path: Path) -> float:
    """Memory to keep free for an experiment, from its last result."""
    try:
        return SPARE * float(read_json(path)["peak_memory_mb"])
    except (InputError, KeyError):
        return UNKNOWN_MB


def free_mb() -> float:
    """Memory that new processes can have; without bound where the system does not tell."""
    free = free_host_bytes()
    return float("inf") if free is None else free / 2**20


def run_queue(
    commands: Mapping[str, Sequence[str]],
    jobs: int,
    needs_mb: Mapping[str, float],
    free: Callable[[], float] = free_mb,
    interval_s: float = 1.0,
) -> dict[str, int]:
    """Exit codes by name of commands run `jobs` at a time, in order, a further one only where memory allows it.

    One always runs. A failure stops nothing else. What ends the queue (but for a kill) ends what it started.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    waiting, running = list(commands), dict[str, subprocess.Popen[bytes]]()
    codes: dict[str, int] = {}
    with Progress(len(commands), "experiments") as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs and (not running or needs_mb[waiting[0]] <= free()):
                    name = waiting.pop(0)
                    running[name] = subprocess.Popen(commands[name], stdout=subprocess.DEVNULL, env=alone())
                time.sleep(interval_s)
                for name, code in [(name, process.poll()) for name, process in running.items()]:
                    if code is not None:
                        del running[name]
                        codes[name] = code
                        bar.advance(1, last=name)
        finally:
            for process in running.values():
                process.terminate()
                process.wait()
    return codes
