"""Fixtures for all tests: quiet progress, one thread per process, no network, a folder to work in."""

from __future__ import annotations

import os

os.environ.setdefault("UNPROJECT_QUIET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(autouse=True)
def as_many_threads_as_before() -> Iterator[None]:
    """A command that a test runs with `--threads 2` leaves no threads to the next: sums of two have no fixed order."""
    from unproject.utils.threads import COUNTS

    said = {name: os.environ.get(name) for name in COUNTS}
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 1
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != before:
        torch.set_num_threads(before)
    for name, value in said.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder that is the package."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs the test inside an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def pretend_device(root: Path) -> ModuleType:
    """The module of the pretend accelerator: `with pretend_device.Pretend():` runs on `pretend_device.DEVICE`."""
    return beside(root, "pretend_device")


@pytest.fixture(scope="session")
def view_priors(root: Path) -> ModuleType:
    """The module of priors that draw known views: `view_priors.KnownViews`."""
    return beside(root, "view_priors")


def beside(root: Path, stem: str) -> ModuleType:
    """A module that lies beside this file; the same one for whoever asks."""
    name = f"unproject_{stem}"
    if name in sys.modules:  # a test of a table that runs there was first
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, root / "tests" / f"{stem}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
