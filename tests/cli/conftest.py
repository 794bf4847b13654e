"""A tiny random-weight prior on disk, with the builders of the core tests."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from unproject.cli import main


@pytest.fixture(scope="session")
def tiny_prior_folder(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A folder of the real Stable Diffusion classes with a vocabulary, 32 px, latents (4, 8, 8)."""
    spec = importlib.util.spec_from_file_location("tiny_models", root / "tests" / "core" / "conftest.py")
    assert spec is not None and spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    folder = tmp_path_factory.mktemp("prior") / "tiny"
    models.tiny_sd().save_pretrained(folder, safe_serialization=True)
    (folder / "vocabulary.json").write_text(json.dumps(models.WORDS))
    return folder


@pytest.fixture
def tiny_run(
    tiny_prior_folder: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Calls a command on the tiny prior in a folder with prompts.txt; (exit code, all that was printed, one line)."""
    Path("prompts.txt").write_text("a red chair\n\na blue dog\n")

    def call(*words: str) -> tuple[int, str]:
        code = main([*words, "--prior", str(tiny_prior_folder), "--device", "cpu"])
        captured = capsys.readouterr()
        return code, " ".join((captured.out + captured.err).split())

    return call
