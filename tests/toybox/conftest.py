"""A camera and a bare ball for the renderer's closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from unproject.toybox.materials import Look
from unproject.toybox.objects import ToyObject, crease_normals
from unproject.toybox.parts import SLOTS
from unproject.toybox.programs import ObjectProgram
from unproject.toybox.solid import unit_sphere
from unproject.toybox.views import Orbit


@pytest.fixture(scope="session")
def orbit() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """(c2w, K) float64 of an orbit camera in degrees."""

    def make(
        azimuth: float, elevation: float = 18.0, size: int = 48, distance: float = 3.4, fov: float = 33.0
    ) -> tuple[np.ndarray, np.ndarray]:
        camera = Orbit(azimuth, elevation, distance, fov).camera(size)
        return camera.c2w[0].numpy().astype(float), camera.K[0].numpy().astype(float)

    return make


@pytest.fixture(scope="session")
def ball() -> Callable[..., ToyObject]:
    """A sphere with one look, as a built object."""

    def make(radius: float, albedo: float, roughness: float = 1.0, metallic: float = 0.0, detail: int = 5) -> ToyObject:
        solid = unit_sphere(detail).scaled(radius)
        faces = len(solid.faces)
        return ToyObject(
            program=ObjectProgram("sphere", "white"),
            vertices=solid.vertices.astype(np.float32),
            faces=solid.faces,
            corner_normals=crease_normals(solid.vertices, solid.faces),
            face_part=np.zeros(faces, np.int64),
            face_slot=np.full(faces, SLOTS.index("body")),
            part_names=("ball",),
            looks={"body": Look((albedo,) * 3, roughness, metallic)},
            keypoints={"front": np.array([radius, 0.0, 0.0]), "top": np.array([0.0, 0.0, radius])},
        )

    return make


@pytest.fixture(scope="session")
def fov_distance() -> float:
    """A distance from which a ball of radius 1 fits 33 degrees."""
    return 1.05 / math.sin(math.radians(16.5))
