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


def test_a_record_goes_on_from_an_earlier_one(in_tmp: Path) -> None:
    Path("a.png").write_bytes(b"")
    Path("b.png").write_bytes(b"")
    earlier = {"outputs": ["a.png", "gone.png", 3], "warnings": ["dark"], "notes": {"plan": 1, "formats": ["npz"]}}
    costs = [{"seconds": 50.0, "nfe": {"unet": 4}, "stages": {"draw": 40.0}}, {"seconds": 8, "nfe": {"unet": 1}}]
    run = RunRecord("draw")
    run.notes["formats"] = ["png"]
    run.go_on(earlier, [Path("b.png"), Path("a.png")], costs)
    with run, run.cost_of() as cost:
        with run.stage("draw"):
            run.count("unet", 2)
        run.output("b.png")
        run.warnings.append("dark")
    record = run.to_dict()
    assert (record["outputs"], record["warnings"], run.outputs) == (["a.png", "b.png"], ["dark"], ["b.png"])
    assert record["nfe"] == {"unet": 7} and record["notes"] == {"plan": 1, "formats": ["png"]}
    assert 58 <= record["seconds"] < 68 and 40 <= record["stages"]["draw"] < 48
    assert cost["nfe"] == {"unet": 2} and cost["seconds"] < 8 and cost["stages"].keys() <= {"draw"}


def test_a_record_that_somebody_edited_is_no_trap() -> None:
    run = RunRecord("draw")
    odd = {"outputs": "a.png", "warnings": {"a": 1}, "notes": ["x"]}
    run.go_on(odd, costs=[{"seconds": 1e300, "nfe": {"unet": "many", "vae": True}, "stages": 3}, {"seconds": -5}])
    record = run.to_dict()
    assert (record["outputs"], record["warnings"], record["nfe"], record["stages"]) == ([], [], {}, {})


def test_a_record_that_stands_is_the_earlier_one() -> None:
    run = RunRecord("draw")
    assert not run.stands
    run.stand({"command": "draw", "outputs": ["a.png"]})
    run.count("unet", 1)
    assert run.stands and run.to_dict() == {"command": "draw", "outputs": ["a.png"]}
