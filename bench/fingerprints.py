"""What a result rests on: digests of the weights it was measured with and of the code of its method.

A digest of weights covers the tensors and whatever else the folder holds, JSON by its values. A digest of code covers
the syntax of a file without comments and docstrings, so that formatting and prose change nothing. The code of an
experiment is its module, the modules of bench/ which that imports, the files that define the names they import, and
the files and folders which the registry names. The frame that runs experiments, and utils/, are left out.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..utils.files import weights_root
from .experiment import Experiment
from .registry import experiment

ROOT = Path(__file__).resolve().parents[1]
# modules of bench/ that measure nothing
FRAME = (
    "runner",
    "experiment",
    "registry",
    "sampling_registry",
    "fingerprints",
    "stale",
    "queue",
    "tables",
)  # modules of bench/ that measure nothing
NOTES = ("versions", "validation", "confidence")  # of the JSON beside weights: how they were made, not what they are


@dataclass(frozen=True)
class Parsed:
    """What is asked of a file."""

    digest: str
    imports: tuple[tuple[int, str, str], ...]
    """level, module and name of every relative import, wherever it stands"""
    names: frozenset[str]
    """functions, classes and values that it defines at its top"""


@cache
def parsed(source: str) -> Parsed:
    """A file that was read; each text once."""
    tree = ast.parse(source)
    digest = hashlib.sha256(json.dumps(_syntax(tree)).encode()).hexdigest()[:16]
    relative = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level)
    imports = ((node.level, node.module or "", alias.name) for node in relative for alias in node.names)
    return Parsed(digest, tuple(imports), frozenset(_definitions(tree)))


def _definitions(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def _syntax(node: Any) -> Any:
    """A syntax tree as lists: kinds of nodes and what they hold, empty fields and strings that stand alone left out."""
    if isinstance(node, ast.AST):
        fields = ((name, _syntax(value)) for name, value in ast.iter_fields(node) if name not in ("ctx", "kind"))
        return [type(node).__name__, *([name, value] for name, value in fields if value not in (None, []))]
    if isinstance(node, list):
        return [_syntax(item) for item in node if not _prose(item)]
    return node if isinstance(node, (str, bool, int, type(None))) else repr(node)


def _prose(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


class Sources:
    """The files of the package below `root`, each read once."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self._files: dict[Path, Parsed] = {}

    def code_of(self, made: Experiment) -> dict[str, str]:
        """The digest of every file that the method of an experiment is made of, by path inside the package."""
        files = {*self._reached(made.module), *self._declared(made)}
        return {path.relative_to(self.root).as_posix(): self._file(path).digest for path in sorted(files)}

    def digests(self, names: Iterable[str]) -> dict[str, str]:
        """The digests of files by path inside the package; those that are gone are left out."""
        return {name: self._file(self.root / name).digest for name in sorted(names) if (self.root / name).is_file()}

    def _file(self, path: Path) -> Parsed:
        if path not in self._files:
            self._files[path] = parsed(path.read_text(encoding="utf-8"))
        return self._files[path]

    def _declared(self, made: Experiment) -> Iterator[Path]:
        for name in made.method:
            path = self.root / name
            yield from path.glob("*.py") if path.is_dir() else [path]

    def _reached(self, module: str) -> set[Path]:
        """The module of bench/, those it imports there, and the files that define what all of them import."""
        todo, seen, found = [self.root / "bench" / f"{module}.py"], set[Path](), set[Path]()
        while todo:
            path = todo.pop()
            if path not in seen:
                seen.add(path)
                reached = set(self._imported(path))
                todo += [file for file in reached if file.parent == self.root / "bench"]
                found |= reached
        return seen | found

    def _imported(self, path: Path) -> Iterator[Path]:
        """The files of the package that define the names a file imports from it."""
        for level, module, name in self._file(path).imports:
            base = path.parents[level - 1].joinpath(*module.split("."))
            for defined in self._defining(base, name) if base != self.root else ():
                inside = defined.relative_to(self.root).parts
                if inside[0] != "utils" and not (inside[0] == "bench" and defined.stem in FRAME):
                    yield defined

    def _defining(self, base: Path, name: str) -> list[Path]:
        """Where a name imported from a module or package is defined: a module, or files of the package."""
        for module in (base.with_suffix(".py"), base / f"{name}.py"):
            if module.is_file():
                return [module]
        files = [path for path in sorted(base.rglob("*.py")) if name in self._file(path).names]
        return files or [base / "__init__.py"]


def fingerprints(name: str, prior: str | None = None, sources: Sources | None = None) -> dict[str, Any]:
    """{"weights": {folder: digest}, "code": {file: digest}} of an experiment on a prior (None: its own), as they are.

    A digest is None for weights that are not on this machine as a folder.
    """
    made = experiment(name)
    weights = {folder: weights_digest(folder) for folder in made.rests_on(prior or made.prior)}
    return {"weights": weights, "code": (sources or Sources()).code_of(made)}


def weights_digest(name: str) -> str | None:
    """16 hex digits of the weights in a folder or under a name below `weights_root`; None where there are none."""
    folder = next((path for path in (weights_root() / name, Path(name)) if path.is_dir()), None)
    if folder is None:
        return None
    made = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        held = _values(path) if path.suffix == ".json" else path.read_bytes()
        made.update(f"{path.relative_to(folder).as_posix()} {len(held)}\n".encode() + held)
    return made.hexdigest()[:16]


def _values(path: Path) -> bytes:
    """The values of a JSON file without notes, whatever its spacing and order."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(found, dict):
        found = {key: value for key, value in found.items() if key not in NOTES}
    return json.dumps(found, sort_keys=True).encode()
