"""Fixtures for all tests: quiet progress, one thread per process, no network, a folder to work in."""

from __future__ import annotations

import os

os.environ.setdefault("UNPROJECT_QUIET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder that is the package."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs the test inside an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
