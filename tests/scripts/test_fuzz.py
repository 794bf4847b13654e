"""The fuzz run: a short one over every kind, and that it notices what it looks for."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest

from unproject.scripts.fuzz import __main__ as fuzz
from unproject.scripts.fuzz.cases import Case, Kind, OddError, Sample, Tally
from unproject.scripts.fuzz.judge import judge
from unproject.scripts.fuzz.kinds import KINDS
from unproject.scripts.fuzz.making import cases
from unproject.scripts.fuzz.minimise import smaller
from unproject.scripts.fuzz.mutations import mutated
from unproject.utils.errors import InputError

SLOW = {"options": 8, "prompt": 20, "config": 40, "gltf": 60}  # cases of a kind that takes longer than others
EACH = 90


@pytest.mark.parametrize("name", [name for name in KINDS if name != "inspect"])
def test_nothing_falls_over(name: str, tmp_path: Path) -> None:
    """Valid samples are read, and changed ones are read or refused with one clear message."""
    kind, count = KINDS[name], SLOW.get(name, EACH)
    for sample in kind.samples() if name != "options" else kind.samples()[:4]:
        assert judge(kind, Case(name, sample.name, sample.data), tmp_path) == ("read", None), sample.name
    chosen = [*cases(kind, 77, 0, count)]
    if kind.grammar is not None:
        chosen += cases(kind, 77, 2, count // 3)
    for i in range(4 if kind.planted else 0):
        made = kind.planted and kind.planted(Random(i), kind.samples(), f"zq{i}word")
        chosen += [made] if made else []
    for case in chosen:
        outcome, wrong = judge(kind, case, tmp_path)
        assert wrong is None, (outcome, wrong, case.made, case.data[:500])
    assert kind.planted is None or any(case.unknown for case in chosen)


def kind_of(read: Callable[[Path], None]) -> Kind:
    return Kind("made", read, lambda: [Sample("a.txt", b"1 2 3")], 1.0, text=True)


def wrong_of(read: Callable[[Path], None], folder: Path, **about: object) -> tuple[str, str] | None:
    found = judge(kind_of(read), Case("made", "a.txt", b"abc", **about), folder)[1]  # type: ignore[arg-type]
    return None if found is None else (found.sort, found.told)


def test_the_judge_tells_faults_apart(tmp_path: Path) -> None:
    def refuse(text: str) -> Callable[[Path], None]:
        def read(path: Path) -> None:
            raise InputError(text.replace("FILE", str(path)))

        return read

    def noisy(path: Path) -> None:
        np.float32(1e30) * np.float32(1e30)

    def named(path: Path) -> None:
        warnings.warn("not kept: zqabc", stacklevel=1)

    def odd(path: Path) -> None:
        raise OddError("no faces")

    def crash(path: Path) -> None:
        raise KeyError("x")

    def greedy(path: Path) -> None:
        raise MemoryError

    assert wrong_of(lambda path: None, tmp_path) is None
    assert wrong_of(refuse("FILE has no end"), tmp_path) is None
    assert wrong_of(refuse("it has no end"), tmp_path) == ("unclear", "the file is not named: it has no end")
    assert (wrong_of(refuse("FILE: 'NoneType' object"), tmp_path) or "")[0] == "unclear"
    assert (wrong_of(refuse("FILE" + "x" * 2000), tmp_path) or "")[0] == "unclear"
    assert wrong_of(crash, tmp_path) == ("crash", "KeyError: 'x'")
    assert (wrong_of(greedy, tmp_path) or "")[0] == "memory"
    assert wrong_of(odd, tmp_path) == ("odd", "no faces")
    assert (wrong_of(noisy, tmp_path) or "")[0] == "noise"
    assert wrong_of(named, tmp_path, unknown="zqabc") is None
    assert (wrong_of(named, tmp_path, unknown="zqabc", refuse=True) or "")[0] == "swallowed"
    assert (wrong_of(lambda path: None, tmp_path, unknown="zqabc") or "")[0] == "swallowed"


def test_a_process_that_hangs_or_dies_costs_one_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> None:
        data = path.read_bytes()
        while data.startswith(b"9"):
            pass
        if data.startswith(b"8"):
            os._exit(7)
        if data.startswith(b"7"):
            raise ValueError("seven")
        if data.startswith(b"6"):
            bytearray(3 << 30)

    monkeypatch.setattr(fuzz, "LONGEST_S", 0.2)
    monkeypatch.setattr(fuzz, "MEMORY", 1 << 28)
    listed = [Case("made", "a.txt", data) for data in (b"1", b"9", b"2", b"8", b"7xx", b"3", b"6", b"4")]
    monkeypatch.setattr(fuzz, "cases", lambda *_: listed)
    run = fuzz.Run(0, tmp_path / "out")
    run.go([kind_of(read)], len(listed))
    assert {sort for _, sort, _ in run.findings} == {"hang", "killed", "crash", "memory"}
    report = run.report()
    assert report["table"][0]["cases"] == 6 and report["table"][0]["wrong"] == 4  # two never came to their end
    assert json.loads((tmp_path / "out" / "fuzz.json").read_text())["table"] == report["table"]
    stored = {path.read_bytes() for path in (tmp_path / "out" / "failures").glob("*/a.txt")}
    assert stored == {b"9", b"8", b"7", b"6"}  # the crash is smaller


def test_a_case_follows_from_seed_and_number(tmp_path: Path) -> None:
    kind = KINDS["obj"]
    first, again = list(cases(kind, 5, 1, 30)), list(cases(kind, 5, 1, 60))[:30]
    assert first == again and first != list(cases(kind, 6, 1, 30))
    assert [c.data for c in cases(kind, 5, 2, 20)] == [c.data for c in cases(kind, 5, 2, 20)]
    assert mutated(Random(1), kind, kind.samples()) == mutated(Random(1), kind, kind.samples())


def test_a_failure_is_made_smaller_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = Case("made", "a.txt", b"a" * 50 + b"X" + b"b" * 70)
    assert smaller(case, lambda some: b"X" in some.data).data == b"X"
    words = Case("options", "words.json", json.dumps(["a", "--x", "b"]).encode())
    assert json.loads(smaller(words, lambda some: "--x" in json.loads(some.data)).data) == ["--x"]

    def read(path: Path) -> None:
        assert path.read_bytes() != b"X", "an X"

    monkeypatch.setitem(fuzz.KINDS, "made", kind_of(read))
    run = fuzz.Run(0, tmp_path)
    run._keep(Case("made", "a.txt", b"X"), fuzz.Wrong("crash", "an X", "here"), 0, 3)
    stored = next((tmp_path / "failures").glob("*/a.txt"))
    assert fuzz.main(["--again", str(stored)]) == 1 and "AssertionError: an X" in capsys.readouterr().out
    stored.write_bytes(b"Y")
    assert fuzz.main(["--again", str(stored)]) == 0


def test_tallies_add_up() -> None:
    whole = Tally(2, 1, 1, 0, 0.5, 0.3, {"crash": 1})
    whole.add(Tally(3, 0, 3, 1, 0.25, 0.1, {"crash": 2, "hang": 1}))
    assert whole == Tally(5, 1, 4, 1, 0.75, 0.3, {"crash": 3, "hang": 1})
    with pytest.raises(InputError, match="is none of picture, gltf"):
        fuzz.main(["--only", "sculptures"])
