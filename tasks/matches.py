"""Matches of a pair of pictures: what is returned, its files, and key points read from files."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from diffusers.utils import BaseOutput
from PIL import Image, ImageDraw

from ..utils.errors import InputError
from ..utils.files import atomic_path, write_json
from ..utils.pictures import Picture, save_image, to_rgb8

UNIT = "px, x right, y down, centre of the first pixel at (0.5, 0.5)"
AGREES_CELLS = 1.5  # how far the way there and back may end from its beginning
FORMATS = ("npz", "json", "png")
COLUMNS = {  # what a match in JSON calls them
    "points_a": "a",
    "points_b": "b",
    "scores": "score",
    "margins": "margin",
    "spread_px": "spread_px",
    "cycle_px": "cycle_px",
}


@dataclass
class Matches(BaseOutput):
    """K points of a first picture and where they are in a second one, best first unless they were given."""

    points_a: np.ndarray  # (K, 2) float64 px
    points_b: np.ndarray  # (K, 2)
    scores: np.ndarray  # (K,) cosine of the descriptors, at most 1
    margins: np.ndarray  # (K,) how far the score stands above all places that are not near; 0: not known
    spread_px: np.ndarray  # (K,) deviation of the place in the second picture
    cycle_px: np.ndarray  # (K,) how far the way there and back ends from where it began, in the first picture
    agrees: np.ndarray  # (K,) bool: that way ends within 1.5 cells
    names: tuple[str, ...] = ()  # of given points
    cell_px: float = 0.0  # side of a cell in the second picture; 0: found between pixels
    made_by: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    nfe: int = 0

    def __len__(self) -> int:
        return len(self.points_a)

    def chosen(self, rows: np.ndarray) -> Matches:
        """Some of the matches, by index or mask."""
        each: dict[str, Any] = {name: getattr(self, name)[rows] for name in (*COLUMNS, "agrees")}
        return replace(self, names=tuple(np.array(self.names, object)[rows]) if self.names else (), **each)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; `points` alone is what a further transfer reads."""
        columns = zip(*(getattr(self, n).tolist() for n in COLUMNS))
        rows = [dict(zip(COLUMNS.values(), row)) for row in columns]
        for row, agrees in zip(rows, self.agrees.tolist(), strict=True):
            row["agrees"] = agrees
        for row, name in zip(rows, self.names):
            row["name"] = name
        points: Any = dict(zip(self.names, self.points_b.tolist())) if self.names else self.points_b.tolist()
        told = {"unit": UNIT, "made_by": self.made_by, "cell_px": self.cell_px, **self.facts}
        return {**told, "matches": rows, "points": points}

    def save(
        self, base: str | Path, pictures: Sequence[Any], formats: Sequence[str] = FORMATS, lines: int = 60
    ) -> list[Path]:
        """Writes BASE.npz, BASE.json and BASE.png (`drawn`), as far as they are in `formats`."""
        paths = [Path(base).with_name(f"{Path(base).name}.{kind}") for kind in formats]
        for path in paths:
            if path.suffix == ".npz":
                with atomic_path(path) as temporary:
                    told: dict[str, Any] = {name: getattr(self, name) for name in (*COLUMNS, "agrees")}
                    told |= {"names": np.array(self.names, str), "unit": UNIT, "cell_px": self.cell_px}
                    np.savez(temporary, **told)
            elif path.suffix == ".json":
                write_json(path, self.to_dict())
            else:
                save_image(path, drawn(self, pictures, lines))
        return paths


def drawn(matches: Matches, pictures: Sequence[Any], lines: int = 60, gap: int = 8) -> Picture:
    """Both pictures side by side, and of the first `lines` matches a line each; thin where there and back differ.

    A line's colour is that of the place in the first picture, so that neighbours that part are seen.
    """
    a, b = (to_rgb8(picture) for picture in pictures)
    scale = max(1, round(480 / max(a.shape[0], b.shape[0])))
    a, b = (one.repeat(scale, 0).repeat(scale, 1) for one in (a, b))
    sheet = np.full((max(len(a), len(b)), a.shape[1] + gap + b.shape[1], 3), 255, np.uint8)
    sheet[: len(a), : a.shape[1]], sheet[: len(b), a.shape[1] + gap :] = a, b
    image = Image.fromarray(sheet)
    draw = ImageDraw.Draw(image)
    shift = np.array([a.shape[1] + gap, 0])
    for row in range(min(lines, len(matches))):
        start, end = scale * matches.points_a[row], scale * matches.points_b[row] + shift
        if not np.isfinite(end).all():
            continue
        x, y = start / [a.shape[1], a.shape[0]]
        colour = tuple(
            round(255 * c) for c in colorsys.hsv_to_rgb(float(x) % 1, 0.35 + 0.65 * float(np.clip(y, 0, 1)), 1)
        )
        draw.line([*start, *end], fill=colour, width=2 if matches.agrees[row] else 1)
        for centre in (start, end):
            draw.ellipse([*(centre - 3), *(centre + 3)], outline=colour, width=2)
    return np.asarray(image)


def read_points(path: str | Path) -> tuple[tuple[str, ...], np.ndarray]:
    """(names, points (K, 2) px) of a JSON file: [[x, y], ...], {"name": [x, y], ...}, or one of them under "points".

    A list has no names, (). Raises InputError for anything else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            given = json.load(file)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if isinstance(given, dict) and isinstance(given.get("points"), (dict, list)):
        given = given["points"]
    named = given if isinstance(given, Mapping) else dict(enumerate(given if isinstance(given, list) else ()))
    try:
        points = np.array([[float(x), float(y)] for x, y in named.values()])
    except (TypeError, ValueError) as error:
        raise InputError(f'{path} must hold points [[x, y], ...] in px or {{"name": [x, y], ...}}: {error}') from error
    if len(points) == 0 or not np.isfinite(points).all():
        raise InputError(f'{path} holds no points: [[x, y], ...] in px, or {{"name": [x, y], ...}}')
    return tuple(str(name) for name in named) if isinstance(given, Mapping) else (), points
