"""One picture to a textured mesh: an orbit of it, normals of each view, fusion, and the views as texture."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from ..generate.fuse import FuseConfig, fuse_normals
from ..geometry.bake import bake_views
from ..geometry.cameras import Camera
from ..geometry.meshes import Mesh
from ..geometry.report import MeshReport
from ..geometry.unwrap import unwrap
from ..utils.errors import InputError
from ..utils.progress import Progress, under_way
from .image_to_geometry import ImageToNormals
from .image_to_views import ImageToViews, ImageToViewsOutput
from .picture_inputs import PictureLike
from .sampling_parts import whole_number
from .text_to_shape import TEXTURE

SCALE_FROM = "a picture names no size; the shape was made in a ball of radius 1 m"


@dataclass(frozen=True)
class MeshOfViews:
    """How views become a mesh. Normals that a head finds in drawn views agree less than drawn normal maps do, so the
    surface is held smoother than FuseConfig's own."""

    fuse: FuseConfig = field(default_factory=lambda: FuseConfig(steps=80, laplacian=0.5, creases=0.3))
    texture: int = 1024  # texels of a side
    members: int = 4  # predictions of the normals of a view that are averaged
    normals_px: int = 128  # least side of a view that the normals head is shown


@dataclass
class ImageToMeshOutput(BaseOutput):
    """A mesh and what it was made of."""

    mesh: Mesh  # closed, UV-mapped, base_color texture of the views
    views: ImageToViewsOutput
    normals: np.ndarray  # (F, H, W, 3) world axes, unit where a view shows something
    report: MeshReport
    nfe: dict[str, int]  # network rows of the orbit and of the normals
    seconds: dict[str, float]
    config: MeshOfViews
    scale_from: str = SCALE_FROM


class ImageToMesh:
    """Meshes from one picture.

    >>> pipe = ImageToMesh.from_pretrained("toybox")
    >>> pipe("cup.png", prompt="a red cup", seed=0).mesh.save("cup.glb")
    """

    def __init__(self, views: ImageToViews, normals: ImageToNormals, config: MeshOfViews = MeshOfViews()) -> None:
        self.views, self.normals, self.config = views, normals, config

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "toybox",
        weights: str | Path | None = None,
        normals: str | Path = "toybox",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        config: MeshOfViews = MeshOfViews(),
        **options: Any,
    ) -> ImageToMesh:
        """Loads what draws views (`ImageToViews.from_pretrained`) and the head of the normals (`ImageToNormals`)."""
        views = ImageToViews.from_pretrained(name, weights, dtype, device, **options)
        return cls(views, ImageToNormals.from_pretrained(normals, dtype, device), config)

    def __call__(
        self,
        image: PictureLike,
        mask: PictureLike | None = None,
        *,
        faces: int | None = None,
        fuse_steps: int | None = None,
        texture: int | None = None,
        seed: int = 0,
        out: str | Path | None = None,
        resume: bool = True,
        **options: Any,
    ) -> ImageToMeshOutput:
        """Makes one mesh.

        Args:
            image: a picture, as ImageToViews takes it.
            mask: of the object.
            faces: triangles at most; None: the config's.
            fuse_steps: of the fusion; None: the config's.
            texture: texels along an edge of the texture; None: the config's.
            seed: of everything random.
            out: folder in which finished views are kept, for a run that goes on from them.
            resume: take what is there.
            options: what else `ImageToViews` is told.
        """
        changes: dict[str, Any] = {"faces": faces, "steps": fuse_steps}
        fuse = replace(self.config.fuse, **{name: value for name, value in changes.items() if value is not None})
        if texture is not None:
            whole_number("texture", texture, *TEXTURE)
        config = replace(self.config, fuse=fuse, texture=texture or self.config.texture)
        times = [time.perf_counter()]
        views = self.views(image, mask, seed=seed, out=out, resume=resume, **options)
        times.append(time.perf_counter())
        before = self.normals.head.nfe
        normals, masks = self.normals_of(views, seed)
        times.append(time.perf_counter())
        mesh = mesh_of_views(torch.from_numpy(views.views), normals, masks, views.cameras, config)
        times.append(time.perf_counter())
        seconds = {
            name: end - start
            for name, start, end in zip(("views", "normals", "mesh"), times[:-1], times[1:], strict=True)
        }
        return ImageToMeshOutput(
            mesh=mesh,
            views=views,
            normals=normals.numpy(),
            report=mesh.check(),
            nfe={"orbit": views.nfe, "normals": self.normals.head.nfe - before},
            seconds=seconds,
            config=config,
        )

    def normals_of(self, views: ImageToViewsOutput, seed: int) -> tuple[Tensor, Tensor]:
        """(normals (F, H, W, 3) in world axes, coverage (F, H, W)) of views."""
        masks = torch.from_numpy(views.alpha[..., 0])
        if not bool((masks >= 0.5).flatten(1).any(dim=1).all()):
            empty = [k for k, mask in enumerate(masks) if not bool((mask >= 0.5).any())]
            raise InputError(f"view {empty[0]} of the orbit shows no object; try another --seed or --subject")
        with under_way("normals"):
            made = self.normals(
                views.views,
                ensemble_size=self.config.members,
                processing_resolution=max(self.config.normals_px, views.settings.size),
                valid=views.alpha[..., 0] >= 0.5,
                seed=seed,
            )
        return made.in_world(views.cameras), masks

    def to(self, *where: Any, **named: Any) -> ImageToMesh:
        """Moves and casts both priors."""
        self.views.to(*where, **named)
        self.normals.to(*where, **named)
        return self


def mesh_of_views(
    views: Tensor, normals: Tensor, masks: Tensor, cameras: Camera, config: MeshOfViews = MeshOfViews()
) -> Mesh:
    """The textured solid that looks like views (B, H, W, 3) sRGB with normals (B, H, W, 3) in world axes and coverage
    (B, H, W): fused, unwrapped, and painted with what each view sees best; what no view shows is filled."""
    with Progress(config.fuse.steps, "fusion") as bar:
        mesh = fuse_normals(normals, masks, cameras, config.fuse, lambda *_: bar.advance())
    with under_way("texture"):
        return bake_views(unwrap(mesh, config.texture), views, cameras, config.texture)
