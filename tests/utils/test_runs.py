from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import torch

from unproject.utils.runs import RunRecord, plain


@dataclass(frozen=True)
class Settings:
    rate: float
    folder: Path


def test_record_holds_the_making_of_a_result(tmp_path: Path) -> None:
    with RunRecord("draw", Settings(0.5, Path("a/b")), seed=7) as run:
        with run.stage("sample"):
            pass
        run.count("unet", 20)
        run.count("unet", 5)
        run.output(tmp_path / "a.png")
        run.output(tmp_path / "a.png")
    record = json.loads(run.write(tmp_path / "run.json").read_text())
    assert (record["command"], record["status"], record["seed"]) == ("draw", "done", 7)
    assert record["config"] == {"rate": 0.5, "folder": "a/b"}
    assert record["nfe"] == {"unet": 25}
    assert record["outputs"] == [str(tmp_path / "a.png")]
    assert record["seconds"] >= record["stages"]["sample"] >= 0
    assert {"python", "torch", "numpy"} <= set(record["versions"])
    assert record["machine"]["processors"] >= 1


def test_a_record_made_after_the_work_counts_its_seconds() -> None:
    began = datetime.now(timezone.utc)
    with RunRecord("draw", earlier_s=60.0) as run:
        pass
    assert 60 <= run.seconds < 70
    assert 50 < (began - run.started).total_seconds() <= 60
    assert run.to_dict()["seconds"] >= 60


def test_failure_is_recorded_and_passed_on(tmp_path: Path) -> None:
    run = RunRecord("draw")
    with pytest.raises(ValueError, match="no"), run:
        raise ValueError("no")
    record = run.to_dict()
    assert record["status"] == "failed" and record["error"] == "ValueError: no"
    assert run.seconds == run.seconds


def test_everything_becomes_strict_json() -> None:
    values = {1: np.float32(0.5), "t": torch.tensor([1, 2]), "n": math.nan, "i": [np.inf], "p": Path("a"), "o": object}
    text = json.dumps(plain(values), allow_nan=False)
    back = json.loads(text)
    assert back["1"] == 0.5 and back["t"] == [1, 2] and back["n"] == "nan" and back["i"] == ["inf"] and back["p"] == "a"
