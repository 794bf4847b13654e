"""`unproject depth`, `normals` and `pointcloud`: geometry from one picture or a folder of pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import tyro

from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import Shown, Target, check_range
from .priors import PriorCommand, head_names

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class ImageCommand(PriorCommand):
    """Options of the commands that read pictures."""

    image: tyro.conf.Positional[Path]
    """A picture, or a folder of pictures."""
    ensemble: int = 1
    """Predictions to average; more is steadier and slower."""
    steps: int | None = None
    """Solver steps (default: what suits the head)."""

    def slug(self) -> str:
        """The base name of the outputs."""
        return self._stem(self.image)

    def _stem(self, path: Path) -> str:
        """photo.jpg becomes photo-depth, so that no command overwrites another's file or the picture itself."""
        return f"{path.stem or path.resolve().name}-{self.name}"

    def check(self) -> None:
        """Paths and ranges."""
        if not self.image.exists():
            raise InputError(f"image {self.image} does not exist")
        if self.image.is_dir() and self.out is not None and self.out.suffix:
            raise InputError(f"--out {self.out} is one file but {self.image} is a folder; give a folder")
        if self.out is not None and self.out.resolve() == self.image.resolve() and self.image.is_file():
            raise InputError(f"--out {self.out} is the picture itself; choose another name")
        check_range("--ensemble", self.ensemble, 1, 64)
        if self.steps is not None:
            check_range("--steps", self.steps, 1, 1000)
        super().check()

    def known(self) -> list[str]:
        """The heads: --prior toybox means the head on that prior."""
        return head_names()

    def pictures(self) -> list[Path]:
        """The pictures to work on."""
        from ..utils.pictures import list_images

        return list_images(self.image)

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [*super().plan(), *(f"would read {path}" for path in self.pictures())]

    def run(self, record: RunRecord, target: Target) -> Shown:
        """One network for all pictures; a picture that cannot be read in a folder is named and skipped."""
        from ..utils.pictures import load_image
        from ..utils.progress import progress

        paths = self.pictures()
        with record.stage("load"):
            pipe = self.load()
        skipped = []
        for path in progress(paths, label=self.name) if len(paths) > 1 else paths:
            own = target if len(paths) == 1 else Target(target.folder, self._stem(path))
            try:
                picture = load_image(path)
            except InputError as error:
                if len(paths) == 1:
                    raise
                skipped.append(str(error))
                continue
            with record.stage("predict"):
                self.one(pipe, picture, record, own)
        if len(skipped) == len(paths):
            raise InputError(f"none of the {len(paths)} pictures could be read: {skipped[0]}")
        return Shown([f"skipped: {text}" for text in skipped], data={"skipped": skipped})

    def load(self) -> Any:
        """The pipeline."""
        raise TypeError(f"{type(self).__name__} defines no load")

    def one(self, pipe: Any, picture: np.ndarray, record: RunRecord, target: Target) -> None:
        """Writes the outputs of one picture."""
        raise TypeError(f"{type(self).__name__} defines no one")


@dataclass(frozen=True, kw_only=True)
class Depth(ImageCommand):
    """Estimate depth: float32 NPZ, 16-bit PNG and a coloured picture."""

    name: ClassVar[str] = "depth"
    kinds: ClassVar[tuple[str, ...]] = (".png",)

    def load(self) -> Any:
        """The pipeline."""
        from ..pipelines.image_to_geometry import ImageToDepth

        return ImageToDepth.from_pretrained(self.prior, **self.placement())

    def one(self, pipe: Any, picture: np.ndarray, record: RunRecord, target: Target) -> None:
        """Writes NAME.npz, NAME-16bit.png and NAME.png."""
        made = pipe(picture, ensemble_size=self.ensemble, num_inference_steps=self.steps, seed=self.seed)
        record.count("denoiser", made.nfe)
        for path in made.save(target.file("")):
            record.output(path)


@dataclass(frozen=True, kw_only=True)
class Normals(ImageCommand):
    """Estimate surface normals: float32 NPZ, 16-bit PNG and a coloured picture."""

    name: ClassVar[str] = "normals"
    kinds: ClassVar[tuple[str, ...]] = (".png",)

    def load(self) -> Any:
        """The pipeline."""
        from ..pipelines.image_to_geometry import ImageToNormals

        return ImageToNormals.from_pretrained(self.prior, **self.placement())

    def one(self, pipe: Any, picture: np.ndarray, record: RunRecord, target: Target) -> None:
        """Writes NAME.npz, NAME-16bit.png and NAME.png."""
        made = pipe(picture, ensemble_size=self.ensemble, num_inference_steps=self.steps, seed=self.seed)
        record.count("denoiser", made.nfe)
        for path in made.save(target.file("")):
            record.output(path)


@dataclass(frozen=True, kw_only=True)
class Pointcloud(ImageCommand):
    """Lift a picture to a coloured point cloud (PLY) with estimated depth and a field of view."""

    name: ClassVar[str] = "pointcloud"
    kinds: ClassVar[tuple[str, ...]] = (".ply",)

    fov: float = 60.0
    """Horizontal field of view of the camera in degrees."""
    near: float = 1.0
    """Distance given to the nearest depth, in metres; the scale of a single picture is not known."""
    far: float = 4.0
    """Distance given to the farthest depth, in metres."""

    def check(self) -> None:
        """The camera has to make sense."""
        check_range("--fov", self.fov, 1, 170)
        if not 0 < self.near < self.far < math.inf:
            raise InputError(f"--near {self.near:g} and --far {self.far:g}: need 0 < near < far")
        super().check()

    def load(self) -> Any:
        """The pipeline."""
        from ..pipelines.image_to_geometry import ImageToDepth

        return ImageToDepth.from_pretrained(self.prior, **self.placement())

    def one(self, pipe: Any, picture: np.ndarray, record: RunRecord, target: Target) -> None:
        """Writes NAME.ply."""
        import torch

        from ..geometry.cameras import Camera, intrinsics_from_fov

        made = pipe(picture, ensemble_size=self.ensemble, num_inference_steps=self.steps, seed=self.seed)
        record.count("denoiser", made.nfe)
        height, width, _ = picture.shape
        fov_x = math.radians(self.fov)
        fov_y = torch.tensor([2 * math.atan(math.tan(fov_x / 2) * height / width)])
        camera = Camera(torch.eye(4)[None], intrinsics_from_fov(fov_y, width, height), width, height)
        cloud = made.point_cloud(picture, camera, self.near, self.far)
        record.output(cloud.save(target.file(".ply")))
