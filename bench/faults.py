"""What is lost when a command is killed or stopped, when the disk fills up or refuses, or two do the same at once.

Every command runs with the embedded priors on tiny inputs, in a process of its own. First it runs alone, and the calls
that change its files are counted. Then a fault strikes before one of those calls (kill -9, SIGTERM, Ctrl-C, a disk that
is full from there on), spread over all of them from the first to the last; or it is there from the start (a disk that
takes no file above 1 kB, one that takes nothing, an output folder that is a file, a deleted working folder, a second
process that does the same). Then the same command is typed again without the fault. Nothing is lost when in the end all
its files are there and as they are without a fault, nothing temporary is left, no process goes on, no traceback was
shown, and what was finished before the fault was not made again. A command's record is no result and is not compared.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..utils.progress import Progress
from .fault_layer import Counter, Layer
from .fault_verbs import VERBS, Verb, inputs
from .runner import Context

LIMIT_S = 900.0
STAGES, QUICK_STAGES = 3, 1
QUICK_VERBS = ("depth", "toybox", "convert")
SIGNALS = {"kill -9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}
WHOLE = (
    ".npz",
    ".png",
    ".ply",
    ".glb",
    ".obj",
    ".txt",
    ".safetensors",
)  # the same bytes whenever the same command makes them
Prepare = Callable[[Layer], None]


@dataclass
class Place:
    """A folder with the inputs of a command, its working folder, its messages and how often its files were changed."""

    folder: Path
    counter: Counter = field(default_factory=Counter)

    @property
    def work(self) -> Path:
        """The working folder."""
        return self.folder / "in"

    @property
    def log(self) -> str:
        """All that was said."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.is_file() else ""


def start(
    verb: Verb, place: Place, at: int = 0, strike: Callable[[Layer], None] | None = None, gone: bool = False
) -> int:
    """The command in a process and a group of its own; `strike` is called before its change number `at`, or at once
    where `at` is 0. Returns the process's number."""
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        _alone(place, gone)
        layer = Layer(place.work, place.counter, at, strike)
        layer.install()
        if strike is not None and not at:
            strike(layer)
        from ..cli import main

        code = main(verb.words)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _alone(place: Place, gone: bool) -> None:
    """The child's own home, messages, working folder and signals."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    home = place.folder / "home"
    home.mkdir(exist_ok=True)
    os.environ["HOME"] = str(home)
    log = os.open(place.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    sys.stdin = open(os.devnull)  # noqa: SIM115 (for the life of the process)
    os.chdir(place.work)
    if gone:
        os.mkdir("gone")
        os.chdir("gone")
        os.rmdir("../gone")


def ended(pid: int) -> int:
    """Its exit code, negative for a signal; killed when it takes too long."""
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return -signal.SIGKILL


def goes_on(pid: int, wait_s: float = 5.0) -> bool:
    """Whether a process of its group still runs after a while; it is ended then."""
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        try:
            os.killpg(pid, 0)
        except OSError:
            return False
        time.sleep(0.05)
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    return True


@contextlib.contextmanager
def new_place(keep: Callable[[], bool] = lambda: False) -> Iterator[Place]:
    """A place with the inputs, removed afterwards unless it shall be kept."""
    folder = Path(tempfile.mkdtemp(prefix="unproject-faults-"))
    place = Place(folder)
    inputs(place.work)
    yield place
    if not keep():
        shutil.rmtree(folder)


def digests(place: Place) -> dict[str, str]:
    """What is in each file that the command wrote, its record and hidden files aside; only that it is there where bytes
    tell more than what was made."""
    found = {}
    for path in sorted((place.work / "out").rglob("*")):
        if path.is_file() and not path.name.startswith(".") and not path.name.endswith("run.json"):
            name = path.relative_to(place.work).as_posix()
            same = path.suffix in WHOLE
            found[name] = hashlib.sha256(_plain(path)).hexdigest() if same else "there"
    return found


def _plain(path: Path) -> bytes:
    """What a file holds; safetensors write the entries of their header in any order."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    size = int.from_bytes(data[:8], "little")
    return json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True).encode() + data[8 + size :]


def lost(verb: Verb, place: Place, fault: Callable[[Verb, Place], list[int]], wanted: dict[str, str]) -> dict[str, Any]:
    """Exit codes under the fault and of the same command afterwards, and what is wrong in the end."""
    pids = fault(verb, place)
    codes = [ended(pid) for pid in pids]
    wrong = ["a process went on"] if any(list(map(goes_on, pids))) else []
    if (place.work / "out").is_file():
        (place.work / "out").unlink()
    done = {name: (place.work / name).stat().st_mtime_ns for name in digests(place)}
    whole = done.keys() == wanted.keys()
    again = start(verb, Place(place.folder))
    code = ended(again)
    now = digests(place)
    wrong += [f"{name} is missing" for name in wanted if name not in now]
    wrong += [f"{name} is another" for name, mark in now.items() if name in wanted and mark != wanted[name]]
    wrong += [f"{name} is there too" for name in now if name not in wanted]
    left = [path for path in place.work.rglob("*") if path.name.startswith(".")]
    wrong += [f"{path.name} was left behind" for path in left]
    if whole and not verb.rewrites:
        made_again = [name for name, at in done.items() if (place.work / name).stat().st_mtime_ns != at]
        wrong += [f"{name} was made again" for name in made_again]
    if "Traceback" in place.log or "UNPROJECT_DEBUG" in place.log:
        wrong.append("a failure was not told as what it is")
    if code not in (0, 2) or (code == 2 and not whole):  # 2: it is there already
        wrong.append(f"the same command ended with {code}")
    return {"codes": codes, "again": code, "wrong": wrong}


