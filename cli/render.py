"""`unproject render`: pictures of a mesh or of splats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import tyro

from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .camera_sets import check_model
from .common import Threaded, Writer, check_file, check_range
from .files import MESHES
from .outputs import Target, slugify
from .showing import Shown
from .splat_files import SPLATS, holds_splats

if TYPE_CHECKING:
    from ..geometry.cameras import Camera
    from ..geometry.turntable import Viewed

FILMS = (".gif", ".mp4")
GREYS = {"white": 1.0, "black": 0.0}


@dataclass(frozen=True, kw_only=True)
class Render(Threaded, Writer):
    """Draw a mesh or splats: a view with transparency, a sheet of all maps from eight sides, a turntable film."""

    name: ClassVar[str] = "render"
    kinds: ClassVar[tuple[str, ...]] = (".png", *FILMS)

    source: tyro.conf.Positional[Path]
    """Mesh (.glb .gltf .obj .stl .ply .off) or splats (.ply .compressed.ply .splat .spz .glb)."""
    cameras: Path | None = None
    """transforms.json or the folder of a COLMAP model: one picture with transparency from each of its cameras."""
    azimuth: float = 30.0
    """Degrees from the front (+x) of the single view."""
    elevation: float = 15.0
    """Degrees above the horizon."""
    fov: float = 40.0
    """Vertical field of view in degrees."""
    size: int = 512
    """Pixels of a side; those of a sheet's views are a quarter of it."""
    views: int = 8
    """Sides on the sheet."""
    frames: int = 72
    """Frames of the film (0 = no film)."""
    background: Literal["white", "black"] = "white"
    """Behind the film; pictures are transparent."""
    up: Literal["+z", "-z", "+y", "-y", "+x", "-x"] = "+z"
    """What is up in the file; captures are often -y."""
    mode: Literal["auto", "default", "mip"] = "auto"
    """How splats are drawn: as the file's SplatRenderMode says, plainly, or antialiased."""
    light: Literal["studio", "none"] = "studio"
    """On meshes; none shows their plain colours."""

    @property
    def several(self) -> str:
        """See Command.several."""
        return "one picture comes out for each camera" if self.cameras is not None else super().several

    def slug(self) -> str:
        """After the file."""
        return slugify(self.source.name.split(".")[0])

    def check(self) -> None:
        """The file, the cameras and ranges."""
        check_file("", self.source)
        suffix = self.source.suffix.lower()
        if suffix not in (*MESHES, *SPLATS):
            raise InputError(f"cannot draw {self.source}; use {', '.join(dict.fromkeys((*MESHES, *SPLATS)))}")
        check_range("--elevation", self.elevation, -90, 90)
        check_range("--fov", self.fov, 1, 170)
        check_range("--size", self.size, 16, 8192)
        check_range("--views", self.views, 1, 64)
        check_range("--frames", self.frames, 0, 1000)
        if self.cameras is not None and self.out is not None and self.out.suffix and not self.out.is_dir():
            raise InputError(
                f"--out {self.out} is one file but --cameras {self.cameras} asks for several; give a folder"
            )
        if self.out is not None and self.out.suffix.lower() in FILMS and not self.frames:
            raise InputError(f"--out {self.out} is a film and --frames is 0; give some")

    def written(self, target: Target) -> list[Path]:
        """The picture or film that --out names, those of all cameras, or all that there is."""
        if self.cameras is not None:
            names = self.named_cameras()[1]
            return [target.file(f"-{slugify(Path(name).with_suffix('').as_posix())}.png") for name in names]
        if target.suffix:
            return [target.file(target.suffix)]
        films = ("-turntable.gif", "-turntable.mp4") if self.frames else ()
        return [target.file(ending) for ending in ("-view.png", "-sheet.png", *films)]

    def size_bytes(self) -> int:
        """As if nothing could be compressed."""
        return 1_000_000 + 4 * self.size**2 * (1 + self.frames)

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [f"would draw {self.source}"]

    def named_cameras(self) -> tuple[Camera, list[str]]:
        """Those of --cameras."""
        from ..geometry.camera_files import load_colmap, load_nerfstudio

        assert self.cameras is not None
        if not self.cameras.exists():
            raise InputError(f"--cameras {self.cameras} does not exist; give a transforms.json or a COLMAP folder")
        check_model(self.cameras)
        return load_colmap(self.cameras) if self.cameras.is_dir() else load_nerfstudio(self.cameras)

    def viewed(self) -> Viewed:
        """What is drawn, turned upright unless cameras are given."""
        from ..geometry.upright import upright

        turned = upright(self.up)
        if holds_splats(self.source):
            from ..geometry.splats import load_splats
            from ..geometry.splats.drawing import SplatView

            cloud = load_splats(self.source)
            smooth = None if self.mode == "auto" else self.mode == "mip"
            return SplatView(cloud if turned is None else cloud.transformed(turned), smooth)
        from ..geometry.meshes import Mesh
        from ..geometry.raycast import STUDIO
        from ..geometry.turntable import MeshView

        mesh = Mesh.load(self.source)
        return MeshView(
            mesh if turned is None else mesh.transformed(turned), STUDIO if self.light == "studio" else None
        )

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Draws what `written` lists."""
        with record.stage("load"):
            viewed, paths = self.viewed(), self.written(target)
        with record.stage("draw"):
            if self.cameras is not None:
                self._from_cameras(viewed, record, paths)
            elif target.suffix:
                record.keep(self._writer(viewed, target.suffix), paths[0])
            else:
                for path in paths:
                    sheet = path.name.endswith("-sheet.png")
                    record.keep(self._writer(viewed, "sheet" if sheet else path.suffix), path)
        return Shown()

    def _from_cameras(self, viewed: Viewed, record: RunRecord, paths: list[Path]) -> None:
        from ..geometry.turntable import cut_out
        from ..utils.pictures import save_image

        cameras, _ = self.named_cameras()
        for index, path in enumerate(paths):
            picture = cut_out(viewed, _reaching(cameras[index], viewed))
            record.keep(lambda to, picture=picture: save_image(to, picture), path)  # type: ignore[misc]

    def _writer(self, viewed: Viewed, kind: str) -> Callable[[Path], Path]:
        """What writes a view (.png), a sheet or a film."""
        from ..geometry.turntable import contact_sheet, cut_out, film, orbit_around
        from ..utils.pictures import save_gif, save_image, save_mp4

        around = {"elevation_deg": self.elevation, "fov_y_deg": self.fov}
        if kind == "sheet":
            cameras = orbit_around(viewed, self.views, max(self.size // 4, 16), **around)
            sheet = contact_sheet(viewed, cameras=cameras)
            return lambda to: save_image(to, sheet)
        if kind == ".png":
            view = cut_out(viewed, orbit_around(viewed, 1, self.size, azimuth_deg=self.azimuth, **around))
            return lambda to: save_image(to, view)
        cameras = orbit_around(viewed, self.frames, self.size, **around)
        pictures = film(viewed, cameras, GREYS[self.background])
        fps = self.frames / 3
        if kind == ".mp4":
            return lambda to: save_mp4(to, pictures, fps)
        return lambda to: save_gif(to, pictures[::2], fps / 2)


def _reaching(camera: Camera, viewed: Viewed) -> Camera:
    """With planes around what is seen: files of cameras do not say how far they look."""
    from dataclasses import replace

    centre, radius = viewed.ball()
    reach = float((camera.centres - centre).norm()) + 100 * radius
    return replace(camera, near=1e-4 * radius, far=reach)
