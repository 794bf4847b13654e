"""From two pictures to points: sizes, masks, scales, and what is told of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unproject.core.priors import StableDiffusionPrior
from unproject.pipelines.match_images import MatchImages, sift
from unproject.scripts.random_backbones import seeded, tiny_sd
from unproject.tasks.correspondence import MatchConfig
from unproject.utils.errors import InputError


def places(pictures: torch.Tensor) -> torch.Tensor:
    """An encoder that sees colours alone, at a quarter of the size."""
    return torch.nn.functional.avg_pool2d(pictures, 4)


@pytest.fixture(scope="module")
def pipe():
    """Random weights, and an encoder that alone decides."""
    return MatchImages(StableDiffusionPrior(tiny_sd(), "tiny"), places, MatchConfig(size=64, alpha=0.0))


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Colours that are smooth and differ everywhere."""
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    return np.stack([0.2 + 0.6 * x, 0.2 + 0.6 * y, 0.5 + 0.3 * np.sin(9 * x * y + seed)], -1).astype(np.float32)


def test_points_of_pictures_of_other_sizes_are_in_their_own_pixels(pipe):
    """The same wide picture at twice the size: points come out at twice the place, whatever the padding."""
    small, large = texture(40, 64), texture(80, 128)
    given = np.array([[10.0, 30.0], [50.5, 8.25], [32.0, 20.0]])
    made = pipe.transfer(small, large, given, names=["p", "q", "r"])
    assert np.abs(made.points_b - 2 * given).max() < 2 * made.cell_px / 2
    assert made.cell_px == pytest.approx(8.0, rel=0.02) and made.names == ("p", "q", "r")
    back = pipe.transfer(large, small, made.points_b)
    assert np.abs(back.points_b - given).max() < 4 and bool(back.agrees.all())


def test_matches_are_sorted_and_stay_inside_the_pictures(pipe):
    made = pipe(texture(40, 64), texture(64, 40, seed=1))
    assert len(made) > 10 and bool((np.diff(made.margins) <= 0).all())
    for points, (width, height) in ((made.points_a, (64, 40)), (made.points_b, (40, 64))):
        assert points.min() >= 0 and bool((points <= [width, height]).all())
    few = pipe(texture(40, 64), texture(64, 40, seed=1), count=4)
    np.testing.assert_array_equal(few.points_a, made.points_a[:4])


def test_padding_is_never_matched(pipe):
    """A wide and a tall picture have padding at other sides; centres of cells in it would lie outside."""
    made = pipe(texture(16, 64), texture(64, 16))
    assert made.points_a[:, 1].max() < 16 and made.points_b[:, 0].max() < 16


def test_what_is_masked_is_never_matched(pipe):
    picture = texture(64, 64)
    valid = np.ones((64, 64), bool)
    valid[:, :32] = False
    made = pipe(picture, picture, valid=(None, valid))
    assert len(made) > 5 and made.points_b[:, 0].min() > 30
    moved = pipe.transfer(picture, picture, [[8.0, 8.0]], valid=(None, valid))
    assert moved.points_b[0, 0] > 30 and not moved.agrees[0]


def test_both_pictures_cost_a_row_each(pipe):
    alone = MatchImages(pipe.prior, None, MatchConfig(size=32))
    made = alone(texture(32, 32), texture(32, 32))
    assert made.nfe == 2 and "tiny" in made.made_by and made.facts["grid"] == [8, 8]
    np.testing.assert_allclose(made.points_b, made.points_a, atol=1.5)
    assert "function" in pipe.__call__(texture(32, 32), texture(32, 32)).made_by


@pytest.mark.parametrize(
    ("points", "told"),
    [([[1, 99]], r"point 0 \(1, 99\) lies outside the first picture, 64 x 40"), ([[-1, 2]], "point 0")],
)
def test_points_outside_are_refused(pipe, points, told):
    with pytest.raises(InputError, match=told):
        pipe.transfer(texture(40, 64), texture(40, 64), points)


def test_several_pictures_are_no_pair(pipe):
    with pytest.raises(InputError, match="got 2 pictures"):
        pipe(np.stack([texture(32, 32)] * 2), texture(32, 32))


def test_the_encoder_moves_along():
    encoder = torch.nn.Conv2d(3, 4, 4, 4)
    pipe = MatchImages(StableDiffusionPrior(seeded(tiny_sd), "tiny"), encoder).to("meta")
    assert next(encoder.parameters()).device.type == "meta" and pipe.device.type == "meta"


def test_sift_tells_that_it_made_them():
    coarse = np.kron(np.random.default_rng(0).random((10, 10, 3)), np.ones((8, 8, 1)))
    made = sift(coarse, coarse)
    assert made.made_by == "SIFT" and len(made) > 5 and made.cell_px == 0
    np.testing.assert_allclose(made.points_a, made.points_b)
