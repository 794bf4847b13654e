"""Distances between sets of features: closed forms, bias and its absence, objects of several views, floors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unproject.bench import distances, toy_latents
from unproject.bench.distances import Features, Yardstick, excess_ratio, frechet, kernel_draws
from unproject.toybox.judge import Judge
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def test_frechet_distance_of_gaussians() -> None:
    rng = torch.Generator().manual_seed(0)
    base = torch.randn((400, 6), generator=rng, dtype=torch.float64)
    base = base - base.mean(0)
    base = base @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(base.mT))).mT  # exactly white
    scale = torch.tensor([1.0, 2.0, 3.0, 0.5, 1.5, 0.1], dtype=torch.float64)
    shift = torch.arange(6, dtype=torch.float64)
    expected = shift.square().sum() + (scale - 1).square().sum()
    assert frechet(base, base * scale + shift) == pytest.approx(float(expected), rel=1e-9)
    assert frechet(base * scale + shift, base) == pytest.approx(float(expected), rel=1e-9)
    assert frechet(base, base) == pytest.approx(0, abs=1e-9)
    turned, _ = torch.linalg.qr(torch.randn((6, 6), generator=rng, dtype=torch.float64))
    assert frechet(base @ turned, (base * scale) @ turned) == pytest.approx(float((scale - 1).square().sum()), rel=1e-9)
    with pytest.raises(InputError, match="features of shape"):
        frechet(base, base[:, :3])


def test_the_floor_falls_with_the_number_of_objects_and_not_with_their_views() -> None:
    """E of the distance of n samples from N(0, I) to N(0, I) falls about as 1 / n; four views of each are no more."""
    truth = normal(4000, 8, seed=9)

    def floor(objects: int, views: int) -> float:
        found = []
        for seed in range(6):
            one = normal(objects, 1, 8, seed=seed) + 0.05 * normal(objects, views, 8, seed=100 + seed)
            found.append(frechet(one.flatten(0, 1), truth))
        return float(np.mean(found))

    few, more, most = floor(50, 1), floor(200, 1), floor(800, 1)
    assert few > 2 * more > 4 * most
    assert floor(50, 4) == pytest.approx(few, rel=0.1)
    assert floor(50, 4) > 2 * more  # as many pictures, of fewer objects


def by_loops(a: Features, b: Features) -> float:
    """The kernel distance as its definition reads."""

    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    def within(part: Features) -> float:
        pairs = [(i, j) for i in range(len(part)) for j in range(len(part)) if part.objects[i] != part.objects[j]]
        return float(np.mean([kernel(part.values[i], part.values[j]) for i, j in pairs]))

    between = np.mean([kernel(x, y) for x in a.values for y in b.values])
    return within(a) + within(b) - 2 * float(between)


def test_the_kernel_distance_is_its_definition() -> None:
    a, b = Features.of(normal(9, 5) + 0.5, 2), Features(normal(7, 5, seed=1), np.array([3, 1, 1, 2, 3, 0, 0]))
    assert kernel_draws(a, b)[0] == pytest.approx(by_loops(a, b), rel=1e-12)
    assert kernel_draws(b, a)[0] == pytest.approx(by_loops(a, b), rel=1e-12)
    with pytest.raises(InputError, match="two objects"):
        kernel_draws(Features.of(normal(3, 5), 3), b)


def test_the_kernel_distance_of_one_distribution_is_zero_in_the_mean() -> None:
    """Also with several views of each object, where a U-statistic over pictures would be biased."""

    def seen(seed: int, objects: int, views: int) -> Features:
        one = normal(objects, 1, 4, seed=seed) + 0.3 * normal(objects, views, 4, seed=seed + 5000)
        return Features.of(one.flatten(0, 1), views)

    found, naive = [], []
    for seed in range(120):
        a, b = seen(seed, 12, 3), seen(1000 + seed, 10, 2)
        found.append(kernel_draws(a, b)[0])
        naive.append(kernel_draws(Features.of(a.values), Features.of(b.values))[0])
    error = np.std(found, ddof=1) / math.sqrt(len(found))
    assert abs(np.mean(found)) < 3 * error
    assert np.mean(naive) > 5 * error


def test_resampling_objects_tells_the_spread_of_the_kernel_distance() -> None:
    pairs = [(Features.of(normal(40, 3, seed=s) + 0.8), Features.of(normal(60, 3, seed=500 + s))) for s in range(60)]
    found = [kernel_draws(a, b) for a, b in pairs]
    told = np.mean([draws[1:].std() for draws in found])
    assert told == pytest.approx(np.std([draws[0] for draws in found], ddof=1), rel=0.3)
    covered = [
        np.quantile(draws[1:], 0.025) < np.mean([d[0] for d in found]) < np.quantile(draws[1:], 0.975)
        for draws in found
    ]
    assert np.mean(covered) > 0.8


def test_objects_are_resampled_with_all_their_views() -> None:
    part = Features.of(torch.arange(12.0)[:, None], 3)
    for rows in part.draws(20):
        assert len(rows) == 12
        np.testing.assert_array_equal(rows.reshape(-1, 3), rows.reshape(-1, 3)[:, :1] + np.arange(3))
    single = Features.of(normal(4, 2)).draws(5)
    assert [rows.tolist() for rows in single] == [(rows[::3] // 3).tolist() for rows in part.draws(5)]  # stay paired


def test_a_distance_stands_beside_its_floor_and_is_compared_by_excess() -> None:
    reference, others = Features.of(normal(300, 3, seed=1)), Features.of(normal(200, 3, seed=2))
    yard, seen = Yardstick(reference, others), Features.of(normal(200, 3) + 1)
    row = yard.row(seen, seen)
    assert row["toy_fid"]["fid"] == pytest.approx(3, abs=1) and row["toy_fid"]["std"] > 0
    assert row["toy_fid"]["floor"] == pytest.approx(frechet(others.values, reference.values), rel=1e-4)
    assert row["toy_fid"]["excess"] == pytest.approx(row["toy_fid"]["fid"] - row["toy_fid"]["floor"], abs=1e-4)
    assert row["excess_ratio"] == {"ratio": 1, "low": 1, "high": 1}
    assert row["toy_kid"]["low"] < row["toy_kid"]["kid"] < row["toy_kid"]["high"]
    assert row["toy_kid"]["low"] > 0
    with pytest.raises(InputError, match="199 drawings are compared with 200 renders"):
        yard.row(seen.first(199))
    small = Yardstick(reference, others.first(199)).row(seen.first(199))
    assert set(small) == {"toy_kid"}  # fewer pictures than the Frechet distance can be told of


def test_renders_have_no_excess_whose_ratio_could_be_told() -> None:
    yard = Yardstick(Features.of(normal(300, 3, seed=1)), Features.of(normal(200, 3, seed=2)))
    drawn, real = Features.of(normal(200, 3) + 1), Features.of(normal(200, 3, seed=5))
    assert "excess_ratio" not in yard.row(drawn, real)
    low = yard.row(real, drawn)["excess_ratio"]
    assert low["low"] < 0.02 < low["high"] + 0.05


def test_the_ratio_of_excesses_ignores_what_both_share() -> None:
    """Distances 30 and 50 over a floor of 20 have excesses of 10 and 30."""
    noise = np.random.default_rng(0).normal(0, 0.5, 41)
    noise[0] = 0
    found = excess_ratio(10 + noise, 30 + 2 * noise)["excess_ratio"]
    assert found["ratio"] == pytest.approx(1 / 3, rel=1e-4)
    slope = 1 / 30 - 10 * 2 / 30**2  # of (10 + z) / (30 + 2 z) at 0
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * slope * noise[1:].std(ddof=1), rel=1e-3)
    shared = excess_ratio(10 + 5 * noise, 30 + 15 * noise)["excess_ratio"]
    assert shared["high"] == pytest.approx(shared["low"], rel=1e-6)


def test_the_yardstick_keeps_its_objects_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def renders(split: str, groups: int, size: int, views: int, first: int) -> toy_latents.Renders:
        asked.append((range(first, first + groups), size, views))
        return toy_latents.Renders(torch.zeros(groups * views, 3, 4, 4), [])

    class Reader(Judge):
        def __init__(self) -> None:
            pass

        def features(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)[:, :5]

    monkeypatch.setattr(toy_latents, "renders", renders)
    yard = toy_latents.yardstick(Reader(), 30, 20, first=30, size=48)
    (reference, size, views), (others, _, one) = asked
    assert (size, views, one) == (48, 4, 1)
    assert not set(range(30)) & set(reference) and not set(others) & {*range(30), *reference}
    assert len(yard.others) == 30 and len(np.unique(yard.reference.objects)) == 20
    assert distances.FRECHET_PICTURES > 192
