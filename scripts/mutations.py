"""Break the code on purpose and see a test go red: python -m unproject.scripts.mutations [--only WORDS] [--jobs N].

tests/mutations.yaml lists the breaks: a line of a file, what it becomes, and the tests that have to notice. Each is
made in a copy of the tree, never in the tree itself. Exit code 1 when a break goes unnoticed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..utils.configs import load_config
from ..utils.errors import InputError, UnprojectError

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "mutations.yaml"
NO_TESTS_FAILED, TESTS_FAILED = 0, 1  # exit codes of pytest
TIMEOUT_S = 300
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


def verdict(mutation: Mutation, root: Path = ROOT) -> str:
    """ "red" when a test noticed the break, else what happened instead."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "unproject"
        shutil.copytree(root, tree, ignore=NOT_COPIED, symlinks=True)
        for kept in ("weights", "docs"):
            (tree / kept).symlink_to(root / kept)
        broken = tree / mutation.file
        broken.write_text(mutated(broken.read_text(encoding="utf-8"), mutation), encoding="utf-8")
        quiet = ["-q", "-x", "-p", "no:cacheprovider", "-n", "0", "--no-header", "--tb=no"]
        environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", "pytest", *quiet, *mutation.tests]
        try:
            done = subprocess.run(
                command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return f"no answer in {TIMEOUT_S} s"
    if done.returncode == TESTS_FAILED:
        return "red"
    return "GREEN" if done.returncode == NO_TESTS_FAILED else f"pytest ended with {done.returncode}"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="mutations", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="breaks whose name holds this")
    parser.add_argument("--jobs", type=int, default=2, help="at once")
    options = parser.parse_args(arguments)
    try:
        chosen = [mutation for mutation in listed() if options.only in mutation.name]
        if not chosen:
            raise InputError(f"--only {options.only!r}: no such break in {LIST.name}")
        missed = 0
        with ThreadPoolExecutor(options.jobs) as pool:
            for mutation, said in zip(chosen, pool.map(verdict, chosen)):
                missed += said != "red"
                print(f"{said:6} {mutation.name} ({mutation.file})", flush=True)
    except UnprojectError as error:
        print(f"mutations: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{len(chosen) - missed} of {len(chosen)} breaks noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
