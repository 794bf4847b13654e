"""Regularisers in closed form, and which of them a representation knows."""

from __future__ import annotations

import math

import pytest
import torch

from unproject.generate.regularisers import LossWeights, Scene, active_terms, check_terms, regularisation
from unproject.geometry.fields import FieldConfig, GridConfig, HeadConfig
from unproject.geometry.outputs import RenderOutput
from unproject.geometry.shapes import TriangleConfig, Triangles, Volume, VolumeShapeConfig
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator


def scene(alpha: float = 1.0, tilt_deg: float = 0.0) -> Scene:
    """A wall seen along -x whose normal is tilted from +x, towards the viewer, by some degrees."""
    ones = torch.ones(1, 2, 3, 1)
    normal = torch.tensor([math.cos(math.radians(tilt_deg)), math.sin(math.radians(tilt_deg)), 0.0])
    seen = RenderOutput(0.5 * ones.expand(-1, -1, -1, 3), alpha * ones, ones, normal.expand(1, 2, 3, 3))
    return Scene(seen, torch.tensor([-2.0, 0.0, 0.0]).expand(1, 2, 3, 3))


def value(name: str, seen: Scene) -> float:
    return regularisation({name: 1.0}, Triangles(TriangleConfig(0)), seen, generator(0))[1][name]


@pytest.mark.parametrize(("tilt", "expected"), [(0.0, 0.0), (60.0, 0.0), (120.0, 0.25), (180.0, 1.0)])
def test_orientation_counts_normals_that_face_away(tilt: float, expected: float) -> None:
    assert value("orientation", scene(tilt_deg=tilt)) == pytest.approx(expected, abs=1e-6)
    assert value("orientation", scene(0.5, tilt)) == pytest.approx(0.5 * expected, abs=1e-6)


def test_opacity_and_entropy() -> None:
    assert value("opacity", scene(0.3)) == pytest.approx(math.sqrt(0.1))
    assert value("entropy", scene(0.5)) == pytest.approx(1.0)
    assert value("entropy", scene(1.0)) < 0.02


def test_weights_follow_their_ramps_and_sum() -> None:
    weights = LossWeights(opacity=(0, 2.0, 4.0, 0.5), entropy=(3.0,), orientation=(0.5, 0.0, 1.0, 1.0))
    assert active_terms(weights, 0.25) == {"opacity": 3.0, "entropy": 3.0}
    assert active_terms(weights, 0.75) == {"opacity": 4.0, "entropy": 3.0, "orientation": 0.5}
    total, log = regularisation(
        {"opacity": 3.0, "entropy": 2.0}, Triangles(TriangleConfig(0)), scene(0.3), generator(0)
    )
    assert float(total) == pytest.approx(3 * log["opacity"] + 2 * log["entropy"])


def test_terms_without_a_meaning_are_refused() -> None:
    ball = Triangles(TriangleConfig(subdivisions=0))
    check_terms(LossWeights(smooth=(1.0,), opacity=(1.0,)), ball)
    with pytest.raises(InputError, match=r"losses\.eikonal has no meaning for triangles; use some of opacity.*smooth"):
        check_terms(LossWeights(eikonal=(0, 0.0, 1.0, 1)), ball)


def test_an_sdf_has_an_eikonal_term_and_a_density_none() -> None:
    for kind, has in (("sdf", True), ("density", False)):
        field = FieldConfig(head=HeadConfig(kind=kind), grid=GridConfig(sides=(9,), starts=(0,)))
        made = Volume(VolumeShapeConfig(field))
        seen = RenderOutput(*torch.zeros(3, 1, 1, 1, 3), torch.zeros(1, 1, 1, 3), extras={})
        seen.extras["snapshot"] = made.field.snapshot()
        found = made.regularisers(seen, ["eikonal"], generator(0))
        assert bool(found) == has
        if has:
            assert float(found["eikonal"].detach()) < 0.01  # the start is a sphere's distance
            made.field.head.start_shape = lambda points: 3 * points[:, 0]  # type: ignore[method-assign]
            assert float(made.regularisers(seen, ["eikonal"], generator(0))["eikonal"]) == pytest.approx(4, rel=1e-3)
