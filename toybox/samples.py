"""One sample of the world as a pure function of (split, index, kind, size)."""

from __future__ import annotations

from dataclasses import dataclass

from ..geometry.cameras import Camera
from ..utils.errors import InputError
from .captions import Meaning, Phrase, caption, meaning_of, say, view_word
from .dataset import group_cameras
from .places import make_scene
from .programs import InteriorProgram, ObjectProgram, Program, RoomProgram, StreetProgram, TableProgram, draw
from .render import Rendering, render_views
from .scenes import Scene

PLACE_WORDS: dict[type, str] = {
    RoomProgram: "a furnished room",
    StreetProgram: "a street",
    TableProgram: "things close by",
    InteriorProgram: "a lived-in room",
}


@dataclass(frozen=True)
class Sample:
    """A program, what it says in words, and its rendered views with all channels."""

    program: Program
    caption: str
    """complete and canonical, of the first view; of a place what kind it is"""
    meaning: Meaning | None
    """the structured meaning of the caption; None for places"""
    scene: Scene
    cameras: Camera
    """one for each view: four around an object, two before a scene, four in a place"""
    renderings: tuple[Rendering, ...]


def sample(split: str, index: int, kind: str = "object", size: int = 64) -> Sample:
    """Sample number `index` of a split: the same on every machine, in any order and any process.

    Its pictures are those of `render_set` for the same arguments. Raises InputError for unknown splits and kinds.
    """
    if size < 8:
        raise InputError(f"size={size} is too small; need at least 8 px")
    program = draw(split, index, kind)
    scene = make_scene(program, index)
    cameras, views = group_cameras(split, kind, index, scene, size)
    pairs = [(c.c2w[0].numpy().astype(float), c.K[0].numpy().astype(float)) for c in cameras]
    renderings = tuple(render_views(scene, pairs, size))
    if isinstance(program, RoomProgram):
        return Sample(program, PLACE_WORDS[type(program)], None, scene, Camera.cat(cameras), renderings)
    first = views[0]
    word = view_word(first["azimuth_deg"], first["elevation_deg"]) if isinstance(program, ObjectProgram) else None
    return Sample(program, caption(program, word), meaning_of(program, word), scene, Camera.cat(cameras), renderings)


def plain_meaning(split: str, index: int) -> Meaning:
    """Noun and colour of an object program."""
    program = draw(split, index)
    assert isinstance(program, ObjectProgram)
    return Meaning((Phrase(program.noun, program.colour),))


def object_prompts(split: str, count: int) -> list[str]:
    """ "a red chair", one for each of the first `count` objects of a split."""
    return [say(plain_meaning(split, index)) for index in range(count)]
