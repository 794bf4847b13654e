"""The shipped priors beside the former ones, by the same experiments: python -m unproject.scripts.generations.

Writes docs/results/generations.json: each measure as it was, as docs/results say it is, and what was aimed at. Results
of the former weights are read from --results FOLDER once (`unproject bench NAME --prior FORMER --out FOLDER`) and kept
after that. --weights FOLDER, which holds the former `toybox` and `toybox-mv`, also draws docs/images/generations.png:
the same prompts and seeds with both. --check only says whether the file is up to date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..bench.stale import stale
from ..pipelines.text_to_image import TextToImage, TextToImageOutput
from ..utils.errors import InputError, UnprojectError
from ..utils.files import read_json, weights_root, write_json
from ..utils.pictures import grid, save_image

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = ("value", "mean", "ratio")
DRAWN = ("a red chair", "a blue car", "a yellow duck", "a green bottle", "a purple mug", "an orange lamp")
HARD = (
    "a striped blue mug",
    "a shiny red car",
    "a white house with a handle",
    "a yellow duck resting near a river",
    "a red chair to the left of a blue table",
    "a green cactus behind a brown box",
)


@dataclass(frozen=True)
class Measure:
    """One line of the page: a cell of an experiment's table."""

    name: str
    experiment: str
    row: Mapping[str, Any]
    column: str
    aim: float
    below: bool = False
    """whether the aim is a largest value"""
    part: str = "table"
    share: bool = field(default=True, kw_only=True)
    """the aim is a share, told in percent"""

    @property
    def aimed(self) -> str:
        """The aim in words."""
        number = f"{100 * self.aim:g} %" if self.share else f"{self.aim:g}"
        return f"{'<=' if self.below else '>='} {number}"

    def cell_in(self, results: Path) -> Any:
        """The cell in results/EXPERIMENT.json, None without the file, the row or the column."""
        path = results / f"{self.experiment}.json"
        rows = read_json(path).get(self.part, []) if path.is_file() else []
        found = [row for row in rows if all(row.get(key) == value for key, value in self.row.items())]
        return found[0].get(self.column) if found else None

    def reached(self, cell: Any) -> bool | None:
        """Whether a cell is at its aim, None without a cell."""
        number = number_in(cell)
        return None if number is None else (number <= self.aim if self.below else number >= self.aim)


TEST, DRAWINGS, MESHES = {"setting": "test prompts"}, {"of": "drawings"}, {"prompts": "all"}
HEADS = {"method": "shipped head, ensemble 1"}
CODEC = {"world": "object", "kind": "picture"}
CODEC_NORMALS, CODEC_DEPTH = {**CODEC, "kind": "normal map"}, {**CODEC, "kind": "depth map"}
MEASURES = (
    Measure("codec, pictures: dB", "codec", CODEC, "psnr", 33, share=False),
    Measure("codec, pictures: share of gradients", "codec", CODEC, "edges", 0.9, share=False),
    Measure("codec, object normals: degrees", "codec", CODEC_NORMALS, "degrees", 8, True, share=False),
    Measure("codec, object normals: median degrees", "codec", CODEC_NORMALS, "degrees_median", 3, True, share=False),
    Measure("codec, depth: AbsRel", "codec", CODEC_DEPTH, "abs_rel", 0.015, True, share=False),
    Measure("drawings, test prompts: noun", "embedded-prior", TEST, "noun", 0.98),
    Measure("drawings, test prompts: noun and colour", "embedded-prior", TEST, "both", 0.975),
    Measure("drawings, held-out pairs: both", "embedded-prior", {"setting": "held-out pairs"}, "both", 0.97),
    Measure("toy-FID of 1000 drawings, times its floor", "embedded-prior", TEST, "toy_fid", 1.1, True, share=False),
    Measure("five strange words around it: noun", "prompts", {"sentences": "five strange words"}, "noun", 0.9),
    Measure(
        "two subjects, both right, of true renders",
        "prompts",
        {"sentences": "two subjects", **DRAWINGS},
        "of_renders",
        0.7,
        share=False,
    ),
    Measure(
        "drawn normals to those of the fused object, degrees",
        "direct25-text",
        {"way": "direct25"},
        "angle_deg",
        12,
        True,
        share=False,
    ),
    Measure("text to mesh: noun", "text-to-mesh", MESHES, "noun", 0.97),
    Measure("text to mesh: colour", "text-to-mesh", MESHES, "colour", 0.97),
    Measure("text to mesh: two fronts", "text-to-mesh", MESHES, "two_fronts", 0.05, True),
    Measure("text to mesh: F-score", "text-to-mesh", MESHES, "f_score", 0.45, share=False),
    Measure("text to mesh: chamfer", "text-to-mesh", MESHES, "chamfer", 0.06, True, share=False),
    Measure("meshes from sentences with qualities: noun", "mesh-words", {"words": "any", "of": "meshes"}, "noun", 0.9),
    Measure("test rooms: AbsRel", "geometry-heads", HEADS, "abs_rel", 0.055, True, share=False),
    Measure("test rooms: normals, degrees", "geometry-heads", HEADS, "normals_mean", 9, True, share=False),
    Measure("transformer: noun and colour", "embedded-dit", TEST, "both", 0.95),
)
MEASURED = list(dict.fromkeys(measure.experiment for measure in MEASURES))


