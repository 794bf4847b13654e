"""Ensembles: exact agreement of copies, parity with diffusers; tiles: cover, seams, scales."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from diffusers import MarigoldDepthPipeline, MarigoldNormalsPipeline

from unproject.tasks.codecs import unit_length
from unproject.tasks.ensemble import (
    CONSENSUS,
    PUBLISHED,
    _consensus,
    ensemble_affine,
    ensemble_directions,
    ensemble_median,
)
from unproject.tasks.metrics import fit_affine
from unproject.tasks.noise import annealed_noise
from unproject.tasks.tiling import Box, blend, stitch_affine, tile_boxes
from unproject.utils.errors import InputError


def noisy_members(count: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(one map (1, 1, H, W) spanning [0, 1], members under random positive affine maps)."""
    rng = torch.Generator().manual_seed(seed)
    base = torch.rand(1, 1, 12, 16, generator=rng)
    base = (base - base.min()) / (base.max() - base.min())
    scale, shift = 0.5 + torch.rand(count, 1, 1, 1, generator=rng), torch.rand(count, 1, 1, 1, generator=rng)
    return base, scale * (base + noise * torch.randn(count, 1, 12, 16, generator=rng)) + shift


@pytest.mark.parametrize("how", [PUBLISHED, CONSENSUS], ids=lambda how: how.solver)
def test_affine_copies_agree_exactly(how) -> None:
    base, members = noisy_members(4, 0.0)
    found = ensemble_affine(members, how=how)
    torch.testing.assert_close(found.prediction, base, rtol=0, atol=1e-4)
    assert found.uncertainty.max() < 1e-4


@pytest.mark.parametrize("how", [PUBLISHED, CONSENSUS], ids=lambda how: how.solver)
def test_scaled_copies_agree_without_shift(how) -> None:
    base, _ = noisy_members(1, 0.0)
    members = torch.tensor([0.5, 2.0, 3.0]).reshape(3, 1, 1, 1) * base
    found = ensemble_affine(members, how=how._replace(shift=False))
    torch.testing.assert_close(found.prediction, base, rtol=0, atol=1e-4)


