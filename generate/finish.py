"""From an optimised representation to files: fewer faces, UV charts, baked colour, pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..core.distillation.score import DivergedError
from ..geometry.bake import bake
from ..geometry.cameras import Camera
from ..geometry.extract import EmptySurfaceError
from ..geometry.meshes import Mesh
from ..geometry.raycast import STUDIO, Light
from ..geometry.representation import MeshConfig, Representation
from ..geometry.solid import solid_surface
from ..geometry.turntable import Picture, Viewed, contact_sheet, render_turntable
from ..geometry.unwrap import unwrap
from ..utils.device_memory import release_host_memory
from ..utils.errors import InputError
from ..utils.pictures import save_gif, save_image, save_mp4

FPS = 24


def surface_of(shape: Representation, config: MeshConfig) -> Mesh:
    """A solid with smooth normals, without crumbs, of at most `config.faces` triangles.

    Raises DivergedError when there is no surface.
    """
    try:
        mesh = shape.to_mesh(config)
    except EmptySurfaceError as error:
        raise DivergedError(f"what was optimised has no surface ({error}); try more steps or another seed") from error
    except InputError as error:
        raise DivergedError(str(error)) from error
    return solid_surface(mesh, config.keep, config.faces)


def textured_mesh(shape: Representation, config: MeshConfig, seen_from: Camera | None = None) -> Mesh:
    """The surface with UV charts and a base colour texture.

    seen_from: views that the colours were learnt from; what none of them shows is filled from what they show.
    """
    release_host_memory()  # what came before is over
    mesh = unwrap(surface_of(shape, config), config.texture)
    release_host_memory()
    return bake(mesh, lambda p, n: shape.surface_color(p, n, config), config.texture, seen_from=seen_from)


def write_pictures(mesh: Mesh, place: Callable[[str], Path], frames: int = 36, size: int = 256) -> list[Path]:
    """sheet.png (eight sides) and, unless `frames` is 0, turntable.mp4 and .gif (half the frames); place(name): path.

    No light is added: generated textures carry the shading the prior painted, but for those it was taken out of.
    """
    return write_views(mesh, place, frames, size, STUDIO if mesh.notes.get("albedo") else None)


def write_views(
    thing: Mesh | Viewed, place: Callable[[str], Path], frames: int, size: int, light: Light | None = None
) -> list[Path]:
    """The same of whatever can be looked at."""
    written = [save_image(place("sheet.png"), contact_sheet(thing, max(size // 2, 16), light=light))]
    return written + (write_film(render_turntable(thing, frames, size, light=light), place) if frames else [])


def write_film(pictures: Sequence[Picture], place: Callable[[str], Path]) -> list[Path]:
    """turntable.mp4, and turntable.gif of every other picture; place(name): path."""
    return [
        save_mp4(place("turntable.mp4"), pictures, FPS),
        save_gif(place("turntable.gif"), pictures[::2], FPS / 2),
    ]
