"""Documents name only commands and options that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from unproject.cli.commands import COMMANDS

OPTIONS = {c.name: {f"--{f.name.replace('_', '-')}" for f in fields(c)} | {"--help"} for c in COMMANDS}
for command in COMMANDS:
    OPTIONS[command.name] |= {
        name for f in fields(command) for name in re.findall(r"--[a-z][\w-]*", str(f.type))
    }  # aliases
OPTIONS["edit"] |= {"--target"}
WITHOUT = {"--version", "--config", "--help"}  # of no command
LINE = re.compile(r"\bunproject ([a-z][a-z0-9-]*[a-z0-9])((?:(?!\bunproject |\||`|#).)*)")


def named(text: str) -> Iterator[tuple[str, set[str]]]:
    """(command, its options) of every command line in a document; lines that go on after a backslash are joined."""
    for line in text.replace("\\\n", " ").splitlines():
        for command, rest in LINE.findall(line):
            yield command, set(re.findall(r"(?<![\w-])--[a-z][\w-]*", rest))


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md", "docs"])
def test_documents_name_what_exists(root: Path, path: str) -> None:
    files = sorted((root / path).rglob("*.md")) if (root / path).is_dir() else [root / path]
    found = 0
    for file in files:
        for command, options in named(file.read_text(encoding="utf-8")):
            if command not in OPTIONS and not options:
                continue  # the package's name in a sentence
            assert command in OPTIONS, f"{file.name}: unproject {command}"
            odd = options - OPTIONS[command] - WITHOUT
            assert not odd, f"{file.name}: unproject {command} has no {', '.join(sorted(odd))}"
            found += 1
    assert found > 0


def test_a_wrong_option_would_be_seen() -> None:
    assert list(named("`unproject depth a.jpg --fov 3` and\nunproject edit \\\n  --sauce x")) == [
        ("depth", {"--fov"}),
        ("edit", {"--sauce"}),
    ]
