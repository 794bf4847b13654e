"""`unproject fit`: posed pictures to splats."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import tyro

from ..utils.configs import config_path
from ..utils.errors import InputError
from ..utils.locks import alone_in
from ..utils.runs import RunRecord
from .common import Seeded, Threaded, Writer, check_range, pick_device
from .files import MESHES
from .outputs import Target, check_apart, distinct_slug
from .showing import Shown
from .splat_files import check_format

if TYPE_CHECKING:
    from ..generate.splat_fit import SplatFitConfig
    from ..geometry.posed import PosedImages
    from ..pipelines.images_to_splats import ImagesToSplatsOutput

TOYBOX = "toybox:"
FOV_DEG = 34.0  # of pictures taken of a mesh


@dataclass(frozen=True, kw_only=True)
class Fit(Threaded, Seeded, Writer):
    """Fit Gaussian splats to pictures with known cameras, and measure them on pictures that were held out."""

    name: ClassVar[str] = "fit"
    kinds: ClassVar[tuple[str, ...]] = (".ply", ".spz", ".glb", ".splat")

    source: tyro.conf.Positional[str]
    """transforms.json, a folder with one or with a COLMAP model, a mesh to photograph, or "toybox:a red chair"."""
    recipe: str = "default"
    """default (3DGS' density control), mcmc (relocation and noise), or a YAML file."""
    steps: int | None = None
    """Steps; all schedules keep their shares of the run (default: the recipe's)."""
    images: Path | None = None
    """Folder of the pictures, where it is not as the files say."""
    downscale: int = 1
    """Divide the sides of pictures on disk by this."""
    views: int = 100
    """Pictures taken of a mesh or a toy."""
    size: int = 128
    """Pixels of a side of these."""
    held_out: int | None = None
    """Hold the first of so many pictures out, 0 none (default: the recipe's, 8)."""
    start: Literal["auto", "points", "random"] | None = None
    """Begin at the scene's points or at random places (default: the recipe's, points where there are some)."""
    background: Literal["random", "white", "black"] | None = None
    """Behind pictures with transparency (default: the recipe's, another colour at each step)."""
    degree: int | None = None
    """Of the harmonics, 0 to 3 (default: the recipe's)."""
    count: int | None = None
    """Splats at the start, where they begin at random places (default: the recipe's)."""
    most: int | None = None
    """Splats at most (default: the recipe's)."""
    antialiased: bool = False
    """Compensate splats smaller than a pixel; the file then says SplatRenderMode mip."""
    refine_poses: bool = False
    """Let the cameras move too; those found are written beside the splats."""
    mesh: Path | None = None
    """Also write a mesh of the splats (.glb .obj .stl .ply)."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or mps; auto takes the fastest there is."""
    work: Path | None = None
    """Folder for checkpoints, which stays (default: .NAME.work beside the splats, removed at the end). The same command
    typed again goes on where an interrupted one was."""
    frames: int = 72
    """Frames of the turntable film (0 = no film)."""

    @property
    def several(self) -> str:
        """See Command.several."""
        return super().several or "it writes pictures beside the splats"

    def slug(self) -> str:
        """After the source."""
        if self.source.startswith(TOYBOX):
            return distinct_slug(self.source.removeprefix(TOYBOX))
        path = Path(self.source)
        named = path.parent.resolve().name if path.name.startswith("transforms") else path.resolve().stem
        return named or self.name

    def check(self) -> None:
        """The source, the recipe and ranges."""
        ranges = {"steps": (1, 10**7), "degree": (0, 3), "count": (2, 10**8), "most": (2, 10**8)}
        for name, (low, high) in ranges.items():
            if getattr(self, name) is not None:
                check_range(f"--{name}", getattr(self, name), low, high)
        check_range("--downscale", self.downscale, 1, 64)
        check_range("--views", self.views, 2, 10_000)
        check_range("--size", self.size, 16, 4096)
        check_range("--frames", self.frames, 0, 1000)
        if not self.source.startswith(TOYBOX) and not Path(self.source).exists():
            raise InputError(
                f'{self.source} does not exist; give pictures with cameras, a mesh, or "toybox:a red chair"'
            )
        known = (".json", *MESHES)
        if Path(self.source).is_file() and Path(self.source).suffix.lower() not in known:
            raise InputError(f"{self.source} has no cameras; give {', '.join(known)}, or a folder with cameras")
        if self.mesh is not None and self.mesh.suffix.lower() not in (".glb", ".obj", ".stl", ".ply"):
            raise InputError(f"--mesh {self.mesh}: cannot write that; use .glb, .obj, .stl or .ply")
        if self.out is not None and self.out.suffix.lower() == ".spz":
            check_format(".spz")
        if not Path(self.recipe).is_file():
            config_path(f"fit/{self.recipe}")

    def written(self, target: Target) -> list[Path]:
        """The splats, their pictures, the cameras and the mesh."""
        films = ("-turntable.gif", "-turntable.mp4") if self.frames else ()
        cameras = ("-cameras.json",) if self.refine_poses else ()
        beside = [target.beside(ending) for ending in ("-sheet.png", *films, *cameras)]
        return [target.file(target.suffix or ".ply"), *beside, *([self.mesh] if self.mesh is not None else [])]

    def check_places(self, target: Target) -> None:
        """See Command.check_places; a mesh that is photographed is not overwritten."""
        check_apart(self.out or target.folder, self.written(target), [Path(self.source)], "mesh")
        super().check_places(target)

    def size_bytes(self) -> int:
        """Of splats and films; twice, for the checkpoints."""
        return 200_000_000

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [f"would fit splats to {self.source} with recipe {self.recipe}"]

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Fits, measures, writes; checkpoints are removed when all is written."""
        from ..pipelines.images_to_splats import ImagesToSplats

        with record.stage("load"):
            pictures = self.pictures()
        record.begin(target.record)
        work = self.work or target.work
        with alone_in(work):
            pipe = ImagesToSplats(self.settings(), pick_device(self.device))
            made = pipe(pictures, seed=self.seed, out=work, resume=not self.overwrite, label=self.slug())
            self._write(made, record, target)
        if self.work is None and not record.rescued:
            shutil.rmtree(work, ignore_errors=True)
        record.stages.update(made.seconds)
        record.notes.update(recipe=made.config, metrics=made.metrics, pictures=made.per_picture, history=made.history)
        held = f"{len(made.held_out)} pictures " + ("held out" if made.config.held_out else "learnt from")
        psnr, ssim, count = (made.metrics[name] for name in ("psnr", "ssim", "splats"))
        lines = [f"{count:.0f} splats; {held}: PSNR {psnr:.2f} dB, SSIM {ssim:.4f}"]
        return Shown(lines, data={"metrics": made.metrics})

    def settings(self) -> SplatFitConfig:
        """The recipe with what the options change."""
        from ..pipelines.images_to_splats import load_recipe

        changes: dict[str, Any] = {
            "steps": self.steps,
            "held_out": self.held_out,
            "start": self.start,
            "background": self.background,
            "splats.degree": self.degree,
            "splats.count": self.count,
            "splats.density.most": self.most,
            "splats.mcmc.most": self.most,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        flags = {"refine_poses": self.refine_poses, "splats.antialiased": self.antialiased}
        return load_recipe(self.recipe, **given, **{name: True for name, on in flags.items() if on})

    def pictures(self) -> PosedImages:
        """What is fitted to."""
        if self.source.startswith(TOYBOX):
            from ..toybox.orbits import posed_orbit, toy

            return posed_orbit(toy(self.source.removeprefix(TOYBOX).strip(), self.seed), self.views, self.size)
        if Path(self.source).suffix.lower() in MESHES:
            from ..geometry.meshes import Mesh
            from ..geometry.posed import photographed

            return photographed(Mesh.load(self.source), self.views, self.size, FOV_DEG)
        from ..geometry.posed_files import load_posed

        return load_posed(self.source, self.downscale, self.images)

    def _write(self, made: ImagesToSplatsOutput, record: RunRecord, target: Target) -> None:
        from ..geometry.camera_files import save_nerfstudio
        from ..geometry.splats import save_splats
        from ..pipelines.images_to_splats import names_of

        def pictures(splats: Path) -> list[Path]:
            return made.write_pictures(lambda name: splats.with_name(f"{target.own_stem}-{name}"), self.frames)

        file = target.file(target.suffix or ".ply")
        with record.stage("write"):
            record.keep(lambda to: save_splats(made.splats, to), file)
            record.keep(pictures, file)
            cameras = made.cameras
            if cameras is not None:
                names = names_of(made.pictures)
                record.keep(lambda to: save_nerfstudio(to, cameras, names), target.beside("-cameras.json"))
            if self.mesh is not None:
                record.keep(made.mesh().save, self.mesh)
