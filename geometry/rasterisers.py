"""Which face each pixel of a mesh shows, found by rasterisers of other packages where they are installed.

That question has no derivative. All that has one (depth, weights, normals, colours, outlines) is computed from its
answer by raycast.py and silhouettes.py, whoever gave it, so that gradients reach vertices and cameras in the same way.
Where nobody else draws, rays are cast.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from ..utils.errors import InputError
from .cameras import Camera
from .outputs import Rays

Renderer = Literal["auto", "raycast", "nvdiffrast", "pytorch3d"]
LARGEST_FLOAT_ID = 1 << 24  # nvdiffrast keeps ids as floats, and larger ones as bit patterns beginning at FIRST_BITS
FIRST_BITS = 0x4A800000


@dataclass(frozen=True)
class Rasteriser:
    """A package that draws."""

    module: str  # what is imported
    devices: tuple[str, ...]  # kinds it draws on
    source: str  # where it comes from: neither is a wheel on PyPI
    faces: Callable[[Any, Tensor, Tensor, Camera], Tensor]  # (module, vertices, faces, camera) to faces (B, H, W)

    @property
    def package(self) -> str:
        """Its name."""
        return self.module.partition(".")[0]


def rasteriser_of(renderer: Renderer, rays: Rays, device: torch.device) -> Rasteriser | None:
    """Who draws a mesh that lives on `device`; None: rays are cast.

    "auto" casts rays on the CPU, where that is fastest, and takes what is installed elsewhere. Raises InputError for a
    rasteriser asked by name that is not there, or cannot draw this.
    """
    straight = isinstance(rays, Camera) and rays.model != "fisheye"
    if renderer == "auto":
        able = (made for made in RASTERISERS.values() if device.type in made.devices and not missing(made.module))
        return next(able, None) if straight and device.type != "cpu" else None
    if renderer == "raycast":
        return None
    if not isinstance(renderer, str) or renderer not in RASTERISERS:
        raise InputError(f"renderer={renderer!r} is unknown; have auto, raycast, {', '.join(RASTERISERS)}")
    made = RASTERISERS[renderer]
    if reason := missing(made.module):
        raise InputError(
            f"renderer={renderer!r}: {made.package} cannot be imported ({reason}); install it with `{made.source}`, or "
            "take renderer='raycast'"
        )
    if device.type not in made.devices:
        raise InputError(
            f"renderer={renderer!r} draws on {' and '.join(made.devices)}, and this mesh is on {device.type}; move it, "
            "or take renderer='raycast'"
        )
    if not straight:
        what = "a fisheye camera bends edges" if isinstance(rays, Camera) else "these rays are no camera"
        raise InputError(f"renderer={renderer!r} draws straight edges, and {what}; take renderer='raycast'")
    return made


@functools.cache
def missing(module: str) -> str:
    """Why a module cannot be imported; empty where it can. What is installed and broken gives a warning."""
    try:
        import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if find_spec(package) is not None:
            warnings.warn(f"{package} is installed and cannot be imported: {error}", stacklevel=2)
        return str(error)
    return ""


@torch.no_grad()
def drawn_faces(made: Rasteriser, vertices: Tensor, faces: Tensor, camera: Camera) -> Tensor:
    """Index (B, H, W) of the nearest of faces (F, 3) between the near and far plane, -1 where there is none."""
    return made.faces(import_module(made.module), vertices.detach().float(), faces, camera)


def clip_positions(vertices: Tensor, camera: Camera) -> Tensor:
    """Homogeneous clip coordinates (B, V, 4) of vertices (V, 3): x and y run over [-w, w] with the columns and rows.

    OpenGL's z: -w at the near plane, w at the far one, whose distances shrink to what the mesh needs, for the sake of
    the depth buffer. Row 0 is at y = -w, where OpenGL has the lowest row.
    """
    w2c = camera.w2c.float()
    local = vertices @ w2c[:, :3, :3].mT + w2c[:, None, :3, 3]
    z, ortho = local[..., 2:], camera.model == "ortho"
    plane = torch.cat([local[..., :2], torch.ones_like(z)], dim=-1) if ortho else local
    w = torch.ones_like(z) if ortho else z
    size = plane.new_tensor([camera.width, camera.height])
    across = 2 * (plane @ camera.K[:, :2].float().mT) / size - w  # K (x, y, z) is z times the pixel
    nearest, farthest = z.amin(dim=1, keepdim=True), z.amax(dim=1, keepdim=True)
    room = 0.01 * (farthest - nearest) + 1e-4 * farthest.abs()
    near, far = (p.float() for p in camera.planes(ndim=3))
    near = torch.maximum(near, nearest - room)
    far = torch.maximum(torch.minimum(far, farthest + room), near + room)
    if ortho:
        depth = (2 * z - far - near) / (far - near)
    else:
        depth = ((far + near) * z - 2 * far * near) / (far - near)
    return torch.cat([across, depth, w], dim=-1)


def _by_nvdiffrast(package: Any, vertices: Tensor, faces: Tensor, camera: Camera) -> Tensor:
    """Laine et al. 2020; its picture (B, H, W, 4) ends with the index of the face plus 1, 0 on the background."""
    positions, triangles = clip_positions(vertices, camera).contiguous(), faces.int().contiguous()
    context = _context(package, vertices.device)
    drawn, _ = package.rasterize(context, positions, triangles, (camera.height, camera.width), grad_db=False)
    ids = drawn[..., 3].contiguous()
    large = ids.view(torch.int32) - FIRST_BITS
    return torch.where(ids <= LARGEST_FLOAT_ID, ids.int(), large).long() - 1


@functools.cache
def _context(package: Any, device: torch.device) -> Any:
    """One for each device: making it takes long."""
    return package.RasterizeCudaContext(device=device)


def _by_pytorch3d(package: Any, vertices: Tensor, faces: Tensor, camera: Camera) -> Tensor:
    """Ravi et al. 2020: x left, y up, the shorter side of the picture is [-1, 1], z stays in metres."""
    near, far = camera.planes()
    if len(set(near.tolist())) > 1:  # it cuts a batch at one distance
        return torch.cat([_by_pytorch3d(package, vertices, faces, camera[i]) for i in range(camera.batch)])
    pixels, z = camera.project(vertices)
    size = pixels.new_tensor([camera.width, camera.height])
    placed = torch.cat([(size - 2 * pixels) / size.min(), z[..., None]], dim=-1).float()
    meshes = import_module("pytorch3d.structures").Meshes(verts=list(placed), faces=[faces.long()] * camera.batch)
    shown, depth, *_ = package.rasterize_meshes(
        meshes,
        image_size=(camera.height, camera.width),
        blur_radius=0.0,
        faces_per_pixel=1,
        perspective_correct=camera.model != "ortho",
        cull_backfaces=False,
        z_clip_value=float(near[0]),
    )
    first = len(faces) * torch.arange(camera.batch, device=faces.device)  # faces of all views are counted through
    inside = (shown >= 0) & (depth <= far.view(-1, 1, 1, 1))
    return torch.where(inside, shown - first.view(-1, 1, 1, 1), -1)[..., 0]


RASTERISERS = {  # the fastest first
    "nvdiffrast": Rasteriser(
        "nvdiffrast.torch",
        ("cuda",),
        "pip install git+https://github.com/NVlabs/nvdiffrast --no-build-isolation",
        _by_nvdiffrast,
    ),
    "pytorch3d": Rasteriser(
        "pytorch3d.renderer.mesh.rasterize_meshes",
        ("cpu", "cuda"),
        "pip install git+https://github.com/facebookresearch/pytorch3d@stable --no-build-isolation",
        _by_pytorch3d,
    ),
}
