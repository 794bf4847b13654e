"""Metrics against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from unproject.tasks.metrics import (
    align,
    angles_deg,
    depth_errors,
    fit_affine,
    masked_mean,
    normal_errors,
    pck,
    spearman,
)
from unproject.utils.errors import InputError

FULL = torch.ones(1, 4, 4, dtype=torch.bool)


def depth() -> torch.Tensor:
    return 1 + 3 * torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_constant_ratio_has_closed_forms() -> None:
    d, r = depth(), 1.2
    found = {name: value.item() for name, value in depth_errors(r * d, d, FULL).items()}
    assert found["abs_rel"] == pytest.approx(r - 1, rel=1e-5)
    assert found["sq_rel"] == pytest.approx((r - 1) ** 2 * d.mean().item(), rel=1e-5)
    assert found["rmse"] == pytest.approx((r - 1) * d.square().mean().sqrt().item(), rel=1e-5)
    assert found["rmse_log"] == pytest.approx(math.log(r), rel=1e-5)
    assert found["log10"] == pytest.approx(math.log10(r), rel=1e-5)
    assert found["silog"] == pytest.approx(0, abs=1e-3)  # blind to scale
    assert found["irmse"] == pytest.approx((1 - 1 / r) * (1 / d).square().mean().sqrt().item(), rel=1e-5)
    assert found["delta1"] == 1


def test_delta_is_strict() -> None:
    d = torch.ones(1, 4, 4, dtype=torch.float64)
    found = depth_errors(1.25 * d, d, FULL)
    assert (found["delta1"].item(), found["delta2"].item()) == (0.0, 1.0)


def test_delta_counts_powers_of_a_quarter_more() -> None:
    """Ratios either way between 1, 1.25, 1.5625 and 1.953125; each bound itself does not count."""
    d = torch.ones(1, 1, 10, dtype=torch.float64)
    p = torch.tensor(
        [[[1.2, 1 / 1.2, 1.3, 1 / 1.5, 1.5625, 1.6, 1 / 1.9, 1.9, 1.953125, 1 / 2.1]]], dtype=torch.float64
    )
    found = depth_errors(p, d, torch.ones(1, 1, 10, dtype=torch.bool))
    assert [found[f"delta{k}"].item() for k in (1, 2, 3)] == pytest.approx([0.2, 0.4, 0.8])


def test_silog_of_two_values() -> None:
    d = torch.ones(1, 1, 2, dtype=torch.float64)
    p = torch.tensor([[[math.e, 1 / math.e]]], dtype=torch.float64)
    assert depth_errors(p, d, torch.ones(1, 1, 2, dtype=torch.bool))["silog"].item() == pytest.approx(100.0)


def test_invalid_pixels_do_not_count() -> None:
    d, valid = depth(), FULL.clone()
    p = d.clone()
    p[0, 0, 0], valid[0, 0, 0] = 100.0, False
    d = torch.where(valid, d, torch.zeros_like(d))
    assert depth_errors(p, d, valid)["rmse"].item() == 0
    assert torch.isnan(masked_mean(d, torch.zeros_like(valid))).all()


@pytest.mark.parametrize("how", ["depth", "disparity", "scale", "none"])
def test_alignment_undoes_its_own_ambiguity(how: str) -> None:
    d = depth()
    given = {"depth": 0.2 * d - 0.1, "disparity": 3 / d + 0.5, "scale": 7 * d, "none": d}[how]
    torch.testing.assert_close(align(given, d, FULL, how), d, rtol=1e-4, atol=1e-4)


def test_alignment_matches_the_normal_equations() -> None:
    d, p = depth(), torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(1))
    rows = torch.stack([p.flatten(), torch.ones(16)], 1)
    s, t = torch.linalg.lstsq(rows, d.flatten()[:, None]).solution.flatten()
    found = fit_affine(p, d, FULL)
    assert (found.scale.item(), found.shift.item()) == pytest.approx((s.item(), t.item()), rel=1e-4)


def test_a_positive_fit_does_not_turn_an_inverted_map() -> None:
    d = depth()
    found = fit_affine(-d, d, FULL, positive=True)
    assert (found.scale.item(), found.shift.item()) == (0.0, pytest.approx(d.mean().item(), rel=1e-6))
    assert fit_affine(-d, d, FULL).scale.item() == pytest.approx(-1)


def test_constant_prediction_aligns_to_the_mean_and_keeps_gradients_finite() -> None:
    d, p = depth(), torch.full((1, 4, 4), 0.3, requires_grad=True)
    fitted = fit_affine(p, d, FULL, ridge=1e-3)(p.double())
    torch.testing.assert_close(fitted, d.double().mean().expand(1, 4, 4))
    (fitted - d).abs().mean().backward()
    assert torch.isfinite(p.grad).all()


def test_limits_clip_after_alignment() -> None:
    assert align(depth(), depth(), FULL, limits=(2.0, 3.0)).min() == 2.0
    with pytest.raises(InputError, match="median"):
        align(depth(), depth(), FULL, "median")


def test_angles_of_known_vectors() -> None:
    a = torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
    for degrees in (0.0, 10.0, 90.0, 180.0):
        rad = math.radians(degrees)
        b = 2 * torch.tensor([math.sin(rad), 0.0, math.cos(rad)], dtype=torch.float64).reshape(1, 3, 1, 1)
        assert angles_deg(a, b).item() == pytest.approx(degrees, abs=1e-4)


def tilted(degrees: list[list[float]]) -> torch.Tensor:
    """(B, 3, 1, W) vectors that many degrees off the z axis."""
    rad = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))[:, None, None]
    return torch.cat([rad.sin(), torch.zeros_like(rad), rad.cos()], 1)


def test_normal_statistics_and_pooling() -> None:
    truth = tilted([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    truth[1, :, :, 1:] = 0  # unknown: image 1 has one known pixel
    found = tilted([[1.0, 6.0, 20.0], [29.0, 0.0, 0.0]])
    by_image = normal_errors(found, truth)
    assert by_image["mean"].tolist() == pytest.approx([9.0, 29.0], rel=1e-6)
    assert by_image["median"].tolist() == pytest.approx([6.0, 29.0], rel=1e-6)
    assert by_image["below_5"].tolist() == pytest.approx([1 / 3, 0])
    pooled = normal_errors(found, truth, pooling="pixels")
    assert pooled["mean"].item() == pytest.approx(14.0)
    assert pooled["median"].item() == pytest.approx(13.0)
    assert pooled["below_30"].item() == 1
    assert pooled["below_7.5"].item() == pytest.approx(0.5)


def test_image_without_normals_is_nan_not_ninety_degrees() -> None:
    found = normal_errors(tilted([[1.0]]), torch.zeros(1, 3, 1, 1))
    assert all(torch.isnan(value).all() for value in found.values())


def test_spearman_sees_order_only() -> None:
    x = torch.linspace(0.1, 2, 20)
    assert spearman(x, x.exp()) == pytest.approx(1)
    assert spearman(x, -(x**3)) == pytest.approx(-1)


def test_spearman_gives_equal_values_one_rank() -> None:
    """Ranks 2, 2, 2, 4 against 1, 2, 3, 4: 3 / sqrt(3 * 5)."""
    few, many = torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert spearman(few, many) == pytest.approx(3 / math.sqrt(15))
    assert spearman(few.flip(0), many.flip(0)) == pytest.approx(3 / math.sqrt(15))  # order of the pairs
    assert spearman(torch.zeros(4), many) == 0


def test_pck_by_hand_per_point_and_per_image():
    errors = [torch.tensor([0.5, 0.99, 1.0, float("nan")]), torch.tensor([3.0])]
    assert pck(errors, [10.0, 40.0]) == pytest.approx(3 / 5)  # 1.0 is not below a tenth of 10
    assert pck(errors, [10.0, 40.0], per="image") == pytest.approx((2 / 4 + 1) / 2)
    assert pck(errors, [10.0, 40.0], 0.05) == 0
    same = [torch.tensor([0.1, 9.0]), torch.tensor([0.2, 0.3]), torch.tensor([])]
    assert pck(same, [5.0, 5.0, 5.0]) == pytest.approx(pck(same, [5.0, 5.0, 5.0], per="image"))
    with pytest.raises(InputError, match="no key points"):
        pck([torch.zeros(0)], [1.0])
