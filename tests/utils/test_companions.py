"""Records and reports of files of one stem: none is taken from another file, none is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unproject.utils.companions import REPORT, companion, record_of_set, records_of_sets


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


def test_a_set_of_formats_has_the_first_record_that_speaks_of_no_other(tmp_path: Path) -> None:
    def record(*formats: str) -> str:
        return record_of_set(tmp_path, "depth", formats).name

    assert record("npz", "png") == record("exr") == "depth.run.json"
    (tmp_path / "depth.rank1.run.json").write_text('{"notes": {"formats": ["npz", "png"], "sources": {}}}')
    assert record("npz", "png") == "depth.run.json"  # another process has begun with it
    assert record("exr") == "depth.exr.run.json"
    (tmp_path / "depth.rank1.run.json").unlink()
    (tmp_path / "depth.run.json").write_text('{"notes": {"sources": {}}}')  # from before sets were told apart
    assert record("exr") == "depth.run.json"
    for text in (
        '{"notes": {"formats": ["exr", "npz"]}}',
        '{"notes": {"formats": [["exr"]]}}',
        '{"notes": {}}',
        "no JSON",
        '{"notes": {"formats": "exr"}}',
    ):
        (tmp_path / "depth.run.json").write_text(text)
        assert record("exr") == "depth.exr.run.json" and record("exr", "tiff") == "depth.exr-tiff.run.json"
    (tmp_path / "depth.exr.run.json").write_text('{"outputs": ["depth.exr"]}')
    assert record("exr") == "depth.exr-2.run.json"
    (tmp_path / "depth.exr.rank1.run.json").write_text("{}")
    (tmp_path / "depths.run.json").write_text("{}")
    found = [path.name for path in records_of_sets(tmp_path, "depth")]
    assert found == ["depth.exr.rank1.run.json", "depth.exr.run.json", "depth.run.json"]
