"""Six planes of a generator as a field: three of geometry, added, and three of texture, side by side (Ma et al. 2025).

    f(p) = MLP_sdf(sum_k plane_k(p)) + |p| - radius,    colour(p) = 1.002 sigmoid(MLP_tex(plane_3..5(p))) - 0.001
Planes are pictures as a prior of pictures would draw them, rows from the top, the world z up and its front +x:
    plane 0: from above, rows along +x, columns along +y;
    plane 1: from +y, rows along -z, columns along -x;
    plane 2: from the front +x, rows along -z, columns along +y; planes 3-5 alike.
They are read bilinearly with zeros outside, texel centres at (i + 1/2) of the cube's edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ...utils.errors import InputError
from .base import Field, Query, Snapshot
from .heads import Head

VIEWS = (((1, 1.0), (0, 1.0)), ((0, -1.0), (2, -1.0)), ((1, 1.0), (2, -1.0)))  # (axis, sign) of columns and of rows
WIDER = 1.002  # of the range of colours, whose ends a sigmoid reaches so


@dataclass(frozen=True)
class DualConfig:
    """Planes and their small networks."""

    side: int = 256  # texels along an edge
    features: int = 32  # channels of a plane
    width: int = 64  # of the hidden layers
    layers: int = 2  # hidden
    plane_lr: float = 0.02  # of planes that are optimised themselves
    network_lr: float = 0.001
    level: float = 0.0  # metres, of the distance at which a mesh has its surface

    def __post_init__(self) -> None:
        if not 0 <= self.level < 1:
            raise InputError(f"dual: level={self.level} metres must lie in [0, 1)")
        if min(self.side, self.features, self.width, self.layers) < 1:
            sizes = f"side={self.side}, features={self.features}, width={self.width} and layers={self.layers}"
            raise InputError(f"dual: {sizes} must be at least 1")


class PlainMLP(nn.Module):
    """Linear maps without bias with ReLU between them; parameter names are the published ones (layers.0, .2, .4)."""

    def __init__(self, inside: int, outside: int, width: int, layers: int) -> None:
        super().__init__()
        sizes = [inside, *[width] * layers, outside]
        parts: list[nn.Module] = []
        for a, b in pairwise(sizes):
            parts += [nn.Linear(a, b, bias=False), nn.ReLU()]
        self.layers = nn.Sequential(*parts[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """(N, outside) of (N, inside)."""
        return self.layers(x)


class DualHeads(nn.Module):
    """The three networks that read planes."""

    def __init__(self, config: DualConfig) -> None:
        super().__init__()
        features, width, layers = config.features, config.width, config.layers
        self.sdf_network = PlainMLP(features, 1, width, layers)
        self.feature_network = PlainMLP(3 * features, 3, width, layers)
        self.deformation_network = PlainMLP(features, 3, width, layers)


class DualField(Field):
    """Geometry and colour out of `planes` (6, C, S, S), which a generator fills."""

    kind = "dual"

    def __init__(self, config: DualConfig, head: Head, half: float = 1.0, generator: torch.Generator | None = None):
        super().__init__(head, half)
        self.config = config
        self.planes = nn.Parameter(torch.zeros(6, config.features, config.side, config.side))
        self.heads = DualHeads(config)
        if generator is not None:
            for layer in self.heads.parameters():
                bound = layer.shape[1] ** -0.5
                layer.data = (2 * torch.rand(layer.shape, generator=generator) - 1) * bound
        self.pull = (1.0, 1.0)  # factors on the gradients that reach geometry and colour

    @property
    def spacing(self) -> float:
        """Edge of a texel in metres."""
        return 2 * self.half_side / self.config.side

    @property
    def kept_numbers(self) -> int:
        """See Field: the point on six planes, and what the networks keep."""
        return 12 + 4 * self.config.features + 4 * self.config.width * self.config.layers

    def query(self) -> Query:
        """See Field."""
        return self.raw

    def raw(self, points: Tensor) -> Tensor:
        """(N, 4) of points (N, 3): signed distance without its start, colour logits."""
        geometry, color = self.pull
        distance = self.heads.sdf_network(self.geometry(points))
        logits = self.heads.feature_network(torch.cat(list(self._read(points, slice(3, 6))), dim=-1))
        return torch.cat([pulled(distance, geometry), pulled(logits, color)], dim=-1)

    def geometry(self, points: Tensor) -> Tensor:
        """Features (N, C) of the geometry at points (N, 3)."""
        return self._read(points, slice(0, 3)).sum(dim=0)

    def distance(self, points: Tensor) -> Tensor:
        """Signed distance (N,) at points (N, 3), nothing else being asked."""
        found = self.heads.sdf_network(self.geometry(points))[:, 0]
        return pulled(found, self.pull[0]) + self.head.start_shape(points)

    def outside(self, points: Tensor) -> Tensor:
        """`distance` less the level, (N,): a volume also shows thin parts in which no distance is negative, and a mesh
        has them from a level above 0 on."""
        return self.distance(points) - self.config.level

    def deformation(self, points: Tensor) -> Tensor:
        """What the network says of movements (N, 3), not yet bounded."""
        return pulled(self.heads.deformation_network(self.geometry(points)), self.pull[0])

    def _read(self, points: Tensor, which: slice) -> Tensor:
        """(3, N, C) of three planes."""
        flat = on_planes(points / self.half_side)
        read = nn.functional.grid_sample(self.planes[which], flat[:, None].to(self.planes), align_corners=False)
        return read[:, :, 0].mT

    def snapshot(self) -> DualSnapshot:
        """See Field."""
        return DualSnapshot(self)

    def roughness(self, query: Query | None = None) -> Tensor:
        """Mean squared difference of neighbouring texels."""
        across = (self.planes[..., 1:] - self.planes[..., :-1]).square().mean()
        return across + (self.planes[..., 1:, :] - self.planes[..., :-1, :]).square().mean()

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Planes and networks at their own rates."""
        nets = [*self.heads.parameters(), *(p for p in self.head.parameters() if p.requires_grad)]
        planes = {"params": [self.planes], "lr": lr * self.config.plane_lr}
        return [planes, {"params": nets, "lr": lr * self.config.network_lr}]


