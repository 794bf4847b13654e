"""Threads: they wait passively from the first import on, and are pinned where something is measured or trained."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from unproject.utils.threads import COUNTS, PASSIVE, pin, wait_passively


def fresh(code: str, **environment: str) -> list[str]:
    """Words that a new process prints, without this one's settings of threads."""
    kept = {name: value for name, value in os.environ.items() if name not in (*PASSIVE, *COUNTS)}
    command = [sys.executable, "-c", f"import os, sys; sys.path[:0] = {sys.path!r}; {code}"]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


def test_the_package_lets_threads_sleep_before_torch_is_imported() -> None:
    code = "import unproject; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'], os.environ['KMP_BLOCKTIME'])"
    assert fresh(code) == ["False", "PASSIVE", "0"]
    assert fresh(code, OMP_WAIT_POLICY="ACTIVE") == ["False", "ACTIVE", "0"]


def test_settings_of_the_user_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("KMP_BLOCKTIME", raising=False)
    wait_passively()
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["KMP_BLOCKTIME"]) == ("ACTIVE", "0")


def test_pinned_threads_are_those_of_torch_and_of_what_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    for name in COUNTS:
        monkeypatch.setenv(name, "7")
    try:
        assert pin(2) == torch.get_num_threads() == 2
        assert {os.environ[name] for name in COUNTS} == {"2"}
    finally:
        torch.set_num_threads(before)
