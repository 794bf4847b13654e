"""The experiment of full size, on a network as small as it goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from unproject.bench import full_size
from unproject.bench.runner import Context
from unproject.scripts import full_size as script
from unproject.scripts.random_backbones import tiny_sd, write_folder
from unproject.utils.files import read_json

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks the kernel of Linux")


@linux
def test_it_measures_both(tmp_path: Path) -> None:
    made = full_size.run(Context("full-size", quick=True))
    first, second, stock = made["table"]
    assert (first["steps"], second["steps"], first["network_rows"], second["network_rows"]) == (1, 2, 8, 16)
    assert 0.05 < first["peak_gb"] <= second["peak_gb"] < 8
    assert 0 < stock["largest_difference"] < 1e-4 and stock["steps"] == 2
    folder = write_folder(tiny_sd(), tmp_path / "sd")
    assert script.main([str(folder), "--px", "32", "--out", str(tmp_path / "found.json")]) == 0
    again = read_json(tmp_path / "found.json")["table"]
    assert [row["what"] for row in again] == [row["what"] for row in made["table"]]
    assert again[2]["largest_difference"] == pytest.approx(stock["largest_difference"], abs=1e-5)
