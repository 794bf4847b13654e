"""What a run was: command, resolved config, seed, versions, machine, seconds, memory, network calls, files."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from .configs import to_dict
from .device_memory import peak_device_memory_mb
from .errors import InputError, NotWrittenError
from .files import read_json, write_json
from .locks import in_turn
from .rescue import rescued

PACKAGES = ("unproject", "torch", "diffusers", "transformers", "numpy", "trimesh", "open3d", "open3d-cpu")
LONGEST_S = 1e9  # of a run, in a record that can be believed


class RunRecord:
    """Collects the facts of one run and writes them as run.json.

    earlier_s: seconds of work done before the record was made; they count as part of the run.

    >>> with RunRecord("text-to-mesh", config, seed=0) as run:
    ...     with run.stage("sample"):
    ...         ...
    ...     run.count("unet", prior.nfe)
    ...     run.output("chair.glb")
    >>> run.write("outputs/run.json")
    """

    def __init__(self, command: str, config: Any = None, seed: int | None = None, earlier_s: float = 0.0) -> None:
        self.command, self.config, self.seed = command, config, seed
        self.nfe: dict[str, int] = {}
        self.stages: dict[str, float] = {}
        self.outputs: list[str] = []
        self.notes: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.status, self.error = "running", ""
        self.kept: list[str] = []  # files of earlier runs that are still there; `to_dict` lists them before the others
        self._warned: list[str] = []  # what earlier runs warned of
        self._standing: dict[str, Any] | None = None
        self.started = datetime.now(timezone.utc) - timedelta(seconds=earlier_s)
        self.rescued = False  # whether a file went elsewhere than it was asked for
        self._path: Path | None = None
        self._began = time.perf_counter() - earlier_s
        self._took: float | None = None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds so far, or of the whole run once it has ended."""
        return time.perf_counter() - self._began if self._took is None else self._took

    def count(self, network: str, calls: int) -> None:
        """Adds network evaluations."""
        self.nfe[network] = self.nfe.get(network, 0) + calls

    def output(self, path: str | Path) -> Path:
        """Remembers a written file and returns its path."""
        if str(path) not in self.outputs:
            self.outputs.append(str(path))
        return Path(path)

    def go_on(
        self, told: Mapping[str, Any], files: Iterable[str | Path] = (), costs: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        """Goes on telling of what earlier runs made, as far as it is still there.

        Args:
            told: the record of an earlier run. Its outputs that are there, its warnings and those of its notes that
                this record has no own of are taken over.
            files: others that are there.
            costs: seconds, stages and network calls (`cost_of`, or a whole record) of what is kept; they add up.
        """
        listed = [*_listed(told, "outputs"), *map(str, files)]
        self.kept = list(dict.fromkeys([*self.kept, *filter(os.path.exists, listed)]))
        self._warned = list(dict.fromkeys([*self._warned, *_listed(told, "warnings")]))
        notes = told.get("notes")
        self.notes = {**(notes if isinstance(notes, dict) else {}), **self.notes}
        for cost in costs:
            for network, calls in _numbers(cost.get("nfe")).items():
                self.count(network, int(calls))
            for stage, seconds in _numbers(cost.get("stages")).items():
                self.stages[stage] = self.stages.get(stage, 0.0) + seconds
            seconds = min(max(_numbers(cost).get("seconds", 0.0), 0.0), LONGEST_S)
            self._began -= seconds
            self.started -= timedelta(seconds=seconds)

    def stand(self, told: Mapping[str, Any]) -> None:
        """Nothing was made: the record of the run that made what is there stays as it is."""
        self._standing = dict(told)

    @property
    def stands(self) -> bool:
        """Whether an earlier record is left as it is."""
        return self._standing is not None

    @contextlib.contextmanager
    def cost_of(self) -> Iterator[dict[str, Any]]:
        """Fills a mapping with the seconds, stages and network calls of a part of the run, for `go_on`."""
        began, stages, nfe, cost = time.perf_counter(), dict(self.stages), dict(self.nfe), dict[str, Any]()
        yield cost
        cost["seconds"] = round(time.perf_counter() - began, 3)
        spent = {name: round(value - stages.get(name, 0.0), 3) for name, value in self.stages.items()}
        cost["stages"] = {name: seconds for name, seconds in spent.items() if seconds}
        calls = {network: count - nfe.get(network, 0) for network, count in self.nfe.items()}
        cost["nfe"] = {network: count for network, count in calls.items() if count}

    @property
    def place(self) -> Path | None:
        """Where the record is written as the run goes, None when it was not begun."""
        return self._path

    def keep(self, write: Callable[[Path], Any], path: Path, note: bool = True) -> Any:
        """Calls write(path), remembers the file or files it returns (unless `note` is False) and gives them back.

        Finished work is not lost: a file that cannot be written there goes to another place (`rescue.rescued`).
        """
        made, elsewhere = rescued(write, path)
        self.rescued |= elsewhere
        for one in [made] if isinstance(made, (str, Path)) else made:
            if note:
                self.output(one)
        return made

    def begin(self, path: Path) -> Path:
        """Writes the record as that of a running command; `update` goes on with it. Returns its path.

        A name that another running process of this machine holds is left to it: then it is NAME-2.run.json, ...
        """
        name = path.name.removesuffix(".run.json")
        with in_turn(path.parent):
            number = 1
            while held(path):
                number += 1
                path = path.with_name(f"{name}-{number}.run.json")
            self._path = path
            self.update()
        return path

    def update(self) -> None:
        """Writes the record as it is now, where it was begun; a disk that refuses it does not stop the work."""
        if self._path is not None:
            with contextlib.suppress(NotWrittenError):
                write_json(self._path, self.to_dict())

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a part of the run; repeated names add up."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - began

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        if self._standing is not None:
            return self._standing
        record = {
            "command": self.command,
            "status": self.status,
            "error": self.error or None,
            "process": {"pid": os.getpid(), "host": platform.node()},
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 3),
            "stages": {name: round(seconds, 3) for name, seconds in self.stages.items()},
            "peak_memory_mb": peak_memory_mb(),
            "peak_device_memory_mb": peak_device_memory_mb(),
            "seed": self.seed,
            "nfe": self.nfe,
            "config": self.config,
            "outputs": list(dict.fromkeys([*self.kept, *self.outputs])),
            "notes": self.notes,
            "warnings": list(dict.fromkeys([*self._warned, *self.warnings])),
            "versions": versions(),
            "machine": machine(),
        }
        return {key: plain(value) for key, value in record.items() if value is not None}

    def write(self, path: str | Path) -> Path:
        """Writes the record as JSON, atomically; a running record is written as done."""
        if self.status == "running" and self._took is None:
            self.status = "done"
        return write_json(path, self.to_dict())

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._took = time.perf_counter() - self._began
        self.status = "done" if error is None else "failed"
        self.error = "" if error is None else f"{type(error).__name__}: {error}".removesuffix(": ")


