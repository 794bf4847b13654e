"""Words that say nothing about a picture, put around those that do, so that a prior learns to pass over them.

People ask for "a weathered red chair with a handle resting near a river". Half of the words come from lists of plain
English and half are made up of syllables, so that it is strangeness that is learnt and not a list; a fifth of the
listed words never occurs in training and is there to measure with. None is a word of the toybox's grammar.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .programs import stable_hash


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


QUALITIES = _words("""
    ancient beautiful weathered ornate tiny huge elegant rustic modern cute scary friendly broken clean dirty heavy
    gentle lonely quiet famous cheap expensive fluffy rough smooth sleepy happy angry sad curious mighty humble
    noble golden frozen burning dusty polished handmade antique futuristic magical royal simple fancy delicate
    sturdy bright dark foggy sunny stormy realistic detailed blurry dreamy epic charming crooked hollow soft velvet
    leather marble ceramic paper clay woollen knitted carved painted sculpted miniature giant baby old young new
""")
THINGS = _words("""
    handle river mountain garden forest meadow lake ocean beach desert cave island valley waterfall sunset morning
    evening night rain snow cloud wind fire smoke shadow mirror window door roof curtain carpet blanket pillow
    basket ribbon button feather leaf branch stone pebble shell pearl crown scarf jacket glove boot sword shield
    arrow rope chain wheel engine ticket letter newspaper candle lantern spoon fork knife napkin sandwich cheese
    honey lemon cherry flag violin trumpet dragon wizard knight pirate princess astronaut cowboy farmer doctor
    teacher child village kitchen library museum market station bridge
""")
CLAUSES = (
    "with a {}", "with a {} and a {}", "near a {}", "resting near a {}", "beside the {}", "in the {}", "in a {} {}",
    "made for the {}", "holding a {}", "wearing a {}", "from the {}", "under the {} at {}", "that dreams about a {}",
    "inspired by the {}", "surrounded by {}", "for a {} {}", "full of {}",
)  # fmt: skip
ONSETS = _words("b br c d dr f g gl h j k l m n p pr qu r s sh sk t th v w z")
VOWELS, ENDS = "aeiou", "nrslmtk"


def is_held_out(word: str) -> bool:
    """A fifth of the listed words never occurs in training."""
    return stable_hash("strange", word) % 5 == 0


def strange_word(rng: np.random.Generator, listed: tuple[str, ...], held_out: bool = False) -> str:
    """A word of the list or, as often, one made of two to four syllables; of held-out words only listed ones."""
    if not held_out and rng.random() < 0.5:
        parts = [f"{rng.choice(ONSETS)}{rng.choice(list(VOWELS))}" for _ in range(int(rng.integers(2, 5)))]
        return "".join(parts) + (str(rng.choice(list(ENDS))) if rng.random() < 0.5 else "")
    words = [word for word in listed if is_held_out(word) == held_out]
    return words[int(rng.integers(len(words)))]


def strange_words(rng: np.random.Generator, held_out: bool = False) -> Callable[[str], str]:
    """A function that puts none to two strange qualities before what a phrase ("a red chair") names, and with an even
    chance a clause after it. Of several phrases each gets its own."""

    def around(phrase: str) -> str:
        article, _, rest = phrase.partition(" ")
        words = [strange_word(rng, QUALITIES, held_out) for _ in range(int(rng.integers(3)))]
        if words and article in ("a", "an"):
            article = "an" if words[0][0] in "aeiou" else "a"
        clause = ""
        if not words or rng.random() < 0.5:
            shape = CLAUSES[int(rng.integers(len(CLAUSES)))]
            clause = " " + shape.format(*(strange_word(rng, THINGS, held_out) for _ in range(shape.count("{}"))))
        return " ".join([article, *words, rest]) + clause

    return around
