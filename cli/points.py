"""`unproject pointcloud`: a picture as a cloud of points, or as a surface with the picture on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..tasks.formats import PREVIEW
from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import check_range
from .folders import CAMERA, MESH_KINDS, POINT_KINDS, UNDISTORTED
from .image import ImageCommand
from .lens import LensOptions
from .metric import load_metric, seen_in_metres
from .numbers import LARGEST, SMALLEST
from .outputs import Target, need_format

if TYPE_CHECKING:
    import numpy as np

    from ..geometry.cameras import Camera
    from ..tasks.codecs import DepthOutput


@dataclass(frozen=True, kw_only=True)
class Pointcloud(ImageCommand, LensOptions):
    """Lift a picture to a coloured point cloud with normals, or with --mesh to a surface with the picture as texture,
    by estimated depth; z is up, the camera looks along -x. NAME-camera.json says where it stands."""

    name: ClassVar[str] = "pointcloud"
    kinds: ClassVar[tuple[str, ...]] = tuple(dict.fromkeys((*POINT_KINDS, *MESH_KINDS)))

    mesh: bool = False
    """Write a mesh instead of points, torn where near and far meet."""
    format: str | None = None
    """Files to write: ply, glb, obj, xyz, usdz ... of points, glb, obj, ply, stl, usdz ... of a mesh, as in ply,glb
    (default: what --out names, else ply, of a mesh glb)."""
    faces: int | None = None
    """With --mesh, triangles at most (default: 200000)."""
    max_slant: float = 84.0
    """Degrees between a surface's normal and the line of sight beyond which it counts as the edge between near and
    far: points that fly there and triangles are left out (90 keeps everything)."""
    undistort: bool = False
    """Take the lens distortion in --K out of the picture first; what is used then is NAME-undistorted.png."""
    near: float = 1.0
    """Depth of the nearest point of the cloud, in metres; the scale of a single picture is not known, unless
    --known-distance or --camera-height tells it."""
    far: float = 4.0
    """Depth of the farthest point of the cloud, in metres."""
    preview: bool = False
    """Write NAME-preview.png too: the picture and its depth side by side."""

    @property
    def noun(self) -> str:
        """See EachCommand.noun."""
        return "mesh" if self.mesh else "pointcloud"

    @property
    def formats(self) -> tuple[str, ...]:
        """See EachCommand.formats."""
        return tuple(suffix[1:] for suffix in self.suffixes)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the files in force."""
        named = "" if self.out is None or self.out.is_dir() else self.out.suffix.lower()
        if self.format is None:
            return (named or (".glb" if self.mesh else ".ply"),)
        return tuple(dict.fromkeys(f".{word.strip().lower().removeprefix('.')}" for word in self.format.split(",")))

    @property
    def several(self) -> str:
        """See Command.several; to standard output goes the cloud or mesh alone."""
        if len(self.suffixes) > 1 or self.preview or (self.suffixes[0] == ".obj" and self.mesh):
            return "it was asked for several files"
        return super().several

    @property
    def streamed(self) -> str:
        """See Command.streamed."""
        return self.suffixes[0]

    def marks(self) -> tuple[str, ...]:
        """See EachCommand.marks."""
        return self.suffixes

    def endings(self) -> tuple[str, ...]:
        """See EachCommand.endings."""
        beside = [CAMERA, *([PREVIEW] if self.preview else []), *([UNDISTORTED] if self.undistort else [])]
        return (*self.suffixes, *beside, *([".report.json"] if self.mesh else []))

    def check(self) -> None:
        """The formats, and a camera that makes sense."""
        self._check_formats()
        if self.faces is not None:
            if not self.mesh:
                raise InputError(f"--faces {self.faces} bounds a mesh; give --mesh too, or leave it out")
            check_range("--faces", self.faces, 2, 10_000_000)
        check_range("--max-slant", self.max_slant, 1, 90)
        self.check_lens(self.many, self.undistort)
        if self.undistort and self.K is None:
            raise InputError("--undistort needs --K: a JSON file with the lens's distortion beside its camera matrix")
        usual = (Pointcloud.near, Pointcloud.far)
        if self.scaled and (self.near, self.far) != usual:
            raise InputError(f"--near {self.near:g} and --far {self.far:g} are a choice where the scale is measured")
        if not 0 < self.near < self.far < float("inf"):
            raise InputError(f"--near {self.near:g} and --far {self.far:g}: need 0 < near < far")
        check_range("--near", self.near, SMALLEST, LARGEST)
        check_range("--far", self.far, SMALLEST, LARGEST)
        super().check()

    def check_seen(self, path: Path) -> None:
        """See ImageCommand.check_seen."""
        LensOptions.check_seen(self, path)

    @property
    def textured(self) -> bool:
        """See Command.textured."""
        return self.mesh

    def _check_formats(self) -> None:
        known, what = (MESH_KINDS, "a mesh") if self.mesh else (POINT_KINDS, "a point cloud")
        odd = [suffix for suffix in self.suffixes if suffix not in known]
        if odd:
            names = ", ".join(kind[1:] for kind in known)
            more = "; --mesh makes one" if not self.mesh and odd[0] in MESH_KINDS else ""
            raise InputError(f"{odd[0]}: {what} is written as {names}{more}")
        named = "" if self.out is None or self.out.is_dir() else self.out.suffix.lower()
        if named and named not in self.suffixes:
            raise InputError(f"--out {self.out} is none of --format {self.format}; name it after one, or give a folder")
        for suffix in self.suffixes:
            need_format(Path(f"{self.noun}{suffix}"))

    def seconds_per_megapixel(self) -> float:
        """See ImageCommand.seconds_per_megapixel; text takes longer."""
        return 0.3 + sum(12.0 if suffix in (".xyz", ".obj", ".usda") else 0.2 for suffix in self.suffixes)

    def bytes_per_pixel(self) -> int:
        """See ImageCommand.bytes_per_pixel; text needs about three times what numbers do."""
        return sum(100 if suffix in (".xyz", ".obj", ".usda") else 36 for suffix in self.suffixes)

    def load(self) -> Any:
        """The pipeline."""
        from ..pipelines.image_to_geometry import ImageToDepth

        if self.scaled:
            return load_metric(self)
        return ImageToDepth.from_pretrained(self.prior, **self.placement())

    def one(self, pipe: Any, path: Path, picture: np.ndarray, record: RunRecord, target: Target) -> None:
        """Writes the cloud or mesh of one picture and its camera."""
        from ..geometry.camera_files import save_nerfstudio
        from ..pipelines.picture_inputs import is_panorama
        from ..pipelines.validity import file_valid

        if is_panorama(path):
            raise InputError(f"{path} is a panorama of all directions, which no pinhole is; cut views out of it first")
        valid, shown = file_valid(path, picture), path
        seen = self.camera_of(picture, path, valid, self.undistort)
        if self.undistort:
            picture, valid, shown = self._undistorted(path, picture, valid, record, target)
        near, far, scale = (
            self.near,
            self.far,
            f"--near {self.near:g} and --far {self.far:g}: a choice, not a measurement",
        )
        if self.scaled:
            how = {"valid": valid, "undistorted": self.undistort, **self.settings()}
            both, seen, metric = seen_in_metres(self, pipe, path, picture, record, **how)
            made, near, far, scale = both.depth, metric.near_m, metric.far_m, metric.scale
        else:
            made = pipe(picture, valid=valid, **self.settings())
            record.count("denoiser", made.nfe)
        camera = seen.camera
        focal = {"px": float(camera.K[0, 0, 0]), "from": seen.source}
        record.notes.setdefault("focal", {})[str(path)] = focal
        record.notes.setdefault("scale", {})[str(path)] = scale
        with record.stage("write"):  # nothing of a picture that has no shape; what tells that it is done comes last
            writers = self._writers(made, picture, camera, near, far, scale)
            record.keep(lambda to: save_nerfstudio(to, camera, [_beside(to, shown)]), target.beside(CAMERA))
            if self.preview:
                from ..tasks.map_files import Saving

                record.keep(lambda base: made.one(0).preview(picture, base, Saving()), target.beside(""))
            for write, ending in writers:
                record.keep(write, target.file(ending))

    def _writers(
        self, made: DepthOutput, picture: np.ndarray, camera: Camera, near: float, far: float, scale: str
    ) -> list[tuple[Callable[[Path], Any], str]]:
        """(what writes a file, its ending) for each file of the geometry."""
        if not self.mesh:
            cloud = made.point_cloud(picture, camera, near, far, max_slant_deg=self._slant)
            return [(cloud.save, suffix) for suffix in self.suffixes]
        from ..geometry.inspection import write_report

        mesh = made.surface(picture, camera, near, far, self.faces or 200_000, self.max_slant)
        files: list[tuple[Callable[[Path], Any], str]] = [(mesh.save, suffix) for suffix in self.suffixes]
        return [(lambda path: write_report(mesh, path, scale), self.suffixes[0]), *files]

    @property
    def _slant(self) -> float | None:
        return None if self.max_slant == 90 else self.max_slant

    def _undistorted(
        self, path: Path, picture: np.ndarray, valid: np.ndarray, record: RunRecord, target: Target
    ) -> tuple[np.ndarray, np.ndarray, Path]:
        """The picture as a pinhole sees it, where it shows something, and the file that it was written to."""
        from ..geometry.intrinsics import read_lens, undistorted
        from ..utils.pictures import save_image

        assert self.K is not None
        height, width, _ = picture.shape
        straight, inside = undistorted(picture, read_lens(self.K, (width, height), path), valid)
        written: Path = record.keep(lambda to: save_image(to, straight), target.beside(UNDISTORTED))
        return straight, inside, written


def _beside(file: Path, picture: Path) -> str:
    """The picture's path as a camera file names it: from its own folder."""
    try:
        return Path(os.path.relpath(picture, file.parent)).as_posix()
    except ValueError:  # on another drive
        return picture.as_posix()
