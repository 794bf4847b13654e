"""Which results no longer rest on what is in the tree, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.files import read_json
from .fingerprints import Sources, fingerprints
from .registry import EXPERIMENTS

NAMED = 4  # files that are told by name


@dataclass(frozen=True)
class State:
    """What is different from when a result was measured, in words; nothing in a result that still holds."""

    missing: tuple[str, ...] = ()
    """there is no result to speak of"""
    weights: tuple[str, ...] = ()
    """it was measured with other weights"""
    code: tuple[str, ...] = ()
    """files that have changed since"""

    @property
    def reasons(self) -> list[str]:
        """Everything, the gravest first."""
        more = f" and {len(self.code) - NAMED} more" if len(self.code) > NAMED else ""
        code = [f"code changed: {', '.join(self.code[:NAMED])}{more}"] if self.code else []
        return [*self.missing, *self.weights, *code]


def state_of(name: str, results: Path, prior: str | None = None, sources: Sources | None = None) -> State:
    """The state of results/NAME.json of an experiment, for another prior than its own where one is named, or of a
    script."""
    path = results / f"{name}.json"
    if not path.is_file():
        return State(missing=("never measured",))
    record = read_json(path)
    if name not in EXPERIMENTS:  # a script's, which names the files it rests on, unless on other results alone
        code = (record.get("rests_on") or {}).get("code", {})
        return compared({"code": code}, {"weights": {}, "code": (sources or Sources()).digests(code)})
    own = EXPERIMENTS[name].prior
    wanted = prior or own
    if record.get("quick"):
        return State(missing=("a quick run",))
    if own and record.get("prior") != wanted:
        return State(missing=(f"measured on {record.get('prior')}",))
    return compared(record.get("rests_on") or {}, fingerprints(name, wanted, sources))


def compared(measured: Mapping[str, Any], now: Mapping[str, Any]) -> State:
    """What of `now` is not as it was measured; what is not known counts as changed."""
    before = measured.get("weights") or {}
    weights = [
        f"weights of {name} {'changed' if before.get(name) else 'unknown'}"
        for name, digest in now["weights"].items()
        if digest is None or before.get(name) != digest
    ]
    code = measured.get("code")
    if code is None:
        return State(weights=tuple(weights), code=("unknown",))
    paths = sorted({*code, *now["code"]})
    return State(weights=tuple(weights), code=tuple(p for p in paths if code.get(p) != now["code"].get(p)))


def stale(names: Sequence[str], results: Path, prior: str | None = None) -> dict[str, State]:
    """The results among `names` that have to be measured again."""
    sources = Sources()
    states = {name: state_of(name, results, prior, sources) for name in names}
    return {name: state for name, state in states.items() if state.reasons}
