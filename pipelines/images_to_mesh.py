"""Posed pictures to a textured solid: the normals that a head sees in each of them, fused (Direct2.5's second half)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from ..generate.fuse import FuseConfig, fuse_normals
from ..generate.view_normals import agreement
from ..geometry.bake import bake_views
from ..geometry.cameras import Camera
from ..geometry.meshes import Mesh
from ..geometry.outputs import world_normals
from ..geometry.posed import PosedImages
from ..geometry.posed_files import load_posed
from ..geometry.unwrap import unwrap
from ..tasks.codecs import NormalsOutput
from ..utils.errors import InputError
from ..utils.progress import under_way
from .image_to_geometry import ImageToNormals

BEHIND = 1.0  # grey that an object without background stands before, where a head looks at it


class SeesNormals(Protocol):
    """`ImageToNormals`, or anything that is called alike."""

    def __call__(self, image: Any, **how: Any) -> NormalsOutput: ...


@dataclass
class ImagesToMeshOutput(BaseOutput):
    """What was made of pictures."""

    mesh: Mesh  # closed, with a base_color texture of the pictures; its note "unseen_share" says what none showed
    normals: Tensor  # (B, H, W, 3) unit, world axes
    masks: Tensor  # (B, H, W) coverage in [0, 1]
    cameras: Camera
    agreement: dict[str, float]  # of the mesh with the normals: "angle_deg", "iou"
    nfe: int


class ImagesToMesh:
    """A solid from pictures with known cameras and without background.

    >>> made = ImagesToMesh.from_pretrained("toybox")("capture/transforms.json")
    >>> made.mesh.save("outputs/capture.glb")
    """

    def __init__(self, normals: SeesNormals, config: FuseConfig | None = None, texture: int = 1024) -> None:
        """`normals`: sees camera-space normals in pictures; `texture`: texels along an edge."""
        self.normals, self.config, self.texture = normals, config or FuseConfig(), texture

    @classmethod
    def from_pretrained(cls, name: str | Path = "toybox", config: FuseConfig | None = None, **how: Any) -> ImagesToMesh:
        """With a head that sees normals (`ImageToNormals.from_pretrained`)."""
        return cls(ImageToNormals.from_pretrained(name, **how), config)

    def __call__(
        self,
        pictures: PosedImages | str | Path,
        masks: Tensor | None = None,
        *,
        downscale: int = 1,
        images: str | Path | None = None,
        **how: Any,
    ) -> ImagesToMeshOutput:
        """Fuses what a head sees.

        Args:
            pictures: PosedImages, a transforms.json, or a folder with one or with a COLMAP model, from several sides.
            masks: (B, H, W) coverage in [0, 1]; None: the pictures' transparency.
            downscale: factor by which the sides of pictures on disk are divided.
            images: folder of the pictures, where it is not as the files say.
            how: of the head's call, such as ensemble_size and seed.

        Raises InputError for pictures of which nobody says what is object.
        """
        if not isinstance(pictures, PosedImages):
            pictures = load_posed(pictures, downscale, images)
        if masks is None and pictures.alpha is None:
            raise InputError("the pictures have no transparency that says what is object; give masks (B, H, W)")
        cover = masks if masks is not None else pictures.alpha[..., 0].float() / 255  # type: ignore[index]
        with under_way("normals"):
            shown = pictures.picture(range(len(pictures)), BEHIND).permute(0, 3, 1, 2)
            seen = self.normals(list(shown), output_type="pt", **how)
        local = torch.as_tensor(seen.prediction).permute(0, 2, 3, 1).float().cpu()
        normals = world_normals(local, pictures.cameras, opengl=seen.frame == "viewer")
        with under_way("fusion"):
            fused = fuse_normals(normals, cover, pictures.cameras, self.config)
        mesh = bake_views(unwrap(fused, self.texture), pictures.images.float() / 255, pictures.cameras, self.texture)
        told = agreement(mesh, normals, cover, pictures.cameras)
        return ImagesToMeshOutput(mesh, normals, cover, pictures.cameras, told, seen.nfe)
