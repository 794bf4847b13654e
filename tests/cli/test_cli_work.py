"""Training and experiments from the command line, and the records of runs that fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unproject.bench import queue, runner
from unproject.bench.fingerprints import fingerprints
from unproject.bench.registry import EXPERIMENTS
from unproject.cli.image import MapCommand
from unproject.cli.maps import MAP_COMMANDS
from unproject.scripts import train
from unproject.utils.files import write_json
from unproject.utils.pictures import save_image

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, in_tmp: Path) -> list[dict[str, Any]]:
    """A recipe r.yaml with the seed 3 of an objective that trains nothing; the values it was built with."""
    asked: list[dict[str, Any]] = []

    def make(values: dict[str, Any]) -> SimpleNamespace:
        asked.append(values)
        return SimpleNamespace(trainer=SimpleNamespace(seed=values["trainer"]["seed"]))

    monkeypatch.setattr(train, "RECIPES", {"nothing": make})
    monkeypatch.setattr(train, "run", lambda *_: None)
    Path("r.yaml").write_text("objective: nothing\ntrainer: {steps: 9, seed: 3}\n")
    return asked


@pytest.mark.parametrize(
    "words", [("--set", "trainer.steps=1", "--set", "val=[b]"), ("--set", "trainer.steps=1", "val=[b]")]
)
def test_every_override_counts(run: Run, trained: list[dict[str, Any]], words: tuple[str, ...]) -> None:
    assert run("train", "r.yaml", *words)[0] == 0
    assert trained == [{"trainer": {"steps": 1, "seed": 3}, "val": ["b"]}]


@pytest.mark.parametrize(("words", "seed"), [((), 3), (("--seed", "7"), 7), (("--set", "trainer.seed=5"), 5)])
def test_the_recorded_seed_is_the_one_that_trains(
    run: Run, trained: list[dict[str, Any]], words: tuple[str, ...], seed: int
) -> None:
    assert run("train", "r.yaml", *words, "-o", "out")[0] == 0
    assert trained[0]["trainer"]["seed"] == seed
    assert json.loads(Path("out/train.run.json").read_text())["seed"] == seed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "r.yaml", "--set", "trainer.steps"), "--set 'trainer.steps' must look like KEY=VALUE"),
        (("train", "r.yaml", "--seed", "1", "--set", "trainer.seed=2"), "give --seed 1 or --set trainer.seed=2"),
        (("train", "r.yaml", "--seed", "-1"), "--seed must be 0 or more, got -1"),
        (("bench", "judge", "--device", "cuda"), "--device cuda: experiments run on the cpu"),
        (("bench", "jugde"), "unknown experiment 'jugde'; have embedded-prior"),
        (("bench", "judge", "--all"), "give names of experiments or --all, not both"),
        (("bench", "--all", "--stale", "--resume"), "give --stale to see what is stale or --resume to run it"),
        (("bench", "--stale"), "--stale needs names of experiments, or --all"),
        (("bench", "judge", "--resume", "--quick"), "--quick measures nothing that could be stale"),
        (("bench", "judge", "--jobs", "2"), "--jobs 2: 1 or more, and more than one with --resume"),
        (("bench", "judge", "--threads", "0"), "--threads must be 1 or more, got 0"),
    ],
)
def test_requests_that_cannot_be_met(
    run: Run, trained: list[dict[str, Any]], words: tuple[str, ...], message: str
) -> None:
    code, _, err = run(*words)
    assert (code, message in err, trained) == (2, True, [])


def test_the_list_of_experiments_leaves_no_file(run: Run, in_tmp: Path) -> None:
    code, out, _ = run("bench")
    assert (code, "judge" in out, list(in_tmp.iterdir())) == (0, True, [])
    code, out, _ = run("bench", "--json")
    assert json.loads(out) == {"command": "bench", "experiments": list(EXPERIMENTS)}


def test_an_experiment_shows_its_table_and_leaves_its_record(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def measured(*words: Any) -> dict[str, Any]:
        asked.append(words)
        rows = [
            {"split": "test", "question": q, "n": 4, "right": v, "by": [1]} for q, v in (("noun", 0.5), ("view", 1.0))
        ]
        return {"title": "The judge's own accuracy", "table": rows}

    monkeypatch.setattr(runner, "run_experiment", measured)
    code, out, _ = run("bench", "judge", "-o", "out", "--threads", "2", "--seed", "3")
    assert code == 0 and asked == [("judge", Path("out"), None, 3, False, 2)]
    assert out.splitlines()[:3] == ["question\tright", "noun\t0.5", "view\t1"]
    assert json.loads(Path("out/bench.run.json").read_text())["outputs"] == ["out/judge.json"]
    run("bench", "judge", "-o", "out")
    assert asked[1] == ("judge", Path("out"), None, 0, False, 1)


def test_what_is_stale_is_told_and_nothing_is_run(run: Run, in_tmp: Path) -> None:
    code, out, _ = run("bench", "judge", "regions", "--stale", "-o", "out")
    assert (code, out.splitlines()[0]) == (0, "experiment\twhy it is stale")
    assert out.splitlines()[1:] == ["judge\tnever measured", "regions\tnever measured"]
    assert list(in_tmp.iterdir()) == []


def test_a_queue_that_is_called_again_runs_what_is_left(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One experiment ends, the next one is killed: the third call has only that one and the last to run."""
    asked: list[tuple[list[str], int]] = []

    def killed(commands: dict[str, list[str]], jobs: int, needs: dict[str, float]) -> dict[str, int]:
        asked.append((list(commands), jobs))
        first = next(iter(commands))
        record = {"prior": EXPERIMENTS[first].prior, "quick": False, "rests_on": fingerprints(first)}
        write_json(Path(commands[first][6]) / f"{first}.json", record)
        raise KeyboardInterrupt

    monkeypatch.setattr(queue, "run_queue", killed)
    for _ in range(2):
        assert run("bench", "judge", "regions", "overhead", "--resume", "--jobs", "2", "-o", "out")[0] == 130
    monkeypatch.setattr(queue, "run_queue", lambda commands, *_: dict.fromkeys(commands, 1))
    code, out, _ = run("bench", "judge", "regions", "overhead", "--resume", "-o", "out")
    assert asked == [(["judge", "regions", "overhead"], 2), (["regions", "overhead"], 2)]
    assert (code, out.splitlines()) == (
        1,
        ["0 of 1 measured in out", "failed: overhead; unproject bench NAME shows why"],
    )


