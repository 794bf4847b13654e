"""What drawing splats and their gradients costs a processor: compiled tiles beside other ways, by algorithm.

Every Gaussian at every pixel, differentiated by torch, is the baseline; `splat_ways` has those of OpenSplat's CPU code
and of ComfyUI's Render Splat. Seconds are processor seconds of all threads, which neighbours on the machine disturb
least.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..geometry.cameras import Camera
from ..geometry.splats import rasterization, rasterization_reference
from ..utils.files import atomic_path
from ..utils.seeds import generator
from .intervals import digits
from .runner import Context
from .splat_ways import in_slabs, over_boxes

TWIN, SLABS = "every Gaussian at every pixel", "windows in slabs of depth"
BOXES, TILES = "compiled boxes in turn", "compiled tiles"
COMPILED: dict[str, Callable[..., Any]] = {BOXES: over_boxes, TILES: rasterization}
WAYS: dict[str, Callable[..., Any]] = {TWIN: rasterization_reference, SLABS: in_slabs, **COMPILED}
ARRAYS = ("means", "quats", "scales", "opacities", "colors")
MARKS = "os^Dv"  # of sizes of pictures


@dataclass(frozen=True)
class SplatBench:
    """Sizes of the experiment: (Gaussians, pixels along an edge, metres of a usual standard deviation)."""

    compared: tuple[tuple[int, int, float], ...] = ((1000, 64, 0.04), (10_000, 256, 0.02))
    curve: tuple[tuple[int, int, float], ...] = (
        (25_000, 256, 0.0126),
        (50_000, 256, 0.0089),
        (100_000, 256, 0.0063),
        (200_000, 256, 0.0045),
        (200_000, 512, 0.0045),
        (200_000, 1024, 0.0045),
    )
    rounds: int = 3
    memory_steps: int = 1000


QUICK = SplatBench(((100, 16, 0.05),), ((200, 32, 0.03),), 1, 30)


def run(context: Context) -> dict[str, Any]:
    """Processor seconds of pictures with all gradients, and what memory a long run takes."""
    config = QUICK if context.quick else SplatBench()
    table: list[dict[str, Any]] = []
    for index, sizes in enumerate((*config.compared, *config.curve)):
        scene, view = splats(sizes[0], sizes[2], context.seed), looking(sizes[1])
        ways = WAYS if index < len(config.compared) else COMPILED
        rows, pictures = [], []
        for way, draw in ways.items():
            row, picture = facts(draw, scene, view, config.rounds if way in COMPILED else 1)
            rows.append({"way": way, **row, "gaussians": sizes[0], "px": sizes[1]})
            pictures.append(picture)
        if TWIN in ways:
            for row, picture in zip(rows, pictures, strict=True):
                row["times_faster"] = digits(rows[0]["seconds"] / row["seconds"])
                row["largest_difference"] = digits((picture - pictures[0]).abs().max())
        table += rows
    table.sort(key=lambda row: list(WAYS).index(row["way"]))
    curve_picture(table, context.picture())
    first = config.compared[0]
    grown = memory_growth(splats(first[0], first[2], context.seed), looking(first[1]), config.memory_steps)
    return {"config": asdict(config), "seeds": [context.seed], "table": table, "memory_growth_mb": grown}


def curve_picture(table: list[dict[str, Any]], path: Path) -> Path:
    """Seconds against the number of Gaussians, a colour for each way and a mark for each size of picture, beside
    proportional growth."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    ways, sizes = (list(dict.fromkeys(row[key] for row in table)) for key in ("way", "px"))
    for way, px in dict.fromkeys((row["way"], row["px"]) for row in table):
        line = [(row["gaussians"], row["seconds"]) for row in table if (row["way"], row["px"]) == (way, px)]
        look = f"C{ways.index(way)}{MARKS[sizes.index(px) % len(MARKS)]}-"
        axes.plot(*zip(*line, strict=True), look, label=f"{way}, {px} px")
    tiles = [row for row in table if row["way"] == TILES]
    last = max(tiles, key=lambda row: (row["gaussians"], -row["px"]))
    ends = (min(row["gaussians"] for row in tiles), last["gaussians"])
    axes.plot(ends, [last["seconds"] * end / ends[1] for end in ends], "k:", linewidth=1, label="proportional")
    axes.set(xscale="log", yscale="log", xlabel="Gaussians", ylabel="processor seconds, with all gradients")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=7)
    with atomic_path(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
    return path


def splats(count: int, size: float, seed: int) -> dict[str, Tensor]:
    """Gaussians of all shapes in a ball, harmonics of degree 3."""
    rng = generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    values = {
        "means": 0.35 * normal(count, 3),
        "quats": normal(count, 4),
        "scales": size * torch.exp(0.5 * normal(count, 3)),
        "opacities": 0.95 * torch.rand(count, generator=rng) + 0.03,
        "colors": 0.4 * normal(count, 16, 3),
    }
    return {name: value.requires_grad_() for name, value in values.items()}


def looking(px: int) -> dict[str, Any]:
    """One camera."""
    camera = Camera.orbit(25.0, 20.0, 3.0, 34.0, px)
    return {"viewmats": camera.w2c, "Ks": camera.K, "width": px, "height": px, "sh_degree": 3}


def step(draw: Callable[..., Any], scene: dict[str, Tensor], view: dict[str, Any]) -> tuple[float, float, Tensor]:
    """Processor seconds of a picture, and of it with all gradients; the picture."""
    began = time.process_time()
    image, _, _ = draw(**scene, **view)
    drawn = time.process_time()
    image.square().sum().backward()
    for value in scene.values():
        value.grad = None
    return drawn - began, time.process_time() - began, image.detach()


def facts(
    draw: Callable[..., Any], scene: dict[str, Tensor], view: dict[str, Any], rounds: int
) -> tuple[dict[str, Any], Tensor]:
    """Medians over rounds, and the picture; compiled ways have a round before to compile."""
    if draw in COMPILED.values():
        step(draw, scene, view)
    drawing, seconds, pictures = zip(*(step(draw, scene, view) for _ in range(rounds)), strict=True)
    return {"drawing": digits(np.median(drawing)), "seconds": digits(np.median(seconds))}, pictures[0]


def memory_growth(scene: dict[str, Tensor], view: dict[str, Any], steps: int) -> float:
    """Megabytes by which the resident memory grows from a tenth of the steps to the last."""
    early = 0.0
    for index in range(steps):
        step(rasterization, scene, view)
        if index == steps // 10:
            early = resident_mb()
    return digits(resident_mb() - early)


def resident_mb() -> float:
    """Resident memory of this process in megabytes; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096 / 1e6
    except OSError:
        return 0.0
