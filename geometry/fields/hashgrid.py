"""Multi-resolution hash grid (Mueller et al. 2022, "Instant Neural Graphics Primitives") in plain torch.

Level l has resolution floor(coarse growth^l); corners index the table densely while they fit, else through
h(x) = (x_1 xor 2654435761 x_2 xor 805459861 x_3) mod rows. A small MLP reads the concatenated features.

Rows and weights are found a second time in the backward pass: 16 levels of them are 1.5 kB a point, the point is 12 B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...utils.errors import InputError
from .base import Field, Query
from .heads import Head
from .mlp import Decoder
from .rows import cell_of, corner_steps, corner_weights, table_gradient, weight_gradient, weighted_rows

PRIMES = (1, 2654435761, 805459861)


@dataclass(frozen=True)
class HashConfig:
    """A hash grid with its decoder."""

    levels: int = 6
    features: int = 2  # per level
    log2_rows: int = 15  # table rows per level
    coarse: int = 8  # cells along an edge of the first level
    fine: int = 96  # of the last
    width: int = 32  # of the decoder's hidden layer
    table_lr: float = 0.01
    decoder_lr: float = 0.002

    def __post_init__(self) -> None:
        if self.levels < 2 or not 2 <= self.coarse <= self.fine:
            raise InputError(f"hash: levels={self.levels} >= 2, 2 <= coarse={self.coarse} <= fine={self.fine} needed")

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Cells along an edge, by level."""
        growth = math.exp((math.log(self.fine) - math.log(self.coarse)) / (self.levels - 1))
        return tuple(int(self.coarse * growth**level + 1e-6) for level in range(self.levels))


class HashField(Field):
    """Hash-grid features decoded to geometry and colour."""

    kind = "hash"

    def __init__(self, config: HashConfig, head: Head, half: float = 1.0, generator: torch.Generator | None = None):
        super().__init__(head, half)
        self.config = config
        sizes = [min((r + 1) ** 3, 2**config.log2_rows) for r in config.resolutions]
        shapes = [(size, config.features) for size in sizes]
        self.tables = nn.ParameterList([(torch.rand(s, generator=generator) * 2 - 1) * 1e-4 for s in shapes])
        self.decoder = Decoder(config.levels * config.features, config.width, generator)

    @property
    def spacing(self) -> float:
        """Edge of a cell of the finest level in metres, at most 1/48 of the cube."""
        return 2 * self.half_side / max(self.config.fine, 48)

    @property
    def kept_numbers(self) -> int:
        """See Field: the point, and what the decoder keeps."""
        return 3 + self.decoder.kept_numbers

    def query(self) -> Query:
        """Features of all levels, then the decoder."""

        def ask(points: Tensor) -> Tensor:
            return self.decoder(_Features.apply(points, self.half_side, self.config.resolutions, *self.tables))

        return ask

    def roughness(self, query: Query | None = None) -> Tensor:
        """Mean square of the features, summed over levels."""
        return torch.stack([table.square().mean() for table in self.tables]).sum()

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Tables and networks at their own rates."""
        nets = list(self.decoder.parameters()) + [p for p in self.head.parameters() if p.requires_grad]
        tables = {"params": list(self.tables), "lr": lr * self.config.table_lr}
        return [tables, {"params": nets, "lr": lr * self.config.decoder_lr}]


class _Features(torch.autograd.Function):
    """(N, L C) of points (N, 3) and one table (V, C) a level; keeps the points and the tables alone."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, half: float, resolutions: tuple[int, ...], *tables: Tensor) -> Tensor:
        ctx.save_for_backward(points, *tables)
        ctx.half, ctx.resolutions = half, resolutions
        levels = zip(tables, resolutions, strict=True)
        return torch.cat([weighted_rows(table, *hashed(points, r, len(table), half)) for table, r in levels], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        points, *tables = ctx.saved_tensors
        for_points = torch.zeros_like(points) if ctx.needs_input_grad[0] else None
        for_tables: list[Tensor | None] = [None] * len(tables)
        parts = grads[0].split([table.shape[1] for table in tables], dim=-1)
        for level, (table, resolution, grad) in enumerate(zip(tables, ctx.resolutions, parts, strict=True)):
            with torch.set_grad_enabled(for_points is not None):
                at = points.detach().requires_grad_(for_points is not None)
                index, weight = hashed(at, resolution, len(table), ctx.half)
            if ctx.needs_input_grad[3 + level]:
                for_tables[level] = table_gradient(table, index, weight.detach(), grad)
            if for_points is not None:
                for_points += torch.autograd.grad(weight, at, weight_gradient(table, index, grad))[0]
        return for_points, None, None, *for_tables


def hashed(points: Tensor, resolution: int, rows: int, half: float) -> tuple[Tensor, Tensor]:
    """Table rows (N, 8) and weights (N, 8) of points (N, 3) at one level."""
    low, fraction = cell_of(points, resolution + 1, half)
    corners = low[:, None] + corner_steps(points.device)  # (N, 8, 3)
    if (resolution + 1) ** 3 <= rows:
        index = (corners[..., 0] * (resolution + 1) + corners[..., 1]) * (resolution + 1) + corners[..., 2]
    else:
        x, y, z = (corners[..., axis] * prime for axis, prime in enumerate(PRIMES))
        index = (x ^ y ^ z) % rows
    return index, corner_weights(fraction)
