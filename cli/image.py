"""`unproject depth`, `normals` and `pointcloud`: geometry from one picture or a folder of pictures."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from ..tasks.table import TaskConfig, task_table
from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import Seeded, check_range
from .folders import PICTURES_OF_MAPS, distinct_stems, find
from .jobs import SOME_FAILED, Job, run_jobs, sort_out
from .outputs import Target, check_apart, check_new, check_places
from .priors import PriorCommand, head_names
from .showing import Shown

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class ImageCommand(PriorCommand, Seeded):
    """Options of the commands that read pictures."""

    takes_file: ClassVar[bool] = False
    endings: ClassVar[tuple[str, ...]] = ()
    """of the files that may be written for a picture"""
    marks: ClassVar[tuple[str, ...]] = ()
    """endings of the files by which a picture counts as done"""

    prior: str = "toybox"
    """toybox, a geometry head's name (marigold-depth, ...) or folder, or a hub id owner/name."""
    base: Annotated[str | None, tyro.conf.Suppress] = None
    image: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Pictures, folders of pictures, or - for standard input."""
    recursive: bool = False
    """Enter the folders inside a folder too; the outputs lie in folders of the same names."""
    ensemble: int = 1
    """Predictions to average; more is steadier and slower."""
    steps: int | None = None
    """Solver steps (default: what suits the head)."""
    overwrite: bool = False
    """Make again what is already there. Otherwise what is there is kept, and an interrupted command goes on."""

    @property
    def many(self) -> bool:
        """Whether the outputs of several pictures share a folder."""
        return len(self.image) != 1 or self.image[0].is_dir()

    @property
    def several(self) -> str:
        """See Command.several."""
        return "it was given several pictures" if self.many else super().several

    def slug(self) -> str:
        """photo.jpg becomes photo-depth, so that no command overwrites another's file or the picture itself."""
        first = self.image[0] if self.image else Path("none")
        more = ""
        if len(self.image) > 1:
            listed = "\n".join(str(path) for path in self.image)
            digits = hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()[:6]
            more = f"-and-{len(self.image) - 1}-more-{digits}"
        return f"{first.stem or first.resolve().name}{more}-{self.name}"

    def target(self) -> Target:
        """See Command.target; of several pictures the record is named after the command."""
        target = super().target()
        return Target(target.folder, self.name) if self.many else target

    def check(self) -> None:
        """Paths and ranges."""
        if not self.image:
            raise InputError(f"{self.name} needs a picture, a folder of pictures, or - for standard input")
        for path in self.image:
            if not path.exists():
                raise InputError(f"image {path} does not exist")
        if self.many and self.out is not None and self.out.suffix and not self.out.is_dir():
            given = f"{self.image[0]} is a folder" if len(self.image) == 1 else f"there are {len(self.image)} pictures"
            raise InputError(f"--out {self.out} is one file but {given}; give a folder")
        check_range("--ensemble", self.ensemble, 1, 64)
        if self.steps is not None:
            check_range("--steps", self.steps, 1, 1000)
        super().check()

    def check_places(self, target: Target) -> None:
        """See Command.check_places; what is there must be this command's own, and no picture."""
        jobs, _ = self.jobs(target)
        written = [job.target.file(ending) for job in jobs for ending in self.endings]
        check_apart(self.out or target.folder, written, [Path(job.source) for job in jobs])
        found = sort_out(self, jobs, target, self.overwrite)
        if not self.many and found.kept:
            check_new(jobs[0].files)
        check_places([*(job.files[0] for job in found.left), target.record], self.size_bytes())

    def known(self) -> list[str]:
        """The heads: --prior toybox means the head on that prior."""
        return head_names()

    def jobs(self, target: Target) -> tuple[list[Job], list[str]]:
        """The pictures to work on, and lines about other files."""
        if not self.many:
            return [self._job(self.image[0], target)], []
        pictures: list[tuple[Path, Path]] = []
        skipped: list[str] = []
        for path in self.image:
            if not path.is_dir():
                pictures.append((path, Path()))
                continue
            found = find(path, self.recursive, MAP_COMMANDS, target.folder)
            inside = Path(path.name) if len(self.image) > 1 else Path()
            pictures += [(one, inside / place) for one, place in found.pictures]
            skipped += found.skipped
            if found.maps:
                skipped.append(f"{found.maps} maps of an earlier run in {path}")
        jobs: list[Job] = []
        for place in dict.fromkeys(place for _, place in pictures):
            here = list(dict.fromkeys(one for one, own in pictures if own == place))
            for one, stem in zip(here, distinct_stems(here), strict=True):
                jobs.append(self._job(one, Target(target.folder / place, f"{stem}-{self.name}")))
        return jobs, skipped

    def _job(self, picture: Path, target: Target) -> Job:
        return Job(str(picture), target, tuple(target.file(ending) for ending in self.marks))

    def plan(self) -> list[str]:
        """What a dry run says; every picture is read for it."""
        from ..utils.pictures import load_image

        target = self.target()
        jobs, skipped = self.jobs(target)
        found = sort_out(self, jobs, target, self.overwrite)
        lines = []
        for job in found.left:
            try:
                height, width, _ = load_image(job.source).shape
                lines.append(f"would read {job.source} ({width} x {height} px)")
            except InputError as error:
                if not self.many:
                    raise
                lines.append(f"would skip {error}")
        return [*super().plan(), *lines, *(f"would skip {text}" for text in (*found.kept, *skipped))]

    def run(self, record: RunRecord, target: Target) -> Shown:
        """One network for all pictures; what is there is kept, one that cannot be read is named and skipped."""
        from ..utils.pictures import load_image

        jobs, skipped = self.jobs(target)
        found = sort_out(self, jobs, target, self.overwrite)

        def do(pipe: Any, job: Job) -> None:
            picture = load_image(job.source)
            with record.stage("predict"):
                self.one(pipe, Path(job.source), picture, record, job.target)

        failed, made = run_jobs(self, found, record, target, self.load, do)
        if failed and not made and not found.kept:
            raise InputError(f"none of the {len(jobs)} pictures could be read: {failed[0]}")
        told = [*failed, *found.kept, *skipped]
        record.notes.update(skipped=told)
        return Shown([f"skipped: {t}" for t in told], data={"skipped": told}, exit_code=SOME_FAILED if failed else 0)

    def settings(self) -> dict[str, Any]:
        """How the pipeline is called."""
        return {"ensemble_size": self.ensemble, "num_inference_steps": self.steps, "seed": self.seed}

    def load(self) -> Any:
        """The pipeline."""
        raise TypeError(f"{type(self).__name__} defines no load")

    def one(self, pipe: Any, path: Path, picture: np.ndarray, record: RunRecord, target: Target) -> None:
        """Writes the outputs of the picture of one file."""
        raise TypeError(f"{type(self).__name__} defines no one")


