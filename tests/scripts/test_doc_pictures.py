"""Pictures of the docs: rows are cut where a bench put them, and every representation is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unproject.geometry.shapes.convert import _MAKERS
from unproject.scripts import shape_pictures
from unproject.utils.errors import InputError
from unproject.utils.files import write_json
from unproject.utils.pictures import grid, load_image, save_image


def test_every_rule_gets_its_row(tmp_path: Path) -> None:
    values = (30, 90, 150)
    tiles = [np.full((20, 20, 3), value, np.uint8) for value in values for _ in range(4)]
    save_image(tmp_path / "score-distillation.png", grid(tiles, 4, labels=["x", "", "", ""] * 3))
    rows = [{"rule": "sds", "prior": "mv"}, {"rule": "asd", "prior": "mv"}, {"rule": "sds", "prior": "single"}]
    write_json(tmp_path / "score-distillation.json", {"table": rows})
    paths = shape_pictures.rule_pictures(tmp_path, tmp_path / "out")
    assert [path.name for path in paths] == ["rule-sds.png", "rule-asd.png", "rule-sds-words.png"]
    for path, value in zip(paths, values, strict=True):
        strip = load_image(path)
        assert strip[2:22, 2:22].max() == pytest.approx(value / 255) == strip[2:22, 2:22].min()
        assert strip.shape[:2] == (2 + 20 + 16 + 2, 2 + 4 * 22)
    write_json(tmp_path / "score-distillation.json", {"table": rows[:2] + rows})
    with pytest.raises(InputError, match="not 5 rows"):
        shape_pictures.rule_pictures(tmp_path, tmp_path / "out")


def test_every_representation_that_a_mesh_becomes_has_a_picture() -> None:
    assert shape_pictures.SHAPES.keys() == _MAKERS.keys()
    assert all(target.kind == name for name, target in shape_pictures.SHAPES.items())
