"""The check of a GPU, tried without one: tiny networks on the pretend device and on the CPU."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from unproject.scripts import gpu_check, gpu_figures, gpu_parity
from unproject.scripts.gpu_parity import Where


def rows(found: Any, count: int | None = None) -> list[dict[str, Any]]:
    listed = list(itertools.islice(found, count))
    assert listed and all(row["passed"] for row in listed), listed
    return listed


@pytest.fixture
def there(pretend_device: Any) -> Any:
    with pretend_device.Pretend(double=False):
        yield Where(pretend_device.DEVICE, tiny=True)


def test_parity_in_every_precision(there: Where) -> None:
    listed = rows(gpu_parity.families(there), 3)
    assert [row["what"] for row in listed] == [
        f"Stable Diffusion 1.x in {dtype}" for dtype in ("float32", "float16", "bfloat16")
    ]
    assert listed[0]["apart"] < 1e-5 < listed[1]["apart"] < listed[2]["apart"]


def test_generators_and_splats(there: Where) -> None:
    assert len(rows(gpu_parity.generators(there))) == 7
    assert {"picture", "gradient of means"} <= {row["what"] for row in rows(gpu_parity.splats(there))}


def test_drawings_beside_stock_and_score_distillation(there: Where) -> None:
    row = rows(gpu_figures.full_size(there), 1)[0]
    assert row["ours_gb"] is None and row["apart"] < 0.02 and row["ours_s"] > 0
    assert rows(gpu_figures.score_distillation(there))[0]["s_a_step"] > 0


def test_the_verbs_on_the_embedded_priors() -> None:
    listed = rows(gpu_parity.verbs(Where(torch.device("cpu"), tiny=True)))
    assert [row["what"] for row in listed] == ["text-to-image, toybox", "depth, toybox", "text-to-mesh, toybox"]
    assert listed[0]["apart"] == listed[1]["mean_difference"] == 0


def test_a_table_and_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--tiny", "--device", "cpu", "--out", str(tmp_path / "check.json"), "--only"]
    assert gpu_check.main([*words, "splats", "suite"]) == 0
    record = json.loads((tmp_path / "check.json").read_text())
    assert record["passed"] and record["device"] == "cpu" and record["tiny"]
    assert {row["check"] for row in record["table"]} == {"splats", "suite"}
    told = capsys.readouterr().out
    assert "gradient of means" in told and "left out with --tiny" in told

    def broken(where: Where) -> Any:
        yield {"what": "first", "passed": True}
        raise RuntimeError("no kernel image\nmore")

    monkeypatch.setitem(gpu_check.CHECKS, "splats", broken)
    assert gpu_check.main([*words, "splats"]) == 1
    listed = json.loads((tmp_path / "check.json").read_text())["table"]
    assert [row["passed"] for row in listed] == [True, False]
    assert listed[1]["told"] == "RuntimeError: no kernel image"
    assert gpu_check.main([*words, "splats", "--minutes", "-1"]) == 0
    assert "left out after" in capsys.readouterr().out


def test_a_missing_device_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    if not torch.cuda.is_available():
        assert gpu_check.main([]) == 2
        assert "no CUDA device is here" in capsys.readouterr().err
    assert gpu_check.main(["--device", "cpu"]) == 2
    assert gpu_check.main(["--device", "nonsense"]) == 2


@pytest.mark.parametrize(
    ("printed", "code", "passed", "told"),
    [("9 passed, 2 skipped in 3s", 0, True, ""), ("FAILED tests/a.py::b - x\\n1 failed, 2 passed", 1, False, "tests/a")]
    + [("3 skipped in 1s", 0, False, "3 skipped")],
)
def test_the_suite_is_read(printed: str, code: int, passed: bool, told: str) -> None:
    command = (sys.executable, "-c", f"import sys; print('{printed}'); sys.exit({code})")
    (row,) = gpu_parity.suite(Where(torch.device("cpu"), tiny=True), command)
    assert row["passed"] is passed and told in row["told"]
