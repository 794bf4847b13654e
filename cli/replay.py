"""`--config FILE`: a run again, from its run.json or from what --print-config printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..utils.configs import load_config, read_yaml
from ..utils.errors import InputError
from .common import HOW_TO_TELL, Command


def replayed(words: Sequence[str], commands: Sequence[type[Command]]) -> tuple[Command | None, list[str]]:
    """(the command that --config FILE names, the other words); (None, words) without --config.

    A run.json holds the plan that was carried out, also what its options left open: that is drawn again, whatever the
    defaults have become. Raises InputError for files that say nothing of a command, or something unknown about it.
    """
    rest = list(words)
    at = next((i for i, word in enumerate(rest) if word == "--config" or word.startswith("--config=")), None)
    if at is None or (rest[0] == "train" and at > 1 and rest[at - 1] == "--set"):
        return None, rest
    word = rest.pop(at)
    name = word.partition("=")[2] if "=" in word else rest.pop(at) if at < len(rest) else ""
    if not name:
        raise InputError("--config needs a file: a run.json, or what --print-config printed")
    told = _read(Path(name))
    by_name = {command.name: command for command in commands}
    if str(told["command"]) not in by_name:
        raise InputError(f"--config {name}: command {str(told['command'])[:80]!r} is none of {', '.join(by_name)}")
    if rest and not rest[0].startswith("-") and rest[0] in by_name:
        if rest[0] != told["command"]:
            raise InputError(f"--config {name} is of {told['command']}, not of {rest[0]}")
        rest.pop(0)
    kind = by_name[told["command"]]
    try:
        return load_config(kind, _options(told, kind)), rest
    except InputError as error:
        raise InputError(f"--config {name}: {error}") from error


def _read(path: Path) -> Mapping[str, Any]:
    found = read_yaml(path)  # JSON is YAML
    if not isinstance(found, Mapping) or "command" not in found:
        raise InputError(f"--config {path} names no command; give a run.json, or what --print-config printed")
    return found


def _options(told: Mapping[str, Any], kind: type[Command]) -> dict[str, Any]:
    """The options of a record, its plan where they are open; how the run was to be told is left out."""
    is_record = "config" in told
    given = _mapping(told, "config") if is_record else {k: v for k, v in told.items() if k != "command"}
    names = {field.name for field in dataclasses.fields(kind)}
    plan = _mapping(_mapping(told, "notes"), "plan") if is_record else {}
    for name, value in plan.items():
        if name in names and given.get(name) is None:
            if isinstance(value, Mapping):
                raise InputError(f"the plan's {name} was an object in memory, which a file cannot bring back")
            given[name] = value
    return {name: value for name, value in given.items() if name not in HOW_TO_TELL}


def _mapping(told: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entries below a name, none where it is missing or empty."""
    found = told.get(name) or {}
    if not isinstance(found, Mapping):
        raise InputError(f"its {name!r} holds no keys and values")
    return dict(found)
