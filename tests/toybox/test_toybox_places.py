"""Streets and tables: what is near is near, the ground is flat, normals are those of the depth, eyes are outside."""

from __future__ import annotations

import numpy as np
import pytest

from unproject.toybox import sample
from unproject.toybox.dataset import program_from_json, program_to_json
from unproject.toybox.fixtures import box
from unproject.toybox.judge import labels_of
from unproject.toybox.materials import Look
from unproject.toybox.programs import InteriorProgram, RoomProgram, StreetProgram, TableProgram, draw, split_of
from unproject.utils.errors import InputError


def test_a_box_is_closed_and_looks_outward() -> None:
    low, high = np.array([1.0, 2.0, 0.5]), np.array([3.0, 2.5, 4.0])
    sides = box("box", low, high, Look((0.5, 0.5, 0.5), 0.9, 0.0))
    normals = np.array([np.cross(s.span_u, s.span_v) for s in sides])
    middles = np.array([s.corner + 0.5 * (s.span_u + s.span_v) for s in sides])
    np.testing.assert_allclose(normals.sum(0), 0, atol=1e-12)  # a closed surface
    volume = (normals * middles).sum() / 3  # divergence theorem: positive only when every side looks outward
    assert volume == pytest.approx(np.prod(high - low))
    assert ((middles - 0.5 * (low + high)) * normals).sum(1).min() > 0


@pytest.mark.parametrize(
    ("kind", "program"), [("street", StreetProgram), ("table", TableProgram), ("interior", InteriorProgram)]
)
def test_places_are_programs_of_their_split_without_a_caption(kind: str, program: type) -> None:
    for index in range(6):
        drawn = draw("val", index, kind)
        assert type(drawn) is program and split_of(drawn) == "val"
        assert program_from_json(program_to_json(drawn)) == drawn
    assert isinstance(drawn, RoomProgram)
    with pytest.raises(InputError, match="rooms"):
        labels_of(drawn)
    assert sample("val", 0, kind, 8).meaning is None


def test_streets_are_flat_below_and_open_above() -> None:
    for index in range(4):
        one = sample("val", index, "street", 48)
        for view in range(4):
            seen, camera = one.renderings[view], one.cameras
            assert seen.depth_m is not None and seen.object_id is not None and seen.normal is not None
            eye = camera.centres[view].numpy()
            assert 1.1 <= eye[2] <= 2.4
            names = [s.name for s in one.scene.surfaces]
            ids = seen.object_id - len(one.scene.objects)
            ground = np.isin(ids, [names.index(n) for n in ("field", "pavement", "road")])
            assert ground.any() and (seen.depth_m[~(seen.object_id >= 0)] == 0).all()
            c2w, K = camera.c2w[view].numpy().astype(float), camera.K[view].numpy().astype(float)
            v, u = np.nonzero(ground)
            rays = np.stack([(u + 0.5 - K[0, 2]) / K[0, 0], (v + 0.5 - K[1, 2]) / K[1, 1], np.ones(len(u))], 1)
            points = seen.depth_m[v, u, None] * (rays @ c2w[:3, :3].T) + eye
            assert np.abs(points[:, 2]).max() < 0.03 + 1e-4 * seen.depth_m[v, u].max()
            np.testing.assert_allclose(seen.normal[v, u] @ [0, 0, 1], 1, atol=1e-5)


def test_tables_are_seen_from_nearby_and_from_inside_the_room() -> None:
    kinds = set()
    for index in range(16):
        one = sample("val", index, "table", 24)
        assert one.scene.size_m is not None
        names = {s.name for s in one.scene.surfaces}
        kinds.add("bin" if "rim" in names else "table" if "board" in names else "floor")
        stage = next(s for s in one.scene.surfaces if s.name == "stage")
        middle = stage.corner + 0.5 * (stage.span_u + stage.span_v)
        diagonal = np.linalg.norm(stage.span_u + stage.span_v)
        for view in range(4):
            eye = one.cameras.centres[view].numpy()
            assert (eye > 0.1).all() and (eye < np.array(one.scene.size_m)).all()
            assert np.linalg.norm(eye - middle) < 2.1 * diagonal + 0.2
            assert (one.renderings[view].alpha == 1).all()
    assert kinds == {"bin", "table", "floor"}