def signalled(number: int, at: int) -> Callable[[Verb, Place], list[int]]:
    """A signal to the process before its change number `at`."""

    return lambda verb, place: [start(verb, place, at, lambda layer: os.kill(os.getpgid(0), number))]


def full_from(at: int) -> Callable[[Verb, Place], list[int]]:
    """A disk that has no room any more from the change number `at`."""
    return lambda verb, place: [start(verb, place, at, lambda layer: layer.refuse(errno.ENOSPC))]


def small_files(verb: Verb, place: Place) -> list[int]:
    """A disk that takes no file above 1 kB."""

    def limit(layer: Layer) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    return [start(verb, place, 0, limit)]


def read_only(verb: Verb, place: Place) -> list[int]:
    """A file system that takes nothing."""
    return [start(verb, place, 0, lambda layer: layer.refuse(errno.EROFS))]


def a_file(verb: Verb, place: Place) -> list[int]:
    """The folder of the output is a file."""
    (place.work / "out").write_text("")
    return [start(verb, place)]


def deleted(verb: Verb, place: Place) -> list[int]:
    """The working folder is gone when the command starts."""
    return [start(verb, place, gone=True)]


def two(verb: Verb, place: Place) -> list[int]:
    """A second process does the same at the same time."""
    return [start(verb, place), start(verb, place)]


STANDING: dict[str, Callable[[Verb, Place], list[int]]] = {
    "files above 1 kB refused": small_files,
    "read-only": read_only,
    "output folder is a file": a_file,
    "deleted working folder": deleted,
    "two writers": two,
}


def spread(changes: int, stages: int) -> list[int]:
    """At most `stages` numbers from 1 to `changes`, the last among them."""
    if changes <= stages:
        return list(range(1, changes + 1))
    return sorted({1 + round(i * (changes - 1) / max(stages - 1, 1)) for i in range(stages)} | {changes})


def faults_of(changes: int, stages: int) -> dict[str, list[Callable[[Verb, Place], list[int]]]]:
    """All faults by name, each at its stages."""
    places = spread(changes, stages)
    found = {name: [signalled(number, at) for at in places] for name, number in SIGNALS.items()}
    return {**found, "full disk": [full_from(at) for at in places], **{name: [one] for name, one in STANDING.items()}}


def alone(verb: Verb) -> tuple[int, dict[str, str]]:
    """(changes of files, what the files hold) of a run without a fault. Raises AssertionError when it fails."""
    with new_place() as place:
        code = ended(start(verb, place))
        found = digests(place)
        assert code == 0 and set(verb.files) <= found.keys(), f"{verb.words} ended with {code}: {place.log[-500:]}"
        return place.counter.value, found


def rows_of(
    name: str, verb: Verb, stages: int, only: Callable[[str], bool] = lambda fault: True
) -> Iterator[dict[str, Any]]:
    """A row for each fault."""
    changes, wanted = alone(verb)
    for title, strikes in faults_of(changes, min(stages, verb.stages or stages)).items():
        if not only(title):
            continue
        wrong, codes, again, kept = list[str](), set[int](), set[int](), list[bool]()
        for fault in strikes:
            with new_place(lambda kept=kept: kept[-1]) as place:  # type: ignore[misc]
                found = lost(verb, place, fault, wanted)
                kept.append(bool(found["wrong"]))
            codes |= set(found["codes"])
            again.add(found["again"])
            wrong += [text for text in found["wrong"] if text not in wrong]
        yield {
            "command": name,
            "fault": title,
            "stages": len(strikes),
            "exit_codes": ", ".join(map(str, sorted(codes))),
            "the_same_again": ", ".join(map(str, sorted(again))),
            "lost": "; ".join(wrong) or "nothing",
        }


def warm_up() -> None:
    """Loads what all commands load, so that a process begins where its command does."""
    import diffusers
    import matplotlib  # noqa: F401
    import numba  # noqa: F401
    import skimage  # noqa: F401
    import transformers  # noqa: F401

    from ..cli import commands  # noqa: F401
    from ..pipelines import edit_image, image_to_geometry, restore_image, text_to_image, text_to_mesh  # noqa: F401

    _ = diffusers.StableDiffusionPipeline


def run(context: Context) -> dict[str, Any]:
    """The table of all commands and faults."""
    stages = QUICK_STAGES if context.quick else STAGES
    chosen = {name: verb for name, verb in VERBS.items() if not context.quick or name in QUICK_VERBS}
    return {"config": {"stages": stages}, "seeds": [context.seed], "table": measured(chosen, stages)}


def measured(
    chosen: dict[str, Verb], stages: int, only: Callable[[str], bool] = lambda fault: True, tell: bool = False
) -> list[dict[str, Any]]:
    """The rows of some commands."""
    warm_up()
    table: list[dict[str, Any]] = []
    with Progress(len(chosen), "faults") as bar:
        for name, verb in chosen.items():
            for row in rows_of(name, verb, stages, only):
                table.append(row)
                if tell:
                    print(" | ".join(map(str, row.values())), flush=True)
            bar.advance()
    return table
