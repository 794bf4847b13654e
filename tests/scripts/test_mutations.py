"""The list of deliberate breaks is current, and the runner tells red from green."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unproject.scripts import mutations
from unproject.scripts.mutations import Mutation, answer, listed, mutated, verdict
from unproject.utils.errors import InputError


@pytest.mark.parametrize("mutation", listed(), ids=lambda m: m.name)
def test_every_break_still_finds_its_line_and_its_tests(mutation: Mutation, root: Path) -> None:
    assert mutated((root / mutation.file).read_text(encoding="utf-8"), mutation)
    for test in mutation.tests:
        path, _, name = test.partition("::")
        assert (root / path).is_file()
        assert name.partition("[")[0] in (root / path).read_text(encoding="utf-8")


def test_names_are_unique() -> None:
    names = [mutation.name for mutation in listed()]
    assert len(set(names)) == len(names)


def test_a_line_that_stands_twice_or_never_is_refused() -> None:
    for text in ("a = 1\na = 1\n", "b = 1\n"):
        with pytest.raises(InputError, match="it must once"):
            mutated(text, Mutation("x", "x.py", "a = 1", "a = 2", ()))


@pytest.mark.parametrize(("replace", "said"), [("return a + b  # same", "GREEN"), ("return a - b", "red")])
def test_runner_tells_red_from_green(replace: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    for folder in ("weights", "docs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "code.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "tests" / "test_add.py").write_text(
        "import sys; sys.path.insert(0, '.')\nfrom code import add\n\ndef test_add():\n    assert add(1, 2) == 3\n"
    )
    mutation = Mutation("sum", "code.py", "return a + b", replace, ("tests/test_add.py",))
    assert verdict(mutation, tmp_path) == said
    assert (tmp_path / "code.py").read_text().endswith("return a + b\n")


def test_what_is_only_linked_is_never_written(tmp_path: Path) -> None:
    for folder in ("tests", "weights", "docs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "docs" / "page.md").write_text("a page\n")
    with pytest.raises(InputError, match="is only linked into the copy; break code"):
        verdict(Mutation("page", "docs/page.md", "a page", "no page", ("tests",)), tmp_path)
    assert (tmp_path / "docs" / "page.md").read_text() == "a page\n"


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import time; time.sleep(1.1)", "GREEN"),  # it waits for a processor, as on a busy machine
        ("while True: pass", "no answer in 1 s of a processor"),
        ("raise SystemExit(1)", "red"),
    ],
)
def test_seconds_are_those_of_a_processor(program: str, said: str, tmp_path: Path) -> None:
    assert answer(["-S", "-c", program], tmp_path, os.environ, seconds=1) == said


def test_what_waits_for_ever_ends_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutations, "WAITS", 0.2)
    program = "import time; time.sleep(60)"
    assert answer(["-S", "-c", program], tmp_path, os.environ, seconds=1) == "no answer in 0.2 s"


def test_seconds_have_to_be_some(capsys: pytest.CaptureFixture[str]) -> None:
    assert mutations.main(["--only", listed()[0].name, "--seconds", "0"]) == 2
    assert "--seconds 0" in capsys.readouterr().err
