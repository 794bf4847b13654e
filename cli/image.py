"""`unproject depth`, `normals` and their like: maps of one picture, of several, or of a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import tyro

from ..tasks.formats import MAP_FORMATS, PREVIEW, USUAL, map_formats
from ..tasks.table import task_table
from ..utils.bands import Compression, need_exr
from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .choices import OneKind
from .common import check_range
from .estimates import Estimate, of_pictures
from .folders import LIFTED, distinct_stems, find, pixels_of
from .jobs import Job, sort_out
from .outputs import Target
from .priors import head_names
from .several import EachCommand

if TYPE_CHECKING:
    import numpy as np

    from ..tasks.map_files import Saving

MAPS = tuple(name for name, task in task_table().items() if task.map)  # whose files are no pictures of a folder


@dataclass(frozen=True, kw_only=True)
class ImageCommand(EachCommand):
    """Options of the commands that read pictures."""

    reads: ClassVar[str] = "image"
    plural: ClassVar[str] = "pictures"

    prior: str = "toybox"
    """toybox, a geometry head's name (marigold-depth, ...) or folder, or a hub id owner/name."""
    image: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Pictures, folders of pictures, or - for standard input."""
    ensemble: int = 1
    """Predictions to average; more is steadier and slower."""
    steps: int | None = None
    """Solver steps (default: what suits the head)."""

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
            digits = hashlib.sha256(listed.encode("utf-8", "surrogatepass")).hexdigest()[:6]
            more = f"-and-{len(self.image) - 1}-more-{digits}"
        return f"{first.stem or first.resolve().name}{more}-{self.noun}"

    def check(self) -> None:
        """Paths and ranges."""
        if not self.image:
            raise InputError(f"{self.name} needs a picture, a folder of pictures, or - for standard input")
        self.check_given()
        check_range("--ensemble", self.ensemble, 1, 64)
        if self.steps is not None:
            check_range("--steps", self.steps, 1, 1000)
        super().check()
        if self.steps not in (None, 1):
            from ..tasks.heads import known_start

            if known_start(self.prior) == "zeros":
                raise InputError(f"--steps {self.steps}: the head {self.prior} is a one-step regressor; leave it out")

    def check_left(self, left: Sequence[Job]) -> None:
        """See EachCommand.check_left: none is a picture that fits the options; of several the rest goes on."""
        from ..utils.decoding import image_size

        reasons = []
        for job in left:
            try:
                image_size(job.source)
                self.check_seen(Path(job.source))
                if not self.many:
                    self.check_shows(Path(job.source))
            except InputError as error:
                reasons.append(error)
        if reasons and len(reasons) == len(left):
            raise reasons[0]

    def check_seen(self, path: Path) -> None:
        """Raises InputError for a picture that the options do not fit, as far as its header tells."""

    def check_shows(self, path: Path, picture: np.ndarray | None = None) -> None:
        """Raises InputError for a picture that shows nothing; `picture`: its pixels where they were read already."""
        from ..pipelines.validity import check_shows

        check_shows(path, picture)

    def bytes_per_pixel(self) -> int:
        """Of the files of a picture, on the disk."""
        return 36

    def needed_bytes(self, left: Sequence[Job]) -> int:
        """See EachCommand.needed_bytes."""
        return 1_000_000 + self.bytes_per_pixel() * sum(pixels_of(Path(job.source)) for job in left)

    def known(self) -> list[str]:
        """The heads: --prior toybox means the head on that prior."""
        return head_names()

    def jobs(self, target: Target) -> tuple[list[Job], list[str]]:
        """See EachCommand.jobs."""
        if not self.many:
            return [self.job(str(self.image[0]), target)], []
        pictures: list[tuple[Path, Path]] = []
        skipped: list[str] = []
        for path in self.image:
            if not path.is_dir():
                pictures.append((path, Path()))
                continue
            found = find(path, self.recursive, (*MAPS, *LIFTED), target.folder)
            inside = Path(path.name) if len(self.image) > 1 else Path()
            pictures += [(one, inside / place) for one, place in found.pictures]
            skipped += found.skipped
            if found.maps:
                skipped.append(f"{found.maps} maps of an earlier run in {path}")
        jobs, mark = list[Job](), target.own_mark
        for place in dict.fromkeys(place for _, place in pictures):
            here = list(dict.fromkeys(one for one, own in pictures if own == place))
            for one, stem in zip(here, distinct_stems(here), strict=True):
                jobs.append(self.job(str(one), Target(target.folder / place, f"{stem}-{self.noun}", mark=mark)))
        return jobs, skipped

    def planned(self, job: Job) -> str:
        """See EachCommand.planned."""
        from ..utils.pictures import load_image

        picture = load_image(job.source)
        self.check_seen(Path(job.source))
        self.check_shows(Path(job.source), picture)
        height, width, _ = picture.shape
        return f"read {job.source} ({width} x {height} px)"

    def do(self, pipe: Any, job: Job, record: RunRecord) -> None:
        """See EachCommand.do."""
        from ..utils.pictures import load_image

        picture = load_image(job.source)
        with record.stage("predict"):
            self.one(pipe, Path(job.source), picture, record, job.target)

    def estimate(self) -> Estimate | None:
        """See Command.estimate."""
        if not self.known_cost:
            return None
        target = self.target()
        left = sort_out(self, self.jobs(target)[0], target, self.overwrite).left
        pixels = [pixels_of(Path(job.source)) for job in left]
        return of_pictures(pixels, self.ensemble * self.calls(), self.seconds_per_megapixel())

    def calls(self) -> int:
        """Network calls of a prediction."""
        return self.steps or 1

    def seconds_per_megapixel(self) -> float:
        """Of writing a picture's files."""
        return 0.4

    def settings(self) -> dict[str, Any]:
        """How the pipeline is called."""
        return {"ensemble_size": self.ensemble, "num_inference_steps": self.steps, "seed": self.seed}

    def one(self, pipe: Any, path: Path, picture: np.ndarray, record: RunRecord, target: Target) -> None:
        """Writes the outputs of the picture of one file."""
        raise TypeError(f"{type(self).__name__} defines no one")


