"""Programs: the structured meaning of a toy object or scene, how programs are drawn, and the splits.

A program says everything; building and rendering it are pure functions. Splits are decided by a hash of the
program, so no instance of one split can occur in another, and by held-out noun-colour pairs and relations
that the train, val and test splits never contain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import astuple, dataclass

import numpy as np

from ..utils.errors import InputError
from .catalogue import NOUNS
from .materials import COLOURS_SRGB, FINISHES, PATTERNS

SPLITS = ("train", "val", "test", "heldout")
SHAPES = ("", "tall", "wide", "long")
RELATIONS = ("left of", "right of", "behind", "in front of", "on top of")
COUNTS = {1: "one", 2: "two", 3: "three"}
KINDS = ("object", "scene", "pair", "room", "street", "table", "interior", "orbit")


@dataclass(frozen=True)
class ObjectProgram:
    """One object: its noun and attributes, and the seed of its proportions."""

    noun: str
    colour: str
    pattern: str = "plain"
    finish: str = "plastic"
    shape: str = ""
    seed: int = 0


@dataclass(frozen=True)
class SceneProgram:
    """Two objects in a relation, or `count` objects of one kind (relation empty, one member)."""

    members: tuple[ObjectProgram, ...]
    relation: str = ""
    count: int = 1


@dataclass(frozen=True)
class RoomProgram:
    """A furnished room; everything else follows from the seed."""

    members: tuple[ObjectProgram, ...]
    seed: int = 0


@dataclass(frozen=True)
class StreetProgram(RoomProgram):
    """A street under the open sky."""


@dataclass(frozen=True)
class TableProgram(RoomProgram):
    """Things seen from nearby in a room: on a table, on the floor or in a bin."""


@dataclass(frozen=True)
class InteriorProgram(RoomProgram):
    """A lived-in room: soft light, textures, full shelves and things lying about."""


Program = ObjectProgram | SceneProgram | RoomProgram


def stable_hash(*words: object) -> int:
    """A 64-bit hash that is the same on every machine and in every process."""
    digest = hashlib.sha256("|".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def is_heldout_pair(noun: str, colour: str) -> bool:
    """A tenth of the noun-colour pairs never occur outside the heldout split."""
    return stable_hash("pair", noun, colour) % 10 == 0


def is_heldout_relation(first: str, relation: str, second: str) -> bool:
    """A tenth of the (noun, relation, noun) triples never occur outside the heldout split."""
    return stable_hash("relation", first, relation, second) % 10 == 0


def split_of(program: Program) -> str:
    """The split a program belongs to."""
    members = program.members if isinstance(program, (SceneProgram, RoomProgram)) else (program,)
    if any(is_heldout_pair(m.noun, m.colour) for m in members):
        return "heldout"
    if (
        isinstance(program, SceneProgram)
        and program.relation
        and is_heldout_relation(members[0].noun, program.relation, members[1].noun)
    ):
        return "heldout"
    bucket = stable_hash("program", type(program).__name__, astuple(program)) % 100
    return "train" if bucket < 90 else "val" if bucket < 95 else "test"


def draw_object(rng: np.random.Generator, nouns: tuple[str, ...] | None = None) -> ObjectProgram:
    """A random object program; attributes beyond noun and colour are present in a third to a half of the draws."""
    names = nouns or tuple(NOUNS)
    return ObjectProgram(
        noun=names[int(rng.integers(len(names)))],
        colour=tuple(COLOURS_SRGB)[int(rng.integers(len(COLOURS_SRGB)))],
        pattern=str(rng.choice(PATTERNS, p=[0.68, 0.1, 0.09, 0.08, 0.05])),
        finish=str(rng.choice(FINISHES, p=[0.55, 0.1, 0.12, 0.11, 0.12])),
        shape=str(rng.choice(SHAPES, p=[0.76, 0.08, 0.08, 0.08])),
        seed=int(rng.integers(2**31)),
    )


def draw_scene(rng: np.random.Generator) -> SceneProgram:
    """Half counts of one kind, half relations between two kinds."""
    first = draw_object(rng)
    if rng.random() < 0.5:
        return SceneProgram((first,), "", int(rng.integers(2, 4)))
    return _related(first, rng)


def draw_pair(rng: np.random.Generator) -> SceneProgram:
    """A relation between two objects."""
    return _related(draw_object(rng), rng)


def _related(first: ObjectProgram, rng: np.random.Generator) -> SceneProgram:
    second = draw_object(rng)
    return SceneProgram((first, second), RELATIONS[int(rng.integers(len(RELATIONS)))], 1)


def draw_room(rng: np.random.Generator) -> RoomProgram:
    """Five to eleven members: mostly furniture, then anything that fits in a room."""
    furniture = _of_families("furniture")
    small = _of_families("kitchen", "things", "creatures", "plants", "solids")
    members = [draw_object(rng, furniture) for _ in range(int(rng.integers(3, 7)))]
    members += [draw_object(rng, small) for _ in range(int(rng.integers(2, 6)))]
    return RoomProgram(tuple(members), int(rng.integers(2**31)))


def draw_street(rng: np.random.Generator) -> StreetProgram:
    """Vehicles, buildings and plants, five to thirteen."""
    families = {
        "cars": ("car", "truck", "bus", "tractor"),
        "buildings": _of_families("building"),
        "green": ("tree", "palm"),
        "others": _of_families("creatures", "plants"),
    }
    numbers = {"cars": (2, 6), "buildings": (1, 4), "green": (1, 5), "others": (0, 2)}
    members = [
        draw_object(rng, nouns) for name, nouns in families.items() for _ in range(int(rng.integers(*numbers[name])))
    ]
    return StreetProgram(tuple(members), int(rng.integers(2**31)))


def draw_table(rng: np.random.Generator) -> TableProgram:
    """Two to nine things of any kind but buildings."""
    nouns = tuple(n for n, noun in NOUNS.items() if noun.family != "building")
    members = tuple(draw_object(rng, nouns) for _ in range(int(rng.integers(2, 10))))
    return TableProgram(members, int(rng.integers(2**31)))


def draw_interior(rng: np.random.Generator) -> InteriorProgram:
    """Four to sixteen things that fit in a room, furniture among them."""
    furniture = ("chair", "chair", "sofa", "bed", "table", "bench", "lamp")
    small = _of_families("kitchen", "things", "creatures", "plants", "solids")
    members = [draw_object(rng, furniture) for _ in range(int(rng.integers(1, 6)))]
    members += [draw_object(rng, small) for _ in range(int(rng.integers(3, 11)))]
    return InteriorProgram(tuple(members), int(rng.integers(2**31)))


def _of_families(*families: str) -> tuple[str, ...]:
    return tuple(n for n, noun in NOUNS.items() if noun.family in families)


def draw(split: str, index: int, kind: str = "object") -> Program:
    """The program number `index` of a split: a pure function, the same on every machine and in any order."""
    if split not in SPLITS:
        raise InputError(f"split={split!r} is unknown; have {', '.join(SPLITS)}")
    if kind not in KINDS:
        raise InputError(f"kind={kind!r} is unknown; have {', '.join(KINDS)}")
    if index < 0:
        raise InputError(f"index={index} is negative; samples are numbered from 0")
    drawers: dict[str, Callable[[np.random.Generator], Program]] = {
        "object": draw_object,
        "scene": draw_scene,
        "pair": draw_pair,
        "room": draw_room,
        "street": draw_street,
        "table": draw_table,
        "interior": draw_interior,
        "orbit": draw_object,
    }
    rng = np.random.default_rng(stable_hash("draw", split, kind, index))
    while True:
        program = drawers[kind](rng)
        if split_of(program) == split:
            return program