def number_in(cell: Any) -> float | None:
    """What a cell of a result measures; a Frechet distance as a multiple of its floor."""
    if not isinstance(cell, Mapping):
        return float(cell) if isinstance(cell, (int, float)) else None
    if cell.get("floor"):
        return float(cell["fid"]) / float(cell["floor"])
    return next((float(cell[name]) for name in NUMBERS if name in cell), None)


def compared(results: Path, former: Path | None, kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each measure; what was before comes from `former`, or is kept from an earlier comparison. A result of
    other weights than the shipped ones is none of now."""
    others = [name for name, state in stale(MEASURED, results).items() if state.weights]
    before = {row["measure"]: row.get("before") for row in kept.get("table", [])}
    rows = []
    for measure in MEASURES:
        was = measure.cell_in(former) if former else None
        now = None if measure.experiment in others else measure.cell_in(results)
        rows.append(
            {
                "measure": measure.name,
                "before": before.get(measure.name) if was is None else was,
                "now": now,
                "aim": measure.aimed,
                "reached": measure.reached(now),
            }
        )
    return rows


def side_by_side(former: Path, out: Path) -> Path:
    """The prompts with the former weights above the shipped ones, the same seeds."""
    tiles: list[np.ndarray] = []
    labels: list[str] = []
    for prompts in (DRAWN, HARD):
        for said, weights in (("before", former), ("now", weights_root())):
            made = TextToImage.from_pretrained(str(weights / "toybox"))(list(prompts), seed=0, output_type="np")
            assert isinstance(made, TextToImageOutput)
            tiles += list(np.asarray(made.images))
            labels += [f"{said}: {prompt}" for prompt in prompts]
    return save_image(out, grid(tiles, columns=len(DRAWN), labels=labels, scale=3))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; exit code 1 with --check when the file is out of date."""
    parser = argparse.ArgumentParser(prog="generations", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, help="folder of results of the former weights")
    parser.add_argument("--weights", type=Path, help="folder of the former weights, to draw with")
    parser.add_argument("--check", action="store_true", help="only say whether the file is up to date")
    options = parser.parse_args(arguments)
    path = ROOT / "docs" / "results" / "generations.json"
    try:
        if options.results and not options.results.is_dir():
            raise InputError(f"--results {options.results} is no folder; give one with EXPERIMENT.json files")
        kept = read_json(path) if path.is_file() else {}
        rows = compared(path.parent, options.results, kept)
        if options.check:
            return int(rows != kept.get("table"))
        write_json(path, {"title": "The shipped priors beside the former ones", "script": "generations", "table": rows})
        if options.weights:
            print(side_by_side(options.weights, ROOT / "docs" / "images" / "generations.png"))
    except UnprojectError as error:
        print(f"generations: {error}", file=sys.stderr)
        return error.exit_code
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
