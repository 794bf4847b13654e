"""`unproject inverse-render` and `unproject relight`: materials and light from posed pictures, and other light."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import tyro

from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import Seeded, Threaded, Writer, check_file, check_range
from .files import MESHES
from .fit import TOYBOX, Fit
from .outputs import Target, distinct_slug, slugify
from .priors import OwnWeightsCommand
from .showing import Shown

if TYPE_CHECKING:
    from ..geometry.posed import PosedImages


SHAPE_RATE = 0.0005  # diagonals a step


@dataclass(frozen=True, kw_only=True)
class InverseRender(OwnWeightsCommand, Seeded, Writer):
    """Find shape, materials and light behind pictures with known cameras: a textured mesh and an HDR environment."""

    name: ClassVar[str] = "inverse-render"
    kinds: ClassVar[tuple[str, ...]] = (".glb", ".obj", ".usda", ".usdz")
    names: ClassVar[tuple[str, ...]] = ("toybox", "none", "stable-material")

    source: tyro.conf.Positional[str]
    """transforms.json, a folder with one or with a COLMAP model, a mesh to photograph, or "toybox:a red chair"."""
    prior: str = "toybox"
    """The material prior that pulls: toybox, the folder of a trained one, stable-material as published, or none."""
    mesh: Path | None = None
    """The shape (default: the visual hull of the pictures' transparency)."""
    shape: Literal["auto", "stays", "moves"] = "auto"
    """Whether the shape is fitted too, by shading and outlines; auto moves a visual hull and keeps a --mesh."""
    steps: int = 500
    """Steps of the fit."""
    texture: int = 128
    """Texels of a side."""
    strength: float = 1.0
    """Of the material prior, times its usual weights."""
    images: Path | None = None
    """Folder of the pictures, where it is not as the files say."""
    downscale: int = 1
    """Divide the sides of pictures on disk by this."""
    views: int = 24
    """Pictures taken of a mesh or a toy."""
    size: int = 96
    """Pixels of a side of these."""

    @property
    def several(self) -> str:
        """See Command.several."""
        return super().several or "it writes the light beside the mesh"

    def slug(self) -> str:
        """After the source."""
        if self.source.startswith(TOYBOX):
            return distinct_slug(self.source.removeprefix(TOYBOX))
        path = Path(self.source)
        return path.parent.resolve().name if path.name.startswith("transforms") else path.resolve().stem

    def check(self) -> None:
        """The source, the shape and ranges."""
        if not self.source.startswith(TOYBOX) and not Path(self.source).exists():
            raise InputError(
                f'{self.source} does not exist; give pictures with cameras, a mesh, or "toybox:a red chair"'
            )
        if self.mesh is not None:
            check_file("--mesh", self.mesh, "give a file, or leave it out")
        check_range("--steps", self.steps, 1, 100_000)
        check_range("--texture", self.texture, 16, 4096)
        check_range("--strength", self.strength, 0, 1000)
        check_range("--views", self.views, 2, 1000)
        check_range("--size", self.size, 16, 4096)
        super().check()

    def written(self, target: Target) -> list[Path]:
        """See Command.written."""
        return [target.file(target.suffix or ".glb"), target.beside("-light.hdr")]

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [*super().plan(), f"would find materials and light of {self.source}"]

    def pictures(self) -> PosedImages:
        """What is explained."""
        given = Fit(source=self.source, images=self.images, downscale=self.downscale, views=self.views, size=self.size,
                    seed=self.seed)  # fmt: skip
        return given.pictures()

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Fits and writes."""
        from ..generate.inverse_render import InverseConfig
        from ..geometry.meshes import Mesh
        from ..pipelines.inverse_render import ImagesToMaterials
        from ..tasks.material_score import ScoreConfig
        from ..utils.progress import Progress

        usual = ScoreConfig()
        score = ScoreConfig(latent=self.strength * usual.latent, picture=self.strength * usual.picture)
        with record.stage("load"):
            pipe = ImagesToMaterials.from_pretrained(self.prior, score, **self.placement())
            pictures, mesh = self.pictures(), None if self.mesh is None else Mesh.load(self.mesh)
        with record.stage("fit"), Progress(self.steps, self.name) as bar:
            moves = self.shape == "moves" or (self.shape == "auto" and mesh is None)
            rate = SHAPE_RATE if moves else 0.0
            config = InverseConfig(steps=self.steps, texture=self.texture, shape_rate=rate)
            made: Any = pipe(pictures, mesh, config, self.seed, callback=lambda step, logs: bar.advance())
        record.count("denoiser", made.nfe)
        record.notes.update(history=made.history)
        with record.stage("write"):
            light = target.beside("-light.hdr").name
            record.keep(lambda to: made.save(to, light), target.file(target.suffix or ".glb"))
        return Shown([], data={"history": made.history[-1:]})


@dataclass(frozen=True, kw_only=True)
class Relight(Threaded, Writer):
    """Show a mesh with materials under an HDR environment: a view, and a film of the light turning around it."""

    name: ClassVar[str] = "relight"
    kinds: ClassVar[tuple[str, ...]] = (".png", ".gif", ".mp4")

    source: tyro.conf.Positional[Path]
    """Mesh with textures (.glb .gltf .obj ...), as inverse-render writes it."""
    light: Path
    """Radiance picture (.hdr) of the surroundings, equirectangular."""
    turn: float = 0.0
    """Degrees by which the light is turned, counter-clockwise from above."""
    exposure: float = 0.0
    """Stops."""
    azimuth: float = 30.0
    """Degrees from the front (+x) of the view."""
    elevation: float = 15.0
    """Degrees above the horizon."""
    size: int = 384
    """Pixels of a side."""
    detail: int = 24
    """Rows of the environment that light is summed over."""
    frames: int = 0
    """Frames of the film (0 = no film)."""

    def slug(self) -> str:
        """After the mesh and the light."""
        return f"{slugify(self.source.stem)}-{slugify(self.light.stem)}"

    def check(self) -> None:
        """The files and ranges."""
        for option, path in (("source", self.source), ("--light", self.light)):
            check_file(option, path)
        if self.source.suffix.lower() not in MESHES:
            raise InputError(f"cannot relight {self.source}; use {', '.join(MESHES)}")
        if self.light.suffix.lower() != ".hdr":
            raise InputError(f"--light {self.light} is no Radiance picture; save it as .hdr")
        check_range("--elevation", self.elevation, -90, 90)
        check_range("--exposure", self.exposure, -20, 20)
        check_range("--size", self.size, 16, 8192)
        check_range("--detail", self.detail, 2, 256)
        check_range("--frames", self.frames, 0, 1000)
        film = self.out is not None and self.out.suffix.lower() in (".gif", ".mp4")
        if film and not self.frames:
            raise InputError(f"--out {self.out} is a film and --frames is 0; give some")

    def written(self, target: Target) -> list[Path]:
        """See Command.written."""
        if target.suffix:
            return [target.file(target.suffix)]
        return [target.file("-relit.png"), *([target.file("-relit.mp4")] if self.frames else [])]

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [f"would show {self.source} under {self.light}"]

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Draws what `written` lists."""
        from ..geometry.environment import Environment
        from ..geometry.meshes import Mesh
        from ..geometry.turntable import MeshView, orbit_around
        from ..pipelines.inverse_render import relit
        from ..utils.pictures import save_gif, save_image, save_mp4

        with record.stage("load"):
            mesh = Mesh.load(self.source)
            light = Environment.load(self.light).resized(self.detail, 2 * self.detail).turned(self.turn)
            camera = orbit_around(MeshView(mesh), 1, self.size, azimuth_deg=self.azimuth, elevation_deg=self.elevation)
        with record.stage("draw"):
            for path in self.written(target):
                if path.suffix.lower() == ".png":
                    picture = relit(mesh, camera, light, self.exposure)[0]
                    record.keep(lambda to, picture=picture: save_image(to, picture), path)  # type: ignore[misc]
                    continue
                turns = [light.turned(360 * k / self.frames) for k in range(self.frames)]
                shown = [over_white(relit(mesh, camera, one, self.exposure)[0]) for one in turns]
                save = save_gif if path.suffix.lower() == ".gif" else save_mp4
                record.keep(lambda to, save=save, shown=shown: save(to, shown), path)  # type: ignore[misc]
        return Shown()


def over_white(picture: Any) -> Any:
    """RGBA bytes (H, W, 4) over white, (H, W, 3)."""
    alpha = picture[..., 3:].astype("float32") / 255
    return (picture[..., :3] * alpha + 255 * (1 - alpha)).round().astype("uint8")
