"""A smaller case that fails in the same way."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .cases import Case


def smaller(case: Case, fails: Callable[[Case], bool], seconds: float = 2.0) -> Case:
    """Removes what can be removed, in halves, quarters, ..., while `fails` stays true and processor time is left."""
    until = time.process_time() + seconds
    words = _list(case) if case.name == "words.json" else None
    if words is not None:
        made = _reduced(words, lambda some: fails(_with(case, json.dumps(some).encode())), until)
        return _with(case, json.dumps(made).encode())
    kept = _reduced(case.data, lambda some: fails(_with(case, bytes(some))), until)
    return _with(case, bytes(kept))


def _list(case: Case) -> list[Any] | None:
    try:
        found = json.loads(case.data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


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
