"""Contact sheets: nouns in different looks, and every noun from four sides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..utils.errors import InputError
from ..utils.pictures import Picture, grid, save_image, to_uint8
from .captions import meaning_of, say
from .catalogue import NOUNS
from .objects import build
from .programs import ObjectProgram, stable_hash
from .render import Renderer
from .scenes import Light, Placed, Scene
from .views import Orbit

Look = tuple[str, str, str, str]  # colour, pattern, finish, shape
LOOKS: tuple[Look, ...] = (
    ("red", "plain", "plastic", ""),
    ("blue", "striped", "plastic", ""),
    ("yellow", "plain", "metal", ""),
    ("brown", "plain", "wooden", "tall"),
    ("green", "dotted", "plastic", ""),
    ("purple", "plain", "shiny", "wide"),
    ("orange", "checkered", "plastic", ""),
    ("white", "brick", "matte", ""),
)
PAPER_SRGB = (0.93, 0.94, 0.955)
SHOWN = ("chair", "teapot", "car", "house", "mushroom", "dog", "robot", "clock")
AZIMUTHS_DEG = (35.0, 125.0, 215.0, 305.0)


def _studio_light() -> Light:
    """A high sun from the front left and a soft bright sky."""
    direction = np.array([0.62, -0.35, 0.7])
    sh = np.zeros((9, 3))
    sh[0] = 0.6 / 0.282095
    sh[2] = 0.2 / 0.488603
    return Light(direction / np.linalg.norm(direction), None, np.full(3, 1.35), sh)


def portrait(
    program: ObjectProgram, size: int = 128, azimuths_deg: Sequence[float] = (35.0,), elevation_deg: float = 18.0
) -> list[Picture]:
    """One object on a pale ground in even light, a picture (size, size, 3) uint8 from each azimuth."""
    scene = Scene(program, (Placed(build(program), np.eye(4)),), _studio_light(), np.array(PAPER_SRGB))
    renderer = Renderer(scene)
    pictures = []
    for azimuth in azimuths_deg:
        camera = Orbit(azimuth, elevation_deg, 0.94 / math.sin(math.radians(15.0)), 30.0).camera(size)
        c2w, K = camera.c2w[0].numpy().astype(float), camera.K[0].numpy().astype(float)
        pictures.append(to_uint8(renderer.render(c2w, K, size, samples=3, geometry=False).rgb))
    return pictures


def _known(nouns: Sequence[str]) -> tuple[str, ...]:
    unknown = [noun for noun in nouns if noun not in NOUNS]
    if unknown:
        raise InputError(f"nouns {', '.join(unknown)} are unknown; have {', '.join(NOUNS)}")
    return tuple(nouns)


def write_sheet(
    path: str | Path, nouns: Sequence[str] = SHOWN, looks: Sequence[Look] = LOOKS, size: int = 128, seed: int = 0
) -> Path:
    """A row for each noun, a column for each look, and the look below each picture."""
    pictures, captions = [], []
    for noun in _known(nouns):
        for number, (colour, pattern, finish, shape) in enumerate(looks):
            instance = stable_hash("sheet", seed, noun, number) % 2**31
            program = ObjectProgram(noun, colour, pattern, finish, shape, instance)
            pictures += portrait(program, size)
            words = say(meaning_of(program)).split(" ", 1)[1]
            captions.append(words.removesuffix(f" {noun}") if number else words)
    return save_image(path, grid(pictures, len(looks), labels=captions))


def write_noun_sheet(
    path: str | Path, nouns: Sequence[str] | None = None, size: int = 80, columns: int = 4, seed: int = 0
) -> Path:
    """Every noun from four sides: front quarter, right side to the back, and round to the left."""
    strips, colours = [], ("red", "blue", "yellow", "green", "orange", "purple", "cyan", "pink")
    names = _known(tuple(NOUNS) if nouns is None else nouns)
    for number, noun in enumerate(names):
        program = ObjectProgram(noun, colours[number % len(colours)], seed=stable_hash("sheet", seed, noun) % 2**31)
        strips.append(np.concatenate(portrait(program, size, AZIMUTHS_DEG), axis=1))
    return save_image(path, grid(strips, columns, labels=list(names)))
