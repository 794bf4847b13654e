"""What counts as a full volume: measured where the rendered ball is seen, so that no camera makes a sphere one."""

from __future__ import annotations

import pytest
import torch

from unproject.generate.health import CollapsedError, Health, HealthConfig, sees_the_ball
from unproject.generate.views import ViewConfig, draw_cameras
from unproject.geometry.cameras import Camera
from unproject.geometry.fields import FieldConfig, make_field
from unproject.geometry.fields.grid import GridConfig
from unproject.geometry.fields.heads import HeadConfig
from unproject.geometry.outputs import RenderOutput
from unproject.geometry.volume import VolumeConfig, render
from unproject.utils.seeds import generator

BALL = VolumeConfig().radius
ONCE = HealthConfig(patience=1)


def view(margin: float, size: int = 48) -> Camera:
    return draw_cameras(ViewConfig(margin=(margin, margin)), size, generator(3))


def sphere(camera: Camera, radius: float) -> RenderOutput:
    origins, directions = camera.rays()
    offset = torch.linalg.cross(origins, directions).norm(dim=-1) / directions.norm(dim=-1)
    alpha = (offset < radius).float().unsqueeze(-1)
    return RenderOutput(alpha.expand(*alpha.shape[:3], 3), alpha, alpha, torch.zeros(*alpha.shape[:3], 3))


@pytest.mark.parametrize("margin", [0.92, 1.0, 1.08])
def test_the_largest_sphere_is_no_full_volume_however_near_the_camera(margin: float):
    camera, field = view(margin, 128), torch.nn.Identity()
    distance = camera.centres.norm(dim=-1).mean()
    for radius in (0.1, 0.85):
        cover = float(sphere(camera, radius).alpha[sees_the_ball(camera, BALL)].mean())
        cones = [r**2 / (distance**2 - r**2) for r in (radius, BALL)]  # tan^2 of their half angles
        if margin >= 1:  # the view holds the whole ball
            assert cover == pytest.approx(float(cones[0] / cones[1]), rel=0.06)
        Health(ONCE, BALL).check(1, field, sphere(camera, radius), camera, 1.0)
    with pytest.raises(CollapsedError, match="vanished"):
        Health(ONCE, BALL).check(1, field, sphere(camera, 0.03), camera, 1.0)


@pytest.mark.parametrize("margin", [0.92, 1.0, 1.08])
@pytest.mark.parametrize("beta", [0.06, 0.015])
def test_rendered_fields_are_full_where_all_is_inside_and_not_where_a_sphere_is(margin: float, beta: float):
    camera = view(margin)
    for radius, full in ((0.85, False), (2.0, True)):
        head = HeadConfig(kind="sdf", radius=radius, beta=(beta,))
        field = make_field(FieldConfig("grid", head=head, grid=GridConfig(sides=(9,), starts=(0,))), generator(0))
        health, seen = Health(ONCE, BALL), render(field, camera)
        if full:
            with pytest.raises(CollapsedError, match="filled up"):
                health.check(1, field, seen, camera, 1.0)
        else:
            health.check(1, field, seen, camera, 1.0)
