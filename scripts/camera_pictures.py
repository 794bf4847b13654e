"""Conventions of cameras, written out and drawn: the same cube through the numbers of each of them.

A convention here is what its numbers mean: rays through the centres of pixels, computed from the foreign numbers alone.
The pictures of docs/cameras.md show from outside where its axes point, and what it sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..geometry.cameras import Camera, look_at, to_colmap, to_nerfstudio
from ..geometry.interop import kornia_matrices, pytorch3d_matrices, to_open3d
from ..geometry.meshes import Mesh
from ..geometry.raycast import RayMesh
from ..utils.pictures import Picture, save_image, to_rgb8

AXES = {"x": (200, 30, 30), "y": (20, 140, 40), "z": (30, 60, 210)}
OUTSIDE, SEEN, SUPERSAMPLE = (420, 300), (240, 180), 2
INK, HALO = (60, 60, 60), (255, 255, 255)
Found = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Given:
    """Rays as `Rays`: world origins and directions (1, H, W, 3)."""

    origins: Tensor
    directions: Tensor

    def rays(self) -> Found:
        return self.origins, self.directions


@dataclass(frozen=True)
class Convention:
    """One way to write a camera down."""

    axes: tuple[tuple[float, float, float], ...]  # its x, y and z, each in OpenCV's camera axes
    rays: Callable[[Camera], Found]  # by its own numbers, of one camera
    centre: float = 0.5  # of the first pixel


def axes_cube() -> Mesh:
    """A cube whose faces have different flat colours: +x red, +y green, +z blue, the negatives darker."""
    vertices, faces, colors = list[Tensor](), list[Tensor](), list[Tensor]()
    for axis in range(3):
        for sign in (1.0, -1.0):
            corners = torch.zeros(4, 3)
            corners[:, axis] = 0.5 * sign
            corners[:, (axis + 1) % 3] = torch.tensor([-0.5, 0.5, 0.5, -0.5]) * sign
            corners[:, (axis + 2) % 3] = torch.tensor([-0.5, -0.5, 0.5, 0.5])
            color = torch.zeros(3)
            color[axis] = 1.0 if sign > 0 else 0.4
            faces.append(torch.tensor([[0, 1, 2], [0, 2, 3]]) + 4 * len(vertices))
            vertices.append(corners)
            colors.append(color.expand(4, 3))
    return Mesh(torch.cat(vertices), torch.cat(faces), vertex_colors=torch.cat(colors))


def seen_through(scene: RayMesh, rays: Found) -> Tensor:
    """The plain colours (H, W, 3) that rays meet, over white."""
    origins, directions = rays
    faces = scene.first_faces(origins, directions)
    rgb = scene.shade(Given(origins, directions), faces, ("rgb",))["rgb"]
    return torch.where(faces[..., None] >= 0, rgb, torch.ones_like(rgb))[0]


def _pixels(camera: Camera, centre: float) -> Found:
    """Columns and rows (1, H, W) in double precision, the first at `centre`."""
    row, column = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
    return column[None].double() + centre, row[None].double() + centre


def _out(camera: Camera, local: Tensor, turn: Tensor, place: Tensor) -> Found:
    """World rays of local directions (1, H, W, 3) by the columns of `turn` (3, 3), from `place` (3,)."""
    directions = local @ turn.double().T
    return place.double().expand_as(directions).float(), directions.float()


def _opencv(camera: Camera) -> Found:
    """c2w, K: X = R K^-1 (u, v, 1) + t, pixel centres at a half."""
    u, v = _pixels(camera, 0.5)
    local = torch.stack([u, v, torch.ones_like(u)], dim=-1) @ torch.linalg.inv(camera.K[0].double()).T
    return _out(camera, local, camera.c2w[0, :3, :3], camera.c2w[0, :3, 3])


def _nerfstudio(camera: Camera) -> Found:
    """transform_matrix (OpenGL camera to world), fl_x, fl_y, cx, cy: ((u - cx) / fx, -(v - cy) / fy, -1)."""
    pose, K = to_nerfstudio(camera.c2w)[0], camera.K[0].double()
    u, v = _pixels(camera, 0.5)
    local = torch.stack([(u - K[0, 2]) / K[0, 0], -(v - K[1, 2]) / K[1, 1], -torch.ones_like(u)], dim=-1)
    return _out(camera, local, pose[:3, :3], pose[:3, 3])


def _pytorch3d(camera: Camera) -> Found:
    """R, T on row vectors, f and p in NDC: the pixel (u, v) is x = (W - 2u) / s, y = (H - 2v) / s."""
    R, T, focal, offset, size = (value[0].double() for value in pytorch3d_matrices(camera))
    height, width = size.tolist()
    u, v = _pixels(camera, 0.5)
    shorter = min(width, height)
    x, y = (width - 2 * u) / shorter, (height - 2 * v) / shorter
    local = torch.stack([(x - offset[0]) / focal[0], (y - offset[1]) / focal[1], torch.ones_like(u)], dim=-1)
    return _out(camera, local, R, -(R @ T))  # X_world = (X_view - T) R^T


def _colmap(camera: Camera) -> Found:
    """QW QX QY QZ and T of the world in camera axes, PINHOLE fx fy cx cy, pixel centres at a half."""
    q, t = (value[0].double() for value in to_colmap(camera.c2w))
    w, x, y, z = q.tolist()
    R = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )
    K = camera.K[0].double()
    u, v = _pixels(camera, 0.5)
    local = torch.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], torch.ones_like(u)], dim=-1)
    return _out(camera, local, R.T, -(R.T @ t))


def _by_extrinsic(camera: Camera, K: Tensor, w2c: Tensor) -> Found:
    """X_camera = E X_world, pixel centres at whole numbers."""
    u, v = _pixels(camera, 0.0)
    local = torch.stack([u, v, torch.ones_like(u)], dim=-1) @ torch.linalg.inv(K).T
    back = torch.linalg.inv(w2c)
    return _out(camera, local, back[:3, :3], back[:3, 3])


def _open3d(camera: Camera) -> Found:
    one = to_open3d(camera)[0]
    return _by_extrinsic(camera, *(torch.tensor(np.array(m)) for m in (one.intrinsic.intrinsic_matrix, one.extrinsic)))


def _kornia(camera: Camera) -> Found:
    K, w2c = kornia_matrices(camera)
    return _by_extrinsic(camera, K[0, :3, :3].double(), w2c[0].double())


_VISION = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_GRAPHICS = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
CONVENTIONS = {
    "opencv": Convention(_VISION, _opencv),
    "nerfstudio": Convention(_GRAPHICS, _nerfstudio),
    "pytorch3d": Convention(((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0)), _pytorch3d),
    "colmap": Convention(_VISION, _colmap),
    "open3d": Convention(_VISION, _open3d, 0.0),
    "kornia": Convention(_VISION, _kornia, 0.0),
}


def drawn_camera() -> Camera:
    """The camera of the pictures: before the front, to its left and above, with nothing centred."""
    camera = Camera.orbit(35.0, 25.0, 2.6, 40.0, *SEEN)
    K = camera.K.clone()
    K[:, 0, 2] += 12.0
    K[:, 1, 2] -= 9.0
    return replace(camera, K=K)


def convention_picture(name: str) -> Picture:
    """The camera from outside with the axes of a convention, beside what it sees through its numbers."""
    convention, camera, scene = CONVENTIONS[name], drawn_camera(), RayMesh(axes_cube())
    fine = camera.resized(SEEN[0] * SUPERSAMPLE, SEEN[1] * SUPERSAMPLE)
    inside = Image.fromarray(to_rgb8(seen_through(scene, convention.rays(fine)))).resize(SEEN, Image.Resampling.BOX)
    _pixel_axes(inside, convention.centre)
    outside = _from_outside(scene, camera, convention)
    sheet = Image.new("RGB", (OUTSIDE[0] + SEEN[0] + 20, OUTSIDE[1]), "white")
    sheet.paste(outside, (0, 0))
    sheet.paste(inside, (OUTSIDE[0] + 10, (OUTSIDE[1] - SEEN[1]) // 2))
    return np.asarray(sheet)


def _from_outside(scene: RayMesh, camera: Camera, convention: Convention) -> Image.Image:
    """The cube, the world's axes, the camera's pyramid and the axes of the convention."""
    target = 0.42 * camera.centres
    eye = target + torch.tensor([[2.6, -3.0, 1.7]])
    K = torch.tensor([[[420.0, 0.0, OUTSIDE[0] / 2], [0.0, 420.0, OUTSIDE[1] / 2], [0.0, 0.0, 1.0]]])
    view = Camera(look_at(eye, target[0]), K, *OUTSIDE)
    picture = Image.fromarray(to_rgb8(scene.render(view, supersample=SUPERSAMPLE).rgb[0]))
    draw, pose = ImageDraw.Draw(picture), camera.c2w[0]

    def at(points: Tensor) -> list[tuple[float, float]]:
        return [(float(u), float(v)) for u, v in view.project(points)[0][0]]

    zero = torch.zeros(3)
    for index, (axis, color) in enumerate(AXES.items()):  # outside the cube, where they are seen
        unit = torch.eye(3)[index]
        start, end = at(torch.stack([0.5 * unit, 0.95 * unit]))
        _arrow(draw, start, end, color, f"world {axis}")
    corners = torch.tensor([[0.0, 0], [camera.width, 0], [camera.width, camera.height], [0, camera.height]])
    rays = torch.cat([corners, torch.ones(4, 1)], dim=1) @ torch.linalg.inv(camera.K[0]).T
    ends = at(torch.cat([zero[None], 0.6 * rays]) @ pose[:3, :3].T + pose[:3, 3])
    for i in range(4):
        draw.line([ends[0], ends[1 + i]], INK)
        draw.line([ends[1 + i], ends[1 + (i + 1) % 4]], INK)
    draw.line([ends[1], ends[2]], INK, 3)  # the top row
    for axis, direction in zip(AXES, convention.axes, strict=True):
        tip = 0.7 * torch.tensor(direction)
        start, end = at(torch.stack([zero, tip]) @ pose[:3, :3].T + pose[:3, 3])
        _arrow(draw, start, end, AXES[axis], axis)
    return picture


def _arrow(
    draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], color: tuple[int, ...], name: str
) -> None:
    step = np.subtract(end, start)
    along = step / max(float(np.linalg.norm(step)), 1e-6)
    side = np.array([-along[1], along[0]])
    head = [tuple(np.add(end, offset)) for offset in (8 * along, 4 * side, -4 * side)]
    draw.line([start, end], HALO, 6)
    draw.polygon(head, color, HALO)
    draw.line([start, end], color, 3)
    x, y = np.add(end, 15 * along)
    draw.text((float(x) - (0 if along[0] >= 0 else 6 * len(name)), float(y) - 6), name, color)


def _pixel_axes(picture: Image.Image, centre: float) -> None:
    """Where u and v grow, what the middle of the first pixel is called, and a frame."""
    draw = ImageDraw.Draw(picture)
    draw.rectangle([0, 0, picture.width - 1, picture.height - 1], outline=INK)
    _arrow(draw, (6, 6), (44, 6), INK, "u")
    _arrow(draw, (6, 6), (6, 44), INK, "v")
    draw.text((8, picture.height - 18), f"the first pixel's middle is ({centre:g}, {centre:g})", INK)


def write_conventions(out: Path) -> list[Path]:
    """camera-NAME.png of every convention."""
    return [save_image(out / f"camera-{name}.png", convention_picture(name)) for name in CONVENTIONS]
