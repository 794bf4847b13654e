"""Intervals against published examples, closed forms and their own invariances."""

from __future__ import annotations

import numpy as np
import pytest

from unproject.bench import intervals
from unproject.utils.errors import InputError


def test_wilson_interval_matches_its_published_example_and_stays_inside_one():
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611."""
    assert intervals.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert intervals.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert intervals.wilson(20, 20) == pytest.approx((0.8389, 1.0), abs=1e-4)
    with pytest.raises(InputError, match="trials=0"):
        intervals.wilson(0, 0)


def test_share_and_spread_keep_their_counts():
    assert intervals.share([True, False, True, True])["value"] == 0.75
    assert intervals.spread([1.0, 2.0, 6.0]) == {"mean": 3.0, "std": 2.16025, "median": 2.0, "n": 3}


def test_bootstrap_intervals_hold_the_mean_and_pairs_stay_pairs():
    values = np.random.default_rng(0).standard_normal(400) + 3
    found = intervals.bootstrapped(values)
    assert found["low"] < found["mean"] < found["high"] and found["n"] == 400
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    same = intervals.ratio(2 * values, values)
    assert (same["ratio"], same["low"], same["high"]) == (2, 2, 2)
    assert intervals.digits(1.23456e-9) == 1.2346e-9
    assert intervals.bootstrapped([4.0])["low"] == intervals.bootstrapped([4.0])["high"] == 4


def test_ratios_resample_pairs_and_have_the_width_of_the_delta_method():
    """d(a/b) = (a/b) sqrt(var a / a^2 + var b / b^2 - 2 cov / (a b)) / sqrt(n)."""
    rng = np.random.default_rng(3)
    b = rng.gamma(9.0, 1.0, 500)
    a = 0.5 * b + 0.1 * rng.standard_normal(500)
    found = intervals.ratio(a, b)
    (va, cov), (_, vb) = np.cov(a, b)
    wanted = found["ratio"] * np.sqrt(va / a.mean() ** 2 + vb / b.mean() ** 2 - 2 * cov / (a.mean() * b.mean()))
    assert found["low"] < found["ratio"] < found["high"]
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * wanted / np.sqrt(500), rel=0.15)
    assert intervals.ratio(7 * a, b)["high"] == pytest.approx(7 * found["high"], rel=1e-4)
