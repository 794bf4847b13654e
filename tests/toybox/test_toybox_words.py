"""Programs, splits and captions: pure, disjoint, and sentences that can be read back."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from unproject.toybox import samples
from unproject.toybox.captions import (
    MAP_WORDS,
    Meaning,
    Phrase,
    caption,
    meaning_of,
    parse,
    plural,
    satisfies,
    say,
    thinned,
    view_word,
    vocabulary,
)
from unproject.toybox.catalogue import NOUNS
from unproject.toybox.dataset import program_from_json, program_to_json
from unproject.toybox.programs import (
    RELATIONS,
    ObjectProgram,
    SceneProgram,
    draw,
    draw_object,
    draw_scene,
    is_heldout_pair,
    is_heldout_relation,
    split_of,
)
from unproject.utils.errors import InputError

VIEWS = (None, "front", "side", "back", "top")


def random_meanings(count: int) -> list[tuple[Meaning, np.random.Generator]]:
    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        program = draw_object(rng) if seed % 2 else draw_scene(rng)
        shows = (None, *MAP_WORDS)[seed % (len(MAP_WORDS) + 1)]
        meaning = replace(meaning_of(program, VIEWS[seed % len(VIEWS)]), shows=shows)
        found.append((thinned(meaning, rng, 0.5) if seed % 3 else meaning, rng))
    return found


def test_sentences_are_read_back() -> None:
    for meaning, rng in random_meanings(600):
        sentence = say(meaning, rng)
        assert parse(sentence) == meaning, sentence
        assert parse(say(meaning)) == meaning
    assert {m.relation for m, _ in random_meanings(600)} == {None, *RELATIONS}


def test_every_noun_and_its_plural_are_read_back() -> None:
    for noun, entry in NOUNS.items():
        for word in entry.synonyms:
            assert parse(f"a photo of a red {word}") == Meaning((Phrase(noun, "red"),))
            assert parse(f"two red {plural(word)}, front view") == Meaning((Phrase(noun, "red"),), None, 2, "front")
    words = [word for noun in NOUNS.values() for word in noun.synonyms]
    assert len(words) == len(set(words))


def test_vocabulary_covers_every_sentence() -> None:
    known = set(vocabulary())
    for meaning, rng in random_meanings(400):
        assert set(re.findall(r"[a-z0-9]+|[^\sa-z0-9]", say(meaning, rng))) <= known


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("red chair", "does not start with"),
        ("a crimson chair", "'crimson'.*not a word"),
        ("a red blue chair", "two values of colour"),
        ("a red", "names no object"),
        ("a red chair, upside down", "neither a view nor a map"),
        ("a red chair, albedo, front view", "'albedo, front view'"),
        ("two red chair", "'chair'"),
    ],
)
def test_other_sentences_are_refused(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse(text)


def test_articles_and_views() -> None:
    assert caption(ObjectProgram("owl", "orange")) == "an orange owl"
    assert caption(ObjectProgram("chair", "red", shape="tall"), "back") == "a tall red chair, back view"
    assert [view_word(a, 10) for a in (0, 44, 46, 134, 136, 180, 226, 314, 316, 359)] == [
        "front", "front", "side", "side", "back", "back", "side", "side", "front", "front",
    ]  # fmt: skip
    assert view_word(0, 61) == "top"
    shown = caption(ObjectProgram("chair", "red"), "back", np.random.default_rng(3), "normal map")
    assert shown.endswith(", normal map") and parse(shown).shows == "normal map"


def test_what_a_phrase_leaves_out_is_free() -> None:
    program = ObjectProgram("car", "red", "striped", seed=4)
    assert satisfies(program, Phrase("car"))
    assert satisfies(program, Phrase("car", "red", "striped"))
    assert not satisfies(program, Phrase("car", "red", "dotted"))


@pytest.mark.parametrize("kind", ["object", "scene", "room"])
def test_draws_are_pure_and_belong_to_their_split(kind: str) -> None:
    for split in ("train", "val", "test", "heldout"):
        first = [draw(split, i, kind) for i in range(12)]
        assert [draw(split, i, kind) for i in reversed(range(12))] == first[::-1]
        assert all(split_of(program) == split for program in first)
        assert all(program_from_json(program_to_json(program)) == program for program in first)


def test_heldout_combinations_never_occur_elsewhere() -> None:
    for split in ("train", "val", "test"):
        for program in (draw(split, i, kind) for i in range(150) for kind in ("object", "scene")):
            members = program.members if isinstance(program, SceneProgram) else (program,)
            assert not any(is_heldout_pair(m.noun, m.colour) for m in members)
            if isinstance(program, SceneProgram) and program.relation:
                assert not is_heldout_relation(members[0].noun, program.relation, members[1].noun)


def test_every_noun_has_held_out_and_seen_colours() -> None:
    from unproject.toybox.materials import COLOURS_SRGB

    held = [[is_heldout_pair(noun, colour) for colour in COLOURS_SRGB] for noun in NOUNS]
    assert 0.06 < np.mean(held) < 0.14
    assert not np.all(held, axis=1).any()


def test_splits_share_no_program() -> None:
    seen = {split: {draw(split, i) for i in range(200)} for split in ("train", "val", "test", "heldout")}
    assert len(set().union(*seen.values())) == sum(map(len, seen.values()))
    program = next(iter(seen["train"]))
    assert split_of(replace(program)) == "train"


@pytest.mark.parametrize(
    ("arguments", "name"), [(("rain", 0), "split"), (("train", -1), "index"), (("train", 0, "city"), "kind")]
)
def test_wrong_arguments_are_named(arguments: tuple, name: str) -> None:
    with pytest.raises(InputError, match=name):
        draw(*arguments)


def test_object_prompts_name_noun_and_colour():
    prompts = samples.object_prompts("test", 3)
    assert prompts == [say(samples.plain_meaning("test", i)) for i in range(3)]
    for index, prompt in enumerate(prompts):
        program = draw("test", index)
        assert parse(prompt) == Meaning((Phrase(program.noun, program.colour),))
