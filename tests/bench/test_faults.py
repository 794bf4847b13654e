"""Faults strike where they should, and what is lost is noticed."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import unproject.cli
from unproject.bench import faults
from unproject.bench.fault_layer import Counter, Layer
from unproject.bench.fault_verbs import VERBS, Verb, recipes
from unproject.pipelines.text_to_shape import MeshRecipe
from unproject.utils.configs import CONFIGS, load_config, read_yaml
from unproject.utils.files import write_text

VERB = Verb(("made",), ("out/a.txt", "out/b.txt"))
Main = Callable[[Sequence[str]], int]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "inputs", lambda folder: folder.mkdir(parents=True))


def careful(words: Sequence[str]) -> int:
    """Writes what is not there yet, whole or not at all."""
    try:
        for name in ("a", "b"):
            path = Path("out", f"{name}.txt")
            if not path.exists():
                write_text(path, name * 2000)
    except KeyboardInterrupt:
        return 130
    except Exception:
        return 1
    return 0


def rows(monkeypatch: pytest.MonkeyPatch, main: Main, stages: int = 4, **only: str) -> dict[str, str]:
    monkeypatch.setattr(unproject.cli, "main", main)
    fault = only.get("fault")
    found = faults.rows_of("made", VERB, stages, lambda title: fault in (None, title))
    return {row["fault"]: row["lost"] for row in found}


def test_what_is_written_with_care_survives_every_fault_at_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows(monkeypatch, careful, stages=8)
    assert set(found) == {*faults.SIGNALS, "full disk", *faults.STANDING}
    assert set(found.values()) == {"nothing"}


@pytest.mark.parametrize(
    ("change", "fault", "told"),
    [
        ("half", "kill -9", "out/b.txt is another"),
        ("silent", "full disk", "is missing"),
        ("hidden", "SIGTERM", ".left was left behind"),
        ("again", "two writers", "was made again"),
        ("child", "kill -9", "a process went on"),
        ("trace", "read-only", "a failure was not told as what it is"),
    ],
)
def test_what_is_lost_is_noticed(monkeypatch: pytest.MonkeyPatch, change: str, fault: str, told: str) -> None:
    def careless(words: Sequence[str]) -> int:
        if change == "silent" and os.path.isdir("out"):
            return 0
        os.makedirs("out", exist_ok=True)
        if change == "child" and not Path("out/a.txt").exists() and os.fork() == 0:
            time.sleep(60)
        if change == "hidden":
            Path(".left").touch()
        if change == "trace":
            print("Traceback (most recent call last)")
        code = careful(words) if change != "half" else 0
        if change == "half":
            for name in ("a", "b"):
                if not Path(f"out/{name}.txt").exists():
                    with open(f"out/{name}.txt", "w") as file:
                        file.write(name * 10)
                        file.flush()
                        os.fsync(file.fileno())
                        file.write(name * 10)
        if change == "again":
            write_text("out/a.txt", "a" * 2000)
        return code

    wait = faults.goes_on
    monkeypatch.setattr(faults, "goes_on", lambda pid: wait(pid, 0.3))
    assert told in rows(monkeypatch, careless, fault=fault)[fault]


def test_a_layer_counts_only_changes_below_its_folder_and_refuses(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "outside"
    inside.mkdir()
    counter, told = Counter(), tmp_path / "told"
    pid = os.fork()
    if pid == 0:
        try:
            layer = Layer(inside, counter, 3, lambda layer: layer.refuse(errno.ENOSPC))
            layer.install()
            outside.write_text("x")
            (inside / "a").write_text("x")  # 1
            (inside / "a").read_text()
            os.replace(inside / "a", inside / "b")  # 2
            try:
                (inside / "c").mkdir()  # 3: no room any more
            except OSError as error:
                told.write_text(str(error.errno))
            (inside / "b").unlink()  # 4: but names can go
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert counter.value == 4 and told.read_text() == str(errno.ENOSPC)
    assert not list(inside.iterdir())


def test_stages_reach_from_the_first_change_to_the_last() -> None:
    assert faults.spread(3, 5) == [1, 2, 3] and faults.spread(0, 5) == []
    assert faults.spread(100, 3) == [1, 50, 100] or faults.spread(100, 3) == [1, 51, 100]
    assert faults.spread(100, 1)[-1] == 100
    assert all(verb.files and verb.words[0] for verb in VERBS.values())
    assert faults.SIGNALS["kill -9"] == signal.SIGKILL


def test_the_order_of_a_header_is_no_other_file(tmp_path: Path) -> None:
    for number, header in enumerate(('{"a": {"x": 1}, "b": 2}', '{"b": 2, "a": {"x": 1}}', '{"b": 3, "a": {"x": 1}}')):
        place = faults.Place(tmp_path / str(number))
        (place.work / "out").mkdir(parents=True)
        data = len(header).to_bytes(8, "little") + header.encode() + b"tensors"
        (place.work / "out" / "a.safetensors").write_bytes(data)
    first, second, third = (faults.digests(faults.Place(tmp_path / str(number))) for number in range(3))
    assert first == second != third


def test_shapes_under_faults_are_made_by_the_packaged_recipes_made_small() -> None:
    made = recipes()
    for verb, name in (("text-to-mesh", "mesh"), ("text-to-splats", "splats")):
        assert f"--recipe {name}.yaml" in " ".join(VERBS[verb].words)
        packaged = read_yaml(CONFIGS / verb / "toybox.yaml")
        small, usual = (load_config(MeshRecipe, values) for values in (made[name], packaged))
        assert small.score.form == usual.score.form and small.optimise.shape.kind == usual.optimise.shape.kind
        assert small.mesh.resolution < usual.mesh.resolution and 0 < small.optimise.checkpoint_every < 8
