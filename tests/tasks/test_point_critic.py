"""The critic of depth patches: order, lifting, marks, and that it sees what it is shown."""

from __future__ import annotations

import pytest
import torch

from unproject.tasks.point_critic import (
    CriticConfig,
    DepthPairs,
    PointCritic,
    auc,
    depth_patches,
    realness,
    trained_critic,
    weight_map,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scene(count: int = 6, height: int = 16, width: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    clean = 1 + torch.rand(count, 1, 1, 1, generator=seeded()) + 0.02 * torch.arange(width)[None, None, None]
    K = torch.tensor([[30.0, 0, 12], [0, 30, 8], [0, 0, 1]]).expand(count, 3, 3)
    return clean.expand(count, 1, height, width).clone(), K


def test_a_clean_measurement_is_off_by_nothing_and_scale_does_not_matter() -> None:
    clean, K = scene()
    points, there = depth_patches(clean, clean, K, 8)
    assert points.shape == (6 * 2 * 3, 3, 64)
    assert there.all()
    assert not points[:, 2].any()
    noisy = clean * (1 + 0.001 * torch.randn(clean.shape, generator=seeded(1)))
    near, _ = depth_patches(noisy, clean, K, 8)
    far, _ = depth_patches(3 * noisy, 3 * clean, K, 8)
    torch.testing.assert_close(near, far, rtol=1e-3, atol=2e-3)
    assert 0.7 < near[:, 2].std() < 1.3  # thousandths of the distance


def test_the_order_of_points_and_those_that_do_not_exist_do_not_matter() -> None:
    critic = PointCritic().eval()
    points, there = torch.randn(5, 3, 10, generator=seeded()), torch.rand(5, 10, generator=seeded(1)) < 0.7
    order = torch.randperm(10, generator=seeded(2))
    torch.testing.assert_close(critic(points[..., order], there[:, order]), critic(points, there))
    moved = torch.where(there[:, None], points, 9.0)
    torch.testing.assert_close(critic(moved, there), critic(points, there))
    assert torch.isfinite(critic(points, torch.zeros_like(there))).all()


class Nearness(torch.nn.Module):
    """A feature that is highest at the origin, where points that do not exist lie."""

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return -points.abs().sum(1, keepdim=True)


def test_points_that_do_not_exist_are_no_candidates_for_the_highest() -> None:
    critic = PointCritic()
    critic.points, critic.head = Nearness(), torch.nn.Identity()
    points = 1 + torch.rand(4, 3, 6, generator=seeded())
    there = torch.tensor([True, True, False, True, False, False]).expand(4, -1)
    wanted = -points[..., [0, 1, 3]].sum(1).amin(1)
    torch.testing.assert_close(critic(points, there), wanted)
    assert not critic(points, torch.zeros_like(there)).any()


def test_it_tells_noise_from_none_but_not_noise_from_noise() -> None:
    clean, K = scene(12)

    def noisy(seed: int) -> torch.Tensor:
        return clean * (1 + 0.005 * torch.randn(clean.shape, generator=seeded(seed)))

    config = CriticConfig(patch=4, steps=150)
    for drawn, low, high in ((clean, 0.99, 1.0), (noisy(5), 0.35, 0.65)):
        critic = trained_critic(DepthPairs(clean, noisy(1), drawn, K), config)
        fresh = clean if drawn is clean else noisy(6)
        found = auc(realness(critic, noisy(2), clean, K, 4), realness(critic, fresh, clean, K, 4))
        assert low <= found <= high


def test_marks_weigh_one_and_a_half_and_nothing_marked_weighs_one() -> None:
    real = torch.tensor([[[0.9, 0.2, 0.8]], [[0.9, 0.7, 0.8]]])
    found = weight_map(real, CriticConfig(), (2, 6))
    assert found.shape == (2, 1, 2, 6)
    assert found[0, 0, 0].tolist() == [0.5, 0.5, 1.5, 1.5, 0.5, 0.5]
    assert bool((found[1] == 1).all())


def test_area_under_the_curve() -> None:
    assert auc(torch.tensor([0.9, 0.8]), torch.tensor([0.1, 0.2])) == 1.0
    assert auc(torch.tensor([0.5, 0.5]), torch.tensor([0.5])) == 0.5
    assert auc(torch.tensor([0.2, 0.7]), torch.tensor([0.1, 0.4, 0.9])) == pytest.approx(3 / 6)
