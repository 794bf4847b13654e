"""A dataparser for nerfstudio, found by it through the entry points of this package.

    ns-train unproject-splats unproject-data --data capture       (or a mesh: chair.glb)

It reads what `unproject fit` reads: transforms.json, COLMAP models (text, binary), meshes, which are photographed from
all around. nerfstudio looks for dataparsers while its own are still being listed, so nothing here may import what needs
that list: the method is in a module of its own. Only nerfstudio imports this one.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from torch import Tensor

from ..generate.splat_fit import SplatFitConfig, starting_cloud
from ..geometry.interop import to_nerfstudio_cameras
from ..geometry.meshes import Mesh
from ..geometry.points import PointCloud
from ..geometry.posed import HELD_OUT, PosedImages, photographed
from ..geometry.posed_files import load_posed
from ..utils.errors import InputError
from ..utils.pictures import save_image
from ..utils.seeds import generator as seeded

MESHES = (".glb", ".gltf", ".obj", ".ply", ".stl")


@dataclass
class UnprojectDataParserConfig(DataParserConfig):
    """Pictures with cameras as `unproject fit` reads them."""

    _target: type = field(default_factory=lambda: UnprojectDataParser)
    data: Path = Path("transforms.json")
    """transforms.json, a folder with one or with a COLMAP model, or a mesh, which is photographed from all around"""
    downscale: int = 1
    """factor by which the sides of pictures on disk are divided"""
    held_out: int = HELD_OUT
    """the first of so many pictures is evaluated, not learnt from"""
    views: int = 60
    """pictures of a mesh"""
    size: int = 128
    """their side in px"""


class UnprojectDataParser(DataParser):
    """Straightened pictures in a temporary folder, in a world around what is looked at, one extent of cameras wide."""

    config: UnprojectDataParserConfig

    @cached_property
    def pictures(self) -> PosedImages:
        """All of them, where they are."""
        source = Path(self.config.data)
        if source.suffix.lower() in MESHES:
            return photographed(Mesh.load(source), self.config.views, self.config.size, 40.0)
        return load_posed(source, self.config.downscale)

    @cached_property
    def _folder(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="unproject-data-")

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Any) -> DataparserOutputs:
        """See DataParser: pictures to learn from, or for "val" and "test" those held out."""
        pictures = self.pictures
        chosen = pictures.split(self.config.held_out)[0 if split == "train" else 1]
        if not len(chosen):
            raise InputError(f"held_out={self.config.held_out} leaves no picture for {split}")
        scale, middle = 1 / pictures.extent, pictures.middle
        c2w = chosen.cameras.c2w.float().clone()
        c2w[:, :3, 3] = scale * (c2w[:, :3, 3] - middle)
        points = pictures.points or PointCloud(*_guessed(pictures))
        colors = torch.full_like(points.points, 0.5) if points.colors is None else points.colors
        folder = Path(self._folder.name)
        box = 1.5 * torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
        return DataparserOutputs(
            image_filenames=[_written(chosen, row, folder / f"{split}-{row:04d}.png") for row in range(len(chosen))],
            cameras=to_nerfstudio_cameras(replace(chosen.cameras, c2w=c2w, K=chosen.cameras.K.float())),
            scene_box=SceneBox(aabb=box),
            metadata={
                "points3D_xyz": scale * (points.points - middle),
                "points3D_rgb": (255 * colors).round().to(torch.uint8),
            },
            dataparser_transform=torch.cat([torch.eye(3), -middle[:, None]], dim=1),
            dataparser_scale=scale,
        )


def _guessed(pictures: PosedImages) -> tuple[Tensor, Tensor]:
    """Places and colours to begin with where no points of the scene are known."""
    cloud = starting_cloud(pictures, SplatFitConfig(start="random"), seeded(0))
    return cloud.means, cloud.colors.clamp(0, 1)


def _written(pictures: PosedImages, row: int, path: Path) -> Path:
    layers = [pictures.images[row]] + ([] if pictures.alpha is None else [pictures.alpha[row]])
    return save_image(path, torch.cat(layers, dim=-1))


dataparser = DataParserSpecification(
    config=UnprojectDataParserConfig(),
    description="transforms.json, COLMAP models and meshes as unproject fit reads them",
)
