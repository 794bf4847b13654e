"""Results that are refused, and the queue that measures what is stale."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from unproject.bench import queue
from unproject.bench.queue import command, free_mb, needed_mb, run_queue
from unproject.bench.records import refuse_vacuous
from unproject.bench.registry import EXPERIMENTS
from unproject.utils.errors import UnprojectError
from unproject.utils.files import write_json

MADE = EXPERIMENTS["regions"]


def record(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"experiment": "regions", "quick": False, "table": list(rows), **more}


def row(setting: str, value: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"setting": setting, "accuracy": {"value": value, "low": 0.0, "high": 1.0, "n": 4}, **more}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (record(), "its table is empty"),
        (record(row("ratio 0.5"), row("ratio 0.25", 0.6)), "no baseline, a row with setting 'plain'"),
        (record(row("plain"), row("ratio 0.5", math.nan)), r"no number at table\[1\]\.accuracy\.value"),
        (record(row("plain"), row("ratio 0.5", 0.6), speed={"a": math.inf}), r"no number at speed\.a"),
        (record(row("plain"), row("ratio 0.5")), "the same in all 2 rows"),
        (record(row("plain", seconds=1.0), row("ratio 0.5", seconds=2.0)), "the same in all 2 rows"),
    ],
)
def test_a_result_that_says_nothing_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UnprojectError, match=message):
        refuse_vacuous(wrong, MADE)


def test_results_that_say_something_are_written() -> None:
    refuse_vacuous(record(row("plain"), row("ratio 0.5", 0.75)), MADE)
    refuse_vacuous(record(row("plain")), MADE)
    refuse_vacuous(record(row("plain"), row("ratio 0.5"), quick=True), MADE)
    distance = {"toy_fid": {"fid": 50.0, "floor": 40.0}}
    refuse_vacuous(record(row("plain"), row("ratio 0.5", **distance), row("k", toy_fid={"fid": 5.0})), MADE)


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_queue_goes_on_after_a_failure_and_keeps_to_its_jobs(tmp_path: Path) -> None:
    code = f"""
import os, time
from pathlib import Path
busy = Path({str(tmp_path)!r}) / f'busy-{{os.getpid()}}'
busy.touch()
print(len(list(busy.parent.glob('busy-*'))), file=open(busy.with_name(f'seen-{{os.getpid()}}'), 'w'))
time.sleep(0.1)
busy.unlink()
"""
    commands = {"a": script(code), "b": script("raise SystemExit(3)"), "c": script(code), "d": script(code)}
    codes = run_queue(commands, 2, dict.fromkeys(commands, 0.0), interval_s=0.01)
    assert codes == {"a": 0, "b": 3, "c": 0, "d": 0} and list(codes) != []
    assert max(int(path.read_text()) for path in tmp_path.glob("seen-*")) <= 2


def test_memory_decides_whether_a_second_one_begins(tmp_path: Path) -> None:
    running: list[int] = []

    def free() -> float:
        running.append(1)
        return 100.0

    commands = {name: script("import time; time.sleep(0.05)") for name in "ab"}
    began = time.monotonic()
    assert run_queue(commands, 2, {"a": 1e9, "b": 101.0}, free, 0.01) == {"a": 0, "b": 0}
    assert (
        running and time.monotonic() - began > 0.1
    )  # one after the other, though the first asks for more than there is


def test_a_stopped_queue_stops_what_it_started(tmp_path: Path) -> None:
    started = tmp_path / "pid"
    child = f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"""
import sys; sys.path[:0] = {sys.path!r}
from unproject.bench.queue import run_queue
run_queue({{"a": [sys.executable, "-c", {child!r}]}}, 1, {{"a": 0}}, interval_s=0.01)
"""
    parent = subprocess.Popen(script(code), stderr=subprocess.DEVNULL)
    while not (started.is_file() and started.read_text()):
        time.sleep(0.01)
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(20) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def test_the_command_of_an_experiment_and_what_it_needs(tmp_path: Path) -> None:
    words = command("regions", tmp_path, 2, "folder", 7)
    assert words[1:5] == ["-m", "unproject", "bench", "regions"]
    assert words[5:] == ["--out", str(tmp_path), "--threads", "2", "--seed", "7", "--prior", "folder"]
    assert "--prior" not in command("regions", tmp_path)
    assert needed_mb(tmp_path / "regions.json") == queue.UNKNOWN_MB
    write_json(tmp_path / "regions.json", {"peak_memory_mb": 1000})
    assert needed_mb(tmp_path / "regions.json") == pytest.approx(1200)
    assert free_mb() > 0
