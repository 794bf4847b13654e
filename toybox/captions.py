"""Captions: a grammar with synonyms, and its exact inverse, so that alignment is scored without a model.

`say(meaning, rng)` writes one of the many sentences of a meaning; `parse(sentence)` gives the meaning back, for every
sentence the grammar can write. Attributes a sentence does not mention are None in its meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..utils.errors import InputError
from .catalogue import NOUNS
from .programs import COUNTS, ObjectProgram, Program, RoomProgram, SceneProgram
from .strange import strange_words

PREFIXES = ("", "", "", "a photo of", "a picture of", "a render of", "a model of")
COLOUR_WORDS = {
    "red": ("red", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "brown": ("brown",),
    "white": ("white",),
    "gray": ("gray", "grey"),
    "black": ("black",),
}
PATTERN_WORDS = {
    "striped": ("striped", "stripy"),
    "checkered": ("checkered", "chequered"),
    "dotted": ("dotted", "spotted"),
    "brick": ("bricked", "brick-patterned"),
}
FINISH_WORDS = {
    "matte": ("matte", "dull"),
    "shiny": ("shiny", "glossy"),
    "metal": ("metal", "metallic"),
    "wooden": ("wooden", "wood"),
}
SHAPE_WORDS = {"tall": ("tall", "high"), "wide": ("wide", "broad"), "long": ("long", "stretched")}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "behind": ("behind",),
    "in front of": ("in front of",),
    "on top of": ("on top of", "on"),
}
VIEW_WORDS = {
    "front": ("front view", "seen from the front"),
    "side": ("side view", "seen from the side"),
    "back": ("back view", "seen from behind"),
    "top": ("top view", "seen from above"),
}
MAP_WORDS = (
    "normal map",
    "camera normal map",
    "depth map",
    "disparity map",
    "albedo",
    "material map",
    "flat colours",
    "line drawing",
)  # what a picture shows instead of how it looks; toybox.maps draws them
PLURALS = {
    "fish": "fishes",
    "goldfish": "goldfishes",
    "snowman": "snowmen",
    "bookshelf": "bookshelves",
    "shelf": "shelves",
    "bookcase": "bookcases",
}
ATTRIBUTES: dict[str, Mapping[str, tuple[str, ...]]] = {
    "shape": SHAPE_WORDS,
    "finish": FINISH_WORDS,
    "pattern": PATTERN_WORDS,
    "colour": COLOUR_WORDS,
}
DEFAULTS = {"shape": "", "finish": "plastic", "pattern": "plain"}


@dataclass(frozen=True)
class Phrase:
    """What a sentence says of one object."""

    noun: str
    colour: str | None = None
    pattern: str | None = None
    finish: str | None = None
    shape: str | None = None

    def __str__(self) -> str:
        return " ".join(v for v in (self.shape, self.finish, self.pattern, self.colour, self.noun) if v)


@dataclass(frozen=True)
class Meaning:
    """What a sentence says: one phrase, or two in a relation, or one with a count."""

    phrases: tuple[Phrase, ...]
    relation: str | None = None
    count: int = 1
    view: str | None = None
    shows: str | None = None
    """one of MAP_WORDS; None: how it looks"""


def view_word(azimuth_deg: float, elevation_deg: float) -> str:
    """The view class of an orbit camera: top above 60 degrees, front and back within 45 degrees, else side."""
    if elevation_deg > 60:
        return "top"
    turned = abs((azimuth_deg + 180) % 360 - 180)
    return "front" if turned <= 45 else "back" if turned >= 135 else "side"


def meaning_of(program: Program, view: str | None = None) -> Meaning:
    """The full meaning of a program; default attributes are not mentioned."""
    if isinstance(program, RoomProgram):
        raise InputError("rooms have no caption; captions describe objects and scenes")
    members = program.members if isinstance(program, SceneProgram) else (program,)
    phrases = tuple(_phrase(m) for m in members)
    if isinstance(program, SceneProgram):
        return Meaning(phrases, program.relation or None, program.count, view)
    return Meaning(phrases, view=view)


def _phrase(program: ObjectProgram) -> Phrase:
    said = {k: v for k in DEFAULTS if (v := getattr(program, k)) != DEFAULTS[k]}
    return Phrase(program.noun, program.colour, **said)


def thinned(meaning: Meaning, rng: np.random.Generator, keep: float = 0.85, keep_view: float = 0.5) -> Meaning:
    """The meaning with pattern, finish, shape and view each forgotten at random; noun and colour stay."""
    phrases = []
    for phrase in meaning.phrases:
        lost: dict[str, Any] = {k: None for k in DEFAULTS if rng.random() > keep}
        phrases.append(replace(phrase, **lost))
    return replace(meaning, phrases=tuple(phrases), view=meaning.view if rng.random() < keep_view else None)


def plural(word: str) -> str:
    """English plural of a noun, the last word of a compound."""
    if word in PLURALS:
        return PLURALS[word]
    if re.search(r"(s|x|ch|sh)$", word):
        return word + "es"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + "s"


def _pick(options: tuple[str, ...], rng: np.random.Generator | None) -> str:
    return options[0 if rng is None else int(rng.integers(len(options)))]


def _say_phrase(phrase: Phrase, rng: np.random.Generator | None, many: int = 1) -> str:
    words = []
    for name, table in ATTRIBUTES.items():
        value = getattr(phrase, name)
        if value:
            words.append(_pick(table[value], rng))
    noun = _pick(NOUNS[phrase.noun].synonyms, rng)
    words.append(plural(noun) if many > 1 else noun)
    text = " ".join(words)
    if many > 1:
        return f"{COUNTS[many]} {text}"
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def say(meaning: Meaning, rng: np.random.Generator | None = None, around: Callable[[str], str] | None = None) -> str:
    """A sentence of this meaning: the canonical one without rng, a random paraphrase with it.

    `around` puts words around each phrase (toybox.strange); such a sentence is no longer one of the grammar.
    """

    def phrase(number: int, many: int = 1) -> str:
        said = _say_phrase(meaning.phrases[number], rng, many)
        return around(said) if around else said

    text = phrase(0, meaning.count)
    if meaning.relation:
        text += f" {_pick(RELATION_WORDS[meaning.relation], rng)} {phrase(1)}"
    prefix = _pick(PREFIXES, rng)
    text = f"{prefix} {text}" if prefix else text
    text = f"{text}, {_pick(VIEW_WORDS[meaning.view], rng)}" if meaning.view else text
    return f"{text}, {meaning.shows}" if meaning.shows else text


def caption(
    program: Program,
    view: str | None = None,
    rng: np.random.Generator | None = None,
    shows: str | None = None,
    strange: float = 0.0,
) -> str:
    """A caption of a program: complete and canonical without rng, a thinned paraphrase with it, of which a share
    `strange` has strange words in it."""
    meaning = replace(meaning_of(program, view), shows=shows)
    if rng is None:
        return say(meaning)
    around = strange_words(rng) if strange > 0 and rng.random() < strange else None
    return say(thinned(meaning, rng), rng, around)


def _inverse(table: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {word: value for value, words in table.items() for word in words}


_NOUN_WORDS = {s: n for n, noun in NOUNS.items() for s in noun.synonyms}
_PLURAL_WORDS = {plural(s): n for s, n in _NOUN_WORDS.items()}
_ATTRIBUTE_OF = {word: (name, value) for name, table in ATTRIBUTES.items() for word, value in _inverse(table).items()}
_RELATION_OF = _inverse(RELATION_WORDS)
_VIEW_OF = _inverse(VIEW_WORDS)


def _parse_phrase(text: str) -> tuple[Phrase, int]:
    words = text.split()
    counts = {word: n for n, word in COUNTS.items()}
    if not words or (words[0] not in ("a", "an") and words[0] not in counts):
        raise InputError(f"{text!r} does not start with a, an, two or three")
    count = counts.get(words[0], 1)
    said: dict[str, str] = {}
    rest = words[1:]
    table = _NOUN_WORDS if count == 1 else _PLURAL_WORDS
    while rest:
        noun = table.get(" ".join(rest))
        if noun is not None:
            return Phrase(noun, **said), count
        if rest[0] not in _ATTRIBUTE_OF:
            raise InputError(f"{rest[0]!r} in {text!r} is not a word of the toybox grammar")
        name, value = _ATTRIBUTE_OF[rest.pop(0)]
        if name in said:
            raise InputError(f"{text!r} names two values of {name}")
        said[name] = value
    raise InputError(f"{text!r} names no object")


def parse(text: str) -> Meaning:
    """The meaning of a sentence of the grammar. Raises InputError for anything else."""
    body, *ends = text.lower().strip().split(", ")
    shows = ends.pop() if ends and ends[-1] in MAP_WORDS else None
    view_text = ", ".join(ends)
    if view_text and view_text not in _VIEW_OF:
        raise InputError(f"{view_text!r} is neither a view nor a map; have {', '.join((*_VIEW_OF, *MAP_WORDS))}")
    for prefix in sorted({p for p in PREFIXES if p}, key=len, reverse=True):
        body = body.removeprefix(f"{prefix} ")
    view = _VIEW_OF.get(view_text)
    for words in sorted(_RELATION_OF, key=len, reverse=True):
        first, found, second = body.partition(f" {words} ")
        if found:
            phrases = (_parse_phrase(first)[0], _parse_phrase(second)[0])
            return Meaning(phrases, _RELATION_OF[words], 1, view, shows)
    phrase, count = _parse_phrase(body)
    return Meaning((phrase,), None, count, view, shows)


def satisfies(program: ObjectProgram, phrase: Phrase) -> bool:
    """Whether an object is what the phrase says; attributes the phrase leaves out are free."""
    said = {f.name: getattr(phrase, f.name) for f in fields(phrase) if getattr(phrase, f.name) is not None}
    return all(getattr(program, name) == value for name, value in said.items())


def vocabulary() -> tuple[str, ...]:
    """Every word and punctuation mark the grammar can write, sorted."""
    texts = [*PREFIXES, *COUNTS.values(), "a an , ."]
    tables: list[Mapping[str, tuple[str, ...]]] = [*ATTRIBUTES.values(), RELATION_WORDS, VIEW_WORDS]
    for table in tables:
        texts += [word for words in table.values() for word in words]
    texts += [*_NOUN_WORDS, *_PLURAL_WORDS, *MAP_WORDS]
    return tuple(sorted({word for text in texts for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text)}))
