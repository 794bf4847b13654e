"""Rows of results as tables for people: on pages and on the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def cell(value: Any) -> str:
    """A value as table text: proportions and ratios with their interval, spreads as mean and deviation, distances
    beside their floor."""
    if isinstance(value, Mapping):
        if value.keys() == {"value"}:
            return f"{value['value']:.4g}"
        if {"value", "low", "high"} <= value.keys():
            return f"{100 * value['value']:.1f} % ({100 * value['low']:.0f}-{100 * value['high']:.0f}, n={value['n']})"
        if {"ratio", "low", "high"} <= value.keys():
            return f"{value['ratio']:.3f} ({value['low']:.3f}-{value['high']:.3f})"
        if {"kid", "low", "high"} <= value.keys():
            return f"{value['kid']:.3g} ({value['low']:.2g} to {value['high']:.2g})"
        if {"fid", "floor"} <= value.keys():
            return f"{value['fid']:.4g} (floor {value['floor']:.3g})"
        if {"mean", "std"} <= value.keys():
            return f"{value['mean']:.4g} ± {value['std']:.2g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def on_screen(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]], dict[str, str]]:
    """Headings, cells, and what is the same in all of several rows: that is said once. Lists are left out."""
    names = [n for n in dict.fromkeys(key for row in rows for key in row) if not _long(rows, n)]
    texts = {name: [cell(row.get(name)) for row in rows] for name in names}
    same = {name: found[0] for name, found in texts.items() if len(rows) > 1 and len(set(found)) == 1}
    shown = [name for name in names if name not in same]
    cells = [[texts[name][number] for name in shown] for number in range(len(rows))]
    return [name.replace("_", " ") for name in shown], cells, {k.replace("_", " "): v for k, v in same.items()}


def _long(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(isinstance(row.get(name), (list, tuple)) for row in rows)
