"""Neighbours, mutual pairs, places between cells, samples of maps: closed forms, limits and slow twins."""

from __future__ import annotations

import pytest
import torch

from unproject.geometry.matching import (
    carried,
    cell_centres,
    cells_at,
    cosines,
    margins,
    mutual_nearest,
    sampled,
    soft_argmax,
)
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

WIDTH, HEIGHT = 7, 5


def bump(place: tuple[float, float], sharp: float = 0.1) -> torch.Tensor:
    """A row of similarities whose logarithm falls with the squared distance from a place."""
    centres = cell_centres(torch.arange(WIDTH * HEIGHT), WIDTH)
    return (-sharp * (centres - torch.tensor(place)).square().sum(-1))[None]


def test_mutual_pairs_are_those_of_a_loop():
    similarity = torch.randn(9, 6, generator=generator(0))
    wanted = [
        (i, j)
        for i in range(9)
        for j in range(6)
        if similarity[i, j] == similarity[i].max() and similarity[i, j] == similarity[:, j].max()
    ]
    assert list(zip(*(one.tolist() for one in mutual_nearest(similarity)))) == wanted and wanted


def test_what_may_not_be_matched_is_no_pair():
    similarity = torch.full((3, 3), -torch.inf)
    similarity[1, 2] = -0.5
    assert [one.tolist() for one in mutual_nearest(similarity)] == [[1], [2]]


def test_cells_and_their_centres_are_inverses_and_hold_what_lies_in_them():
    cells = torch.arange(WIDTH * HEIGHT)
    centres = cell_centres(cells, WIDTH)
    assert centres[WIDTH + 2].tolist() == [2.5, 1.5]
    for shift in (-0.49, 0.49):
        assert torch.equal(cells_at(centres + shift, WIDTH, HEIGHT), cells)
    assert cells_at(torch.tensor([[-3.0, 99.0]]), WIDTH, HEIGHT).item() == WIDTH * (HEIGHT - 1)


def test_soft_maximum_of_a_gaussian_bump_is_its_centre_away_from_edges():
    """softmax of a quadratic is a sampled Gaussian: within a wide window its mean is the centre it was made with."""
    for x in (3.5, 3.3, 3.7):
        place, spread = soft_argmax(bump((x, 2.5)), WIDTH, window=3, temperature=0.1)
        torch.testing.assert_close(place, torch.tensor([[x, 2.5]]).double(), atol=2e-3, rtol=0)
        assert float(spread) == pytest.approx((2 * 0.1 / (2 * 0.1)) ** 0.5, rel=0.03)  # sqrt(2 sigma^2)


def test_soft_maximum_falls_back_on_the_largest_cell():
    row = torch.randn(4, WIDTH * HEIGHT, generator=generator(1))
    best = cell_centres(row.argmax(1), WIDTH)
    for options in ({"window": 0}, {"temperature": 0.0}, {"temperature": 1e-6}):
        place, spread = soft_argmax(row, WIDTH, **options)
        torch.testing.assert_close(place, best)
        assert float(spread.max()) < 1e-6


def test_soft_maximum_stays_in_its_window_and_sees_no_cell_across_the_edge():
    """Against the sum over all cells that are near in both directions."""
    row = torch.randn(6, WIDTH * HEIGHT, generator=generator(2)).double()
    row[:, 5] = -torch.inf
    row[0, 6] = row[1, 0] = row[2, -1] = 9.0  # corners, where rows of cells would wrap around
    place, spread = soft_argmax(row, WIDTH, window=2, temperature=0.7)
    centres = cell_centres(torch.arange(WIDTH * HEIGHT), WIDTH)
    for k, one in enumerate(row):
        near = (centres - centres[one.argmax()]).abs().amax(-1) <= 2
        weight = (one / 0.7).masked_fill(~near, -torch.inf).softmax(0)
        mean = weight @ centres
        torch.testing.assert_close(place[k], mean)
        torch.testing.assert_close(spread[k], (weight @ (centres - mean).square().sum(-1)).sqrt())


def test_margins_are_those_of_a_loop_and_none_of_a_plain_row():
    rows = torch.randn(5, WIDTH * HEIGHT, generator=generator(6))
    centres = cell_centres(torch.arange(WIDTH * HEIGHT), WIDTH)
    for row, margin in zip(rows, margins(rows, WIDTH, 1), strict=True):
        far = (centres - centres[row.argmax()]).abs().amax(-1) > 1
        torch.testing.assert_close(margin, row.max() - row[far].max())
    assert float(margins(torch.ones(1, WIDTH * HEIGHT), WIDTH)) == 0
    assert float(margins(rows[:1], WIDTH, 9)) == torch.inf


def test_bad_windows_are_refused():
    with pytest.raises(InputError, match="window=-1"):
        soft_argmax(bump((1, 1)), WIDTH, window=-1)


def test_samples_of_a_linear_map_are_linear_and_held_at_the_edges():
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    maps = torch.stack([2 * x - y, x + 3 * y])
    places = torch.tensor([[1.2, 3.3], [5.9, 0.5], [-4.0, 2.5]])
    inside = places.clamp(min=0.5)
    wanted = torch.stack([2 * inside[:, 0] - inside[:, 1], inside[:, 0] + 3 * inside[:, 1]], 1)
    torch.testing.assert_close(sampled(maps, places), wanted, atol=1e-5, rtol=1e-5)


def test_cosines_ignore_lengths():
    a, b = torch.randn(3, 4, generator=generator(3)), torch.randn(5, 4, generator=generator(4))
    torch.testing.assert_close(cosines(3 * a, 0.1 * b), cosines(a, b))
    torch.testing.assert_close(cosines(a, a).diagonal(), torch.ones(3))


def test_points_move_as_their_nearest_match():
    a = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    b = a + torch.tensor([[1.0, 2.0], [-5.0, 0.5]])
    found = carried(torch.tensor([[1.0, 1.0], [8.0, 3.0]]), a, b)
    assert found.tolist() == [[2.0, 3.0], [3.0, 3.5]]
    assert carried(a, a[:0], b[:0]).isnan().all()
