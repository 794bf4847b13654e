"""Everything that a machine without an accelerator cannot show, in one command of a few minutes on a large one.

    python -m unproject.scripts.gpu_check [--minutes 8] [--only WORD ...] [--out FILE]

The tests marked gpu, parity of every family and generator with the CPU, the main verbs on the embedded priors, memory
and speed of full-size networks of random weights beside stock diffusers in the same process, splats beside gsplat. It
prints one table and writes it as JSON. `--tiny` takes networks of a few thousand weights and any device, so that the
check itself can be tried everywhere. Exit code 1 where something is not as it should be.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ..bench.tables import cell
from ..utils.errors import InputError, UnprojectError
from ..utils.files import write_json
from ..utils.runs import machine, versions
from .gpu_figures import full_size, score_distillation
from .gpu_parity import Row, Where, families, generators, splats, suite, verbs

CHECKS: dict[str, Callable[[Where], Iterable[Row]]] = {
    "parity": families,
    "generators": generators,
    "splats": splats,
    "verbs": verbs,
    "full-size": full_size,
    "score-distillation": score_distillation,
    "suite": suite,
}
SHOWN = ("check", "what", "passed", "seconds", "told")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1; with --tiny any other too")
    parser.add_argument("--tiny", action="store_true", help="networks of a few thousand weights")
    parser.add_argument("--minutes", type=float, default=8.0, help="checks that would begin later are left out")
    parser.add_argument("--only", nargs="*", default=[], choices=tuple(CHECKS), metavar="CHECK", help=", ".join(CHECKS))
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu-check.json"))
    options = parser.parse_args(arguments)
    try:
        where = Where(_device(options.device, options.tiny), options.tiny)
        record = checked(where, options.only or list(CHECKS), 60 * options.minutes)
        write_json(options.out, record)
    except UnprojectError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return error.exit_code
    show(record)
    print(f"written to {options.out}")
    return 0 if record["passed"] else 1


def checked(where: Where, names: Iterable[str], limit_s: float) -> dict[str, Any]:
    """The rows of the named checks; one that fails by an error is a row that says so."""
    began = time.perf_counter()
    rows: list[Row] = []
    for name in names:
        if time.perf_counter() - began > limit_s:
            rows.append({"check": name, "what": "all", "passed": None, "told": f"left out after {limit_s / 60:g} min"})
            continue
        rows += [{"check": name, **row} for row in _caught(CHECKS[name], where)]
    return {
        "device": where.name,
        "tiny": where.tiny,
        "passed": all(row["passed"] is not False for row in rows),
        "seconds": round(time.perf_counter() - began, 1),
        "table": rows,
        "versions": versions(),
        "machine": machine(),
    }


def _caught(check: Callable[[Where], Iterable[Row]], where: Where) -> Iterator[Row]:
    began = time.perf_counter()
    try:
        for row in check(where):
            now = time.perf_counter()
            yield {"seconds": round(now - began, 2), **row}
            began = time.perf_counter()
    except Exception as error:  # whatever a device does is what is asked for here
        told = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        yield {"what": "the rest", "passed": False, "seconds": round(time.perf_counter() - began, 2), "told": told}


def _device(name: str, tiny: bool) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name!r} is no device; use cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device is here; the check itself can be tried with --tiny --device cpu")
    if device.type != "cuda" and not tiny:
        raise InputError(f"--device {name}: the full check needs CUDA; add --tiny for other devices")
    return device


def show(record: dict[str, Any]) -> None:
    """Prints the table."""
    table = Table(title=f"{record['device']}{', tiny' if record['tiny'] else ''}: {record['seconds']:g} s")
    for name in SHOWN:
        table.add_column(name)
    for row in record["table"]:
        figures = [f"{k.replace('_', ' ')} {cell(v)}" for k, v in row.items() if k not in SHOWN]
        told = "; ".join([*figures, *([row["told"]] if row.get("told") else [])])
        state = {True: "yes", False: "NO", None: "-"}[row["passed"]]
        table.add_row(row["check"], row["what"], state, cell(row.get("seconds")), told)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    sys.exit(main())