@dataclass(frozen=True, kw_only=True)
class MapCommand(ImageCommand):
    """Options of the commands that write a map for each picture."""

    kinds: ClassVar[tuple[str, ...]] = (".png",)
    endings: ClassVar[tuple[str, ...]] = (".npz", *PICTURES_OF_MAPS)
    marks: ClassVar[tuple[str, ...]] = (".npz", ".png")
    codec: ClassVar[str] = ""
    """of the target"""

    @property
    def several(self) -> str:
        """See Command.several."""
        return "it writes several files"

    def load(self) -> Any:
        """The pipeline."""
        from ..pipelines.image_to_geometry import ImageToMap
        from ..tasks.heads import load_head

        return ImageToMap(load_head(self.prior, (self.codec,), **self.placement()), self.codec)

    def one(self, pipe: Any, path: Path, picture: np.ndarray, record: RunRecord, target: Target) -> None:
        """Writes NAME.npz, NAME-16bit.png and NAME.png; of an ensemble NAME-uncertainty.png too."""
        from ..pipelines.validity import file_valid

        made = pipe(picture, valid=file_valid(path, picture), **self.settings())
        record.count("denoiser", made.nfe)
        record.keep(made.save, target.file(""))


def map_command(name: str, task: TaskConfig) -> type[MapCommand]:
    """The command `unproject NAME` of a task."""
    members = {"name": name, "codec": task.codec, "__doc__": task.summary, "__module__": __name__}
    return type(name.capitalize(), (MapCommand,), members)


