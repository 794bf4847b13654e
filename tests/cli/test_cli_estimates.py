"""What a run will take is said before it, where it is far from usual; experiments end with their tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unproject.cli import estimates
from unproject.cli.estimates import in_time, of_drawing, of_meshes, of_pictures
from unproject.cli.shapes import TextToMesh
from unproject.utils.pictures import save_image

Run = Callable[..., tuple[int, str, str]]


def test_estimates_grow_with_the_work() -> None:
    one = of_drawing(1, None, 20, True, 16)
    assert of_drawing(3, None, 20, True, 16).seconds == pytest.approx(3 * one.seconds)
    assert of_drawing(1, None, 40, True, 16).seconds == pytest.approx(2 * one.seconds)
    assert of_drawing(1, None, 20, False, 16).seconds == pytest.approx(one.seconds / 2)
    large = of_drawing(1, 1024, 20, True, 16)
    assert large.seconds > 256 * one.seconds and large.memory_mb - 600 == pytest.approx(256 * (one.memory_mb - 600))
    assert of_drawing(100, None, 20, True, 4).memory_mb == of_drawing(4, None, 20, True, 16).memory_mb
    assert of_pictures([10**6, 10**6], 1, 1.0).seconds == pytest.approx(2 * of_pictures([10**6], 1, 1.0).seconds)
    assert of_pictures([48 * 10**6], 1, 0.4).memory_mb > 2000
    assert of_meshes(1, 2.0, 72, 256).seconds > of_meshes(1, 1.0, 72, 256).seconds > of_meshes(1, 1.0, 0, 256).seconds


@pytest.mark.parametrize(("method", "usual"), [("direct25", 512), ("optimise", 1024)])
def test_large_textures_are_counted(method: str, usual: int) -> None:
    def told(texture: int | None) -> tuple[float, float]:
        options = {"method": method, "texture": texture, "device": "cpu"}
        found = TextToMesh(prompt=("a red chair",), **options).estimate()  # type: ignore[arg-type]
        assert found is not None
        return found.seconds, found.memory_mb

    seconds, memory_mb = told(4096)
    assert told(None) == told(usual) and seconds > told(None)[0] + 60 and memory_mb > 5000
    assert told(256) < told(usual) < told(2048)


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (99, "99 s"), (600, "10 min"), (7200, "2.0 h")])
def test_times_in_words(seconds: float, text: str) -> None:
    assert in_time(seconds) == text


def test_a_dry_run_says_what_it_would_take(run: Run) -> None:
    code, out, err = run("text-to-image", "a red chair", "--size", "2048", "--dry-run", "--device", "cpu")
    assert code == 0 and "about 60 min on one core and 4.1 GB of memory" in out
    assert "would take" not in run("text-to-image", "a red chair", "--prior", "sd15", "--dry-run", "--device", "cpu")[1]
    save_image("a.png", np.zeros((9, 9, 3)))
    for command in ("depth", "normals", "pointcloud"):
        assert "would take about 1 s on one core" in run(command, "a.png", "--dry-run", "--device", "cpu")[1]
    assert "would take about" in run("text-to-mesh", "a red chair", "--dry-run", "--device", "cpu")[1]
    assert "usually about" in run("bench", "deepcache", "--dry-run")[1]
    assert err.startswith("warning: 2048 x 2048 px is far from the 64 px") and err.count("\n") == 1


def test_an_unusual_run_is_told_before_it_and_a_usual_one_is_not(
    run: Run, fake_images: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "would take" not in run("text-to-image", "a red chair", "--device", "cpu", "-o", "a.png")[2]
    err = run("text-to-image", "a red chair", "--device", "cpu", "--size", "1024", "-o", "b.png")[2]
    assert err.startswith("text-to-image: would take about") and "only" not in err
    monkeypatch.setattr(estimates, "free_mb", lambda: 100.0)
    err = run("text-to-image", "a red chair", "--device", "cpu", "-o", "c.png")[2]
    assert "text-to-image: only 0.1 GB of memory are free" in err


def test_a_queue_of_experiments_ends_with_their_tables(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from unproject.bench import queue, stale

    def done(commands: dict[str, list[str]], *_: object) -> dict[str, int]:
        record = {"title": "What it measures", "table": [{"method": "ours", "error": 0.25}], "quick": False}
        for name in commands:
            Path("r").mkdir(exist_ok=True)
            Path(f"r/{name}.json").write_text(json.dumps(record))
        return {**dict.fromkeys(commands, 0), "other": 1}

    monkeypatch.setattr(queue, "run_queue", done)
    monkeypatch.setattr(stale, "stale", lambda *_: {"deepcache": None})
    code, out, _ = run("bench", "deepcache", "--resume", "-o", "r")
    assert code == 1 and "method\terror\nours\t0.25\n" in out and "1 of 1 measured" in out
