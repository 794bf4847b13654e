"""Break the code on purpose and see a test go red: python -m unproject.scripts.mutations [--only WORDS] [--jobs N].

tests/mutations.yaml lists the breaks: a line of a file, what it becomes, and the tests that have to notice. Each is
made in a copy of the tree, never in the tree itself. Its tests may take so many seconds of a processor (--seconds),
whatever else the machine does meanwhile. Exit code 1 when a break goes unnoticed.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..utils.configs import load_config
from ..utils.errors import InputError, UnprojectError

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "mutations.yaml"
NO_TESTS_FAILED, TESTS_FAILED = 0, 1  # exit codes of pytest
SECONDS = 300  # of a processor, for the tests of a break
WAITS = 10  # how much longer than that they may take where others have the processors
LIMITED = """
import os, resource, sys
seconds = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
os.execv(sys.argv[2], sys.argv[2:])
"""  # a program that limits itself and becomes another; what runs between fork and exec must not touch threads
NOT_COPIED = shutil.ignore_patterns(
    ".*", "__pycache__", "outputs", "runs", "data", "weights", "docs", "build", "dist", "*.egg-info", "node_modules"
)


@dataclass(frozen=True)
class Mutation:
    """One break."""

    name: str
    file: str
    """of the tree"""
    find: str
    """text that stands in the file once"""
    replace: str
    tests: tuple[str, ...]
    """files or node ids of tests, at least one of which has to fail"""


@dataclass(frozen=True)
class Mutations:
    """tests/mutations.yaml."""

    mutations: tuple[Mutation, ...]


def listed(path: Path = LIST) -> tuple[Mutation, ...]:
    """The breaks of the list."""
    return load_config(Mutations, path).mutations


def mutated(text: str, mutation: Mutation) -> str:
    """The file's text with the break. Raises InputError when the text to change does not stand there exactly once."""
    count = text.count(mutation.find)
    if count != 1 or mutation.find == mutation.replace:
        raise InputError(f"{mutation.name}: {mutation.find!r} stands {count} times in {mutation.file}; it must once")
    return text.replace(mutation.find, mutation.replace)


def verdict(mutation: Mutation, root: Path = ROOT, seconds: int = SECONDS) -> str:
    """ "red" when a test noticed the break within `seconds` of a processor, else what happened instead."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "unproject"
        shutil.copytree(root, tree, ignore=NOT_COPIED, symlinks=True)
        for kept in ("weights", "docs"):
            (tree / kept).symlink_to(root / kept)
        broken = tree / mutation.file
        if not broken.resolve().is_relative_to(tree.resolve()):
            raise InputError(f"{mutation.name}: {mutation.file} is only linked into the copy; break code instead")
        broken.write_text(mutated(broken.read_text(encoding="utf-8"), mutation), encoding="utf-8")
        quiet = ["-q", "-x", "-p", "no:cacheprovider", "-n", "0", "--no-header", "--tb=no"]
        environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return answer(["-m", "pytest", *quiet, *mutation.tests], tree, environment, seconds)


def answer(words: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: int = SECONDS) -> str:
    """What pytest, which these words after `python` run in a folder, says of the code there (`verdict`)."""
    command = [sys.executable, "-c", LIMITED, str(seconds), sys.executable, *words]
    longest = WAITS * seconds
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=longest, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {longest} s"
    if done.returncode == -signal.SIGXCPU:
        return f"no answer in {seconds} s of a processor"
    if done.returncode == TESTS_FAILED:
        return "red"
    return "GREEN" if done.returncode == NO_TESTS_FAILED else f"pytest ended with {done.returncode}"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="mutations", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="breaks whose name holds this")
    parser.add_argument("--jobs", type=int, default=2, help="at once")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of a processor for the tests of a break")
    options = parser.parse_args(arguments)
    try:
        chosen = [mutation for mutation in listed() if options.only in mutation.name]
        if not chosen:
            raise InputError(f"--only {options.only!r}: no such break in {LIST.name}")
        if options.seconds < 1:
            raise InputError(f"--seconds {options.seconds}: the tests of a break need 1 or more")
        missed, judge = 0, functools.partial(verdict, seconds=options.seconds)
        with ThreadPoolExecutor(options.jobs) as pool:
            for mutation, said in zip(chosen, pool.map(judge, chosen)):
                missed += said != "red"
                print(f"{said:6} {mutation.name} ({mutation.file})", flush=True)
    except UnprojectError as error:
        print(f"mutations: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{len(chosen) - missed} of {len(chosen)} breaks noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
