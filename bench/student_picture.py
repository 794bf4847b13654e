"""The picture of the table of students: how far drawings are from renders against calls, and against bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..utils.files import atomic_path
from .kept import Row

DISTANCES = ("toy_fid", "toy_kid")  # the first where there are pictures enough for it
NONE = "none"


def distance(row: Row) -> float:
    """The Frechet distance of a row, of few pictures the kernel distance."""
    name = next(key for key in DISTANCES if key in row)
    return float(row[name][name.removeprefix("toy_")])


def picture(table: Sequence[Row], path: Path) -> None:
    """A line over calls for each student and solver of the teacher; and each student's best, over its megabytes."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    ways = list(dict.fromkeys(_way(row) for row in table))
    for number, way in enumerate(ways):
        rows = sorted((row for row in table if _way(row) == way), key=lambda row: row["calls"])
        colour = "black" if way.startswith("teacher") else colormaps["tab20"](number % 20)
        style: dict[str, Any] = {"color": colour, "marker": "." if len(rows) > 1 else "o", "markersize": 6}
        dash = {"teacher, ddim": "--", "teacher, dpm++": ":"}.get(way, "-")
        left.plot([row["calls"] for row in rows], [distance(row) for row in rows], dash, label=way, **style)
        best = min(rows, key=distance)
        at = (best["megabytes"], distance(best))
        right.plot(*at, linestyle="none", **style)
        right.annotate(str(best["calls"]), at, fontsize=7, xytext=(4, 2), textcoords="offset points")
    floors = [row["toy_fid"]["floor"] for row in table if "toy_fid" in row]
    for axes, label in (
        (left, "calls of the network"),
        (right, "megabytes of its own weights, best calls"),
    ):
        axes.set(xscale="log", yscale="log" if floors else "linear", xlabel=label)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.grid(alpha=0.3)
        if floors:
            axes.axhline(floors[0], color="grey", linewidth=0.8)
    left.set_xticks(sorted({row["calls"] for row in table}))
    left.set_ylabel("toy-FID (grey: that of renders)" if floors else "toy-KID")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _way(row: Row) -> str:
    """What a line is of."""
    if row["student"] != NONE:
        return str(row["student"])
    return f"teacher, {row['solver']}" + ("" if row["guidance"] != 1 else ", unguided")
