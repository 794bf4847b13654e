"""`unproject match` and `unproject transfer` on random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unproject.utils.pictures import save_image

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def two(in_tmp: Path) -> None:
    rng = np.random.default_rng(0)
    save_image("a.png", rng.random((24, 32, 3)))
    save_image("b.png", rng.random((32, 20, 3)))
    Path("p.json").write_text(json.dumps({"nose": [3.5, 4.5], "tail": [20, 20]}))


def test_all_files_are_written_and_told(two: None, tiny_run: Run) -> None:
    code, told = tiny_run("match", "a.png", "b.png", "--encoder", "none", "--size", "32", "-o", "out")
    assert code == 0 and "points, of" in told
    made = json.loads(Path("out/a-b-match.json").read_text())
    with np.load("out/a-b-match.npz") as stored:
        assert len(stored["points_a"]) == len(made["matches"]) > 0
    assert Path("out/a-b-match.png").is_file() and Path("out/a-b-match.run.json").is_file()
    code, told = tiny_run("match", "a.png", "b.png", "--encoder", "none", "-o", "out")
    assert code == 2 and "is already there" in told


def test_key_points_are_carried_and_carried_on(two: None, tiny_run: Run) -> None:
    options = ("--encoder", "none", "--size", "32")
    assert tiny_run("transfer", "a.png", "b.png", "--points", "p.json", "-o", "q.json", *options)[0] == 0
    made = json.loads(Path("q.json").read_text())
    assert list(made["points"]) == ["nose", "tail"] and not Path("q.png").exists()
    x, y = made["points"]["nose"]
    assert 0 <= x <= 20 and 0 <= y <= 32
    code, _ = tiny_run("transfer", "b.png", "a.png", "--points", "q.json", "--format", "npz", *options)
    assert code == 0 and Path("outputs/transfer/b-a-transfer/b-a-transfer.npz").is_file()


def test_sift_needs_no_network(two: None, run: Callable[..., tuple[int, str, str]]) -> None:
    code, told, _ = run("match", "a.png", "b.png", "--sift", "--json", "-o", "s.json")
    assert code == 0 and json.loads(Path("s.json").read_text())["made_by"] == "SIFT"
    assert json.loads(told)["points"] >= 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("match", "a.png", "none.png"), "b none.png does not exist"),
        (("match", "a.png", "b.png", "--encoder", "nowhere"), "--encoder nowhere is no folder; have judge, none"),
        (("match", "a.png", "b.png", "--encoder", "none", "--alpha", "0.2"), "--alpha 0.2 weighs two encoders"),
        (("match", "a.png", "b.png", "--sift", "--size", "64"), "--size is of the networks"),
        (("match", "a.png", "b.png", "--format", "tiff"), "--format 'tiff' is unknown; have npz, json, png"),
        (("match", "a.png", "b.png", "--format", "npz", "-o", "m.json"), "is none of --format npz"),
        (("match", "a.png", "b.png", "-o", "a.png"), "would overwrite a.png, the picture itself"),
        (("match", "a.png", "b.png", "--time", "1000"), "--time must lie between 0 and 999"),
        (("transfer", "a.png", "b.png", "--points", "none.json"), "--points none.json does not exist"),
    ],
)
def test_what_cannot_be_is_refused_before_any_network(
    two: None, run: Callable[..., tuple[int, str, str]], words: tuple[str, ...], told: str
) -> None:
    code, _, err = run(*words)
    assert code == 2 and told in " ".join(err.split())


def test_a_dry_run_tells_the_pictures(two: None, run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("match", "a.png", "b.png", "--dry-run")
    assert code == 0 and "would read a.png (32 x 24 px)" in out and "would read b.png (20 x 32 px)" in out
