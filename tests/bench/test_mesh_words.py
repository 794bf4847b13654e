"""Sentences with qualities as meshes: every chosen one has a quality, what failed counts, most views decide."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unproject.bench.mesh_words import row, seen, true_views, with_words
from unproject.bench.text_to_mesh import MeshBench
from unproject.toybox.captions import Meaning, Phrase, meaning_of, say
from unproject.toybox.programs import ObjectProgram


def test_every_sentence_says_a_quality() -> None:
    chosen = with_words(30)
    assert len(chosen) == 30
    for program in chosen:
        phrase = meaning_of(program).phrases[0]
        assert phrase.pattern or phrase.finish or phrase.shape
        assert len(say(meaning_of(program)).split()) > 3


def test_what_failed_shows_nothing_and_only_those_that_were_told_count() -> None:
    programs = [
        ObjectProgram("mug", "blue", pattern="striped"),
        ObjectProgram("car", "red", finish="metal"),
        ObjectProgram("duck", "red", pattern="striped", finish="metal"),
    ]
    right = {"noun": True, "colour": True, "pattern": True, "finish": False}
    found = {0: right, 1: right}  # the third one failed
    assert row("any", "meshes", programs, found)["noun"]["value"] == pytest.approx(2 / 3, abs=1e-4)
    striped = row("pattern", "meshes", programs, found)
    assert striped["pattern"]["n"] == 2 and striped["pattern"]["value"] == 0.5
    assert row("finish", "meshes", programs, found)["finish"]["value"] == 0
    assert "shape" not in row("shape", "meshes", programs, found)


def test_most_views_decide_and_the_noun_is_read_from_all() -> None:
    flags = {"noun": [1] * 8, "colour": [1] * 5 + [0] * 3, "pattern": [1] * 4 + [0] * 4, "finish": [0] * 8}
    probs = torch.tensor([[0.1, 0.9]] * 2 + [[0.6, 0.4]] * 6)  # six of eight say the first; together the second
    probs[:2] = torch.tensor([0.0, 4.0])

    def judge(views: torch.Tensor) -> Any:
        return SimpleNamespace(
            answers={"noun": ["car", "mug"]},
            noun_probs=probs,
            agrees=lambda meanings: {name: np.array(values, bool) for name, values in flags.items()},
        )

    assert seen(judge, torch.zeros(8, 3, 4, 4), Meaning((Phrase("mug"),))) == {  # type: ignore[arg-type]
        "noun": True,
        "colour": True,
        "pattern": False,
        "finish": False,
    }


def test_true_views_show_the_quality() -> None:
    plain, striped = (
        true_views(ObjectProgram("mug", "blue", pattern=p, seed=3), 0, MeshBench(view_size=24))
        for p in ("plain", "striped")
    )
    assert plain.shape == (8, 3, 24, 24) and (plain - striped).abs().mean() > 0.01
