"""The table of backbones: what runs, what is refused by name, and that neither hides a failure."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unproject.bench import backbone_verbs, backbones
from unproject.utils.errors import InputError, UnprojectError

FLOAT = (torch.float32,)


@pytest.mark.parametrize(
    ("family", "verb", "state"),
    [
        ("sd15", "text-to-image", "yes"),
        ("sd15", "--control-image", "yes"),
        ("sd15", "--cache regions", "refused"),
        ("flux", "--cache deep", "refused"),
        ("MVDream", "depth, normals", "refused"),
    ],
)
def test_a_cell(family: str, verb: str, state: str) -> None:
    assert backbones.tried(family, verb, "cpu", FLOAT) == (state, [])


def test_the_pretended_column_runs_on_the_pretended_device(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setitem(backbone_verbs.VERBS, "edit", lambda prior: seen.append((prior.device.type, prior.dtype)))
    found = backbones.places("sd15", FLOAT)
    assert found["pretended_accelerator"]("edit") == ("yes", []) and seen == [("pretend", torch.float32)]
    if not torch.cuda.is_available():
        assert found["gpu"]("edit") == found["gpu_full_size"]("edit") == ("not run", [])


@pytest.mark.parametrize(
    ("verb", "error", "told"),
    [
        ("edit", InputError("no"), "InputError: no"),  # refused though it should run
        ("edit", UnprojectError("not finite"), "not finite"),
        ("edit", RuntimeError("two\nlines"), "RuntimeError: two"),
        ("--cache regions", None, "it was not refused"),
        ("--cache regions", RuntimeError("late"), "RuntimeError: late"),
    ],
)
def test_a_failure_is_told(monkeypatch: pytest.MonkeyPatch, verb: str, error: Any, told: str) -> None:
    def fail(prior: Any) -> None:
        if error is not None:
            raise error

    monkeypatch.setitem(backbone_verbs.VERBS, verb, fail)
    state, lines = backbones.tried("sd15", verb, "cpu", FLOAT)
    assert state == "fails" and told in lines[0] and lines[0].startswith("torch.float32")


def test_values_that_are_no_numbers_are_a_failure() -> None:
    with pytest.raises(UnprojectError, match="not finite"):
        backbone_verbs.finite(torch.tensor([1.0, float("nan")]))
