"""Posed pictures to a mesh with materials and the light around it; such a mesh under another light."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput

from ..generate.inverse_render import InverseConfig, InverseRendering, MaterialGuide
from ..geometry.cameras import Camera
from ..geometry.colors import srgb_from_linear
from ..geometry.environment import Environment
from ..geometry.hull import visual_hull
from ..geometry.lit import lit_views
from ..geometry.meshes import Mesh
from ..geometry.posed import PosedImages
from ..tasks.geometry_head import GeometryHead
from ..tasks.heads import load_head, published_place
from ..tasks.material_score import TARGETS, MaterialScore, ScoreConfig
from ..utils.errors import InputError
from ..utils.files import check_named

EMBEDDED = "toybox-intrinsics"
HOW_TO_TRAIN = (
    "train one: `unproject train intrinsic-head`, then give its folder; --prior none fits without a material prior"
)


@dataclass
class InverseRenderOutput(BaseOutput):
    """What was found."""

    mesh: Mesh  # with base_color and metallic_roughness textures
    light: Environment
    history: list[dict[str, float]]
    nfe: int = 0

    def save(self, path: str | Path, light: str | None = None) -> list[Path]:
        """Writes the mesh at `path` and its light beside it, as STEM-light.hdr or under the name `light`."""
        path = Path(path)
        return [self.mesh.save(path), self.light.save(path.with_name(light or f"{path.stem}-light.hdr"))]


class ImagesToMaterials:
    """Shape, materials and light from pictures with cameras."""

    def __init__(self, head: GeometryHead | None = None, score: ScoreConfig | None = None) -> None:
        """`head`: a material prior (albedo and surface); None: no prior."""
        self.head = head
        self.guide: MaterialGuide | None = None if head is None else MaterialScore(head, score)

    @classmethod
    def from_pretrained(cls, name: str | Path, score: ScoreConfig | None = None, **how: Any) -> ImagesToMaterials:
        """With the material prior "toybox", of a folder, or "none"."""
        if str(name) == "none":
            return cls()
        return cls(load_material_head(name, **how), score)

    def __call__(
        self,
        pictures: PosedImages,
        mesh: Mesh | None = None,
        config: InverseConfig | None = None,
        seed: int = 0,
        hull_resolution: int = 64,
        callback: Callable[[int, dict[str, float]], None] | None = None,
    ) -> InverseRenderOutput:
        """Fits; without a mesh the shape is the visual hull of the pictures' coverage.

        `callback` is told each step's number and losses. Raises InputError for pictures without coverage and mesh.
        """
        before = 0 if self.head is None else self.head.nfe
        shape = mesh if mesh is not None else hull_of(pictures, hull_resolution)
        made = InverseRendering(shape, pictures, config, self.guide, seed).run(callback)
        spent = 0 if self.head is None else self.head.nfe - before
        return InverseRenderOutput(mesh=made.mesh, light=made.light, history=made.history, nfe=spent)


def load_material_head(name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
                       **options: Any) -> GeometryHead:  # fmt: skip
    """A head that draws albedo and surface. Raises InputError with the way out where there is none."""
    from ..core.priors import weights_root

    check_named(name, "the material head's name", "give toybox or a folder")
    folder = weights_root() / EMBEDDED if str(name) == "toybox" else Path(name)
    published = published_place(name, options) is not None
    if not published and not (folder / "head.json").is_file():
        where = "the package holds no material prior" if str(name) == "toybox" else f"{folder} holds no head.json"
        raise InputError(f"--prior {name}: {where}; {HOW_TO_TRAIN}")
    return load_head(name if published else folder, TARGETS, device, dtype, **options)


def hull_of(pictures: PosedImages, resolution: int) -> Mesh:
    """The visual hull of pictures. Raises InputError where they do not say what is object."""
    if pictures.alpha is None:
        raise InputError("the pictures have no transparency to take a shape from; give a --mesh")
    masks = (pictures.alpha[..., 0] > 127).float()
    return visual_hull(masks, pictures.cameras, resolution).with_smooth_normals()


def relit(mesh: Mesh, cameras: Camera, light: Environment, exposure: float = 0.0) -> np.ndarray:
    """Pictures (V, H, W, 4) uint8, sRGB with coverage, of a mesh under a light; `exposure` in stops."""
    linear, alpha = lit_views(mesh, cameras, light)
    rgb = srgb_from_linear((linear * 2.0**exposure).clamp(0, 1))
    return (torch.cat([rgb, alpha], -1) * 255).round().to(torch.uint8).numpy()
