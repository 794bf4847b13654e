"""Inverse rendering: it explains its pictures, a silent guide changes nothing, guides see what is rendered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from unproject.bench.materialfusion import ball, cameras_of, lamps, layers
from unproject.core.training.loss import LossOut
from unproject.generate.inverse_render import SMOOTHEST, InverseConfig, InverseRendering
from unproject.geometry.environment import Environment
from unproject.geometry.meshes import Mesh
from unproject.geometry.posed import PosedImages
from unproject.pipelines.inverse_render import ImagesToMaterials, hull_of, load_material_head, relit
from unproject.utils.errors import InputError

TINY = InverseConfig(steps=6, pixels=200, texture=16, light=(4, 8), guide_size=16)


@pytest.fixture(scope="module")
def scene() -> tuple[Mesh, PosedImages]:
    """A ball without materials, and pictures of what it was."""
    mesh, cameras = ball("test", 0, 32), cameras_of(3, 20)
    seen = layers(mesh, cameras, lamps(3))
    pictures = PosedImages(cameras, torch.from_numpy(seen["rgb"]), torch.from_numpy(seen["alpha"]))
    return replace(mesh, textures={}, uv=None, uv_faces=None), pictures


def test_fitting_explains_the_pictures_better(scene) -> None:
    losses: list[float] = []
    made = InverseRendering(*scene, replace(TINY, steps=40)).run(lambda step, logs: losses.append(logs["picture"]))
    assert losses[-1] < 0.6 * losses[0]
    assert set(made.mesh.textures) == {"base_color", "metallic_roughness"}
    assert made.mesh.textures["metallic_roughness"][..., 1].min() >= round(255 * SMOOTHEST) - 1
    assert float(made.light.radiance.min()) >= 0
    assert len(made.mesh.faces) == len(scene[0].faces)


def test_a_guide_of_no_weight_changes_nothing(scene) -> None:
    """Without a prior's pull the pipeline is the plain renderer, bit for bit."""

    class Silent:
        def __call__(self, photo, albedo, surface, mask, rng):
            return LossOut(0.0 * (albedo.sum() + surface.sum()), {})

    fits = [InverseRendering(*scene, TINY, guide, seed) for guide, seed in ((None, 4), (Silent(), 4), (None, 5))]
    for fit in fits:
        fit.run()
    for name, value in fits[0].found.named_parameters():
        assert torch.equal(value, fits[1].found.get_parameter(name)), name
    assert not torch.equal(fits[0].found.albedo, fits[2].found.albedo)


def test_a_guide_sees_what_is_rendered_and_pulls_less_and_less(scene) -> None:
    seen, pulls = [], []

    class Pull:
        def __call__(self, photo, albedo, surface, mask, rng):
            seen.append((photo, albedo, surface, mask))
            return LossOut((albedo - 1).square().mean() + surface.sum() * 0, {"pull": 0.0})

    fit = InverseRendering(*scene, replace(TINY, steps=4), Pull())
    fit.run(lambda step, logs: pulls.append(logs))
    photo, albedo, surface, mask = seen[0]
    assert [tuple(one.shape) for one in seen[0]] == [(2, c, 16, 16) for c in (3, 3, 2, 1)]
    outside = mask[:, 0] < 1e-3
    assert bool((photo.movedim(1, -1)[outside] > 0.99).all())  # white behind photograph and albedo, black surface
    assert bool((albedo.movedim(1, -1)[outside] > 0.99).all())
    assert not bool(surface.movedim(1, -1)[outside].any())
    inside = mask[:, 0] > 0.999
    assert float((albedo.detach().movedim(1, -1)[inside] - 0.5).abs().max()) < 0.02  # the textures begin as grey
    strong, none = (InverseRendering(*scene, replace(TINY, steps=12, decay=decay), Pull()) for decay in (0.0, 1e6))
    for one in (strong, none):
        one.run()
    assert strong.found.albedo.mean() > none.found.albedo.mean() + 0.02


def test_a_shape_that_moves_follows_its_outlines(scene) -> None:
    """A ball that begins too small grows; one that stays does not."""
    mesh, pictures = scene
    small = replace(mesh, vertices=0.85 * mesh.vertices)
    config = replace(TINY, steps=40, shape_rate=0.002, recast=10)
    moved = InverseRendering(small, pictures, config)
    moved.run()
    still = InverseRendering(small, pictures, replace(config, shape_rate=0.0))
    still.run()
    assert torch.equal(still.textured().vertices, small.vertices)
    radius = moved.textured().vertices.norm(dim=1)
    assert float(radius.mean()) > 0.85 * 0.5 + 0.02
    assert float(radius.mean()) < 0.53
    assert not moved.textured().vertices.requires_grad


def test_shapes_come_from_silhouettes_and_the_light_can_be_changed(scene, tmp_path) -> None:
    mesh, pictures = scene
    hull = hull_of(pictures, 24)
    assert float(hull.vertices.norm(dim=1).median()) == pytest.approx(0.5, abs=0.15)
    with pytest.raises(InputError, match="give a --mesh"):
        hull_of(replace(pictures, alpha=None), 24)
    made = ImagesToMaterials()(pictures, mesh, TINY)
    paths = made.save(tmp_path / "ball.glb")
    assert [path.name for path in paths] == ["ball.glb", "ball-light.hdr"]
    dark, bright = (
        relit(Mesh.load(paths[0]), pictures.cameras, light) for light in (
            Environment(torch.full((4, 8, 3), 0.1)), Environment(torch.full((4, 8, 3), 0.8)))
    )  # fmt: skip
    assert dark.shape == (3, 20, 20, 4)
    inside = dark[..., 3] > 0
    assert bright[inside][:, :3].mean() > 2 * dark[inside][:, :3].mean()
    assert not np.any(dark[~inside])
    stops = relit(Mesh.load(paths[0]), pictures.cameras, Environment(torch.full((4, 8, 3), 0.1)), 3.0)
    np.testing.assert_allclose(stops.astype(int), bright.astype(int), atol=1)


def test_messages_name_the_way_out(scene, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match="unproject train intrinsic-head"):
        ImagesToMaterials.from_pretrained("toybox")
    with pytest.raises(InputError, match="the material head's name is empty"):
        load_material_head("")
    assert ImagesToMaterials.from_pretrained("none").guide is None
    mesh, pictures = scene
    far = replace(mesh, vertices=mesh.vertices + 100)
    with pytest.raises(InputError, match="show nothing of the mesh"):
        InverseRendering(far, pictures, TINY)
    for name, value in (("texture", 0), ("shape_rate", -1.0)):
        with pytest.raises(InputError, match=f"{name}={value}"):
            InverseConfig(**{name: value})