@pytest.mark.parametrize("reduction", ["median", "mean"])
@pytest.mark.parametrize("size", [2, 3, 6])
def test_published_solver_equals_diffusers(size: int, reduction: str) -> None:
    _, members = noisy_members(size, 0.05)
    prediction, uncertainty = MarigoldDepthPipeline.ensemble_depth(
        members, output_uncertainty=True, reduction=reduction
    )
    found = ensemble_affine(members, reduction, PUBLISHED)
    torch.testing.assert_close(found.prediction, prediction, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.uncertainty, uncertainty, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", [True, False])
def test_published_solver_equals_diffusers_on_large_maps(shift: bool) -> None:
    """Larger than the size of the fit, not square, with and without a free shift; four members."""
    rng = torch.Generator().manual_seed(7)
    members = torch.rand(4, 1, 90, 61, generator=rng) * (0.5 + torch.rand(4, 1, 1, 1, generator=rng)) + 0.2
    prediction, uncertainty = MarigoldDepthPipeline.ensemble_depth(
        members, shift_invariant=shift, output_uncertainty=True, max_res=40
    )
    found = ensemble_affine(members, how=PUBLISHED._replace(shift=shift, max_size=40))
    torch.testing.assert_close(found.prediction, prediction, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.uncertainty, uncertainty, rtol=0, atol=1e-4)


def test_the_published_settings_are_those_of_diffusers() -> None:
    theirs = inspect.signature(MarigoldDepthPipeline.ensemble_depth).parameters
    names = {"strength": "regularizer_strength", "max_iter": "max_iter", "tol": "tol", "max_size": "max_res"}
    assert {ours: getattr(PUBLISHED, ours) for ours in names} == {o: theirs[t].default for o, t in names.items()}


def test_consensus_is_no_worse_than_the_published_solver_and_than_one_member() -> None:
    errors = {"one": [], "published": [], "consensus": []}
    for seed in range(5):
        base, members = noisy_members(5, 0.1, seed)
        made = {
            "one": members[:1],
            "published": ensemble_affine(members, how=PUBLISHED).prediction,
            "consensus": ensemble_affine(members, how=CONSENSUS).prediction,
        }
        for name, value in made.items():
            fitted = fit_affine(value[:, 0], base[:, 0], torch.ones_like(base[:, 0], dtype=torch.bool))(value[:, 0])
            errors[name].append((fitted - base[:, 0]).abs().mean().item())
    means = {name: sum(values) / 5 for name, values in errors.items()}
    assert means["consensus"] <= 1.01 * means["published"]
    assert means["consensus"] < 0.7 * means["one"]


def test_consensus_barely_moves_when_its_input_barely_moves() -> None:
    _, members = noisy_members(3, 0.1)
    nudged = members + 1e-7 * torch.randn(members.shape, generator=torch.Generator().manual_seed(1))
    one, other = (ensemble_affine(m, how=CONSENSUS).prediction for m in (members, nudged))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("reduction", ["closest", "mean"])
def test_directions_equal_diffusers(reduction: str) -> None:
    normals = unit_length(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    prediction, uncertainty = MarigoldNormalsPipeline.ensemble_normals(normals.clone(), True, reduction)
    found = ensemble_directions(normals, reduction)
    torch.testing.assert_close(found.prediction, prediction, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.uncertainty, uncertainty, rtol=0, atol=1e-6)


def test_directions_of_copies_have_no_uncertainty_and_opposite_tilts_have_their_angle() -> None:
    up = torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
    assert ensemble_directions(up.repeat(3, 1, 1, 1)).uncertainty.item() < 1e-3
    tilt = math.radians(30)
    pair = torch.tensor([[math.sin(tilt), 0, math.cos(tilt)], [-math.sin(tilt), 0, math.cos(tilt)]])
    found = ensemble_directions(pair.reshape(2, 3, 1, 1), "mean")
    torch.testing.assert_close(found.prediction, up)
    assert found.uncertainty.item() == pytest.approx(30 / 180, abs=1e-5)


def test_median_and_messages() -> None:
    maps = torch.tensor([1.0, 5.0, 2.0]).reshape(3, 1, 1, 1)
    assert ensemble_median(maps).prediction.item() == 2
    assert ensemble_median(maps).uncertainty.item() == 1
    with pytest.raises(InputError, match="expected"):
        ensemble_affine(torch.zeros(2, 3, 4, 4))
    with pytest.raises(InputError, match="mode"):
        ensemble_affine(maps, "mode")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_medians_over_members_are_those_of_numpy(count: int) -> None:
    """Slow twin: numpy.median. Of two members the prediction lies between, and the spread is half their distance."""
    maps = torch.rand(count, 2, 6, 7, generator=torch.Generator().manual_seed(3))
    found, members = ensemble_median(maps), maps.numpy()
    middle = np.median(members, 0, keepdims=True)
    deviation = np.median(np.abs(members - middle), 0, keepdims=True).mean(1, keepdims=True)
    np.testing.assert_allclose(found.prediction, middle, atol=1e-6)
    np.testing.assert_allclose(found.uncertainty, deviation, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_consensus_reduces_by_those_medians(size: int) -> None:
    """Slow twin: numpy.median of the aligned members. The spread of two is not 0 everywhere."""
    rows = torch.randn(size, 200, generator=torch.Generator().manual_seed(4)).double()
    rows = 1 + 0.1 * rows + torch.linspace(0, 5, 200)
    shared = ensemble_affine(rows.reshape(size, 1, 10, 20), how=CONSENSUS)
    values = _consensus(rows, True).reshape(2, size, 1)
    aligned = (rows * values[0] + values[1]).numpy()
    middle = np.median(aligned, 0)
    span = middle.max() - middle.min()
    np.testing.assert_allclose(shared.prediction.flatten(), (middle - middle.min()) / span, atol=1e-5)
    spread = np.median(np.abs(aligned - middle), 0) / span
    np.testing.assert_allclose(shared.uncertainty.flatten(), spread, atol=1e-5)
    assert (shared.uncertainty > 1e-4).double().mean() > 0.9


@pytest.mark.parametrize(("height", "width", "tile", "overlap"), [(32, 32, 32, 8), (50, 33, 32, 8), (97, 20, 32, 0)])
def test_tiles_cover_the_image_and_overlap(height: int, width: int, tile: int, overlap: int) -> None:
    boxes = tile_boxes(height, width, tile, overlap)
    seen = torch.zeros(height, width)
    for box in boxes:
        box.of(seen).add_(1)
        assert box.bottom - box.top == min(tile, height)
        assert box.right - box.left == min(tile, width)
    assert seen.min() >= 1
    rows = sorted({box.top for box in boxes})
    assert all(a + tile - b >= overlap for a, b in zip(rows, rows[1:], strict=False))


def test_blending_cut_tiles_returns_the_image() -> None:
    image = torch.rand(2, 3, 45, 37, generator=torch.Generator().manual_seed(0))
    boxes = tile_boxes(45, 37, 16, 5)
    back = blend([box.of(image) for box in boxes], boxes, 45, 37)
    torch.testing.assert_close(back, image, rtol=0, atol=1e-6)


def test_blended_tiles_give_way_linearly() -> None:
    """Two tiles of 8 x 3 px that share 4 columns: weights are distances to the tiles' edges."""
    boxes = [Box(0, 0, 3, 8), Box(0, 4, 3, 12)]
    tiles = [torch.zeros(1, 1, 3, 8), torch.ones(1, 1, 3, 8)]
    expected = torch.tensor([0.0] * 4 + [0.125, 0.375, 0.625, 0.875] + [1.0] * 4).expand(1, 1, 3, 12)
    torch.testing.assert_close(blend(tiles, boxes, 3, 12), expected, rtol=0, atol=1e-6)
    upright = blend([tile.mT for tile in tiles], [Box(b.left, b.top, b.right, b.bottom) for b in boxes], 12, 3)
    torch.testing.assert_close(upright, expected.mT, rtol=0, atol=1e-6)


def test_a_corner_counts_by_both_its_distances() -> None:
    """Four tiles over one place: weights are products; a lone value shows which tile it came from."""
    boxes = [Box(0, 0, 4, 4), Box(0, 2, 4, 6), Box(2, 0, 6, 4), Box(2, 2, 6, 6)]
    tiles = [torch.full((1, 1, 4, 4), float(i == 2)) for i in range(4)]
    blended = blend(tiles, boxes, 6, 6)[0, 0]
    share = {2: 0.75, 3: 0.25}  # of the earlier tile along one axis, in the shared columns 2 and 3
    for row in (2, 3):
        for column in (2, 3):
            assert blended[row, column].item() == pytest.approx((1 - share[row]) * share[column], abs=1e-6)


def test_stitching_undoes_the_scale_of_each_tile() -> None:
    rng = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 40, 40, generator=rng)
    boxes = tile_boxes(40, 40, 20, 6)
    factors = [0.5 + torch.rand(1, generator=rng).item() for _ in boxes]
    moved = [box.of(image) * factor + torch.rand(1, generator=rng) for box, factor in zip(boxes, factors, strict=True)]
    found = stitch_affine(moved, boxes, image)
    for tile, box in zip(found.tiles, boxes, strict=True):
        torch.testing.assert_close(tile, box.of(image), rtol=0, atol=1e-5)
    assert found.scales == pytest.approx([1 / factor for factor in factors], rel=1e-4)
    with pytest.raises(InputError, match="anchor"):
        stitch_affine(moved, boxes, image, anchor=0.0)


def test_box_arithmetic() -> None:
    assert Box(0, 0, 4, 4).overlap(Box(2, 3, 6, 7)) == Box(2, 3, 4, 4)
    assert Box(0, 0, 4, 4).overlap(Box(4, 0, 8, 4)) is None
    with pytest.raises(InputError, match="overlap"):
        tile_boxes(10, 10, 4, 4)


def test_annealed_noise_is_white_at_the_clean_end_and_smooth_at_the_noisy_end() -> None:
    white = annealed_noise((8, 4, 16, 16), torch.zeros(8), torch.Generator().manual_seed(0))
    smooth = annealed_noise((8, 4, 16, 16), torch.full((8,), 0.9), torch.Generator().manual_seed(0))
    for noise in (white, smooth):
        assert noise.std().item() == pytest.approx(1, abs=1e-4)

    def correlation(noise: torch.Tensor) -> float:
        return (noise[..., 1:] * noise[..., :-1]).mean().item()

    assert abs(correlation(white)) < 0.05
    assert correlation(smooth) > correlation(white) + 0.05
