"""Pictures of a mesh for people: a sheet of views from all sides and a turntable film."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils.runs import RunRecord
from .common import Target

if TYPE_CHECKING:
    from ..geometry.meshes import Mesh

FPS = 24


def write_views(mesh: Mesh, record: RunRecord, target: Target, size: int, frames: int) -> None:
    """Writes NAME-sheet.png (eight sides) and NAME-turntable.mp4 unless `frames` is 0."""
    from ..geometry.turntable import contact_sheet, render_turntable
    from ..utils.pictures import save_image, save_mp4

    record.output(save_image(target.file("-sheet.png"), contact_sheet(mesh, size)))
    if frames:
        record.output(save_mp4(target.file("-turntable.mp4"), list(render_turntable(mesh, frames, size)), FPS))
