"""What is lost when a command is killed, stopped, or the disk refuses: a table by command and fault.

    python -m unproject.scripts.fault_run [--out FOLDER] [--only WORD ...]

Every command runs with the embedded priors on small inputs in a process of its own. A fault strikes when the command
has begun to write (kill -9, SIGTERM, Ctrl-C), or is there from the start (a disk that takes no file above 1 kB, a
folder that is a file, a deleted working folder, a second process that does the same). Then the same command is typed
again without the fault. Nothing is lost when all its files are there at the end, whole, no temporary one is left, and
what had been finished before the fault was not made again.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..utils.files import write_text
from ..utils.pictures import save_image

SIDE, LIMIT_S = 48, 600
MESH = ("text-to-mesh", "a red chair", "--steps", "30", "--frames", "4", "--view-size", "32", "--faces", "2000")


@dataclass(frozen=True)
class Verb:
    """A command, the sign that it has begun, and what is there when it is done."""

    words: tuple[str, ...]
    begun: str  # a glob
    files: tuple[str, ...]


VERBS = {
    "depth": Verb(("depth", "photos", "-o", "out"), "out/*.npz", tuple(f"out/p{i}-depth.npz" for i in range(4))),
    "pointcloud": Verb(("pointcloud", "photos", "-o", "out"), "out/*.ply", ("out/p0-pointcloud.ply",)),
    "text-to-image": Verb(
        ("text-to-image", "--prompts", "prompts.txt", "--steps", "8", "-o", "out"),
        "out/*.png",
        ("out/a-red-chair-seed0.png", "out/a-blue-dog-seed0.png"),
    ),
    "text-to-mesh": Verb(
        (*MESH, "-o", "out/chair.glb"), "out/.chair.work/LATEST", ("out/chair.glb", "out/chair-sheet.png")
    ),
    "restore": Verb(("restore", "photos/p0.png", "--task", "deblur:1", "-o", "out/r.png"), "out/*", ("out/r.png",)),
    "toybox": Verb(
        ("toybox", "--render", "--groups", "64", "--size", "16", "--workers", "1", "-o", "out"),
        "out/*",
        ("out/shard-00000.npz",),
    ),
}


def start(words: Sequence[str], folder: Path, prepare: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
    """The command in a process of its own, its messages in folder/log."""
    with open(folder / "log", "ab") as log:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "unproject", *words]
        return subprocess.Popen(command, cwd=folder / "in", stdout=log, stderr=log, env=environment, preexec_fn=prepare)


def stopped_by(number: int) -> Callable[[Verb, Path], int]:
    """A signal as soon as something is written."""

    def fault(verb: Verb, folder: Path) -> int:
        process, began = start(verb.words, folder), time.monotonic()
        while process.poll() is None and time.monotonic() - began < LIMIT_S:
            if any((folder / "in").glob(verb.begun)):
                process.send_signal(number)
                break
            time.sleep(0.02)
        return process.wait(LIMIT_S)

    return fault


def full_disk(verb: Verb, folder: Path) -> int:
    """No file may become larger than 1 kB."""
    return start(verb.words, folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))).wait(LIMIT_S)


def no_folder(verb: Verb, folder: Path) -> int:
    """The folder of the output is a file."""
    (folder / "in" / "out").write_text("")
    code = start(verb.words, folder).wait(LIMIT_S)
    (folder / "in" / "out").unlink()
    return code


def deleted_folder(verb: Verb, folder: Path) -> int:
    """The working folder is removed before the command starts."""
    gone = folder / "gone"
    gone.mkdir()
    words = shlex.join([sys.executable, "-m", "unproject", *verb.words])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    line = f"rmdir ../gone; exec {words}"
    with open(folder / "log", "ab") as log:
        return subprocess.run(
            ["sh", "-c", line], cwd=gone, stdout=log, stderr=log, env=environment, timeout=LIMIT_S
        ).returncode


def two_writers(verb: Verb, folder: Path) -> int:
    """A second process does the same at the same time."""
    first, second = (start(verb.words, folder) for _ in range(2))
    return max(first.wait(LIMIT_S), second.wait(LIMIT_S))


FAULTS: dict[str, Callable[[Verb, Path], int]] = {
    "kill -9": stopped_by(signal.SIGKILL),
    "SIGTERM": stopped_by(signal.SIGTERM),
    "Ctrl-C": stopped_by(signal.SIGINT),
    "full disk": full_disk,
    "no folder": no_folder,
    "deleted folder": deleted_folder,
    "two writers": two_writers,
}


def inputs(folder: Path) -> None:
    """Four pictures and two prompts."""
    rng = np.random.default_rng(0)
    for i in range(4):
        save_image(folder / "photos" / f"p{i}.png", rng.random((SIDE, SIDE + 8, 3)).astype(np.float32))
    write_text(folder / "prompts.txt", "a red chair\na blue dog\n")


def lost(verb: Verb, fault: Callable[[Verb, Path], int], folder: Path) -> tuple[int, int, list[str]]:
    """(exit code under the fault, exit code of the same command afterwards, what is wrong in the end)."""
    inputs(folder / "in")
    code = fault(verb, folder)
    finished = {
        path: path.stat().st_mtime_ns for path in (folder / "in" / "out").glob("*") if path.suffix in (".npz", ".glb")
    }
    again = start(verb.words, folder).wait(LIMIT_S)
    wrong = [f"{name} is missing" for name in verb.files if not (folder / "in" / name).is_file()]
    left = [path.name for path in (folder / "in").rglob("*") if path.name.startswith(".") and code != -signal.SIGKILL]
    wrong += [f"{name} was left behind" for name in left]
    wrong += [f"{path.name} was made again" for path, at in finished.items() if path.stat().st_mtime_ns != at]
    if b"Traceback" in (folder / "log").read_bytes():
        wrong.append("a traceback was shown")
    if again not in (0, 2) or (again == 2 and wrong):  # 2: it is there already
        wrong.append(f"the same command ended with {again}")
    return code, again, wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; the exit code is 1 when something was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the table there too")
    parser.add_argument("--only", nargs="*", default=[], help="words of the rows to run")
    options = parser.parse_args(arguments)
    rows = ["| command | fault | exit code | the same again | lost |", "|---|---|---|---|---|"]
    worst = 0
    for name, verb in VERBS.items():
        for title, fault in FAULTS.items():
            if not all(word in f"{name} {title}" for word in options.only):
                continue
            folder = Path(tempfile.mkdtemp(prefix="unproject-faults-"))
            code, again, wrong = lost(verb, fault, folder)
            rows.append(f"| `{name}` | {title} | {code} | {again} | {'; '.join(wrong) or 'nothing'} |")
            print(rows[-1], flush=True)
            worst |= bool(wrong)
            if not wrong:
                shutil.rmtree(folder)
    if options.out is not None:
        write_text(options.out, "\n".join(rows) + "\n")
    return worst


if __name__ == "__main__":
    sys.exit(main())
