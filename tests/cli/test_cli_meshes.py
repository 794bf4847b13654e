"""Long work from the command line: where its checkpoints are, who may go on with them, and when they are removed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unproject.core.distillation.score import DivergedError
from unproject.generate import finish
from unproject.geometry.meshes import Mesh
from unproject.pipelines import direct25_mesh, text_to_mesh
from unproject.scripts import train
from unproject.utils.errors import Stopped
from unproject.utils.locks import alone_in
from unproject.utils.pictures import save_image

Run = Callable[..., tuple[int, str, str]]
TETRAHEDRON = Mesh(
    torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A pipeline that makes a tetrahedron and leaves a checkpoint; a prompt with "stop" is stopped half-way."""
    calls: list[dict[str, Any]] = []

    class Fake:
        prior = SimpleNamespace(name="fake")

        @classmethod
        def from_pretrained(cls, *_: Any, **__: Any) -> Fake:
            return cls()

        def __call__(self, prompt: str, negative: str | None, **options: Any) -> SimpleNamespace:
            calls.append({"prompt": prompt, **options})
            Path(options["out"], "LATEST").write_text("ckpt-1")
            if "stop" in prompt:
                raise Stopped(18, 45, str(options["out"]), 15)
            most = SimpleNamespace(mesh=SimpleNamespace(faces=options["faces"] or 4))
            made = {
                "mesh": TETRAHEDRON,
                "nfe": 3,
                "seconds": {},
                "history": [],
                "config": most,
                "notes": {"student": "s"},
            }
            return SimpleNamespace(**made, report=TETRAHEDRON.check(), scale_from="the ball it was made in")

    def pictures(mesh: Mesh, place: Callable[[str], Path], frames: int, size: int) -> list[Path]:
        ends = ("sheet.png", "turntable.mp4", "turntable.gif")
        return [save_image(place(e).with_suffix(".png"), np.zeros((4, 4, 3))).rename(place(e)) for e in ends]

    monkeypatch.setattr(text_to_mesh, "TextToMesh", Fake)
    monkeypatch.setattr(direct25_mesh, "Direct25TextToMesh", Fake)
    monkeypatch.setattr(finish, "write_pictures", pictures)
    return calls


