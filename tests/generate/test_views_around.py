"""Views that stand for all that an optimisation may draw."""

from __future__ import annotations

import torch

from unproject.generate.views import ViewConfig, views_around


def test_views_cover_the_elevations_of_the_config() -> None:
    config = ViewConfig(elevation_deg=(-10.0, 50.0), high_elevation_deg=(60.0, 80.0))
    camera = views_around(config, 64, 6)
    height = torch.rad2deg(torch.asin(camera.centres[:, 2] / camera.centres.norm(dim=-1)))
    assert len(camera) == 24 and camera.width == 64
    torch.testing.assert_close(height.view(4, 6).mean(1), torch.tensor([-10.0, 20.0, 50.0, 70.0]))
    low, high = config.fov_y_deg
    torch.testing.assert_close(camera.fov_y_rad, torch.deg2rad(torch.tensor(0.5 * (low + high))).expand(24))
    azimuth = torch.rad2deg(torch.atan2(camera.centres[:, 1], camera.centres[:, 0])).view(4, 6) % 60
    torch.testing.assert_close((azimuth[1] - 30).abs(), torch.zeros(6), atol=1e-3, rtol=0)  # between those below
    pixel, _ = camera.project(torch.zeros(1, 3))
    torch.testing.assert_close(pixel, torch.full((24, 1, 2), 32.0))
    assert len(views_around(ViewConfig(high_share=0.0), 64, 6)) == 18
