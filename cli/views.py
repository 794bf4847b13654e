"""`unproject image-to-views` and `unproject image-to-mesh`: what a picture shows, from all around."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import tyro

from ..utils.errors import InputError
from ..utils.locks import alone_in
from ..utils.runs import RunRecord
from .common import Seeded, Writer, check_picture, check_range
from .folders import MESH_KINDS
from .outputs import Target, check_apart, need_format
from .priors import PriorCommand
from .showing import Shown

if TYPE_CHECKING:
    from ..pipelines.picture_views import ViewSettings

USUAL_FRAMES = 4  # of the toybox's views, known without loading a network


@dataclass(frozen=True, kw_only=True)
class OrbitCommand(PriorCommand, Seeded, Writer):
    """Options of the commands that look around the object of a picture."""

    image: tyro.conf.Positional[Path]
    """Picture of one object. Its background is taken away by its transparency, --mask, --plain or --subject."""
    orbit: Path | None = None
    """Weights of orbits for the image prior in --prior: export/ of `unproject train orbits` (default: the prior of
    several views that comes with it draws). --prior may also be one of several views itself, or of orbits: such a
    folder, or SV3D's in diffusers' layout."""
    mask: Path | None = None
    """Picture of the same size in which the object is white, or drawn on transparency."""
    plain: bool = False
    """The background is of one colour: what differs from it is the object."""
    subject: str | None = None
    """A word or better a few for the object, as in "red chair": where the prior's own attention finds it."""
    prompt: str | None = None
    """What the picture shows, as in "a red chair", for a prior of several views (default: as the embedded prior's judge
    reads the picture, unless --subject says something else; --subject for other priors)."""
    azimuth: float | None = None
    """Degrees around the object from which the picture was taken, 0 its front, 90 its left, for a prior of several
    views (default: as that judge reads it; the front for other priors)."""
    elevation: float = 15.0
    """Degrees above the horizon from which the picture was taken."""
    frames: int | None = None
    """Views of the full turn (default: as many as the prior learnt; 4 of the toybox's)."""
    steps: int | None = None
    """Sampling steps (default: the prior's)."""
    guidance: float | None = None
    """Guidance: of a prior of several views for all of them, else that on the far side of the object, while it is 1 at
    the picture (default: the prior's)."""
    cond_aug: float | None = None
    """Noise on the picture that weights of orbits are shown, for values of -1 to 1: more lets them leave the picture
    (default: theirs; a prior of several views takes none)."""
    size: int | None = None
    """Pixels of a side of the views (default: the prior's own)."""
    fill: float = 0.75
    """The object's larger side in a view, as a share of it."""
    background: float | None = None
    """Grey behind the object, sRGB from 0 to 1 (default: 0.85 for a prior of several views, else 0.5)."""
    work: Path | None = None
    """Folder of finished views, which stays (default: .NAME.work beside the result, removed at the end). The same
    command typed again goes on where an interrupted one was."""

    def slug(self) -> str:
        """cup.png becomes cup-views or cup-mesh."""
        return f"{self.image.stem}-{self.name.removeprefix('image-to-')}"

    def check(self) -> None:
        """Files, ranges, and that something says what the object is."""
        from ..utils.decoding import has_transparency

        check_picture("image", self.image)
        if self.mask is not None:
            check_picture("--mask", self.mask)
        given_ways = {"--mask": self.mask is not None, "--plain": self.plain, "--subject": self.subject is not None}
        told = [option for option, given in given_ways.items() if given]
        if len(told) > 1:
            raise InputError(f"{told[0]} and {told[1]} both say what the object is; give one")
        if self.subject is not None and not self.subject.strip():
            raise InputError("--subject is empty; name the object, as in --subject chair")
        if not told and not has_transparency(self.image):
            raise InputError(
                f"{self.image} has no transparency, so nothing says what the object is: give --mask FILE (white is the "
                "object), --plain (a background of one colour), --subject WORDS (the prior's own attention), or a "
                "picture without its background"
            )
        if self.prompt is not None and not self.prompt.strip():
            raise InputError('--prompt is empty; say what the picture shows, as in --prompt "a red chair"')
        if self.orbit is not None and not self.orbit.is_dir():
            raise InputError(f"--orbit {self.orbit} is no folder; give the export/ of `unproject train orbits`")
        for option, value, low, high in (
            ("--elevation", self.elevation, -90, 90),
            ("--azimuth", self.azimuth, -360, 360),
            ("--frames", self.frames, 2, 360),
            ("--steps", self.steps, 1, 1000),
            ("--guidance", self.guidance, 0, 100),
            ("--cond-aug", self.cond_aug, 0, 10),
            ("--size", self.size, 16, 4096),
            ("--fill", self.fill, 0.1, 1),
            ("--background", self.background, 0, 1),
        ):
            if value is not None:
                check_range(option, value, low, high)
        target = self.target()
        given = [self.image, *([self.mask] if self.mask is not None else [])]
        check_apart(self.out or target.folder, self.written(target), given)
        super().check()
        self._check_seen()

    def _check_seen(self) -> None:
        """Raises InputError where no object is seen, or nothing draws views of it, as far as files tell it."""
        from ..pipelines.cutout import check_object
        from ..pipelines.image_to_views import drawing_files

        drawing_files(self.prior, self.orbit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the work tells them
            check_object(self.image, self.mask, self.plain, self.subject)

    def size_bytes(self) -> int:
        """Of views, mesh and films."""
        return 50_000_000

    def asked(self) -> dict[str, Any]:
        """What a call of the pipeline is told beside picture, mask, seed and work folder."""
        return {
            "plain": self.plain,
            "subject": self.subject,
            "prompt": self.prompt,
            "azimuth_deg": self.azimuth,
            "elevation_deg": self.elevation,
            "num_frames": self.frames,
            "num_inference_steps": self.steps,
            "max_guidance_scale": self.guidance,
            "noise_aug_strength": self.cond_aug,
            "size": self.size,
            "fill": self.fill,
            "background": self.background,
        }

    def load(self) -> Any:
        """The pipeline."""
        raise TypeError(f"{type(self).__name__} defines no load")

    def made(self, record: RunRecord, target: Target) -> tuple[Any, Path]:
        """What the pipeline makes, and the folder of its work."""
        with record.stage("load"):
            pipe = self.load()
        work = self.work or target.work
        with alone_in(work):
            found = pipe(self.image, self.mask, seed=self.seed, out=work, resume=not self.overwrite, **self.asked())
        return found, work

    def finished(self, record: RunRecord, work: Path) -> None:
        """Removes the work when all is written."""
        if self.work is None and not record.rescued:
            shutil.rmtree(work, ignore_errors=True)


def told_of(settings: ViewSettings) -> list[str]:
    """What a prior of several views was told of the picture, read in it or given; nothing for other priors."""
    if not settings.prompt:
        return []
    return [f'drawn as "{settings.prompt}", seen from {settings.azimuth_deg:.0f} degrees (--prompt, --azimuth)']


@dataclass(frozen=True, kw_only=True)
class ImageToViews(OrbitCommand):
    """Draw views all around the object of a picture: frames with transparency, a sheet, and cameras for `fit`."""

    name: ClassVar[str] = "image-to-views"

    def written(self, target: Target) -> list[Path]:
        """See Command.written; frames by the usual number where none is given."""
        frames = [target.file(f"-{k:02d}.png") for k in range(self.frames or USUAL_FRAMES)]
        return [*frames, target.file("-sheet.png"), target.folder / "transforms.json"]

    def plan(self) -> list[str]:
        """What a dry run says."""
        count = "views" if self.frames is None else f"{self.frames} views"
        return [*super().plan(), f"would draw {count} around {self.image} from {self.elevation:g} degrees up"]

    def load(self) -> Any:
        """See OrbitCommand.load."""
        from ..pipelines.image_to_views import ImageToViews as Pipeline
        from ..toybox.reading import read_picture

        return Pipeline.from_pretrained(self.prior, self.orbit, reader=read_picture, **self.placement())

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Draws and writes the views."""
        views, work = self.made(record, target)
        record.count("denoiser", views.nfe)
        record.notes.update(prior=views.prior, views=views.settings, cut_by=views.cut_by)
        with record.stage("write"):
            record.keep(lambda first: views.save(first.parent, target.stem), target.file("-00.png"))
        self.finished(record, work)
        told = {"views": len(views.views), "picture_view": views.picture_view, "cut_by": views.cut_by}
        lines = [f"{len(views.views)} views; the object was told by {views.cut_by}", *told_of(views.settings)]
        return Shown(lines, data=told)


@dataclass(frozen=True, kw_only=True)
class ImageToMesh(OrbitCommand):
    """Make a textured mesh of the object of a picture: an orbit, normals of each view, fusion, texture."""

    name: ClassVar[str] = "image-to-mesh"
    kinds: ClassVar[tuple[str, ...]] = MESH_KINDS

    faces: int | None = None
    """Triangles of the mesh at most (default: 12000)."""
    fuse_steps: int | None = None
    """Steps in which the visual hull takes on the normals (default: 80)."""
    texture: int = 1024
    """Texels of a side."""
    normals: str = "toybox"
    """The head that finds normals in the views, as --prior of `unproject normals`."""
    view_size: int = 256
    """Pixels of the views in the film; those on the sheet are half as large."""
    turntable: int = 72
    """Frames of the turntable film (0 = no film)."""

    @property
    def several(self) -> str:
        """See Command.several."""
        return super().several or "it writes pictures beside the mesh"

    def check(self) -> None:
        """Ranges and the format."""
        for option, value, low, high in (
            ("--faces", self.faces, 4, 10_000_000),
            ("--fuse-steps", self.fuse_steps, 0, 10_000),
            ("--texture", self.texture, 16, 8192),
            ("--view-size", self.view_size, 16, 2048),
            ("--turntable", self.turntable, 0, 1000),
        ):
            if value is not None:
                check_range(option, value, low, high)
        if self.out is not None:
            need_format(self.out)
        super().check()

    def written(self, target: Target) -> list[Path]:
        """See Command.written."""
        films = ("-turntable.gif", "-turntable.mp4") if self.turntable else ()
        endings = (target.suffix or ".glb", ".report.json", "-sheet.png", "-views.png", *films)
        return [target.file(ending) for ending in endings]

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [*super().plan(), f"would make a mesh of {self.image}, seen from {self.elevation:g} degrees up"]

    def load(self) -> Any:
        """See OrbitCommand.load."""
        from ..pipelines.image_to_mesh import ImageToMesh as Pipeline
        from ..pipelines.image_to_mesh import MeshOfViews
        from ..toybox.reading import read_picture

        told = {"config": MeshOfViews(texture=self.texture), "reader": read_picture, **self.placement()}
        return Pipeline.from_pretrained(self.prior, self.orbit, self.normals, **told)

    def asked(self) -> dict[str, Any]:
        """See OrbitCommand.asked."""
        return {**super().asked(), "faces": self.faces, "fuse_steps": self.fuse_steps}

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Makes and writes the mesh."""
        from ..generate.finish import write_pictures
        from ..geometry.budget import check_written
        from ..geometry.inspection import write_report
        from ..utils.pictures import grid, normals_to_rgb, save_image

        made, work = self.made(record, target)
        for network, rows in made.nfe.items():
            record.count(network, rows)
        record.stages.update(made.seconds)
        record.notes.update(
            prior=made.views.prior, views=made.views.settings, cut_by=made.views.cut_by, mesh=made.report.to_dict(),
            config=made.config,
        )  # fmt: skip
        stem, place = target.stem, target.file(target.suffix or ".glb")

        def sheet(path: Path) -> Path:
            maps = [normals_to_rgb(one) for one in made.normals]
            return save_image(path, grid([*made.views.views, *maps], columns=len(maps)))

        def pictures(mesh: Path) -> list[Path]:
            return write_pictures(made.mesh, lambda n: mesh.with_name(f"{stem}-{n}"), self.turntable, self.view_size)

        with record.stage("write"):
            record.keep(made.mesh.save, place)
            record.keep(lambda mesh: write_report(made.mesh, mesh, made.scale_from), place)
            record.keep(sheet, target.file("-views.png"))
            record.keep(pictures, place)
        if not record.rescued:
            check_written(place, made.config.fuse.faces)
        self.finished(record, work)
        report = made.report.to_dict()
        closed = "watertight" if report["watertight"] else f"{report['boundary_edges']} open edges"
        unseen = made.mesh.notes.get("unseen_share", 0.0)
        lines = [f"{report['faces']} triangles, {closed}; {unseen:.0%} of the surface is seen by no view"]
        lines += told_of(made.views.settings)
        return Shown(lines, data={"mesh": report, "unseen_share": unseen, "cut_by": made.views.cut_by})
