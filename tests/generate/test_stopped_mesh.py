"""A mesh that is stopped goes on where it was: signals, full disks, and a work that is done but not yet a mesh."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unproject.core.priors import GaussianMixturePrior
from unproject.core.training.loop_parts import stop_signals
from unproject.pipelines.text_to_mesh import MeshRecipe, TextToMesh, TextToMeshOutput
from unproject.utils import progress
from unproject.utils.configs import load_config
from unproject.utils.errors import NotWrittenError, Stopped
from unproject.utils.progress import PlainLines

SIDE = 8
RECIPE = {
    "score": {"guidance": 1.0},
    "optimise": {
        "steps": 5,
        "sizes": [[0, SIDE]],
        "guided_px": SIDE,
        "checkpoint_every": 3,
        "shape": {
            "volume": {
                "occupancy_from": 1.0,
                "field": {"grid": {"sides": [5, 9], "starts": [0, 0]}},
                "rays": {"step": 0.1, "cells": 8},
            }
        },
    },
    "mesh": {"resolution": 16, "faces": 200, "texture": 16, "depth_samples": 2, "visibility_views": 0},
    "preview_every": 0,
}


def make(folder: Path | None, **options: Any) -> TextToMeshOutput:
    prior = GaussianMixturePrior(torch.full((1, 3, SIDE, SIDE), 0.2), torch.tensor([0.5]))
    return TextToMesh(prior, load_config(MeshRecipe, RECIPE))("a box", seed=1, out=folder, **options)


def at_step(number: int, act: Any) -> Any:
    def after(pipe: Any, step: int, log: dict[str, float], parts: Any) -> None:
        if step == number:
            act()

    return after


def signalled(number: int) -> Any:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_the_same_call_goes_on(
    tmp_path: Path, number: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="stopped after step 2 of 5") as stop:
        make(tmp_path, callback_on_step_end=at_step(2, signalled(number)))
    assert isinstance(stop.value, KeyboardInterrupt) and stop.value.signal == number
    assert signal.getsignal(number) is before and (tmp_path / "ckpt-2").is_dir()
    monkeypatch.delenv("UNPROJECT_QUIET", raising=False)
    monkeypatch.setattr(progress, "PlainLines", lambda: PlainLines(interval_s=0))
    capfd.readouterr()
    on = make(tmp_path)
    assert "a box: goes on at 2/5" in (told := capfd.readouterr().err) and "a box: 4/5 in" in told
    monkeypatch.setenv("UNPROJECT_QUIET", "1")
    whole = make(None)
    assert [row["step"] for row in on.history] == [1, 2, 3, 4, 5] and on.nfe == whole.nfe
    assert torch.equal(on.mesh.vertices, whole.mesh.vertices)


def test_without_a_folder_a_signal_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt) as stop:
        make(None, callback_on_step_end=at_step(2, signalled(signal.SIGINT)))
    assert not isinstance(stop.value, Stopped)


def test_a_second_signal_interrupts_at_once() -> None:
    asked: list[int] = []
    with pytest.raises(KeyboardInterrupt), stop_signals(asked.append):
        os.kill(os.getpid(), signal.SIGINT)
        assert asked == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGTERM)
    assert asked == [signal.SIGINT]


def test_steps_that_are_done_are_not_lost_when_the_mesh_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unproject.pipelines import text_to_mesh

    textured = text_to_mesh.textured_mesh
    monkeypatch.setattr(text_to_mesh, "textured_mesh", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        make(tmp_path)
    monkeypatch.setattr(text_to_mesh, "textured_mesh", textured)
    again = make(tmp_path, callback_on_step_end=at_step(5, lambda: pytest.fail("a step was made again")))
    whole = make(None)
    assert again.nfe == whole.nfe and torch.equal(again.mesh.vertices, whole.mesh.vertices)
    colors = [made.mesh.textures["base_color"] for made in (again, whole)]
    assert np.array_equal(*colors)


def test_a_full_disk_stops_no_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unproject.generate import resumable

    def full(*_: Any, **__: Any) -> None:
        raise NotWrittenError("writing checkpoint ckpt-3 failed: No space left on device")

    monkeypatch.setattr(resumable, "save_checkpoint", full)
    with pytest.warns(UserWarning, match="No space left on device; going on without it"):
        made = make(tmp_path)
    assert len(made.mesh.faces) > 0


def test_a_broken_checkpoint_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unproject.core.training import checkpoints

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(NotWrittenError, match=r"writing checkpoint .*ckpt-3 failed: No space left on device"):
        checkpoints.save_checkpoint(tmp_path, 3, {"a": {"x": torch.zeros(1)}}, {})
    assert list(tmp_path.iterdir()) == []
