"""Memory that is free goes back to the system."""

from __future__ import annotations

import sys

import pytest

from unproject.utils import device_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the C library of Linux")
def test_free_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(device_memory.ctypes, "CDLL", lambda name: type("C", (), {"malloc_trim": calls.append}))
    device_memory.release_host_memory()
    assert calls == [0]


def test_where_there_is_nothing_to_ask_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory.ctypes, "CDLL", lambda name: object())
    device_memory.release_host_memory()
    monkeypatch.setattr(device_memory.sys, "platform", "win32")
    monkeypatch.setattr(device_memory.ctypes, "CDLL", None)
    device_memory.release_host_memory()
