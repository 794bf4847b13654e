"""The run: processes that read, a watch over them, findings on disk, and the table."""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...utils.errors import InputError, UnprojectError
from ...utils.files import write_bytes, write_json
from ...utils.runs import machine, versions
from .cases import Case, Kind, Tally, Wrong
from .judge import judge
from .kinds import KINDS
from .making import CHUNK, cases
from .minimise import smaller

LONGEST_S = 10.0  # of the processor: the machine may be busy
STUCK_S = 300.0  # of the clock
MEMORY = 2 << 30  # bytes of address space that reading one case may take
NOW = struct.Struct("<qqdd")
EXAMPLES = 3  # findings of one sort and place that are kept


@dataclass
class Worker:
    """A process at work on a chunk, and where it is."""

    pid: int
    kind: Kind
    chunk: int
    first: int
    shared: mmap.mmap
    folder: Path

    @property
    def now(self) -> tuple[int, bool, float, float]:
        """(number of the case, whether it is being read, seconds since then by the clock, and of the processor)."""
        number, busy, began, used = NOW.unpack(self.shared[: NOW.size])
        try:
            words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            used = (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK") - used
        except OSError:
            used = 0.0
        return number, bool(busy), time.time() - began, used


@dataclass
class Run:
    """A fuzz run."""

    seed: int
    out: Path
    jobs: int = 1
    tallies: dict[str, Tally] = field(default_factory=dict)
    findings: dict[tuple[str, str, str], list[dict[str, Any]]] = field(default_factory=dict)

    def go(self, kinds: Sequence[Kind], count: int) -> None:
        """Reads all cases."""
        waiting = _shuffled([(k, c, n) for k in kinds for c, n in _chunks(k, kinds, count)])
        total, began, told = sum(n for *_, n in waiting), time.monotonic(), 0.0
        sizes = {(kind.name, chunk): n for kind, chunk, n in waiting}
        queue = [(kind, chunk, 0) for kind, chunk, _ in waiting]
        workers: list[Worker] = []
        while queue or workers:
            while queue and len(workers) < self.jobs:
                kind, chunk, first = queue.pop(0)
                workers.append(self._start(kind, chunk, first, sizes[kind.name, chunk]))
            time.sleep(0.02)
            for worker in list(workers):
                again = self._look(worker)
                if again is None:
                    continue
                workers.remove(worker)
                if again:
                    queue.insert(0, (worker.kind, worker.chunk, again))
            done = sum(tally.cases for tally in self.tallies.values())
            if time.monotonic() - told > 10 or not (queue or workers):
                told = time.monotonic()
                left = (told - began) * (total - done) / max(done, 1)
                told_in = f"{done}/{total} cases, {len(self.findings)} findings, {left:.0f} s left"
                print(told_in, file=sys.stderr, flush=True)
                write_json(self.out / "fuzz.json", self.report())

    def _start(self, kind: Kind, chunk: int, first: int, count: int) -> Worker:
        folder = Path(tempfile.mkdtemp(prefix="unproject-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        shared = mmap.mmap(-1, NOW.size)
        shared[: NOW.size] = NOW.pack(first, 0, time.time(), 0.0)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                _work(kind, self.seed, chunk, first, count, shared, folder)
                code = 0
            except BaseException:
                (folder / "error").write_text(traceback.format_exc())
            finally:
                os._exit(code)
        return Worker(pid, kind, chunk, first, shared, folder)

    def _look(self, worker: Worker) -> int | None:
        """None while it works; else 0 when its chunk is done, or the number of the case to go on with."""
        number, busy, passed, used = worker.now
        pid, status = os.waitpid(worker.pid, os.WNOHANG)
        hangs = pid == 0 and busy and (used > LONGEST_S or passed > STUCK_S)
        if pid == 0 and not hangs:
            return None
        if hangs:
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
        whole = not hangs and os.waitstatus_to_exitcode(status) == 0
        self._take(worker, whole)
        if whole:
            shutil.rmtree(worker.folder)
            return 0
        error = worker.folder / "error"
        ended = error.read_text() if error.is_file() else f"the process ended with {status}"
        sort, told = ("hang", f"more than {LONGEST_S:g} s") if hangs else ("killed", ended[-400:])
        case = next(c for i, c in enumerate(cases(worker.kind, self.seed, worker.chunk)) if i == number)
        self._keep(case, Wrong(sort if busy else f"{sort} afterwards", told, case.name), worker.chunk, number)
        shutil.rmtree(worker.folder)
        return number + 1 if number + 1 < CHUNK else 0

    def _take(self, worker: Worker, whole: bool) -> None:
        """What a process has written about its cases."""
        told = worker.folder / "told.jsonl"
        lines = told.read_text().splitlines() if told.is_file() else []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:  # it was killed as it wrote
                continue
            if "tally" in entry:
                self.tallies.setdefault(worker.kind.name, Tally()).add(Tally(**entry["tally"]))
                continue
            case = Case(
                worker.kind.name,
                entry["name"],
                bytes.fromhex(entry["data"]),
                entry["made"],
                entry["unknown"],
                entry["refuse"],
            )
            self._keep(case, Wrong(*entry["wrong"]), worker.chunk, entry["number"])

    def _keep(self, case: Case, wrong: Wrong, chunk: int, number: int) -> None:
        tally = self.tallies.setdefault(case.kind, Tally())
        tally.wrong[wrong.sort] = tally.wrong.get(wrong.sort, 0) + 1
        found = self.findings.setdefault((case.kind, wrong.sort, wrong.where), [])
        if len(found) >= EXAMPLES:
            found[0]["times"] += 1
            return
        folder = self.out / "failures" / f"{case.kind}-{hashlib.sha256(case.data).hexdigest()[:12]}"
        write_bytes(folder / case.name, case.data)
        about = {
            **asdict(case),
            "data": None,
            "wrong": wrong._asdict(),
            "chunk": chunk,
            "number": number,
            "seed": self.seed,
        }
        write_json(folder / "about.json", about)
        found.append(
            {
                "file": str(folder / case.name),
                "told": wrong.told,
                "bytes": len(case.data),
                "made": case.made,
                "times": 1,
            }
        )

    def report(self) -> dict[str, Any]:
        """All that is known, as JSON."""
        return {
            "name": "fuzz",
            "seed": self.seed,
            "cases": sum(tally.cases for tally in self.tallies.values()),
            "table": [_row(name, tally) for name, tally in sorted(self.tallies.items())],
            "findings": [
                {"kind": kind, "sort": sort, "where": where, "examples": examples}
                for (kind, sort, where), examples in sorted(self.findings.items())
            ],
            "versions": versions(),
            "machine": machine(),
        }


def _row(name: str, tally: Tally) -> dict[str, Any]:
    rates = {"ms_each": round(1000 * tally.seconds / max(tally.cases, 1), 2), "slowest_s": round(tally.slowest_s, 2)}
    counts = {"cases": tally.cases, "read": tally.read, "refused": tally.refused, "unknown": tally.planted}
    return {"kind": name, **counts, **rates, "wrong": sum(tally.wrong.values())}


def _chunks(kind: Kind, kinds: Sequence[Kind], count: int) -> Iterator[tuple[int, int]]:
    """(chunk, cases in it) of a kind's share."""
    left = max(1, round(count * kind.share / sum(one.share for one in kinds)))
    for chunk in range(-(-left // CHUNK)):
        yield chunk, min(CHUNK, left - chunk * CHUNK)


def _shuffled(chunks: list[tuple[Kind, int, int]]) -> list[tuple[Kind, int, int]]:
    """The chunks of all kinds in turn."""
    return sorted(chunks, key=lambda entry: entry[1])


def _work(kind: Kind, seed: int, chunk: int, first: int, count: int, shared: mmap.mmap, folder: Path) -> None:
    """In a process of its own: reads the cases, writes what is wrong, smaller where it can be."""
    sys.stdin = open(os.devnull)  # noqa: SIM115 (for the life of the process)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    listed = list(cases(kind, seed, chunk, count))[first:]
    _limit_memory()
    tally, known = Tally(), set[tuple[str, str]]()
    with open(folder / "told.jsonl", "a", buffering=1) as told:
        for number, case in enumerate(listed, first):
            shared[: NOW.size] = NOW.pack(number, 1, time.time(), time.process_time())
            began = time.process_time()
            outcome, wrong = judge(kind, case, folder)
            took = time.process_time() - began
            one = Tally(1, int(outcome == "read"), int(outcome == "refused"), int(bool(case.unknown)), took, took)
            tally.add(one)
            told.write(json.dumps({"tally": asdict(one)}) + "\n")
            if wrong is None:
                continue
            shared[: NOW.size] = NOW.pack(number, 0, time.time(), time.process_time())
            if (wrong.sort, wrong.where) not in known and not case.unknown:
                known.add((wrong.sort, wrong.where))
                case = smaller(case, lambda some, w=wrong: _same(judge(kind, some, folder)[1], w))  # type: ignore[misc]
            entry = {k: v for k, v in asdict(case).items() if k not in ("kind", "data")}
            told.write(json.dumps({**entry, "data": case.data.hex(), "wrong": list(wrong), "number": number}) + "\n")


def _same(found: Wrong | None, wanted: Wrong) -> bool:
    return found is not None and (found.sort, found.where) == (wanted.sort, wanted.where)


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))


def warm_up(kinds: Sequence[Kind]) -> None:
    """Reads every sample once: what is compiled and loaded is there for all processes. Raises UnprojectError for a
    sample that is not read."""
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            for sample in kind.samples():
                outcome, wrong = judge(kind, Case(kind.name, sample.name, sample.data), Path(folder))
                if (outcome, wrong) != ("read", None):
                    raise UnprojectError(f"the sample {sample.name} of {kind.name} is {outcome}: {wrong}")


def again(files: Sequence[Path]) -> int:
    """Reads stored failures again and says what is wrong now."""
    worst = 0
    for path in files:
        about = json.loads((path.parent / "about.json").read_text())
        case = Case(about["kind"], about["name"], path.read_bytes(), about["made"], about["unknown"], about["refuse"])
        with tempfile.TemporaryDirectory() as folder:
            outcome, wrong = judge(KINDS[case.kind], case, Path(folder))
        print(f"{path}: {outcome}; {'nothing is wrong' if wrong is None else ' | '.join(wrong)}")
        worst |= wrong is not None
    return int(worst)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; the exit code is 1 when something was found."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Damaged, strange and hostile inputs for every reader.")
    parser.add_argument("--cases", type=int, default=50_000, help="how many (default 50000)")
    parser.add_argument("--only", nargs="*", default=[], help=f"kinds, of {', '.join(KINDS)}")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other cases (default 0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once (default 1)")
    parser.add_argument("--out", type=Path, default=Path("outputs/fuzz"), help="folder of fuzz.json and the failures")
    parser.add_argument("--again", nargs="+", type=Path, help="read stored failures again")
    options = parser.parse_args(arguments)
    if options.again:
        return again(options.again)
    unknown = set(options.only) - set(KINDS)
    if unknown or options.cases < 1:
        raise InputError(
            f"--only {' '.join(unknown)} is none of {', '.join(KINDS)}" if unknown else "--cases must be 1 or more"
        )
    run, kinds = Run(options.seed, options.out.absolute(), options.jobs), [KINDS[n] for n in options.only or KINDS]
    warm_up(kinds)
    run.go(kinds, options.cases)
    report = run.report()
    write_json(run.out / "fuzz.json", report)
    show(report)
    return 1 if report["findings"] else 0


def show(report: dict[str, Any]) -> None:
    """The table and the findings, the most frequent of each first."""
    from ..make_docs import table

    print(table(report["table"], None))
    for entry in report["findings"]:
        first = entry["examples"][0]
        print(f"{entry['kind']} {entry['sort']} ({first['times']} and more): {entry['where']}")
        print(f"  {first['told']}\n  {first['file']}")
    print(f"{report['cases']} cases with seed {report['seed']}: {len(report['findings'])} findings")


if __name__ == "__main__":
    sys.exit(main())
