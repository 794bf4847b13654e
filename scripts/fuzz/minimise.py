"""A smaller case that fails in the same way."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .cases import Case


def smaller(case: Case, fails: Callable[[Case], bool], seconds: float = 2.0) -> Case:
    """Removes what can be removed, in halves, quarters, ..., as long as `fails` stays true and time (of the processor) is left."""
    until = time.process_time() + seconds
    if case.name == "words.json":
        words = json.loads(case.data)
        made = _reduced(words, lambda some: fails(_with(case, json.dumps(some).encode())), until)
        return _with(case, json.dumps(made).encode())
    kept = _reduced(case.data, lambda some: fails(_with(case, bytes(some))), until)
    return _with(case, bytes(kept))


def _with(case: Case, data: bytes) -> Case:
    return replace(case, data=data)


def _reduced(value: Any, fails: Callable[[Sequence[Any]], bool], until: float) -> Any:
    size = max(len(value) // 2, 1)
    while size >= 1:
        at = 0
        while at < len(value) and time.process_time() < until:
            shorter = value[:at] + value[at + size :]
            if fails(shorter):
                value = shorter
            else:
                at += size
        if time.process_time() >= until or size == 1:
            return value
        size //= 2
    return value
