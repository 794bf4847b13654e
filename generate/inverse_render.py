"""Materials and light of a surface from pictures of it whose cameras are known (inverse rendering).

Textures of albedo, roughness and metallic and an environment are fitted so that the surface, shaded under it
(`geometry.lit`), looks like the pictures; regularisers want smooth textures and white light. The shape may move too, by
its shading and its outlines. A guide may pull on the rendered materials (MaterialFusion, 2024), never on the shape:
then albedo need not explain what is shading.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.training.loop import Loop
from ..core.training.loss import Loss, LossOut
from ..core.training.players import Group, Player, Turn
from ..core.training.sampling_order import seed_of
from ..geometry.colors import linear_from_srgb, sample_texture, srgb_from_linear
from ..geometry.environment import Environment
from ..geometry.lit import normals_towards, reflected, seen_of
from ..geometry.meshes import Mesh
from ..geometry.posed import PosedImages
from ..geometry.silhouettes import draw_mesh
from ..geometry.smoothing import bend
from ..geometry.unwrap import unwrap
from ..utils.errors import InputError
from ..utils.seeds import generator

SMOOTHEST = 0.08  # roughness; smoother surfaces reflect single directions, which pictures of this size do not show


class MaterialGuide(Protocol):
    """A force on rendered materials; see `tasks.material_score.MaterialScore`."""

    def __call__(self, photo: Tensor, albedo: Tensor, surface: Tensor, mask: Tensor, rng: torch.Generator) -> Loss:
        """The loss of pictures (B, C, H, W) of what is rendered."""
        ...


@dataclass(frozen=True)
class InverseConfig:
    """How it is fitted."""

    steps: int = 500
    pixels: int = 3000
    """of all pictures, compared in a step"""
    texture: int = 128
    light: tuple[int, int] = (8, 16)
    """rows and columns of the environment"""
    lr: float = 0.03
    light_rate: float = 3.0
    """times lr"""
    smooth_albedo: float = 0.01
    """weight of the mean difference of neighbouring texels"""
    smooth_surface: float = 0.005
    white: float = 0.05
    """weight of the colour of the light"""
    guide_every: int = 1
    """steps from one pull of the guide to the next"""
    guide_views: int = 2
    """pictures whose materials it sees at a time"""
    guide_size: int = 64
    """px of those"""
    decay: float = 1.0
    """the guide's weight is (1 - step / steps)^decay"""
    shape_rate: float = 0.0
    """of the vertices, in diagonals of the mesh a step; 0: the shape stays"""
    outline: float = 2.0
    """weight of the squared difference of coverage, where the shape moves"""
    bend: float = 0.02
    """weight of `geometry.smoothing.bend` there"""
    recast: int = 50
    """steps from one look at which faces are seen to the next"""

    def __post_init__(self) -> None:
        for name in ("steps", "pixels", "texture", "guide_every", "guide_views"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        if self.shape_rate < 0 or self.recast < 1:
            raise InputError(f"shape_rate={self.shape_rate} must be at least 0 and recast={self.recast} at least 1")
        if min(self.light) < 2 or self.lr <= 0:
            raise InputError(f"light={self.light} needs at least 2 rows and columns, lr={self.lr} must be above 0")


class Materials(nn.Module):
    """What is found: textures and light, free numbers behind sigmoids and a softplus."""

    def __init__(self, config: InverseConfig) -> None:
        super().__init__()
        size = config.texture
        self.albedo = nn.Parameter(torch.zeros(size, size, 3))
        self.surface = nn.Parameter(torch.tensor([0.5, -2.0]).repeat(size, size, 1))
        self.light = nn.Parameter(torch.full((*config.light, 3), 0.0))

    def textures(self) -> tuple[Tensor, Tensor]:
        """Albedo (T, T, 3), sRGB, and roughness with metallic (T, T, 2)."""
        surface = self.surface.sigmoid()
        roughness = SMOOTHEST + (1 - SMOOTHEST) * surface[..., :1]
        return self.albedo.sigmoid(), torch.cat([roughness, surface[..., 1:]], -1)

    def environment(self) -> Environment:
        """The light, linear."""
        return Environment(F.softplus(self.light))


@dataclass(frozen=True)
class InverseResult:
    """A mesh with the textures that were found, the light, and what it cost."""

    mesh: Mesh
    light: Environment
    history: list[dict[str, float]]


class InverseRendering:
    """One fit; `run` makes all steps."""

    def __init__(
        self,
        mesh: Mesh,
        pictures: PosedImages,
        config: InverseConfig | None = None,
        guide: MaterialGuide | None = None,
        seed: int = 0,
    ) -> None:
        """`mesh` gets charts where it has none."""
        self.config, self.guide = config or InverseConfig(), guide
        self.rng, self.guide_rng = generator(seed), generator(seed_of(seed, 1))  # a guide changes no other draws
        given = mesh if mesh.vertex_normals is not None else mesh.with_smooth_normals()
        self.mesh = given if given.uv is not None else unwrap(replace(given, textures={}), self.config.texture, 2)
        self.pictures, self.found = pictures, Materials(self.config)
        self.vertices = nn.Parameter(self.mesh.vertices.clone(), requires_grad=self.config.shape_rate > 0)
        self._cast()
        make = partial(torch.optim.Adam, lr=self.config.lr, betas=(0.9, 0.99))
        player = Player("materials", self._groups, make)
        self.loop = Loop([player], {"materials": self._loss})

    def _groups(self) -> list[Group]:
        textures = {"albedo": self.found.albedo, "surface": self.found.surface}
        light: Group = {"params": {"light": self.found.light}, "lr": self.config.lr * self.config.light_rate}
        moving: Group = {"params": {"vertices": self.vertices}, "lr": self.config.shape_rate * self.mesh.diagonal}
        return [{"params": textures}, light, *([moving] if self.config.shape_rate > 0 else [])]

    @property
    def shape(self) -> Mesh:
        """The mesh as it is now; differentiable where it moves."""
        if not self.config.shape_rate:
            return self.mesh
        return replace(self.mesh, vertices=self.vertices).with_smooth_normals()

    def _cast(self) -> None:
        """Looks which faces the pictures show."""
        with torch.no_grad():
            self.seen = seen_of(self.shape, self.pictures.cameras)
        covers = _covered(self.pictures, self.seen.mask)
        if not bool(covers.any()):
            raise InputError("the pictures show nothing of the mesh; do its place and the cameras belong together?")
        self.usable = torch.nonzero(covers[self.seen.mask])[:, 0]
        self.photo = self.pictures.images.float()[self.seen.mask] / 255  # (N, 3) sRGB

    def run(self, on_step: Callable[[int, dict[str, float]], None] | None = None) -> InverseResult:
        """All steps; `on_step` is told each one's number and losses."""
        history: list[dict[str, float]] = []

        def told(step: int, logs: dict[str, float]) -> None:
            if step % max(1, self.config.steps // 50) == 0:
                history.append({"step": step, **logs})
            if on_step is not None:
                on_step(step, logs)

        self.loop.run(self.config.steps, told)
        return InverseResult(self.textured(), Environment(self.found.environment().radiance.detach()), history)

    @torch.no_grad()
    def textured(self) -> Mesh:
        """The mesh with the textures as they are now."""
        albedo, surface = self.found.textures()
        packed = torch.cat([torch.ones_like(surface[..., :1]), surface], -1)
        images = {"base_color": _bytes(albedo), "metallic_roughness": _bytes(packed)}
        shape = self.shape
        normals = None if shape.vertex_normals is None else shape.vertex_normals.detach()
        return replace(
            shape, vertices=shape.vertices.detach(), vertex_normals=normals, textures=images, vertex_colors=None
        )

    def _loss(self, turn: Turn) -> LossOut:
        albedo, surface = self.found.textures()
        light, shape = self.found.environment(), self.shape
        if self.config.shape_rate and turn.step and turn.step % self.config.recast == 0:
            self._cast()
        loss = self._picture_loss(albedo, surface, light, shape)
        logs: dict[str, Any] = {"picture": loss.detach()}
        if self.config.shape_rate:
            loss = loss + self._shape_loss(shape)
        mean = light.radiance.mean(-1, keepdim=True)
        loss = loss + self.config.white * ((light.radiance - mean).abs() / (mean.detach() + 1e-3)).mean()
        loss = loss + self.config.smooth_albedo * _roughness_of(albedo)
        loss = loss + self.config.smooth_surface * _roughness_of(surface)
        if self.guide is not None and turn.step % self.config.guide_every == 0:
            pull = self._guided(albedo, surface)
            left = (1 - turn.step / self.config.steps) ** self.config.decay
            loss, logs = loss + left * pull.loss, {**logs, **pull.logs}
        return LossOut(loss, logs)

    def _shape_loss(self, shape: Mesh) -> Tensor:
        """Coverage of one picture, where it says some, and how bent the surface is."""
        loss = self.config.bend * bend(shape.vertices, shape.faces)
        if self.pictures.alpha is None:
            return loss
        view = torch.randint(len(self.pictures), (1,), generator=self.rng)
        drawn = draw_mesh(shape, self.pictures.cameras[view], ("alpha",)).alpha
        return loss + self.config.outline * (drawn - self.pictures.alpha[view].float() / 255).square().mean()

    def _picture_loss(self, albedo: Tensor, surface: Tensor, light: Environment, shape: Mesh) -> Tensor:
        """Mean absolute difference of srgb(log(1 + radiance)) at some pixels."""
        chosen = self.usable[torch.randint(len(self.usable), (self.config.pixels,), generator=self.rng)]
        uv, view = self.seen.uv[chosen], self.seen.view[chosen]
        look = sample_texture(surface, uv)
        shaded = reflected(
            linear_from_srgb(sample_texture(albedo, uv)),
            look[:, :1],
            look[:, 1:],
            normals_towards(shape, self.seen.face[chosen], self.seen.weights[chosen], view),
            view,
            light,
        )
        return (_compressed(shaded) - _compressed(linear_from_srgb(self.photo[chosen]))).abs().mean()

    def _guided(self, albedo: Tensor, surface: Tensor) -> Loss:
        """The guide's loss on materials of some pictures."""
        assert self.guide is not None
        views = torch.randperm(len(self.pictures), generator=self.guide_rng)[: self.config.guide_views]
        part, chosen = self.seen.views(views)
        mask = part.mask[:, None].to(albedo)
        drawn = part.image(sample_texture(albedo, part.uv), 1.0), part.image(sample_texture(surface, part.uv))
        photo = part.image(self.photo[chosen], 1.0)
        size = (self.config.guide_size,) * 2
        seen, base, rest = (_resized(one.movedim(-1, 1), size) for one in (photo, *drawn))
        return self.guide(seen, base, rest, _resized(mask, size), self.guide_rng)


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)


def _covered(pictures: PosedImages, mask: Tensor) -> Tensor:
    """Pixels (V, H, W) that show the mesh, as the pictures' own coverage says too."""
    for layer, least in ((pictures.alpha, 254), (pictures.valid, 1)):
        if layer is not None:
            mask = mask & (layer[..., 0] >= least)
    return mask


def _compressed(linear: Tensor) -> Tensor:
    """srgb(log(1 + x)), as nvdiffrec compares pictures."""
    return srgb_from_linear(linear.clamp(min=0).log1p())


def _roughness_of(texture: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring texels."""
    return texture.diff(dim=0).abs().mean() + texture.diff(dim=1).abs().mean()


def _bytes(values: Tensor) -> np.ndarray:
    return (values.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
