"""What the experiments of heads measure, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unproject.bench.preimage_depth import DAMAGES, claims, fog
from unproject.bench.refined_normals import claims as refined_claims
from unproject.bench.refined_normals import near_jumps


def flat(height: int = 12, width: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    normals = torch.zeros(1, 3, height, width)
    normals[:, 2] = 1
    return torch.full((1, 1, height, width), 2.0), normals


def test_pixels_near_a_jump_of_depth_or_a_turn_of_the_surface() -> None:
    depth, normals = flat()
    valid = torch.ones_like(depth, dtype=torch.bool)
    assert not bool(near_jumps(depth, normals, valid).any())
    depth[..., 10:] = 2.3
    found = near_jumps(depth, normals, valid)[0]
    assert found[5].nonzero().flatten().tolist() == list(range(6, 13))  # 3 px about the last pixel before it
    depth[..., 10:] = 2.1  # a twentieth
    assert not bool(near_jumps(depth, normals, valid).any())
    normals[:, :, 6:] = torch.tensor([0.0, 0.6, 0.8]).reshape(1, 3, 1, 1)  # 37 degrees
    valid[..., :4] = False
    found = near_jumps(depth, normals, valid)[0]
    assert found[:, 7].nonzero().flatten().tolist() == list(range(2, 9)) and not bool(found[:, :4].any())


def test_fog_takes_light_by_depth() -> None:
    images = np.full((1, 2, 2, 3), 100, np.uint8)
    depth = np.array([[[1.0, 2.0], [4.0, 0.0]]])
    through = 0.4 ** np.array([[0.25, 0.5], [1.0, 1.0]])
    np.testing.assert_allclose(fog(images, depth)[0, ..., 0], 100 * through + 200 * (1 - through), atol=0.5)


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_changes_pictures_and_not_their_kind(name: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), np.uint8)
    depth = np.random.default_rng(1).uniform(1, 4, (2, 6, 8))
    before = images.copy()
    worse = DAMAGES[name](images, depth)
    assert worse.dtype == np.uint8 and worse.shape == images.shape and (images == before).all()
    assert np.abs(worse.astype(int) - images).mean() > 3
    np.testing.assert_array_equal(worse, DAMAGES[name](images, depth))


def test_claims_are_ratios_of_the_rows() -> None:
    names = ("preimage of the prior", "preimage of a random network", "latents alone", "preimage without attention")
    found = claims({name: {"abs_rel": {"mean": 0.1 + 0.1 * k}} for k, name in enumerate(names)})
    assert list(found.values()) == [0.5, 0.333, 0.25]
    rows = [
        {"angle_near_jumps": {"mean": 30.0}},
        {"variance_deg": {"mean": 2.0}, "angle_near_jumps": {"mean": 15.0}, "angle": {"mean": 9.0}, "calls": 12.0},
        {"variance_deg": {"mean": 8.0}},
        {"angle": {"mean": 10.0}, "calls": 500.0},
    ]
    assert list(refined_claims(rows).values()) == [0.25, 0.5, 0.9, 41.7]
