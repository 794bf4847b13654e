"""`unproject calibrate`: the camera of a picture as JSON, which `--K` of the other commands reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .image import ImageCommand
from .jobs import Job, go_on, name_of, sort_out, stand
from .numbers import numbers
from .outputs import Target
from .showing import Shown, Table

if TYPE_CHECKING:
    import numpy as np

    from ..geometry.pinhole_fit import Known
    from ..pipelines.camera_output import CameraOutput

COLUMNS = ("picture", "focal px", "focal mm", "field of view", "principal point", "confidence", "from")


@dataclass(frozen=True, kw_only=True)
class Calibrate(ImageCommand):
    """Estimate the camera of a picture: focal length in px (and mm by its EXIF), principal point, field of view, and
    where down is, as JSON that --K of depth, geometry and pointcloud reads."""

    name: ClassVar[str] = "calibrate"
    kinds: ClassVar[tuple[str, ...]] = (".json",)

    shared: bool = False
    """All pictures were taken with one camera, which they share; they have one size."""
    focal: str | None = None
    """Focal length that is known: px, FX,FY in px, or exif for the photo's own."""
    principal: str | None = None
    """Principal point that is known: CX,CY in px (pixel centres at +0.5), or centre, as in photos that are whole."""
    two_focals: bool = False
    """Estimate fx and fy apart (default: pixels are square)."""

    @property
    def streamed(self) -> str:
        """See Command.streamed."""
        return ".json"

    def marks(self) -> tuple[str, ...]:
        """See EachCommand.marks."""
        return (".json",)

    def bytes_per_pixel(self) -> int:
        """See ImageCommand.bytes_per_pixel: a page of numbers, whatever the picture."""
        return 0

    def seconds_per_megapixel(self) -> float:
        """See ImageCommand.seconds_per_megapixel."""
        return 0.1

    def check(self) -> None:
        """What is known has to be understood."""
        if self.focal is not None and self.focal != "exif":
            numbers("--focal", self.focal, (1, 2), "exif")
        if self.principal is not None and self.principal != "centre":
            numbers("--principal", self.principal, (2,), "centre")
        if self.two_focals and self.focal is not None:
            raise InputError(f"--two-focals estimates what --focal {self.focal} says; give one of them")
        super().check()

    def headless(self) -> str:
        """Why there is no camera head, as far as files tell it; empty where there may be one."""
        from ..tasks.heads import embedded_folder
        from ..tasks.table import task_table

        if self.prior != ImageCommand.prior:
            return ""
        try:
            embedded_folder(task_table()[self.name])
        except InputError as error:
            return str(error)
        return ""

    def check_left(self, left: Sequence[Job]) -> None:
        """See ImageCommand.check_left; a camera that is shared needs a head."""
        if left and self.shared and (why := self.headless()):
            raise InputError(f"--shared needs a camera head: {why}")
        super().check_left(left)

    def check_seen(self, path: Path) -> None:
        """See ImageCommand.check_seen: something has to tell the focal length."""
        from ..utils.decoding import image_size

        if self.shared:
            return  # by the first of the pictures
        width, height = image_size(path)
        known = self.known_of(path, width, height)
        if why := self.headless():
            self._focal_without_head(path, width, height, known, why)

    def check_shows(self, path: Path, picture: np.ndarray | None = None) -> None:
        """See ImageCommand.check_shows; without a head no picture is looked at."""
        if not self.headless():
            super().check_shows(path, picture)

    def load(self) -> Any:
        """The pipeline, or the reason why there is none: then EXIF or --focal have to do."""
        from ..pipelines.image_to_camera import ImageToCamera

        try:
            return ImageToCamera.from_pretrained(self.prior, **self.placement())
        except InputError as error:
            if self.prior != ImageCommand.prior:
                raise
            return str(error)

    def one(self, pipe: Any, path: Path, picture: np.ndarray, record: RunRecord, target: Target) -> None:
        """Writes the camera of one picture."""
        from ..pipelines.validity import file_valid

        height, width, _ = picture.shape
        known = self.known_of(path, width, height)
        if isinstance(pipe, str):
            made = self._without_head(path, width, height, known, pipe)
        else:
            made = pipe(picture, valid=file_valid(path, picture), known=known, **self.settings())
        self._write(made, 0, path, record, target)

    def run(self, record: RunRecord, target: Target) -> Shown:
        """See EachCommand.run; with a table of what was found."""
        shown = self._together(record, target) if self.shared else super().run(record, target)
        cameras = record.notes.get("cameras", {})
        if cameras:
            shown.tables.append(Table(COLUMNS, [_row(path, found) for path, found in cameras.items()]))
            shown.data["cameras"] = cameras
        return shown

    def known_of(self, path: Path, width: int, height: int) -> Known:
        """What need not be estimated of a picture. Raises InputError for --focal exif without any."""
        from ..geometry.pinhole_fit import Known
        from ..pipelines.picture_inputs import exif_focal_px

        known = Known(square=not self.two_focals)
        if self.focal == "exif":
            focal = exif_focal_px(path, width, height)
            if focal is None:
                raise InputError(f"--focal exif: {path} does not tell its focal length; give it in px, or leave it out")
            known = replace(known, focal_px=(focal, focal))
        elif self.focal is not None:
            values = numbers("--focal", self.focal, (1, 2), "exif")
            known = replace(known, focal_px=(values[0], values[-1]))
        if self.principal == "centre":
            known = replace(known, principal_px=(width / 2, height / 2))
        elif self.principal is not None:
            cx, cy = numbers("--principal", self.principal, (2,), "centre")
            known = replace(known, principal_px=(cx, cy))
        return known

    def _without_head(self, path: Path, width: int, height: int, known: Known, why: str) -> CameraOutput:
        """What the photo's EXIF or --focal say. Raises InputError where neither does."""
        import numpy as np

        from ..pipelines.camera_output import given_camera

        focal, source = self._focal_without_head(path, width, height, known, why)
        cx, cy = known.principal_px or (width / 2, height / 2)
        K = np.array([[focal[0], 0, cx], [0, focal[1], cy], [0, 0, 1.0]])
        return given_camera(K, width, height, f"{source}; no camera head")

    def _focal_without_head(
        self, path: Path, width: int, height: int, known: Known, why: str
    ) -> tuple[tuple[float, float], str]:
        """(focal lengths in px, where they come from). Raises InputError where neither EXIF nor --focal tells them."""
        from ..pipelines.picture_inputs import exif_focal_px

        if known.focal_px is not None:
            return known.focal_px, f"--focal {self.focal}"
        found = exif_focal_px(path, width, height)
        if found is None:
            raise InputError(f"{path}: its EXIF tells no focal length and there is no camera head: {why}")
        return (found, found), "EXIF of the photo"

    def _together(self, record: RunRecord, target: Target) -> Shown:
        """One camera of all pictures; a file for each."""
        from ..pipelines.validity import file_valid
        from ..utils.pictures import load_image

        jobs, skipped = self.jobs(target)
        found = sort_out(self, jobs, target, self.overwrite)
        if not found.left:
            go_on(record, found)
            stand(record, found, target)
            return Shown([f"skipped: {text}" for text in found.kept], data={"skipped": found.kept})
        with record.stage("load"):
            pipe = self.load()
        if isinstance(pipe, str):
            raise InputError(f"--shared needs a camera head: {pipe}")
        found = sort_out(self, jobs, target, True)  # all are made anew, for they share what is found
        go_on(record, found)
        record.begin(target.record)
        images = [load_image(job.source) for job in jobs]
        sizes = {image.shape[1::-1] for image in images}
        if len(sizes) > 1:
            listed = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
            raise InputError(f"--shared: the pictures of one camera have one size, these have {listed}")
        ((width, height),) = sizes
        valid = [file_valid(Path(job.source), image) for job, image in zip(jobs, images, strict=True)]
        with record.cost_of() as cost:
            with record.stage("predict"):
                known = self.known_of(Path(jobs[0].source), width, height)
                made = pipe(list(images), valid=valid, known=known, shared=True, **self.settings())
            for i, job in enumerate(jobs):
                self._write(made, i, Path(job.source), record, job.target)
        own = {name_of(job, target): job.source for job in jobs}
        record.notes["sources"] = {**found.sources, **own}
        record.notes["costs"] = {**found.costs, next(iter(own)): cost}  # of all of them
        return Shown([f"skipped: {text}" for text in skipped], data={"skipped": skipped})

    def _write(self, made: CameraOutput, index: int, path: Path, record: RunRecord, target: Target) -> None:
        from ..pipelines.photo_exif import read_exif
        from ..utils.files import write_json

        document = made.document(index, read_exif(path))
        if index == 0:
            record.count("denoiser", made.nfe)
        record.notes.setdefault("cameras", {})[str(path)] = document
        record.keep(lambda to: write_json(to, document), target.file(".json"))


def _row(path: str, found: dict[str, Any]) -> tuple[str, ...]:
    fx, fy = found["focal_px"]
    focal = f"{fx:.1f}" if abs(fx / fy - 1) < 1e-6 else f"{fx:.1f}, {fy:.1f}"
    mm = "" if found["focal_mm"] is None else f"{found['focal_mm']:.2f}"
    angles = f"{found['fov_deg']['x']:.1f} x {found['fov_deg']['y']:.1f} degrees"
    centre = ", ".join(f"{value:.1f}" for value in found["principal_px"])
    sure = "" if found["confidence"] is None else f"{found['confidence']:.2f}"
    return (path, focal, mm, angles, centre, sure, found["source"])
