"""Strange words: none of the grammar, held-out ones never in training, known ones kept in their order."""

from __future__ import annotations

import numpy as np
import pytest

from unproject.toybox.captions import Meaning, Phrase, caption, parse, say, vocabulary
from unproject.toybox.programs import draw
from unproject.toybox.strange import CLAUSES, QUALITIES, THINGS, is_held_out, strange_word, strange_words

LISTED = {*QUALITIES, *THINGS}
JOINING = {word for clause in CLAUSES for word in clause.replace("{}", "").split()}


def words_of(text: str) -> list[str]:
    return text.replace(",", " ,").split()


def test_no_strange_word_is_known() -> None:
    assert not LISTED & set(vocabulary())
    assert len(LISTED) == len(QUALITIES) + len(THINGS)
    assert 0.1 < np.mean([is_held_out(word) for word in LISTED]) < 0.3


def test_held_out_words_occur_only_when_asked_for() -> None:
    rng = np.random.default_rng(0)
    trained = {strange_word(rng, QUALITIES + THINGS) for _ in range(4000)}
    asked = {strange_word(rng, QUALITIES + THINGS, held_out=True) for _ in range(2000)}
    held = {word for word in LISTED if is_held_out(word)}
    assert asked == held and not trained & held
    assert trained & LISTED == LISTED - held and len(trained - LISTED) > 1000  # made of syllables


@pytest.mark.parametrize("index", range(40))
def test_what_is_meant_stays_in_its_order(index: int) -> None:
    program = draw("train", index, ("object", "scene", "pair")[index % 3])
    said = caption(program, None, np.random.default_rng(index), "albedo", 1.0)
    plain = caption(program, None, None, "albedo")
    known = [word for word in words_of(said) if word not in JOINING and word in set(vocabulary())]
    assert [word for word in known if word in words_of(plain)], said
    assert said.endswith(", albedo") and len(words_of(said)) < 45
    assert any(word not in set(vocabulary()) for word in words_of(said)), said


def test_phrases_keep_their_words_and_articles_agree() -> None:
    meaning = Meaning((Phrase("chair", "red"), Phrase("owl", "orange")), "left of")
    clauses = qualities = 0
    for seed in range(200):
        said = say(meaning, None, strange_words(np.random.default_rng(seed)))
        first, second = said.split(" left of ")
        for part, noun in ((first, "red chair"), (second, "orange owl")):
            assert noun in part
            article, word = part.split()[:2]
            assert article == ("an" if word[0] in "aeiou" else "a"), said
            before, _, after = part.partition(noun)
            assert len(before.split()) <= 3 and (len(before.split()) > 1 or after), said
            qualities, clauses = qualities + len(before.split()) - 1, clauses + bool(after)
    assert 0.7 < qualities / 400 < 1.3 and 0.5 < clauses / 400 < 0.8


def test_a_share_of_none_changes_nothing() -> None:
    for index in range(20):
        program = draw("train", index, "pair")
        assert caption(program, None, np.random.default_rng(index)) == caption(
            program, None, np.random.default_rng(index), None, 0.0
        )
        parse(caption(program, None, np.random.default_rng(index)))
    strange = [caption(draw("train", i), None, np.random.default_rng(i), None, 0.3) for i in range(300)]
    assert 0.2 < np.mean([bool(set(words_of(text)) - set(vocabulary())) for text in strange]) < 0.4
