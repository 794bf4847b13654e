"""Helpers of a killed process end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time


def test_a_worker_ends_soon_after_its_parent_is_killed() -> None:
    script = (
        "import os, time\nfrom concurrent.futures import ProcessPoolExecutor\nfrom multiprocessing import get_context\n"
        "from unproject.utils import processes\nprocesses.LOOKS_EVERY_S = 0.02\n"
        "pool = ProcessPoolExecutor(1, get_context('fork'), processes.follow, (os.getpid(),))\n"
        "print(pool.submit(os.getpid).result(), flush=True)\ntime.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert _ends(worker)


def _ends(pid: int) -> bool:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":  # ended; nobody has asked for its code
                    return True
        except OSError:
            return True
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return False
