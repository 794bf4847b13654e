"""Threads: they wait passively from the first import on, are pinned where something is measured or trained, and add
in one order where steps build on each other."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from unproject.utils.threads import COUNTS, PASSIVE, pin, repeatable, wait_passively


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


def ordered() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


def test_gradients_of_rows_have_the_same_bits_each_time() -> None:
    rows, before = torch.randint(0, 50, (200_000,), generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    weights = torch.rand(200_000, 3, generator=torch.Generator().manual_seed(1))
    table, usual = torch.zeros(50, 3, requires_grad=True), ordered()
    try:
        torch.set_num_threads(4)
        with repeatable(table.device):
            assert ordered() == (True, False)
            found = [torch.autograd.grad((table[rows] * weights).sum(), table)[0] for _ in range(5)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found) and ordered() == usual


def test_what_the_caller_chose_and_other_devices_are_left_alone() -> None:
    usual = ordered()
    with repeatable(torch.device("meta")):
        assert ordered() == usual
    torch.use_deterministic_algorithms(True)
    try:
        with repeatable(torch.device("cpu")):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    with pytest.raises(KeyError), repeatable(torch.device("cpu")):
        raise KeyError
    assert ordered() == usual
