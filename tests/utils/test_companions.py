"""Records and reports of files of one stem: none is taken from another file, none is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unproject.utils.companions import REPORT, companion


@pytest.mark.parametrize(
    "told",
    [
        {"config": {"out": "far/x.obj"}},
        {"config": {"destination": "x.obj"}, "outputs": None},
        {"outputs": ["elsewhere/x.obj", "x.mtl"]},
        {"file": "x.obj"},
    ],
)
def test_the_first_file_of_a_stem_has_the_plain_name(tmp_path: Path, told: dict[str, Any]) -> None:
    assert companion(tmp_path, "x", ".obj", REPORT) == tmp_path / "x.report.json"
    (tmp_path / "x.report.json").write_text(json.dumps(told))
    assert companion(tmp_path, "x", ".obj", REPORT) == tmp_path / "x.report.json"
    assert companion(tmp_path, "x", ".glb", REPORT) == tmp_path / "x.glb.report.json"
    assert companion(tmp_path, "x", "", REPORT) == tmp_path / "x.report.json"


@pytest.mark.parametrize("text", ["[]", "no JSON", '{"config": 3, "outputs": 4}'])
def test_what_says_nothing_of_a_file_is_nobodys_to_take(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.run.json").write_text(text)
    assert companion(tmp_path, "x", ".ply").name == "x.ply.run.json"
    (tmp_path / "x.ply.run.json").write_text('{"outputs": ["x.ply.ply"]}')  # of a file whose stem is x.ply
    assert companion(tmp_path, "x", ".ply").name == "x.ply-2.run.json"
