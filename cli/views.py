"""Pictures of a mesh for people: a sheet of views from all sides and a turntable film."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils.runs import RunRecord
from .common import Target

if TYPE_CHECKING:
    from ..geometry.meshes import Mesh

FPS = 24


def write_views(mesh: Mesh, record: RunRecord, target: Target, size: int, frames: int) -> None:
    """Writes NAME-sheet.png (eight sides) and, unless `frames` is 0, NAME-turntable.mp4 and .gif (half the frames).

    No light is added: generated textures carry the shading the prior painted.
    """
    from ..geometry.turntable import contact_sheet, render_turntable
    from ..utils.pictures import save_gif, save_image, save_mp4

    record.output(save_image(target.file("-sheet.png"), contact_sheet(mesh, size, light=None)))
    if frames:
        pictures = list(render_turntable(mesh, frames, size, light=None))
        record.output(save_mp4(target.file("-turntable.mp4"), pictures, FPS))
        record.output(save_gif(target.file("-turntable.gif"), pictures[::2], FPS / 2))
