"""Posed pictures to a solid by the normals that a head sees: frames, masks, colours."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from unproject.generate.fuse import FuseConfig
from unproject.generate.view_normals import Ring
from unproject.geometry.metrics import compare_meshes
from unproject.geometry.outputs import camera_normals
from unproject.geometry.posed import PosedImages
from unproject.geometry.raycast import RayMesh
from unproject.pipelines.images_to_mesh import ImagesToMesh
from unproject.tasks.codecs import NormalsOutput
from unproject.utils.errors import InputError
from unproject.utils.seeds import generator

CONFIG = FuseConfig(hull=20, steps=12, edge=(0.08, 0.3), faces=900)


@pytest.mark.parametrize("frame", ["viewer", "opencv"])
def test_exact_normals_of_pictures_become_their_object(view_priors: ModuleType, frame: str) -> None:
    egg, cameras = view_priors.egg(), Ring().camera(6, 32, 25.0)
    seen = RayMesh(egg).render(cameras, ("rgb", "normal"))
    asked: list[Any] = []

    def head(image: Any, **how: Any) -> NormalsOutput:
        asked.append((image, how))
        local = camera_normals(seen.normal, cameras, opengl=frame == "viewer").permute(0, 3, 1, 2)
        return NormalsOutput(prediction=local, uncertainty=None, nfe=6, seed=None, frame=frame)

    made = ImagesToMesh(head, CONFIG, 64)(PosedImages.from_floats(cameras, seen.rgb, seen.alpha), ensemble_size=3)
    torch.testing.assert_close(made.normals[seen.alpha[..., 0] > 0], seen.normal[seen.alpha[..., 0] > 0])
    assert compare_meshes(made.mesh, egg, 4000, generator(0))["chamfer"] < 0.08 and made.mesh.check().watertight
    assert made.agreement["iou"] > 0.93 and made.nfe == 6 and "unseen_share" in made.mesh.notes
    ((pictures, how),) = asked
    assert len(pictures) == 6 and pictures[0].shape == (3, 32, 32) and how == {"output_type": "pt", "ensemble_size": 3}
    assert float(pictures[0][:, 0, 0].min()) == 1.0  # what is transparent is white


def test_pictures_of_which_nobody_says_what_is_object_are_refused(view_priors: ModuleType) -> None:
    cameras = Ring().camera(4, 16)
    plain = PosedImages(cameras, torch.zeros(4, 16, 16, 3, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"give masks \(B, H, W\)"):
        ImagesToMesh(lambda image, **how: None)(plain)