MAP_COMMANDS = {name: map_command(name, task) for name, task in task_table().items()}


@dataclass(frozen=True, kw_only=True)
class Pointcloud(ImageCommand):
    """Lift a picture to a coloured point cloud (PLY) with estimated depth; z is up, the camera looks along -x."""

    name: ClassVar[str] = "pointcloud"
    kinds: ClassVar[tuple[str, ...]] = (".ply",)
    endings: ClassVar[tuple[str, ...]] = (".ply",)
    marks: ClassVar[tuple[str, ...]] = (".ply",)

    fov: float | None = None
    """Field of view of the picture's longer side in degrees (default: by the focal length in the photo's EXIF, else
    55)."""
    K: Path | None = None
    """JSON file with the camera matrix in px, 3 x 3, as a list or under "K" (pixel centres at +0.5), or under
    "camera_matrix" as OpenCV writes it (pixel centres at whole numbers); takes the place of --fov."""
    near: float = 1.0
    """Depth of the nearest point of the cloud, in metres; the scale of a single picture is not known."""
    far: float = 4.0
    """Depth of the farthest point of the cloud, in metres."""

    def check(self) -> None:
        """The camera has to make sense."""
        if self.fov is not None:
            check_range("--fov", self.fov, 1, 170)
        if self.K is not None:
            self._check_matrix(self.K)
        if not 0 < self.near < self.far < math.inf:
            raise InputError(f"--near {self.near:g} and --far {self.far:g}: need 0 < near < far")
        super().check()

    def _check_matrix(self, path: Path) -> None:
        from ..pipelines.picture_inputs import check_intrinsics

        if self.fov is not None:
            raise InputError(f"give --fov {self.fov:g} or --K {path}, not both")
        if not path.is_file():
            raise InputError(f"--K {path} does not exist; give a JSON file with a 3 x 3 camera matrix in px")
        check_intrinsics(path)

    def load(self) -> Any:
        """The pipeline."""
        from ..pipelines.image_to_geometry import ImageToDepth

        return ImageToDepth.from_pretrained(self.prior, **self.placement())

    def one(self, pipe: Any, path: Path, picture: np.ndarray, record: RunRecord, target: Target) -> None:
        """Writes NAME.ply."""
        from ..pipelines.picture_inputs import photo_camera
        from ..pipelines.validity import file_valid

        made = pipe(picture, valid=file_valid(path, picture), **self.settings())
        record.count("denoiser", made.nfe)
        height, width, _ = picture.shape
        camera = photo_camera(width, height, fov_deg=self.fov, K=self.K, photo=path)
        focal = {"px": float(camera.K[0, 0, 0]), "from": self._focal_from(path, width, height)}
        record.notes.setdefault("focal", {})[str(path)] = focal
        cloud = made.point_cloud(picture, camera, self.near, self.far)
        record.keep(cloud.save, target.file(".ply"))

    def _focal_from(self, path: Path, width: int, height: int) -> str:
        """Where the focal length of a picture comes from."""
        from ..pipelines.picture_inputs import DEFAULT_FOV_DEG, exif_focal_px

        if self.K is not None or self.fov is not None:
            return f"--K {self.K}" if self.K is not None else f"--fov {self.fov:g}"
        known = exif_focal_px(path, width, height) is not None
        return "EXIF of the photo" if known else f"{DEFAULT_FOV_DEG:g} degrees, a usual lens"