def names(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_checkpoints_lie_beside_the_mesh_until_it_is_written(run: Run, asked: list[dict[str, Any]]) -> None:
    assert run("text-to-mesh", "a red chair", "-o", "out/chair.glb")[0] == 0
    notes = json.loads(Path("out/chair.run.json").read_text())["notes"]
    assert notes["method"] in ("direct25", "optimise") and notes["student"] == "s"
    assert asked[0]["out"] == Path("out/.chair.work") and asked[0]["resume"] is True
    ends = (".glb", ".report.json", "-sheet.png", "-turntable.mp4", "-turntable.gif", ".run.json")
    assert names("out") == {f"chair{end}" for end in ends}
    assert run("text-to-mesh", "a red chair", "-o", "out/chair.glb")[0] == 2
    assert run("text-to-mesh", "a red chair", "-o", "out/chair.glb", "--overwrite")[0] == 0
    assert len(asked) == 2 and asked[1]["resume"] is False
    assert run("text-to-mesh", "a blue chair", "-o", "out/chair.ply")[0] == 0
    assert asked[2]["out"] == Path("out/.chair.ply.work")
    own = (".report.json", "-sheet.png", "-turntable.mp4", "-turntable.gif", ".run.json")
    assert names("out") == {f"chair{end}" for end in (*ends, ".ply")} | {f"chair.ply{end}" for end in own}
    assert run("text-to-mesh", "a red chair", "--seed", "3")[0] == 0
    assert "a-red-chair-seed3.glb" in names("outputs/text-to-mesh/a-red-chair")


def test_a_stopped_mesh_names_the_command_that_goes_on(run: Run, asked: list[dict[str, Any]]) -> None:
    code, _, err = run("text-to-mesh", "a stop sign", "-o", "sign.glb", "--method", "optimise")
    assert code == 128 + 15
    assert err == (
        "stopped after step 18 of 45, which is saved in .sign.work; this goes on: "
        "unproject text-to-mesh 'a stop sign' -o sign.glb --method optimise\n"
    )
    assert Path(".sign.work/LATEST").is_file()


def test_pictures_of_others_in_a_folder_of_work_are_not_replaced(run: Run, asked: list[dict[str, Any]]) -> None:
    Path("maps").mkdir()
    Path("maps/views.png").write_text("mine")
    words = ("text-to-mesh", "a red chair", "-o", "chair.glb", "--work", "maps", "--method", "direct25")
    code, _, err = run(*words)
    assert (code, asked) == (2, []) and "maps/views.png is already there; choose another --work, or --overwrite" in err
    code, _, err = run(*words, "--overwrite")
    assert code == 0 and len(asked) == 1
    Path("chair.glb").unlink()
    assert run(*words)[0] == 0 and len(asked) == 2  # what an interrupted run left is its own


def test_a_run_that_fails_at_once_leaves_no_folder(
    run: Run, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, *_: Any, **__: Any) -> None:
        raise DivergedError("direct25: the prior drew no object in view 2 of 4; try another seed")

    monkeypatch.setattr(direct25_mesh.Direct25TextToMesh, "__call__", fails)
    code, _, err = run("text-to-mesh", "a red chair", "-o", "out/chair.glb", "--method", "direct25")
    assert code == 1 and "drew no object in view 2" in err and not Path("out/.chair.work").exists()


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_what_is_made_in_one_go_and_leaves_its_record_alone(
    run: Run, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, number: int, code: int, word: str
) -> None:
    def signalled(self: Any, *_: Any, **options: Any) -> None:
        Path(options["out"], "normals.png").write_text("drawn")
        os.kill(os.getpid(), number)
        pytest.fail("the next stage began")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell puts behind
    try:
        monkeypatch.setattr(direct25_mesh.Direct25TextToMesh, "__call__", signalled)
        found, _, err = run("text-to-mesh", "a red chair", "-o", "out/chair.glb", "--method", "direct25")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (found, err) == (code, f"{word}\n") and names("out") == {"chair.run.json"}
    assert json.loads(Path("out/chair.run.json").read_text())["status"] == "failed"


@pytest.mark.parametrize("method", ["direct25", "optimise"])
def test_the_side_of_the_texture_reaches_every_method(run: Run, asked: list[dict[str, Any]], method: str) -> None:
    words = ("text-to-mesh", "a red chair", "-o", "chair.glb", "--method", method)
    assert run(*words, "--texture", "2048")[0] == 0 and run(*words, "--overwrite")[0] == 0
    assert [call["texture"] for call in asked] == [2048, None]
    for wrong in ("255", "4097"):
        code, _, err = run(*words, "--texture", wrong, "--overwrite")
        assert code == 2 and f"--texture must lie between 256 and 4096, got {wrong}" in err


def test_two_commands_do_not_work_on_one_mesh(run: Run, asked: list[dict[str, Any]]) -> None:
    with alone_in(Path(".chair.work")):  # a lock of this process: another handle is refused likewise
        code, _, err = run("text-to-mesh", "a red chair", "-o", "chair.glb")
    assert (code, asked) == (2, []) and "another run is at work in .chair.work" in err


def test_a_mesh_that_could_not_be_written_keeps_its_checkpoints(
    run: Run, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    replace = os.replace

    def full(source: str, target: str) -> None:
        if Path(target).suffix == ".glb" and "rescued" not in str(target):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    code, _, err = run("text-to-mesh", "a red chair", "-o", "chair.glb")
    assert (code, "the result is in" in err) == (1, True)
    assert Path(".chair.work/LATEST").is_file() and list(Path().glob("unproject-rescued-*/chair.glb"))


def test_more_triangles_than_asked_for_are_an_error(run: Run, asked: list[dict[str, Any]]) -> None:
    asked_for = SimpleNamespace(mesh=SimpleNamespace(faces=3))
    made = TETRAHEDRON.save("t.glb")
    from unproject.geometry.budget import check_written
    from unproject.utils.errors import UnprojectError

    check_written(made, 4)
    with pytest.raises(UnprojectError, match="has 4 triangles, more than the 3 asked for"):
        check_written(made, asked_for.mesh.faces)


def test_meshes_of_a_file_of_prompts(run: Run, asked: list[dict[str, Any]]) -> None:
    Path("p.txt").write_text("a red chair\na blue dog\n")
    assert run("text-to-mesh", "--prompts", "p.txt", "-o", "out")[0] == 0
    assert {"a-red-chair-seed0.glb", "a-blue-dog-seed0.glb", "text-to-mesh.run.json"} <= names("out")
    assert len([name for name in names("out") if name.startswith(".")]) == 0
    Path("out/a-blue-dog-seed0-sheet.png").unlink()
    assert run("text-to-mesh", "--prompts", "p.txt", "-o", "out")[0] == 0
    assert [call["prompt"] for call in asked] == ["a red chair", "a blue dog", "a blue dog"]
    code, _, err = run("text-to-mesh", "--prompts", "p.txt", "--work", "w")
    assert (code, "--work w is the folder of one mesh" in err) == (2, True)


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, in_tmp: Path) -> dict[str, Any]:
    """A recipe r.yaml whose training ends as `reason` says; `resume` of each call."""
    state: dict[str, Any] = {"reason": "done", "resume": []}

    def make(values: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(trainer=SimpleNamespace(seed=0, steps=9))

    def trained(job: Any, out: Path, resume: bool, *_: Any) -> SimpleNamespace:
        state["resume"].append(resume)
        return SimpleNamespace(reason=state["reason"], step=4, signal=2)

    monkeypatch.setattr(train, "RECIPES", {"nothing": make})
    monkeypatch.setattr(train, "run", trained)
    Path("r.yaml").write_text("objective: nothing\n")
    return state


def test_a_training_goes_on_when_the_command_is_typed_again(run: Run, training: dict[str, Any]) -> None:
    training["reason"] = "signal"
    code, _, err = run("train", "r.yaml", "-o", "out")
    assert (code, err) == (
        130,
        "stopped after step 4 of 9, which is saved in out; this goes on: unproject train r.yaml -o out\n",
    )
    training["reason"] = "time"
    code, out, _ = run("train", "r.yaml", "-o", "out")
    assert code == 0 and "step 4 of 9: the time is up; the same command goes on" in out
    Path("out/ckpt-4").mkdir()
    training["reason"] = "done"
    assert run("train", "r.yaml", "-o", "out", "--overwrite")[0] == 0
    assert training["resume"] == [True, True, False] and not Path("out/ckpt-4").exists()
    code, _, err = run("train", "r.yaml", "-o", "out", "--overwrite", "--export")
    assert (code, "--overwrite removes the checkpoints that --export needs" in err) == (2, True)
    assert json.loads(Path("out/train.run.json").read_text())["status"] == "done"
