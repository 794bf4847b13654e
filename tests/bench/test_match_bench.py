"""Pairs whose points are known, and what the experiment says of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from unproject.bench.match import claims
from unproject.bench.match_pairs import real_pairs, toy_pair
from unproject.utils.pictures import save_image


def test_toy_pairs_are_the_same_again_and_show_their_points() -> None:
    pair, again = toy_pair(3, 32), toy_pair(3, 32)
    for one, other in zip((*pair.pictures, *pair.points), (*again.pictures, *again.points), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(pair.points[0]) == len(pair.points[1]) >= 3
    assert np.abs(pair.pictures[0] - pair.pictures[1]).mean() > 0.01
    assert pair.object_cells is not None and 4 < pair.box_px <= 32
    for points, mask in zip(pair.points, pair.object_cells, strict=True):
        cells = np.clip(points.astype(int), 0, 31)
        near = [mask[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].any() for x, y in cells]
        assert all(near)


def annotated(folder: Path) -> None:
    names = ("a.png", "b.png", "c.png")
    points = ([1, 2, 2, 3, 4, 2], [5, 6, 2, 7, 8, 1], [0, 0, 0, 0, 0, 0])
    for name in names:
        save_image(folder / name, np.zeros((10, 12, 3)))
    rows = [{"image_id": i, "keypoints": p, "bbox": [0, 0, 4, 9]} for i, p in enumerate(points)]
    images = [{"id": i, "file_name": f"x/{name}"} for i, name in enumerate(names)]
    (folder / "test_atrw.json").write_text(json.dumps({"images": images, "annotations": rows}))


def test_annotated_pairs_hold_what_both_show(tmp_path: Path) -> None:
    annotated(tmp_path / "correspondence/atrw")
    found = list(real_pairs(tmp_path))
    assert [pair.name for pair in found] == ["atrw a.png b.png", "atrw b.png a.png"]
    assert found[0].points[0].tolist() == [[1.5, 2.5]] and found[0].points[1].tolist() == [[5.5, 6.5]]
    assert found[0].box_px == 9 and not list(real_pairs(tmp_path / "nowhere"))


def test_points_of_the_wall_follow_its_homography(tmp_path: Path) -> None:
    wall = tmp_path / "correspondence/graffiti"
    for name in ("graf1.png", "graf3.png"):
        save_image(wall / name, np.zeros((200, 300, 3)))
    data = "1 0 7 0 1 -3 0 0 1"
    (wall / "H1to3p.xml").write_text(
        f"<?xml version='1.0'?><opencv_storage><H13><data>{data}</data></H13></opencv_storage>"
    )
    (pair,) = real_pairs(tmp_path)
    np.testing.assert_allclose(pair.points[1] - pair.points[0], np.tile([7.0, -3.0], (len(pair.points[0]), 1)))
    assert pair.points[0].min() > 40 and pair.box_px == 300


def test_claims_are_read_from_the_rows() -> None:
    def row(method: str, value: float, **more: float) -> dict[str, object]:
        return {"method": method, "pairs": "toys, kind", "pck": {"value": value}, **more}

    table = [
        *(row("prior, noise level", value, noise_index=time) for time, value in ((-1, 0.3), (100, 0.5), (500, 0.2))),
        *(
            row(name, value)
            for name, value in (("colours", 0.2), ("prior", 0.5), ("second encoder", 0.6), ("fused", 0.7))
        ),
        row("prior, shared noise", 0.5),
        row("prior, own noises", 0.4),
    ]
    found = claims(table)
    assert found["prior_over_colours_points"] == pytest.approx(30) and found["inside"] is True
    assert found["fusion_over_best_part_points"] == pytest.approx(10) and found["best_noise_index"] == 100
    assert found["shared_over_own_noise_points"] == pytest.approx(10)
    table[1] = row("prior, noise level", 0.1, noise_index=100)
    assert claims(table)["inside"] is False
