"""Other programs that read and write splats, each in a process of its own: gsply and splat-transform."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..geometry.splats import GaussianCloud
from ..utils.errors import InputError
from ..utils.files import read_json, write_json
from .nerfstudio_run import told

Settings = tuple[tuple[str, Any], ...]
GSPLY = """
import json, sys, importlib.metadata
import gsply, numpy
for verb, source, target, settings in json.load(open(sys.argv[1])):
    data = gsply.read_spz(source) if source.endswith(".spz") else gsply.plyread(source)
    if verb == "read":
        names = ("means", "scales", "quats", "opacities", "sh0", "shN")
        numpy.savez(target, **{n: getattr(data, n) for n in names if getattr(data, n) is not None})
    elif target.endswith(".spz"):
        gsply.write_spz(target, data, **settings)
    else:
        gsply.plywrite(target, data, **settings)
print("gsply", importlib.metadata.version("gsply"))
"""


@dataclass(frozen=True)
class Job:
    """A file that a program shall read, or write from our PLY with settings of its own."""

    path: Path
    source: Path | None = None
    settings: Settings = ()


class Gsply:
    """gsply in a process of its own."""

    name = "gsply"
    install = "pip install --target FOLDER gsply zstandard"
    reads: tuple[str, ...] = (".ply", ".compressed.ply", ".spz")
    writes: tuple[tuple[str, Settings], ...] = (
        (".ply", ()),
        (".compressed.ply", (("compressed", True),)),
        (".spz", (("version", 3),)),
        (".spz", (("version", 4),)),
    )

    def __init__(self, where: Path | None) -> None:
        """where: a folder that it was installed into, or a Python that has it. Raises InputError where it is not."""
        if where is None or not where.exists() or (where.is_dir() and not (where / "gsply").is_dir()):
            raise InputError(f"there is no gsply in --gsply {where}; {self.install}")
        self.command = [sys.executable if where.is_dir() else where, "-c", GSPLY]
        self.around = {"PYTHONPATH": str(where)} if where.is_dir() else {}
        self.version = ""

    def _run(self, jobs: list[list[Any]], folder: Path) -> None:
        listed = write_json(folder / "gsply-jobs.json", jobs)
        self.version = told([*self.command, listed], **self.around).split()[-1]

    def write(self, jobs: Sequence[Job]) -> None:
        """Each from its source."""
        orders = [["write", str(job.source), str(job.path), dict(job.settings)] for job in jobs]
        self._run(orders, jobs[0].path.parent)

    def read(self, paths: Sequence[Path]) -> Iterator[GaussianCloud]:
        """All in one process: compiling takes longer than reading."""
        targets = [path.with_name(f"{path.name}.gsply.npz") for path in paths]
        orders = [["read", str(path), str(target), {}] for path, target in zip(paths, targets, strict=True)]
        self._run(orders, paths[0].parent)
        for target in targets:
            with np.load(target) as found:
                parts = {name: torch.from_numpy(found[name].astype(np.float64)) for name in found.files}
            base, rest = parts["sh0"].reshape(-1, 1, 3), parts.get("shN", torch.zeros(0))
            sh = torch.cat([base, rest.reshape(len(base), -1, 3)], dim=1) if rest.numel() else base
            yield GaussianCloud(parts["means"], parts["scales"], parts["quats"], parts["opacities"].flatten(), sh)


class SplatTransform:
    """splat-transform in node; it is read through its CSV."""

    name = "splat-transform"
    install = "npm install --prefix FOLDER @playcanvas/splat-transform"
    reads: tuple[str, ...] = (".ply", ".compressed.ply", ".splat", ".spz")
    writes: tuple[tuple[str, Settings], ...] = (
        (".ply", ()),
        (".compressed.ply", ()),
        (".spz", (("--spz-version", 3),)),
        (".spz", (("--spz-version", 4),)),
        (".glb", ()),
    )

    def __init__(self, where: Path | None) -> None:
        """where: a folder that it was installed into. Raises InputError where it or node is not there."""
        package = (where or Path()) / "node_modules" / "@playcanvas" / "splat-transform"
        if where is None or not package.is_dir():
            raise InputError(f"there is no splat-transform in --splat-transform {where}; {self.install}")
        node = shutil.which("node")
        if node is None:
            raise InputError("splat-transform runs in node, which is not on this machine; see https://nodejs.org")
        self.command = [node, package / "bin" / "cli.mjs"]
        self.version = str(read_json(package / "package.json")["version"])

    def _run(self, source: Path, target: Path, settings: Sequence[tuple[str, Any]] = ()) -> None:
        extra = [str(word) for pair in settings for word in pair]
        told([*self.command, "-q", "-w", "-g", "cpu", *extra, source, target])

    def write(self, jobs: Sequence[Job]) -> None:
        """One after the other."""
        for job in jobs:
            assert job.source is not None
            self._run(job.source, job.path, job.settings)

    def read(self, paths: Sequence[Path]) -> Iterator[GaussianCloud]:
        """Columns by their names in 3DGS."""
        for path in paths:
            table = path.with_name(f"{path.name}.csv")
            self._run(path, table)
            yield from_csv(table)


def from_csv(path: Path) -> GaussianCloud:
    """A table with the columns of 3DGS' PLY, in float64."""
    with open(path, newline="") as file:
        names, *lines = csv.reader(file)
    values = torch.tensor([[float(cell) for cell in line] for line in lines], dtype=torch.float64)
    columns = {name: values[:, index] for index, name in enumerate(names)}

    def stacked(*wanted: str) -> torch.Tensor:
        return torch.stack([columns[name] for name in wanted], dim=1)

    rest = sum(name.startswith("f_rest_") for name in names)
    sh = stacked("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
    if rest:
        more = stacked(*(f"f_rest_{i}" for i in range(rest))).reshape(len(values), 3, rest // 3)
        sh = torch.cat([sh, more.mT], dim=1)
    turns = stacked(*(f"rot_{i}" for i in range(4)))
    return GaussianCloud(
        stacked("x", "y", "z"), stacked("scale_0", "scale_1", "scale_2"), turns, columns["opacity"], sh
    )
