"""`unproject text-to-splats`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import check_range
from .folders import MESH_KINDS
from .jobs import Job
from .outputs import Target, need_format
from .shapes import TEXTURE, ShapeCommand
from .showing import Shown


@dataclass(frozen=True, kw_only=True)
class TextToSplats(ShapeCommand):
    """Make 3D Gaussian splats from a prompt, with a sheet of views and a turntable film."""

    name: ClassVar[str] = "text-to-splats"
    kinds: ClassVar[tuple[str, ...]] = (".ply", ".spz", ".glb", ".splat")
    makes: ClassVar[str] = "set of splats"

    mesh: Path | None = None
    """Also write a textured mesh of them (.glb .obj .stl .ply)."""
    texture: int | None = None
    """Texels of a side of the texture of --mesh, 256 to 4096 (default: the recipe's)."""

    def check(self) -> None:
        """The mesh."""
        if self.mesh is not None and self.mesh.suffix.lower() not in MESH_KINDS:
            raise InputError(f"--mesh {self.mesh}: cannot write that; use {', '.join(MESH_KINDS)}")
        if self.mesh is not None:
            need_format(self.mesh)
        if self.mesh is not None and self.many:
            raise InputError(f"--mesh {self.mesh} is one file and --prompts makes several; leave it out")
        if self.texture is not None:
            if self.mesh is None:
                raise InputError(f"--texture {self.texture} is that of a mesh; give --mesh too, or leave it out")
            check_range("--texture", self.texture, *TEXTURE)
        super().check()

    def ending(self, target: Target) -> str:
        """See ShapeCommand.ending."""
        return target.suffix or ".ply"

    def files(self, target: Target) -> list[Path]:
        """See ShapeCommand.files; and the mesh."""
        return [*super().files(target), *([self.mesh] if self.mesh is not None else [])]

    def load(self) -> Any:
        """The pipeline."""
        from ..pipelines.text_to_splats import TextToSplats as Pipeline

        return Pipeline.from_pretrained(self.prior, self.recipe, rule=self.rule, **self.placement())

    def write(self, made: Any, job: Job, record: RunRecord) -> None:
        """See ShapeCommand.write."""
        from ..generate.finish import write_views
        from ..geometry.splats import save_splats
        from ..geometry.splats.drawing import SplatView

        def pictures(splats: Path) -> list[Path]:
            stem, view = job.target.own_stem, SplatView(made.splats)
            return write_views(view, lambda n: splats.with_name(f"{stem}-{n}"), self.frames, self.view_size)

        record.keep(lambda path: save_splats(made.splats, path), job.files[0])
        record.keep(made.write_report, job.files[0])
        record.keep(pictures, job.files[0])
        if self.mesh is not None:
            record.keep(made.mesh(self.texture).save, self.mesh)

    def tell(self, made: Any, job: Job, shown: Shown) -> None:
        """See ShapeCommand.tell."""
        shown.lines.append(f"{made.report['splats']} splats")
        if self.many:
            shown.data.setdefault("splats", {})[job.source] = made.report
        else:
            shown.data["splats"] = made.report
