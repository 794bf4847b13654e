"""The command line called from tests, and a tiny random-weight prior on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from unproject.cli import main
from unproject.core.sampling.plan import SamplingPlan
from unproject.scripts.random_backbones import tiny_sd, write_folder


@pytest.fixture
def run(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Calls the command line in an empty folder and gives (exit code, standard output, standard error)."""

    def call(*words: str) -> tuple[int, str, str]:
        code = main(words)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def fake_images(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """A text-to-image pipeline that draws grey squares and remembers what it was asked."""
    from unproject.pipelines import text_to_image

    asked: list[dict[str, object]] = []

    class Fake:
        @classmethod
        def from_pretrained(cls, name: str, **options: object) -> Fake:
            asked.append({"prior": name, **options})
            return cls()

        def __call__(self, prompt: str, negative: str | None, plan: SamplingPlan, **options: object) -> SimpleNamespace:
            asked.append({"prompt": prompt, **plan.to_dict(), **options})
            count = int(str(options["num_images_per_prompt"]))
            seeds = [int(str(options["seed"])) + i for i in range(count)]
            return SimpleNamespace(
                images=np.full((count, 8, 8, 3), 0.5, np.float32), nfe=40 * count, seeds=seeds, plan=SamplingPlan()
            )

    monkeypatch.setattr(text_to_image, "TextToImage", Fake)
    return asked


@pytest.fixture(scope="session")
def tiny_prior_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the real Stable Diffusion classes with a vocabulary, 32 px, latents (4, 8, 8)."""
    folder = tmp_path_factory.mktemp("prior") / "tiny"
    return write_folder(tiny_sd(), folder, vocabulary=True)


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
