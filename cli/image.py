"""`unproject depth`, `normals` and `pointcloud`: geometry from one picture or a folder of pictures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from ..tasks.table import TaskConfig, task_table
from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import Shown, Target, check_apart, check_range
from .priors import PriorCommand, head_names

if TYPE_CHECKING:
    import numpy as np

PICTURES_OF_MAPS = ("-16bit.png", "-uncertainty.png", ".png")  # endings, the longer ones first
Job = tuple[Path, Target]  # a picture and where its results go


@dataclass(frozen=True, kw_only=True)
class ImageCommand(PriorCommand):
    """Options of the commands that read pictures."""

    takes_file: ClassVar[bool] = False
    endings: ClassVar[tuple[str, ...]] = ()
    """of the files written for a picture"""

    prior: str = "toybox"
    """toybox, a geometry head's name (marigold-depth, ...) or folder, or a hub id owner/name."""
    base: Annotated[str | None, tyro.conf.Suppress] = None
    image: tyro.conf.Positional[Path]
    """A picture, or a folder of pictures."""
    ensemble: int = 1
    """Predictions to average; more is steadier and slower."""
    steps: int | None = None
    """Solver steps (default: what suits the head)."""

    def slug(self) -> str:
        """photo.jpg becomes photo-depth, so that no command overwrites another's file or the picture itself."""
        return f"{self.image.stem or self.image.resolve().name}-{self.name}"

    def check(self) -> None:
        """Paths and ranges."""
        if not self.image.exists():
            raise InputError(f"image {self.image} does not exist")
        if self.image.is_dir() and self.out is not None and self.out.suffix:
            raise InputError(f"--out {self.out} is one file but {self.image} is a folder; give a folder")
        target = self.target()
        jobs, _ = self.jobs(target)
        written = [own.file(ending) for _, own in jobs for ending in self.endings]
        check_apart(self.out or target.folder, written, [path for path, _ in jobs])
        check_range("--ensemble", self.ensemble, 1, 64)
        if self.steps is not None:
            check_range("--steps", self.steps, 1, 1000)
        super().check()

    def known(self) -> list[str]:
        """The heads: --prior toybox means the head on that prior."""
        return head_names()

    def jobs(self, target: Target) -> tuple[list[Job], int]:
        """The pictures to work on, and how many others are maps of an earlier run."""
        from ..utils.pictures import list_images

        if not self.image.is_dir():
            return [(self.image, target)], 0
        found = list_images(self.image)
        pictures = without_maps(found)
        stems = distinct_stems(pictures)
        jobs = [(path, Target(target.folder, f"{stem}-{self.name}")) for path, stem in zip(pictures, stems)]
        return jobs, len(found) - len(pictures)

    def plan(self) -> list[str]:
        """What a dry run says."""
        jobs, _ = self.jobs(self.target())
        return [*super().plan(), *(f"would read {path}" for path, _ in jobs)]

    def run(self, record: RunRecord, target: Target) -> Shown:
        """One network for all pictures; a picture that cannot be read in a folder is named and skipped."""
        from ..utils.pictures import load_image
        from ..utils.progress import progress

        jobs, maps = self.jobs(target)
        with record.stage("load"):
            pipe = self.load()
        skipped = []
        for path, own in progress(jobs, label=self.name) if len(jobs) > 1 else jobs:
            try:
                picture = load_image(path)
            except InputError as error:
                if len(jobs) == 1:
                    raise
                skipped.append(str(error))
                continue
            with record.stage("predict"):
                self.one(pipe, path, picture, record, own)
        if len(skipped) == len(jobs):
            raise InputError(f"none of the {len(jobs)} pictures could be read: {skipped[0]}")
        if maps:
            skipped.append(f"{maps} maps of an earlier run in {self.image}")
        return Shown([f"skipped: {text}" for text in skipped], data={"skipped": skipped})

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
    codec: ClassVar[str] = ""
    """of the target"""

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
        for written in made.save(target.file("")):
            record.output(written)


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

    fov: float | None = None
    """Field of view of the picture's longer side in degrees (default: by the focal length in the photo's EXIF, else
    55)."""
    K: Path | None = None
    """JSON file with the camera matrix in px, 3 x 3, as a list or under "K" (pixel centres at +0.5), or under
    "camera_matrix" as OpenCV writes it (pixel centres at whole numbers); takes the place of --fov."""
    near: float = 1.0
    """Distance given to the nearest depth, in metres; the scale of a single picture is not known."""
    far: float = 4.0
    """Distance given to the farthest depth, in metres."""

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
        cloud = made.point_cloud(picture, camera, self.near, self.far)
        record.output(cloud.save(target.file(".ply")))


def distinct_stems(pictures: Sequence[Path]) -> list[str]:
    """A base name for each picture of a folder: its stem, with its suffix (a-jpg, a-png) where stems are shared."""
    shared = Counter(path.stem.casefold() for path in pictures)
    stems = [path.stem if shared[path.stem.casefold()] == 1 else _with_suffix(path) for path in pictures]
    unique = len({stem.casefold() for stem in stems}) == len(stems)
    return stems if unique else [_with_suffix(path) for path in pictures]


def without_maps(pictures: Sequence[Path]) -> list[Path]:
    """The pictures of a folder that are no map of another one: NAME-depth.png and its like, beside NAME-depth.npz."""
    owners = {name for path in pictures for name in (path.stem, _with_suffix(path))}
    bases = {f"{owner}-{command.name}" for owner in owners for command in MAP_COMMANDS.values()}

    def is_map(path: Path) -> bool:
        base = next((path.name.removesuffix(end) for end in PICTURES_OF_MAPS if path.name.endswith(end)), "")
        return base in bases and path.with_name(f"{base}.npz").is_file()

    return [path for path in pictures if not is_map(path)]


def _with_suffix(path: Path) -> str:
    return f"{path.stem}-{path.suffix[1:]}"
