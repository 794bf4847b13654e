"""What counts as a full volume: measured where the unit ball is seen, so that no camera makes a sphere one."""

from __future__ import annotations

import pytest
import torch

from unproject.geometry.cameras import Camera
from unproject.geometry.outputs import RenderOutput
from unproject.pipelines.mesh_health import CollapsedError, Health, HealthConfig, sees_the_ball
from unproject.pipelines.mesh_views import ViewConfig, draw_cameras
from unproject.utils.seeds import generator


def sphere(camera: Camera, radius: float) -> RenderOutput:
    origins, directions = camera.rays()
    offset = torch.linalg.cross(origins, directions).norm(dim=-1) / directions.norm(dim=-1)
    alpha = (offset < radius).float().unsqueeze(-1)
    return RenderOutput(alpha.expand(*alpha.shape[:3], 3), alpha, alpha, torch.zeros(*alpha.shape[:3], 3))


@pytest.mark.parametrize("margin", [0.92, 1.0, 1.08])
def test_the_largest_sphere_is_no_full_volume_however_near_the_camera(margin: float):
    camera = draw_cameras(ViewConfig(margin=(margin, margin)), 64, generator(3))
    distance = camera.centres.norm(dim=-1).mean()
    field, config = torch.nn.Identity(), HealthConfig(patience=1)
    for radius in (0.1, 0.85):
        cover = float(sphere(camera, radius).alpha[sees_the_ball(camera)].mean())
        cones = [r**2 / (distance**2 - r**2) for r in (radius, 1.0)]  # tan^2 of their half angles
        if margin > 1:  # the view holds the whole ball
            assert cover == pytest.approx(float(cones[0] / cones[1]), rel=0.03)
        Health(config).check(1, field, sphere(camera, radius), camera, 1.0)
    with pytest.raises(CollapsedError, match=r"filled up \(mean opacity 1\.00"):
        Health(config).check(1, field, sphere(camera, 1.0), camera, 1.0)
    with pytest.raises(CollapsedError, match="vanished"):
        Health(config).check(1, field, sphere(camera, 0.03), camera, 1.0)