@pytest.mark.parametrize(
    ("error", "code", "told"), [(RuntimeError("no"), 1, "RuntimeError: no"), (KeyboardInterrupt(), 130, "interrupted")]
)
def test_what_a_failed_run_made_is_recorded(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, told: str
) -> None:
    def one(self: MapCommand, pipe: None, path: Path, picture: np.ndarray, record: Any, target: Any) -> None:
        if path.stem == "b":
            raise error
        record.output(save_image(target.file(".png"), picture))

    monkeypatch.setattr(MAP_COMMANDS["depth"], "load", lambda self: None)
    monkeypatch.setattr(MAP_COMMANDS["depth"], "one", one)
    for name in "abc":
        save_image(f"photos/{name}.png", np.zeros((4, 4, 3)))
    found, _, err = run("depth", "photos", "-o", "out")
    assert (found, told in err) == (code, True)
    record = json.loads(Path("out/depth.run.json").read_text())
    assert (record["status"], record["outputs"]) == ("failed", ["out/a-depth.png"])
    assert record["error"] == (f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def test_a_run_that_failed_before_its_first_file_leaves_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: MapCommand) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(MAP_COMMANDS["depth"], "load", load)
    save_image("photo.png", np.zeros((4, 4, 3)))
    assert run("depth", "photo.png", "-o", "out")[0] == 1
    assert not Path("out").exists()
