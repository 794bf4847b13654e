"""`unproject bench`: experiments by name, what of them is stale, and a queue of those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tyro

from ..bench.registry import EXPERIMENTS, experiment
from ..utils.errors import InputError
from ..utils.files import read_json
from ..utils.runs import RunRecord
from ..utils.shares import share
from .common import Seeded, Threaded
from .estimates import in_time
from .jobs import merge, merged_facts
from .outputs import Target
from .showing import Shown, Table

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"


@dataclass(frozen=True, kw_only=True)
class Bench(Threaded, Seeded):
    """Run experiments that measure a method against its baseline; without a name, list them."""

    name: ClassVar[str] = "bench"
    splits: ClassVar[bool] = True

    experiments: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of experiments."""
    all: bool = False
    """Every experiment."""
    quick: bool = False
    """Few samples and one seed: shows that it runs, measures nothing."""
    device: str = "auto"
    """auto or cpu: experiments run on the processor."""
    prior: str | None = None
    """The prior to measure on (default: each experiment's own)."""
    stale: bool = False
    """Only say which results in --out (default: docs/results of the checkout) no longer hold, and why."""
    resume: bool = False
    """Run what is stale there, each in a process of its own; called again, it goes on where it was stopped."""
    jobs: int = 1
    """With --resume, how many at a time, as far as memory allows."""

    def target(self) -> Target:
        """One folder for the JSON of all experiments."""
        published = self.looks_at_out and RESULTS.is_dir()
        return Target(self.out or (RESULTS if published else Path("outputs") / "bench"), "bench")

    @property
    def leaves_files(self) -> bool:
        """Lists are only told, and the results of a queue are files of their own."""
        return bool(self._names()) and not self.looks_at_out

    @property
    def looks_at_out(self) -> bool:
        """Where the results are that may be stale."""
        return self.stale or self.resume

    def check(self) -> None:
        """The names have to exist, and the options to go together."""
        if self.device not in ("auto", "cpu"):
            raise InputError(f"--device {self.device}: experiments run on the cpu; leave it out")
        for name in self.experiments:
            experiment(name)
        if self.all and self.experiments:
            raise InputError("give names of experiments or --all, not both")
        if self.stale and self.resume:
            raise InputError("give --stale to see what is stale or --resume to run it, not both")
        if self.looks_at_out and not self._names():
            raise InputError(f"--{'stale' if self.stale else 'resume'} needs names of experiments, or --all")
        if self.quick and self.looks_at_out:
            raise InputError("--quick measures nothing that could be stale; leave it out")
        if self.jobs < 1 or (self.jobs > 1 and not self.resume):
            raise InputError(f"--jobs {self.jobs}: 1 or more, and more than one with --resume")

    def plan(self) -> list[str]:
        """What a dry run says."""
        from ..bench.runner import usual_seconds

        if self.looks_at_out:
            return [f"would {'run' if self.resume else 'tell'} what is stale of {', '.join(self._names())}"]
        lines = []
        for name in self._names():
            usual = usual_seconds(RESULTS / f"{name}.json", self.quick)
            lines.append(f"would run {name}" + ("" if usual is None else f", usually about {in_time(usual)}"))
        return lines

    def _names(self) -> list[str]:
        return list(EXPERIMENTS) if self.all else list(self.experiments)

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Runs the experiments one after another, of several processes each its own, and shows their tables."""
        if self.looks_at_out:
            return self._stale(target) if self.stale else self._queue(target)
        if not self._names():
            rows = [(name, made.title) for name, made in EXPERIMENTS.items()]
            return Shown(tables=[Table(("experiment", "measures"), rows)], data={"experiments": list(EXPERIMENTS)})
        from ..bench.runner import run_experiment

        shown = Shown()
        if share().count > 1:
            return self._shared(record, target)
        for name in self._names():
            with record.stage(name):
                made = run_experiment(name, target.folder, self.prior, self.seed, self.quick, self.threads or 1)
            record.output(target.folder / f"{name}.json")
            shown.tables.append(_table(made))
        return shown

    def _shared(self, record: RunRecord, target: Target) -> Shown:
        """Of several processes each measures its own, in processes that know nothing of the others."""
        mine = share()
        codes = self._measured(mine.own(self._names()), target)
        done = [name for name, code in codes.items() if not code]
        for name in done:
            record.output(target.folder / f"{name}.json")
        facts = mine.gathered({"codes": codes, **merged_facts(record)})
        merge(record, facts)
        codes = {name: code for one in facts for name, code in one["codes"].items()}
        return _told(codes, len(self._names()), target)

    def _measured(self, names: Sequence[str], target: Target) -> dict[str, int]:
        """Exit codes of experiments in processes of their own."""
        from ..bench.queue import command, needed_mb, run_queue

        commands = {n: command(n, target.folder, self.threads or 1, self.prior, self.seed) for n in names}
        if self.quick:
            commands = {name: [*words, "--quick"] for name, words in commands.items()}
        needs = {name: needed_mb(target.folder / f"{name}.json") for name in names}
        return run_queue(commands, self.jobs, needs)

    def _stale(self, target: Target) -> Shown:
        from ..bench.stale import stale

        states = stale(self._names(), target.folder, self.prior)
        rows = [(name, reason) for name, state in states.items() for reason in state.reasons]
        data = {"stale": {name: state.reasons for name, state in states.items()}}
        if not states:
            return Shown([f"nothing in {target.folder} is stale"], data=data)
        return Shown(tables=[Table(("experiment", "why it is stale"), rows)], data=data)

    def _queue(self, target: Target) -> Shown:
        """Every result is whole when its process ends, so what is stale is what is left to do."""
        from ..bench.stale import stale

        names = list(stale(share().own(self._names()), target.folder, self.prior))
        facts = share().gathered({"codes": self._measured(names, target), "asked": len(names)})
        codes = {name: code for one in facts for name, code in one["codes"].items()}
        return _told(codes, sum(one["asked"] for one in facts), target)


def _told(codes: Mapping[str, int], asked: int, target: Target) -> Shown:
    """What came out of so many experiments that ran in processes of their own."""
    failed = [name for name, code in codes.items() if code]
    lines = [f"{len(codes) - len(failed)} of {asked} measured in {target.folder}"]
    if failed:
        lines.append(f"failed: {', '.join(failed)}; unproject bench NAME shows why")
    tables = [_table(read_json(target.folder / f"{name}.json")) for name, code in codes.items() if not code]
    return Shown(lines, tables, {"measured": dict(codes)}, exit_code=int(bool(failed)))


def _table(record: dict[str, Any]) -> Table:
    """The table of a result, what is the same in all rows in its title."""
    from ..bench.tables import on_screen

    headings, rows, same = on_screen(record["table"])
    common = ", ".join(f"{name} {value}" for name, value in same.items() if value)
    return Table(headings, rows, record["title"] + (f" ({common})" if common else ""))
