"""Pairs of pictures whose points are known: toys of one kind in other poses, colours and lights, and real pairs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np

from ..toybox.materials import COLOURS_SRGB
from ..toybox.programs import ObjectProgram, draw, stable_hash
from ..toybox.render import render_views
from ..toybox.scenes import object_scene
from ..toybox.views import draw_orbits
from ..utils.pictures import load_image
from .real_depth import real_root

LEAST_POINTS = 3  # that both pictures of a toy pair show
TURN_DEG = 60.0  # largest turn about the upright axis between them
TRIES = 30
Kind = Literal["kind", "object"]


@dataclass(frozen=True)
class Pair:
    """Two pictures (H, W, 3) sRGB in [0, 1] and the same K points in both, px with pixel centres at +0.5."""

    name: str
    pictures: tuple[np.ndarray, np.ndarray]
    points: tuple[np.ndarray, np.ndarray]  # (K, 2) each
    box_px: float
    """longer side of what the second one shows of the object: thresholds are shares of it"""
    object_cells: tuple[np.ndarray, np.ndarray] | None = None  # (H, W) bool each


def toy_pair(index: int, size: int, kind: Kind = "kind", split: str = "test") -> Pair:
    """Pair number `index` of a split, a pure function: another of its noun ("kind": proportions, colour and light
    differ) or the same object under another light ("object"), both turned by up to 60 degrees."""
    rng = np.random.default_rng(stable_hash("match", split, kind, index))
    for attempt in range(TRIES):
        program = draw(split, TRIES * index + attempt)
        assert isinstance(program, ObjectProgram)
        other = program if kind == "object" else _another(program, rng)
        (orbit,) = draw_orbits(rng, 1)
        turned = replace(
            orbit,
            azimuth_deg=(orbit.azimuth_deg + rng.uniform(-TURN_DEG, TURN_DEG)) % 360,
            elevation_deg=orbit.elevation_deg + rng.uniform(-10, 10),
        )
        views = []
        for one, pose in ((program, orbit), (other, turned)):
            camera = pose.camera(size)
            eye = (camera.c2w[0].double().numpy(), camera.K[0].double().numpy())
            views += render_views(object_scene(one, rng), [eye], size)
        a, b = (view.keypoints[0] for view in views)
        names = [name for name in a if name in b and a[name][2] and b[name][2]]
        if len(names) < LEAST_POINTS:
            continue
        first, second = (view.alpha[..., 0] > 0.5 for view in views)
        rows, columns = (np.flatnonzero(second.any(axis)) for axis in (1, 0))
        points = np.array([a[name][:2] for name in names]), np.array([b[name][:2] for name in names])
        box = float(max(np.ptp(rows), np.ptp(columns)) + 1)
        pictures = views[0].rgb, views[1].rgb
        return Pair(f"{program.noun} {index}", pictures, points, box, (first, second))
    raise AssertionError(f"none of {TRIES} pairs shows {LEAST_POINTS} points twice")


def _another(program: ObjectProgram, rng: np.random.Generator) -> ObjectProgram:
    """An object of the same noun and shape in another colour and with other proportions."""
    colours = [colour for colour in COLOURS_SRGB if colour != program.colour]
    return replace(program, colour=str(rng.choice(colours)), pattern="plain", seed=int(rng.integers(2**31)))


def real_pairs(root: Path | None = None) -> Iterator[Pair]:
    """The annotated real pairs whose files are there, and the graffiti wall on a grid of points."""
    folder = (root or real_root()) / "correspondence"
    for name in ("atrw", "horse10", "ap10k"):
        listed = folder / name / f"test_{name}.json"
        if listed.is_file():
            yield from _annotated(name, json.loads(listed.read_text()), listed.parent)
    wall = folder / "graffiti"
    if (wall / "H1to3p.xml").is_file():
        yield _wall(wall)


def _annotated(name: str, listed: dict[str, Any], folder: Path) -> Iterator[Pair]:
    """Every ordered pair of the pictures of a COCO file of key points; only points that are seen in both."""
    files = {image["id"]: image["file_name"] for image in listed["images"]}
    shown: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for one in listed["annotations"]:
        path = Path(files[one["image_id"]]).name
        if (folder / path).is_file() and path not in shown:
            shown[path] = np.array(one["keypoints"], float).reshape(-1, 3), np.array(one["bbox"], float)
    for a in shown:
        for b in shown:
            both = (shown[a][0][:, 2] > 1) & (shown[b][0][:, 2] > 1)
            if a != b and both.any():
                one, two = (shown[path][0][both, :2] + 0.5 for path in (a, b))
                pictures = load_image(folder / a), load_image(folder / b)
                yield Pair(f"{name} {a} {b}", pictures, (one, two), float(shown[b][1][2:].max()))


def _wall(folder: Path) -> Pair:
    """A grid of points of the wall that lie inside both pictures; the homography is exact."""
    text = ElementTree.parse(folder / "H1to3p.xml").getroot().findtext(".//data") or ""
    matrix = np.array(text.split(), float).reshape(3, 3)
    pictures = load_image(folder / "graf1.png"), load_image(folder / "graf3.png")
    height, width, _ = pictures[0].shape
    x, y = np.meshgrid(np.linspace(40, width - 40, 12), np.linspace(40, height - 40, 10))
    source = np.stack([x, y], -1).reshape(-1, 2)
    found = np.concatenate([source, np.ones((len(source), 1))], 1) @ matrix.T
    target = found[:, :2] / found[:, 2:]
    inside = ((target >= 0) & (target < [pictures[1].shape[1] - 1, pictures[1].shape[0] - 1])).all(1)
    points = source[inside] + 0.5, target[inside] + 0.5
    return Pair("graffiti", pictures, points, float(max(pictures[1].shape[:2])))
