"""What is said of the cost of splats: rows, baseline first, memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unproject.bench import splats
from unproject.bench.runner import Context
from unproject.utils.pictures import load_image


def test_rows_compare_the_compiled_way_with_the_plain_one(tmp_path: Path) -> None:
    found = splats.run(Context("splats", quick=True, out=tmp_path))
    assert np.ptp(load_image(tmp_path / "splats.png")) > 0.5
    first, *others = found["table"]
    assert first["way"] == splats.TWIN and first["times_faster"] == 1 and first["seconds"] >= first["drawing"] > 0
    assert [row["way"] for row in others] == [splats.SLABS, *[splats.BOXES] * 2, *[splats.TILES] * 2]
    assert [(row["gaussians"], row["px"]) for row in others] == [(100, 16), *[(100, 16), (200, 32)] * 2]
    off = {row["way"]: row.get("largest_difference") for row in others if row["px"] == 16}
    assert off[splats.BOXES] < 1e-4 and off[splats.TILES] < 1e-4 < off[splats.SLABS]
    assert "times_faster" not in others[-1] and isinstance(found["memory_growth_mb"], float)
