"""Codecs: round trips, orientation, masks, frames."""

from __future__ import annotations

import pytest
import torch

from unproject.tasks.codecs import DepthCodec, NormalCodec, StackCodec, convert_normals, unit_length
from unproject.tasks.codecs.depth import nanquantiles
from unproject.utils.errors import InputError


def depth_maps(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    depth = 0.5 + 4 * torch.rand(3, 1, 12, 16, generator=rng)
    valid = torch.rand(3, 1, 12, 16, generator=rng) > 0.2
    return torch.where(valid, depth, torch.zeros_like(depth)), valid


def unit_maps(seed: int = 0) -> torch.Tensor:
    return unit_length(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("space", ["linear", "disparity", "log"])
def test_depth_round_trip_is_exact_on_valid_pixels(space: str) -> None:
    depth, valid = depth_maps()
    codec = DepthCodec(space, clip=False)
    pictures, state = codec.encode(depth, valid)
    assert pictures.shape == (3, 3, 12, 16)
    torch.testing.assert_close(codec.decode(pictures, state)[valid], depth[valid], rtol=1e-5, atol=1e-5)


def test_depth_quantiles_land_on_the_ends() -> None:
    depth = torch.arange(101.0).reshape(1, 1, 1, 101) + 1
    pictures, state = DepthCodec().encode(depth, torch.ones_like(depth, dtype=torch.bool))
    assert state.low.item() == pytest.approx(3.0)
    assert state.high.item() == pytest.approx(99.0)
    assert pictures[0, 0, 0, 2].item() == pytest.approx(-1)
    assert pictures[0, 0, 0, 98].item() == pytest.approx(1)
    assert pictures.min() == -1
    assert pictures.max() == 1


def test_depth_of_large_pictures_has_quantiles() -> None:
    """More than 2^24 pixels, which torch.quantile refuses."""
    depth = (torch.arange(4100.0 * 4100) / 1e6 + 1).reshape(1, 1, 4100, 4100)
    state = DepthCodec(quantile=0.25).range_of(depth, torch.ones_like(depth, dtype=torch.bool))
    assert state.low.item() == pytest.approx(1 + 0.25 * 16.81, rel=1e-6)
    assert state.high.item() == pytest.approx(1 + 0.75 * 16.81, rel=1e-6)


def test_quantiles_of_some_equal_those_of_torch() -> None:
    values = torch.rand(4, 57, generator=torch.Generator().manual_seed(3))
    values[0, ::3], values[1], values[2, 1:] = torch.nan, torch.nan, torch.nan
    shares = (0.0, 0.02, 0.5, 0.61, 1.0)
    wanted = torch.nanquantile(values, torch.tensor(shares), dim=1)
    torch.testing.assert_close(nanquantiles(values, shares), wanted, rtol=0, atol=1e-6, equal_nan=True)


def test_depth_code_ignores_positive_affine_maps() -> None:
    depth, valid = depth_maps()
    codec = DepthCodec()
    code, _ = codec.encode(depth, valid)
    other, _ = codec.encode(3 * depth + 2, valid)
    torch.testing.assert_close(code[valid.expand_as(code)], other[valid.expand_as(other)], rtol=0, atol=1e-5)


@pytest.mark.parametrize("space", ["linear", "disparity", "log"])
def test_relative_unit_turns_picture_errors_into_relative_depth_errors(space: str) -> None:
    codec = DepthCodec(space=space)
    depth = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4 + 0.5
    valid = torch.ones_like(depth, dtype=torch.bool)
    valid[0, :, 0] = False
    state = codec.range_of(depth, valid)
    moved = 2 * (codec.to_space(depth * 1.001) - codec.to_space(depth)).abs() / (state.high - state.low)
    relative = moved * codec.relative_unit(depth, valid, state)
    torch.testing.assert_close(relative[valid], torch.full_like(relative[valid], 0.001), rtol=2e-3, atol=0)
    assert not relative[~valid].any()


@pytest.mark.parametrize(("space", "sign"), [("linear", 1), ("log", 1), ("disparity", -1)])
def test_depth_orientation(space: str, sign: int) -> None:
    depth = torch.linspace(1, 5, 50).reshape(1, 1, 5, 10)
    codec = DepthCodec(space)
    unit = codec.decode(codec.encode(depth, torch.ones_like(depth, dtype=torch.bool))[0]).flatten()
    assert (sign * unit.diff() >= 0).all()


def test_empty_and_constant_images_stay_finite() -> None:
    depth = torch.full((2, 1, 4, 4), 2.0)
    valid = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    valid[1] = True
    pictures, state = DepthCodec().encode(depth, valid)
    assert torch.isfinite(pictures).all()
    assert (state.high > state.low).all()


@pytest.mark.parametrize("frame", ["viewer", "opencv"])
def test_normals_round_trip(frame: str) -> None:
    normals = unit_maps()
    codec = NormalCodec(frame)
    pictures, _ = codec.encode(normals, torch.ones(2, 1, 8, 8, dtype=torch.bool))
    torch.testing.assert_close(codec.decode(pictures), normals, rtol=0, atol=1e-6)


def test_half_z_range_round_trip() -> None:
    normals = unit_maps()
    normals[:, 2] = normals[:, 2].abs()
    codec = NormalCodec(full_z_range=False)
    pictures, _ = codec.encode(normals, torch.ones(2, 1, 8, 8, dtype=torch.bool))
    torch.testing.assert_close(codec.decode(pictures), normals, rtol=0, atol=1e-6)


def test_floor_points_up_and_toward_the_viewer() -> None:
    floor_opencv = torch.tensor([0.0, -0.8, -0.6]).reshape(1, 3, 1, 1)  # y down, z forward
    assert convert_normals(floor_opencv, "opencv", "viewer").flatten().tolist() == pytest.approx([0.0, 0.8, 0.6])


def test_decoded_normals_have_unit_length() -> None:
    pictures = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(NormalCodec().decode(pictures).norm(dim=1), torch.ones(1, 8, 8))


def test_stack_keeps_names_order_and_state() -> None:
    depth, valid = depth_maps()
    normals = unit_length(torch.randn(3, 3, 12, 16, generator=torch.Generator().manual_seed(2)))
    codec = StackCodec({"depth": DepthCodec(clip=False), "normals": NormalCodec()})
    pictures, states = codec.encode({"normals": normals, "depth": depth}, valid)
    assert pictures.shape == (3, 2, 3, 12, 16)
    back = codec.decode(pictures, states)
    assert list(back) == ["depth", "normals"]
    torch.testing.assert_close(back["depth"][valid], depth[valid], rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=r"expected \(B, 2, 3, H, W\)"):
        codec.decode(pictures[:, 0])


@pytest.mark.parametrize(
    "make", [lambda: DepthCodec("metric"), lambda: DepthCodec(quantile=0.6), lambda: NormalCodec("blender")]
)
def test_bad_options_are_named(make) -> None:
    with pytest.raises(InputError, match=r"metric|quantile|blender"):
        make()


def test_a_mirror_turns_normals_and_leaves_depth() -> None:
    depth, normals = torch.arange(4.0).reshape(1, 1, 2, 2), unit_maps()
    assert DepthCodec().mirrored(depth).flatten().tolist() == [1, 0, 3, 2]
    turned = NormalCodec().mirrored(normals)
    torch.testing.assert_close(turned[:, 0], -normals[:, 0].flip(2), rtol=0, atol=0)
    torch.testing.assert_close(turned[:, 1:], normals[:, 1:].flip(3), rtol=0, atol=0)


def test_resized_normals_are_unit_vectors_and_resized_depth_keeps_its_values() -> None:
    normals = NormalCodec().resized(unit_maps(), (5, 11))
    torch.testing.assert_close(normals.norm(dim=1), torch.ones(2, 5, 11))
    depth = torch.tensor([[0.0, 3.0]]).reshape(1, 1, 1, 2)  # metres: not brought into [0, 1]
    assert DepthCodec().resized(depth, (1, 4)).flatten().tolist() == [0.0, 0.75, 2.25, 3.0]


def test_pictures_of_prediction_and_truth_share_a_scale() -> None:
    truth = torch.tensor([[1.0, 2.0], [3.0, 9.0]]).reshape(1, 1, 2, 2)
    valid = truth < 9
    one, other = DepthCodec().compared(0.1 * truth + 0.2, truth, valid)  # the same up to an affine map
    assert (one == other).all() and (one[1, 1] == 255).all()
    codec = NormalCodec()
    normals = unit_maps()[:1]
    one, other = codec.compared(-normals, normals, normals[:, :1] > -2)
    assert abs(one.astype(int) + other - 255).max() <= 1
