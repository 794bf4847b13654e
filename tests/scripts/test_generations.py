"""The page of before and now: cells are found, aims are judged on the right side, what was before is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from unproject.bench.registry import EXPERIMENTS
from unproject.bench.stale import State
from unproject.scripts import generations
from unproject.scripts.generations import MEASURES, Measure, compared, number_in
from unproject.utils.files import read_json, write_json

SHARE = {"value": 0.96, "low": 0.94, "high": 0.97, "n": 1000}
ROOT = Path(generations.__file__).resolve().parents[1]


def results(folder: Path, noun: float, fid: float) -> Path:
    rows = [
        {"setting": "guidance sweep", "noun": {**SHARE, "value": 0.1}},
        {"setting": "test prompts", "noun": {**SHARE, "value": noun}, "toy_fid": {"fid": fid, "floor": 20.0}},
    ]
    folder.mkdir()
    write_json(folder / "embedded-prior.json", {"table": rows})
    return folder


def test_what_was_before_is_read_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "stale", lambda names, folder: {})
    former, now = results(tmp_path / "former", 0.9, 40), results(tmp_path / "now", 0.99, 21)
    first = compared(now, former, {})
    line = {row["measure"]: row for row in first}["drawings, test prompts: noun"]
    assert line["before"] == {**SHARE, "value": 0.9} and line["now"] == {**SHARE, "value": 0.99}
    assert line["aim"] == ">= 98 %" and line["reached"] is True
    assert compared(now, None, {"table": first}) == first
    results(tmp_path / "later", 0.97, 23)
    later = {row["measure"]: row for row in compared(tmp_path / "later", None, {"table": first})}
    assert later["drawings, test prompts: noun"]["before"] == line["before"]
    assert later["drawings, test prompts: noun"]["reached"] is False
    assert later["toy-FID of 1000 drawings, times its floor"]["reached"] is False  # 23 of 20 is above 1.1
    others = {"embedded-prior": State(weights=("weights of toybox changed",)), "prompts": State(code=("x.py",))}
    monkeypatch.setattr(generations, "stale", lambda names, folder: others)
    old = {row["measure"]: row for row in compared(now, None, {"table": first})}
    assert old["drawings, test prompts: noun"]["now"] is None is old["drawings, test prompts: noun"]["reached"]


def test_aims_are_judged_on_their_side() -> None:
    below, above = Measure("x", "y", {}, "z", 0.05, below=True), Measure("x", "y", {}, "z", 9, share=False)
    assert below.reached({"mean": 0.05}) is True and below.reached({"ratio": 0.051}) is False
    assert above.reached(9) is True and above.reached({"value": 8.9}) is False and above.reached(None) is None
    assert (below.aimed, above.aimed) == ("<= 5 %", ">= 9")
    assert number_in({"fid": 44.0, "floor": 40.0}) == pytest.approx(1.1)


def test_every_measure_names_an_experiment_and_the_file_is_up_to_date() -> None:
    assert all(measure.experiment in EXPERIMENTS for measure in MEASURES)
    folder = ROOT / "docs" / "results"
    kept = read_json(folder / "generations.json")
    assert compared(folder, None, kept) == kept["table"]
    assert sum(row["before"] is not None for row in kept["table"]) > len(MEASURES) / 2
