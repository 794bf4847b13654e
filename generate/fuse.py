"""Normal maps of several views fused to a mesh: a visual hull whose triangles move until they look like the maps.

Direct2.5 (Lu et al. 2024, section 3.3) with the optimiser of continuous remeshing (Palfinger 2022): every vertex has a
velocity u = m1 / sqrt(m2), where m2 is the mean squared *norm* of its gradients, and moves by its own edge length l:
    g <- g + laplacian |u| (v - mean of neighbours),  v <- v - lr l u,  l <- l (1 + gain (|u| - speed))
Vertices that wander want longer edges, settled ones shorter; triangles follow after each step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry.cameras import Camera
from ..geometry.extract import mesh_from
from ..geometry.hull import hull_cube, visual_hull
from ..geometry.meshes import Mesh
from ..geometry.remeshing import remeshed
from ..geometry.silhouettes import draw_mesh
from ..geometry.smoothing import creases, umbrella
from ..geometry.solid import solid_surface
from ..utils.errors import InputError
from ..utils.threads import repeatable

RAMP = 5.0  # steps of warm-up for moments that remember nothing
SETTLING = 0.75  # share of the run after which triangles stay as they are: each collapse costs a little of the shape


@dataclass(frozen=True)
class FuseConfig:
    """Sizes and weights; lengths are shares of the half-width of the cube around the object."""

    hull: int = 64  # samples along an edge of the cube, whose cells are the first triangles
    steps: int = 120
    lr: float = 0.2  # edge lengths a step; falls to a tenth over the second half of the run
    betas: tuple[float, float] = (0.8, 0.8)  # of the moments
    laplacian: float = 0.1
    creases: float = 0.1  # weight of the normal consistency between neighbouring faces
    alpha: float = 1.0  # weight of the silhouettes beside that of the normals, which is one
    speed: float = 0.3  # of a vertex at which its edges keep their length
    gain: float = 0.2
    edge: tuple[float, float] = (0.015, 0.08)  # shortest and longest
    edge_px: float = 1.0  # shortest in pixels of the maps: smaller triangles follow nothing that is seen
    tolerance: float = 0.5
    clip: float = 10.0  # times the first moment, of a gradient
    keep: float = 0.02  # pieces below this share of the area are dropped
    faces: int = 12_000  # at most

    def __post_init__(self) -> None:
        if self.steps < 0 or self.hull < 8 or not 0 < self.edge[0] <= self.edge[1]:
            raise InputError(
                f"fuse: steps={self.steps} >= 0, hull={self.hull} >= 8 and edge={self.edge}, shortest first, needed"
            )


StepEnd = Callable[[int, Mesh, float], None]


def fuse_normals(
    normals: Tensor, masks: Tensor, cameras: Camera, config: FuseConfig = FuseConfig(), on_step: StepEnd | None = None
) -> Mesh:
    """The solid that looks like these normal maps from these cameras.

    normals: (B, H, W, 3) in world axes; their length outside the masks does not matter. masks: (B, H, W) or
    (B, H, W, 1) coverage in [0, 1]. on_step: called with (step, mesh, loss). Raises InputError for maps that do not
    fit the cameras, are not finite or have no silhouette.
    """
    normals, masks = _checked(normals, masks, cameras)
    centre, half = hull_cube(masks, cameras)
    hull = visual_hull(masks, cameras, config.hull, (centre, half))
    work = Fusion(hull, normals, masks, cameras, half, config)
    for step in range(config.steps):
        loss = work.step()
        if on_step is not None:
            on_step(step + 1, work.mesh, loss)
    return solid_surface(work.mesh, config.keep, config.faces)


class Fusion:
    """A mesh on its way to look like normal maps."""

    def __init__(
        self, start: Mesh, normals: Tensor, masks: Tensor, cameras: Camera, half: float, config: FuseConfig
    ) -> None:
        """normals (B, H, W, 3) unit in world axes, masks (B, H, W) in [0, 1], half: metres."""
        self.config, self.cameras = config, cameras
        self.target, self.masks = normals * masks[..., None], masks[..., None]
        self.vertices, self.faces, self.steps = start.vertices.clone(), start.faces, 0
        count = len(self.vertices)
        self.first = normals.new_zeros(count, 3)  # moment of the gradients
        self.second = normals.new_zeros(count)  # moment of their squared norms
        self.speed = normals.new_zeros(count)
        sides = self.vertices[self.faces.roll(-1, 1)] - self.vertices[self.faces]
        away = (self.vertices.mean(0) - cameras.centres).norm(dim=-1) if cameras.model == "pinhole" else 1.0
        pixel = float((away / cameras.K[:, 0, 0]).mean())  # metres in the middle of the object
        low, high = (half * edge for edge in config.edge)
        self.limits = (min(max(low, config.edge_px * pixel), high), high)
        self.lengths = sides.norm(dim=-1).mean().clamp(*self.limits).expand(count).clone()

    @property
    def mesh(self) -> Mesh:
        """As it is, with smooth normals."""
        return Mesh(self.vertices, self.faces).with_smooth_normals()

    def loss(self, vertices: Tensor) -> Tensor:
        """Mean L1 of normals (zero on the background) and of coverage, plus that of creases; a scalar."""
        seen = draw_mesh(Mesh(vertices, self.faces).with_smooth_normals(), self.cameras, ("alpha", "normal"))
        shown = (seen.extras["normals"] - self.target).abs().mean()
        cover = (seen.alpha - self.masks).abs().mean()
        return shown + self.config.alpha * cover + self.config.creases * creases(vertices, self.faces)

    def step(self) -> float:
        """One step of the vertices and of the triangles; the loss before it."""
        vertices = self.vertices.clone().requires_grad_(True)
        with repeatable(vertices.device):
            loss = self.loss(vertices)
            (gradient,) = torch.autograd.grad(loss, vertices)
        self._move(gradient)
        if self.steps <= SETTLING * self.config.steps:
            self._remesh()
        return float(loss.detach())

    def _move(self, gradient: Tensor) -> None:
        config = self.config
        gradient = gradient - config.laplacian * self.speed[:, None] * umbrella(self.vertices, self.faces)
        if self.steps:
            limit = config.clip * self.first.abs()
            gradient = gradient.clamp(-limit, limit)
        self.steps += 1
        shares = [(1 - beta) / (1 - beta**self.steps) for beta in config.betas]  # moments without bias
        self.first = torch.lerp(self.first, gradient, shares[0])
        self.second = torch.lerp(self.second, gradient.square().sum(-1), shares[1])
        velocity = self.first / (self.second.sqrt() + 1e-8)[:, None]
        self.speed = velocity.norm(dim=-1)
        settled = max(0.0, 2 * self.steps / max(config.steps, 1) - 1)
        rate = config.lr * min(1.0, self.steps * (1 - config.betas[0]) / RAMP, 1 - 0.9 * settled)
        self.vertices = self.vertices - rate * self.lengths[:, None] * velocity
        self.lengths = (self.lengths * (1 + config.gain * (self.speed - config.speed))).clamp(*self.limits)

    def _remesh(self) -> None:
        places = self.vertices.cpu().double().numpy()
        made = remeshed(places, self.faces.cpu().numpy(), self.lengths.cpu().numpy(), self.config.tolerance)
        for name in ("first", "second", "speed", "lengths"):
            value = getattr(self, name)
            setattr(self, name, torch.from_numpy(made.carry(value.cpu().numpy())).to(value))
        fresh = mesh_from(made.vertices, made.faces)
        self.vertices, self.faces = fresh.vertices.to(self.vertices), fresh.faces.to(self.faces)


def _checked(normals: Tensor, masks: Tensor, cameras: Camera) -> tuple[Tensor, Tensor]:
    """Unit normals (B, H, W, 3) and masks (B, H, W), float32."""
    wanted = (cameras.batch, cameras.height, cameras.width)
    masks = masks[..., 0] if masks.ndim == 4 else masks
    if tuple(masks.shape) != wanted or tuple(normals.shape) != (*wanted, 3):
        raise InputError(
            f"normals {tuple(normals.shape)} and masks {tuple(masks.shape)} do not fit the cameras: expected "
            f"{(*wanted, 3)} and {wanted}; use camera.resized()"
        )
    if not bool(torch.isfinite(normals).all()) or not bool(torch.isfinite(masks).all()):
        raise InputError("normals and masks must be finite")
    return torch.nn.functional.normalize(normals.float(), dim=-1), masks.float().clamp(0, 1)
