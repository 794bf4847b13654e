from __future__ import annotations

import io
import sys
import time

import pytest

from unproject.utils import progress as module
from unproject.utils.progress import PlainLines, Progress, progress, under_way


@pytest.fixture
def loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNPROJECT_QUIET", raising=False)


def test_silent_when_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("UNPROJECT_QUIET", "1")
    assert list(progress(range(3), label="x")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_short_loops_end_with_one_line_on_standard_error(loud: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abc"), label="letters")) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("letters: 3 in ") and err.count("\n") == 1


def test_long_loops_print_every_tenth(
    loud: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "PlainLines", lambda: PlainLines(interval_s=0))
    with Progress(1000, "steps") as bar:
        for i in range(1000):
            bar.advance(1, loss=i / 3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("steps: 100/1000 in") and "left" in lines[0] and lines[0].endswith("loss=33")
    assert lines[-1].startswith("steps: 1000/1000") and "left" not in lines[-1]


def test_exceptions_pass_and_the_display_ends(loud: None, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress(5, "work")
    with pytest.raises(KeyError), bar:
        bar.advance()
        raise KeyError("boom")
    bar.close()
    assert capsys.readouterr().err.startswith("work: 1/5")


def test_broken_display_never_stops_the_work(loud: None, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(module, "PlainLines", lambda: PlainLines(interval_s=0))
    with Progress(3, "x") as bar:
        monkeypatch.setattr(sys, "stderr", closed)
        for _ in range(3):
            bar.advance()
    assert bar.done == 3


def test_bar_on_a_terminal_may_be_nested(loud: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    done = [(a, b) for a in progress(range(2), label="outer") for b in progress(range(2), label="inner [x]")]
    assert len(done) == 4 and "outer" in screen.getvalue()


def test_long_work_says_how_long_it_has_taken(monkeypatch, capsys):
    monkeypatch.delenv("UNPROJECT_QUIET", raising=False)
    with under_way("regions", 250.4, interval_s=0.01):
        time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 2 and set(lines) == {"regions: under way for 0 s of about 250 s"}
    with under_way("regions", interval_s=0.01):
        time.sleep(0.05)
    assert capsys.readouterr().err.splitlines()[0] == "regions: under way for 0 s"
    monkeypatch.setenv("UNPROJECT_QUIET", "1")
    with under_way("regions", interval_s=0.001):
        time.sleep(0.02)
    assert capsys.readouterr().err == ""


def test_nothing_is_told_while_something_else_is_and_the_innermost_work_speaks(monkeypatch, capsys):
    monkeypatch.delenv("UNPROJECT_QUIET", raising=False)
    with under_way("command", interval_s=0.02), under_way("stage", interval_s=0.02):
        time.sleep(0.15)
    lines = capsys.readouterr().err.splitlines()
    assert lines and {line.split(":")[0] for line in lines} == {"stage"}
    with under_way("command", interval_s=0.4), Progress(None, "loop") as bar:
        bar._display = PlainLines(interval_s=0.0)
        bar._display.start(None, "loop")
        for _ in range(8):
            bar._display.stop(1, "")
            time.sleep(0.1)
    assert "command" not in capsys.readouterr().err
