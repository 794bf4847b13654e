"""Files of splats beside two other programs that read and write them: gsply and splat-transform.

    python -m unproject.scripts.splat_oracles --gsply FOLDER --splat-transform FOLDER --out outputs/splat-oracles

--gsply is a Python that has it or the folder of `pip install --target FOLDER gsply zstandard`; --splat-transform is
that of `npm install --prefix FOLDER @playcanvas/splat-transform` (with node). Neither is imported here. Clouds without
symmetry and with extreme values are written in every format, read by both, and compared field by field with what was
written; then both write what our PLY holds, and our reading is compared with theirs. The JSON keeps every case, its
table the worst of a format; exit code 1 when readings disagree. A program that is not there is told and left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..bench.fingerprints import Sources
from ..geometry.splats import GaussianCloud, load_splats, save_splats
from ..geometry.splats.files import SUFFIXES, suffix_of
from ..utils.errors import InputError, UnprojectError
from ..utils.files import write_json
from ..utils.runs import machine, versions
from ..utils.seeds import generator
from .splat_fields import FIELDS, apart, held, in_its_axes, in_order_of, last_bits, turned_to
from .splat_tools import Gsply, Job, SplatTransform

Row = dict[str, Any]
COUNT, DEGREES, SEED = 700, (0, 3), 0  # more than two chunks of 256
RESTS_ON = (
    *(f"scripts/splat_{name}.py" for name in ("fields", "oracles", "tools")),
    *(f"geometry/splats/{name}.py" for name in ("cloud", "files", "gltf", "harmonics", "packing", "ply", "spz")),
)
SAME = 0.05  # of a last bit: readings of a file that differ by no more have found the same bits
ROUNDED = 2.0  # last bits of a float that roots, logarithms and turns may cost
FLOATS = {".ply": FIELDS, ".glb": FIELDS, ".splat": ("positions", "sizes")}
COARSE = {  # what rounding to the nearest costs where a number is not kept as it is
    ".splat": {"rotations": 1.5},  # four bytes, made a unit quaternion again; 1 itself is beyond the last of them
    ".compressed.ply": {"rotations": 1.5, "harmonics": 1.0},  # the largest follows from three; the ends are a step off
    ".spz": {"rotations": 1.5},
}
KNOWN = {  # where a program reads or writes otherwise than the authors of the format do: (last bits, what it does)
    ("splat-transform", ".splat", "rotations"): (1.5, "its bytes of rotations are around 127.5 instead of 128"),
    ("splat-transform", ".spz", "harmonics"): (16.0, "it writes 4 or 5 bits of harmonics"),
    ("gsply", ".compressed.ply", "harmonics"): (0.5, "harmonics at the ends of their range are half a step within"),
}


def cloud(degree: int, seed: int = SEED) -> GaussianCloud:
    """Long and flat splats of all sizes, without symmetry; the first have what files can hardly keep: lengths from a
    hundred-millionth of a metre to a kilometre, opacities of nothing and of all, bright and dark colours, harmonics
    beyond their range, quaternions along axes, of any length and with ties."""
    rng = generator(seed + degree)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    sizes, turns = normal(COUNT, 3) * torch.tensor([1.0, 0.6, 1.6]) - 4, normal(COUNT, 4)
    lights, base = 2 * normal(COUNT), normal(COUNT, 1, 3)
    rest = 0.3 * normal(COUNT, (degree + 1) ** 2 - 1, 3)
    sizes[:3] = torch.tensor([[-18.5, 6.9, -2.0], [-10.0, 5.9375, -25.0], [21.0, -9.98, 0.0]])
    lights[:6] = torch.tensor([-30.0, 30.0, -9.0, 9.0, 0.0, 12.0])
    base[:4, 0] = torch.tensor([[4.0, -4.0, 3.33], [1.77, -1.77, 0.0], [-3.34, 3.4, 0.1], [9.0, -8.0, 2.0]])
    if degree:
        rest[:4] = torch.tensor([-5.0, -3.99, 0.999, 4.0])[:, None, None]
        rest[4, :, 0], rest[4, :, 1], rest[4, :, 2] = 3.99, -1.0, -0.999
    turns[:5] = torch.tensor(
        [[1.0, 0, 0, 0], [0, 0, 0, -1], [1, -1, 1, -1], [0, 1e-3, 1e-3, 0], [-300.0, 200, 100, 50]]
    )
    places = normal(COUNT, 3) * torch.tensor([1.0, 2.0, 0.5]) + torch.tensor([0.3, -0.2, 0.7])
    places[5] = torch.tensor([-11.0, 23.0, 7.0])
    return GaussianCloud(places, sizes, turns, lights, torch.cat([base, rest], dim=1), "default" if degree else "mip")


def case(tool: str, path: Path, made: GaussianCloud, theirs: GaussianCloud | None, ours: bool) -> Row:
    """One file: how far it is from what was to be written, and two readings of it from each other, in last bits.

    made: what was to be written, in our world; theirs: what the tool reads there; ours: whether we wrote it.
    """
    kind = suffix_of(path)
    read, made = in_its_axes(load_splats(path), path), made.to(torch.float64)
    written, axes = (in_its_axes(made, path), "") if ours else turned_to(made, read)
    steps, mine = last_bits(path, read), held(read, path)
    seen, readings = mine, dict.fromkeys(FIELDS, 0.0)
    if theirs is not None:
        there, relative = turned_to(theirs, read)
        other = in_order_of(held(there, path), mine)
        readings = apart(other, mine, steps)
        seen, axes = (other, relative) if ours else (mine, axes)
    off = apart(seen, in_order_of(held(written, path), mine), steps)
    faults, known = [], []
    for name in FIELDS:
        more, why = KNOWN.get((tool, kind, name), (0.0, ""))
        whole = ROUNDED if name in FLOATS.get(kind, ()) else SAME
        near = whole if whole == ROUNDED else SAME + COARSE.get(kind, {}).get(name, 0.5)
        if max(off[name] - near, readings[name] - whole) > 0 and why:
            known.append(why)
        if off[name] > near + more or readings[name] > whole + more:
            faults.append(f"{name} {off[name]:.3g} off, readings {readings[name]:.3g} apart")
    told = {"file": path.name, "kind": kind, "tool": tool, "ours": ours, "axes": axes, "off": off}
    return told | {"readings": readings if theirs is not None else None, "known": known, "faults": faults}


def cases(tool: Gsply | SplatTransform, out: Path) -> Iterator[Row]:
    """All files of ours that a tool reads and all that it writes, for each degree of harmonics."""
    for degree in DEGREES:
        made = cloud(degree)
        ours = [save_splats(made, out / f"ours-{degree}{suffix}") for suffix in SUFFIXES]
        jobs = []
        for suffix, settings in tool.writes:
            version = "".join(str(value) for name, value in settings if "version" in name)
            jobs.append(Job(out / f"{tool.name}{version}-{degree}{suffix}", ours[0], settings))
        tool.write(jobs)
        readable = [path for path in (*ours, *(job.path for job in jobs)) if suffix_of(path) in tool.reads]
        theirs = dict(zip(readable, tool.read(readable), strict=True))
        for path in ours:
            if path in theirs:
                yield {"degree": degree, **case(tool.name, path, made, theirs[path], True)}
        for job in jobs:
            version = job.path.name[len(tool.name) :].split("-")[0]
            row = case(tool.name, job.path, made, theirs.get(job.path), False)
            yield {"degree": degree, **row, "kind": f"{row['kind']} {version}".strip()}


def table(rows: Sequence[Row]) -> list[Row]:
    """The worst of all degrees for every kind of file and way."""
    ways: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        way = f"{row['tool']} reads ours" if row["ours"] else f"we read {row['tool']}'s"
        ways.setdefault((row["kind"], way), []).append(row)
    made = []
    for (kind, way), group in ways.items():
        worst = {name: round(max(row["off"][name] for row in group), 3) for name in FIELDS}
        both = [max(row["readings"].values()) for row in group if row["readings"]]
        notes = dict.fromkeys(note for row in group for note in (*row["known"], *row["faults"]))
        same = {"readings_apart": round(max(both), 3) if both else None, "where": "; ".join(notes)}
        made.append({"file": kind, "way": way, "axes": group[0]["axes"], **worst, **same})
    return made


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="splat_oracles", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gsply", type=Path, help="a Python with gsply, or a folder it was installed into")
    parser.add_argument("--splat-transform", type=Path, help="a folder it was installed into")
    parser.add_argument("--out", type=Path, default=Path("outputs/splat-oracles"), help="of all files")
    parser.add_argument("--json", type=Path, help="of the result; OUT/splat-oracles.json unless given")
    options = parser.parse_args(arguments)
    tools: list[Gsply | SplatTransform] = []
    for kind, where in ((Gsply, options.gsply), (SplatTransform, options.splat_transform)):
        try:
            tools.append(kind(where))
        except InputError as error:
            print(f"splat_oracles: {error}", file=sys.stderr)
    if not tools:
        return InputError.exit_code
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        rows = [row for tool in tools for row in cases(tool, options.out)]
    except UnprojectError as error:
        print(f"splat_oracles: {error}", file=sys.stderr)
        return error.exit_code
    record = {
        "title": "Files of splats beside gsply and splat-transform, differences in last bits",
        "script": "splat_oracles",
        "prior": "",
        "config": {"count": COUNT, "degrees": DEGREES},
        "seeds": [SEED],
        "table": table(rows),
        "cases": rows,
        "versions": {**versions(), **{tool.name: tool.version for tool in tools}},
        "machine": machine(),
        "rests_on": {"weights": {}, "code": Sources().digests(RESTS_ON)},
    }
    print(write_json(options.json or options.out / "splat-oracles.json", record))
    faults = [f"{row['file']}, {row['tool']}: {fault}" for row in rows for fault in row["faults"]]
    print("\n".join(faults) or f"{len(rows)} files agree")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