@dataclass(frozen=True, kw_only=True)
class MapCommand(ImageCommand, OneKind):
    """Options of the commands that write a map for each picture."""

    kinds: ClassVar[tuple[str, ...]] = (".png", ".npz", ".npy", ".exr", ".tiff")
    codec: ClassVar[str] = ""
    """of the target"""

    student: str | None = None
    """A student of few bits (quest, toybox-w4), a folder or a name: the head's weights are packed in as many bits, for
    less memory. Its steps and guidance are those of drawings and mean nothing here."""
    format: str | None = None
    """Files to write, of npz, npy, exr, tiff (float32) and png (16 bits, and a picture), as in npz,exr (default: what
    --out names, else npz,png)."""
    compression: Compression = "fast"
    """none, fast or small; small takes longest."""
    legend: bool = False
    """Tell beside the picture what its colours mean."""
    preview: bool = False
    """Write NAME-preview.png too: the picture and its map side by side."""

    @property
    def formats(self) -> tuple[str, ...]:
        """See EachCommand.formats."""
        if self.format is not None:
            return map_formats(self.format.split(","), "--format")
        named = "" if self.out is None else self.out.suffix.lower().removeprefix(".")
        return USUAL if named in ("png", "") or named not in MAP_FORMATS else (named,)

    @property
    def several(self) -> str:
        """See Command.several."""
        files = len(self.formats) + ("png" in self.formats) + self.preview
        alone = files == 1 and (self.ensemble == 1 or self.formats == ("npz",))
        return super().several if alone else "it writes several files; --format npz, npy, exr or tiff alone is one"

    @property
    def streamed(self) -> str:
        """See Command.streamed."""
        return f".{self.formats[0]}"

    def marks(self) -> tuple[str, ...]:
        """See EachCommand.marks."""
        return tuple(MAP_FORMATS[name][0] for name in self.formats)

    def endings(self) -> tuple[str, ...]:
        """See EachCommand.endings."""
        return (*(end for name in self.formats for end in MAP_FORMATS[name]), *([PREVIEW] if self.preview else []))

    def check(self) -> None:
        """Formats, and options that would change nothing."""
        named = "" if self.out is None or self.out.is_dir() else self.out.suffix.lower().removeprefix(".")
        if named and named not in self.formats:
            raise InputError(f"--out {self.out} is none of --format {self.format}; name it after one, or give a folder")
        if "exr" in self.formats:
            need_exr()
        if self.legend and not self.draws:
            raise InputError(f"--legend belongs to a picture and --format {','.join(self.formats)} makes none")
        if self.compression != "fast" and self.formats == ("npy",):
            raise InputError(f"--compression {self.compression}: NPY knows none; leave it out, or take npz")
        self.check_other(self.prior)
        if self.steps is not None:
            self.check_steps(self.steps)
        if self.student is not None:
            from ..tasks.few_bits import bits_of

            if self.other_kind:
                raise InputError(f"--student {self.student} serves plain heads, not {self.other_kind}; leave one out")
            bits_of(self.student)
        super().check()
        self.check_weights()

    def check_weights(self) -> None:
        """Raises InputError where the weights of a head of another kind are not there, as far as files tell it."""
        if self.other_kind:
            from ..tasks.alternatives import find_alternative

            find_alternative(self.name_of_other(), self.codec)

    def calls(self) -> int:
        """See ImageCommand.calls."""
        if not self.other_kind or getattr(self, "metric", False):
            return super().calls()
        from ..tasks.alternatives import calls_of

        return calls_of(self.name_of_other(), self.codec)

    @property
    def draws(self) -> bool:
        """Whether a picture for people comes out."""
        return "png" in self.formats or self.preview

    def load(self) -> Any:
        """See EachCommand.load."""
        if self.other_kind:
            return self.load_other(self.codec, self.prior, self.placement())
        from ..pipelines.image_to_geometry import ImageToMap
        from ..tasks.heads import load_head

        head = load_head(self.prior, (self.codec,), **self.placement())
        if self.student is not None:
            from ..tasks.few_bits import with_bits_of

            head = with_bits_of(head, self.student)
        return ImageToMap(head, self.codec)

    def one(self, pipe: Any, path: Path, picture: np.ndarray, record: RunRecord, target: Target) -> None:
        """Writes the files of the formats; of an ensemble those of its uncertainty too."""
        from ..pipelines.validity import file_valid

        made = pipe(picture, valid=file_valid(path, picture), **self.settings())
        record.count("denoiser", made.nfe)
        with record.stage("write"):
            how = self.saving()
            if self.preview:  # before the files that tell that a picture is done
                record.keep(lambda base: made.one(0).preview(picture, base, how), target.beside(""))
            record.keep(lambda base: made.one(0).save(base, how), target.file(""))

    def saving(self) -> Saving:
        """How the files are written."""
        from ..tasks.map_files import Saving

        return Saving(self.formats, self.compression, legend=self.legend)

    def bytes_per_pixel(self) -> int:
        """See ImageCommand.bytes_per_pixel: as if nothing could be compressed."""
        return 24 * len(self.formats)
