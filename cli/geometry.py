"""`unproject geometry`: camera, metres, normals, mask, cloud and mesh of a picture that agree with each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import check_range
from .image import ImageCommand
from .lens import LensOptions
from .metric import load_metric, seen_in_metres
from .outputs import Target
from .showing import Shown, Table

if TYPE_CHECKING:
    import numpy as np

FILES = (".npz", ".json", ".ply", ".glb", "-depth.png", "-normals.png")
COLUMNS = ("picture", "focal px", "from", "near m", "far m", "scale", "normals apart", "planes off")


@dataclass(frozen=True, kw_only=True)
class Geometry(ImageCommand, LensOptions):
    """All that one picture says of space, in metres and through one camera: NPZ (depth, normals, mask, K), JSON (camera
    and residuals), point cloud (PLY), textured mesh (GLB) and two pictures. Other commands read the JSON as --K."""

    name: ClassVar[str] = "geometry"
    kinds: ClassVar[tuple[str, ...]] = (".npz",)

    faces: int = 200_000
    """Triangles of the mesh at most."""
    max_slant: float = 84.0
    """Degrees between a surface's normal and the line of sight beyond which it counts as an edge and is torn."""

    @property
    def several(self) -> str:
        """See Command.several."""
        return "it writes several files"

    def marks(self) -> tuple[str, ...]:
        """See EachCommand.marks."""
        return FILES

    def bytes_per_pixel(self) -> int:
        """See ImageCommand.bytes_per_pixel."""
        return 80

    def seconds_per_megapixel(self) -> float:
        """See ImageCommand.seconds_per_megapixel."""
        return 2.0

    def check(self) -> None:
        """The lens, the scale, and the mesh."""
        self.check_lens(self.many)
        check_range("--faces", self.faces, 2, 10_000_000)
        check_range("--max-slant", self.max_slant, 1, 89.9)
        super().check()

    def check_seen(self, path: Path) -> None:
        """See ImageCommand.check_seen."""
        LensOptions.check_seen(self, path)

    def load(self) -> Any:
        """The pipeline."""
        return load_metric(self)

    def run(self, record: RunRecord, target: Target) -> Shown:
        """See EachCommand.run; with a table of the residuals."""
        shown = super().run(record, target)
        told = record.notes.get("geometry", {})
        if told:
            shown.tables.append(Table(COLUMNS, [_row(path, found) for path, found in told.items()]))
            shown.data["geometry"] = told
        return shown

    def one(self, pipe: Any, path: Path, picture: np.ndarray, record: RunRecord, target: Target) -> None:
        """Writes all files of one picture."""
        from ..pipelines.metric_depth import metres_map
        from ..pipelines.picture_geometry import PictureGeometry
        from ..pipelines.picture_inputs import is_panorama
        from ..utils.files import write_json
        from ..utils.pictures import save_image

        if is_panorama(path):
            raise InputError(f"{path} is a panorama of all directions, which no pinhole is; cut views out of it first")
        made, seen, metric = seen_in_metres(self, pipe, path, picture, record, **self.settings())
        whole = PictureGeometry(picture, made, seen, metric)
        document = whole.document()
        record.notes.setdefault("geometry", {})[str(path)] = document
        depth, normals = metres_map(made, metric), made.normals.one(0)
        with record.stage("write"):
            from ..tasks.map_files import Saving

            cloud, mesh = whole.cloud(self.max_slant), whole.mesh(self.faces, self.max_slant)
            record.keep(whole.save_npz, target.file(".npz"))
            record.keep(lambda to: write_json(to, document), target.file(".json"))
            record.keep(cloud.save, target.file(".ply"))
            record.keep(mesh.save, target.file(".glb"))
            record.keep(lambda to: save_image(to, depth.picture(Saving())), target.file("-depth.png"))
            record.keep(lambda to: save_image(to, normals.picture(Saving())), target.file("-normals.png"))


def _row(path: str, found: dict[str, Any]) -> tuple[str, ...]:
    report = found["report"]
    apart, off = report["normals_median_deg"], report["plane_rms"]
    return (
        path,
        f"{found['K'][0][0]:.1f}",
        found["source"],
        f"{report['near_m']:.3g}",
        f"{report['far_m']:.3g}",
        report["scale"],
        "" if apart is None else f"{apart:.1f} degrees",
        "" if off is None else f"{100 * off:.2f} %",
    )