class DualSnapshot(Snapshot):
    """Values of a dual field; its gradient is exact."""

    def __init__(self, field: DualField) -> None:
        super().__init__(field.query(), field.head, field.spacing)
        self.field = field

    def value_color(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See Snapshot; colours may leave [0, 1] by a thousandth."""
        raw = self.query(points)
        color = WIDER * torch.sigmoid(raw[:, 1:]) - 0.5 * (WIDER - 1)
        return raw[:, 0] + self.head.start_shape(points), color

    def density(self, points: Tensor) -> Tensor:
        """See Snapshot; half of the planes are not read."""
        return self.head.density(self.field.distance(points))

    def gradient(self, points: Tensor) -> Tensor:
        """d f / d p (N, 3) by differentiation, itself differentiable in planes and networks."""
        field, kept = self.field, torch.is_grad_enabled()
        with torch.enable_grad():
            at = points if points.requires_grad else points.detach().requires_grad_()
            features = lookup(field.planes[:3], on_planes(at / field.half_side).to(field.planes)).sum(dim=0)
            value = pulled(field.heads.sdf_network(features)[:, 0], field.pull[0]) + self.head.start_shape(at)
            (found,) = torch.autograd.grad(value.sum(), at, create_graph=kept)
        return found


def on_planes(points: Tensor) -> Tensor:
    """Where points (N, 3) of the cube [-1, 1]^3 lie on the three planes (3, N, 2), columns and rows in [-1, 1]."""
    return torch.stack([torch.stack([sign * points[:, axis] for axis, sign in view], dim=-1) for view in VIEWS])


def lookup(planes: Tensor, places: Tensor) -> Tensor:
    """Bilinear values (P, N, C) of planes (P, C, H, W) at places (P, N, 2) in [-1, 1], zeros outside.

    As torch's grid_sample without aligned corners, whose second derivative torch lacks.
    """
    height, width = planes.shape[-2:]
    size = places.new_tensor([width, height])
    texel = (places + 1) * size / 2 - 0.5
    low = texel.detach().floor()
    share = texel - low  # (P, N, 2)
    total: Tensor | None = None
    rows = torch.arange(len(planes), device=planes.device)[:, None]
    for right in (0, 1):
        for down in (0, 1):
            at = low + low.new_tensor([right, down])
            inside = ((at >= 0) & (at < size)).all(dim=-1)
            column, row = (at[..., i].clamp(0, float(size[i]) - 1).long() for i in (0, 1))
            weight = (share[..., 0] if right else 1 - share[..., 0]) * (share[..., 1] if down else 1 - share[..., 1])
            part = planes[rows, :, row, column] * (weight * inside)[..., None]
            total = part if total is None else total + part
    assert total is not None
    return total


def pulled(value: Tensor, share: float) -> Tensor:
    """The same value, whose gradient is multiplied by `share`."""
    return value if share == 1 else share * value + (1 - share) * value.detach()
