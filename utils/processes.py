"""Processes that help another one do not outlive it, however that one ends."""

from __future__ import annotations

import os
import threading
import time

LOOKS_EVERY_S = 1.0


def follow(parent: int) -> None:
    """Ends this process soon after its parent, process number `parent`, is gone; for the initializer of a pool.

    A worker that waits for work cannot see that nobody will ever give it any: it holds the queue's other end itself.
    In another process than a child of `parent` it does nothing.
    """
    if os.getppid() == parent:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOKS_EVERY_S)
    os._exit(1)
