"""What is written of matches, and key points read from files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from unproject.tasks.matches import Matches, drawn, read_points
from unproject.tasks.sift import sift_matches
from unproject.utils.errors import InputError
from unproject.utils.pictures import load_image


def some(names: tuple[str, ...] = ("nose", "tail", "ear")) -> Matches:
    a = np.array([[1.5, 2.5], [10.0, 4.0], [3.0, 18.0]])
    return Matches(
        a, a + [2, 1], np.array([0.9, 0.5, 0.7]), np.full(3, 0.2), np.full(3, 0.4), np.array([0.0, 9.0, 1.0]),
        np.array([True, False, True]), names, 4.0, "a test", {"grid": [5, 6]}, 2,
    )  # fmt: skip


def test_files_hold_what_was_found_and_chain(tmp_path):
    pictures = [np.zeros((20, 12, 3)), np.ones((10, 16, 3))]
    made = some()
    paths = made.save(tmp_path / "a.b-match", pictures)
    assert [path.name for path in paths] == ["a.b-match.npz", "a.b-match.json", "a.b-match.png"]
    with np.load(paths[0]) as stored:
        np.testing.assert_array_equal(stored["points_b"], made.points_b)
        assert stored["names"].tolist() == list(made.names) and stored["agrees"].tolist() == [True, False, True]
    told = json.loads(paths[1].read_text())
    wanted = {"a": [10.0, 4.0], "b": [12.0, 5.0], "score": 0.5, "margin": 0.2, "spread_px": 0.4, "cycle_px": 9.0}
    assert told["matches"][1] == {**wanted, "agrees": False, "name": "tail"}
    names, points = read_points(paths[1])  # a transfer goes on from where the last one ended
    assert names == made.names
    np.testing.assert_array_equal(points, made.points_b)
    assert load_image(paths[2]).shape[0] > 20


def test_chosen_rows_keep_their_names():
    part = some().chosen(np.array([2, 0]))
    assert part.names == ("ear", "nose") and part.scores.tolist() == [0.7, 0.9] and part.cell_px == 4.0
    assert len(some(()).chosen(np.array([False, True, False]))) == 1


def test_lines_end_at_the_points_of_both_pictures():
    """Only one match, from (4, 6) of the first picture to (8, 2) of the second, on grey."""
    made = some().chosen(np.array([0]))
    made.points_a, made.points_b = np.array([[4.0, 6.0]]), np.array([[8.0, 2.0]])
    sheet = drawn(made, [np.full((12, 12, 3), 0.5), np.full((12, 12, 3), 0.5)], gap=8)
    scale = 40
    assert sheet.shape == (480, 2 * 480 + 8, 3)
    changed = np.argwhere((sheet != 128).any(-1) & (sheet != 255).any(-1))
    assert np.abs(changed - [6 * scale, 4 * scale]).sum(1).min() <= 3
    assert np.abs(changed - [2 * scale, 488 + 8 * scale]).sum(1).min() <= 3
    empty = drawn(made, [np.full((12, 12, 3), 0.5)] * 2, lines=0)
    assert set(np.unique(empty)) == {128, 255}


def test_points_are_read_with_their_names(tmp_path):
    path = tmp_path / "p.json"
    for given, names in (([[1, 2], [3, 4.5]], ()), ({"a": [1, 2], "b": [3, 4.5]}, ("a", "b"))):
        for whole in (given, {"points": given}):
            path.write_text(json.dumps(whole))
            found = read_points(path)
            assert found[0] == names and found[1].tolist() == [[1, 2], [3, 4.5]]


@pytest.mark.parametrize(
    "text", ["", "7", "[]", "[[1, 2, 3]]", '{"a": "xy"}', "[[1, null]]", "[[1, NaN]]", '{"points": 3}']
)
def test_what_holds_no_points_is_refused(tmp_path, text):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"p\.json"):
        read_points(path)


def test_sift_finds_a_shifted_texture():
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.random((12, 12, 3)), np.ones((8, 8, 1)))
    a, b, scores = sift_matches(coarse[:80, :80], coarse[8:88, 16:96])
    assert len(a) >= 10 and scores.min() > 0.5 and a.dtype == b.dtype == np.float64
    assert np.median(np.abs(a - b - [16, 8])) < 0.5
    assert len(sift_matches(np.zeros((20, 20, 3)), coarse)[0]) == 0