def earlier(path: Path) -> dict[str, Any]:
    """The record of an earlier run, empty where there is none that can be read."""
    try:
        found = read_json(path)
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}


def _listed(told: Mapping[str, Any], name: str) -> list[str]:
    """A list of texts in a record, which anybody may have edited."""
    found = told.get(name)
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def _numbers(found: Any) -> dict[str, float]:
    """Those entries of a mapping in a record that are numbers."""
    entries = found.items() if isinstance(found, Mapping) else ()
    return {key: value for key, value in entries if type(value) in (int, float) and math.isfinite(value)}


def held(path: Path) -> bool:
    """Whether a record is that of another process which still runs on this machine."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        process = found["process"]
        if found["status"] != "running" or process["host"] != platform.node() or process["pid"] == os.getpid():
            return False
        os.kill(process["pid"], 0)
    except PermissionError:  # a process of somebody else
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return True


def peak_memory_mb() -> float | None:
    """The largest resident memory of this process so far in MB, None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def versions() -> dict[str, str]:
    """Installed versions of the packages a result depends on, without importing them."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def machine() -> dict[str, Any]:
    """Operating system, architecture, processors, and the accelerators torch sees if it is loaded."""
    facts: dict[str, Any] = {"system": platform.system(), "arch": platform.machine(), "processors": os.cpu_count()}
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            facts["cuda"] = torch.cuda.get_device_name(0)
    return facts


def plain(value: Any) -> Any:
    """Any value as strict JSON: dataclasses, tuples, paths, scalars of numpy and torch; NaN and infinity as strings."""
    value = to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)
