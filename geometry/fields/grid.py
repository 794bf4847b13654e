"""A pyramid of dense grids, summed: coarse levels carry shape, fine ones detail, and one trilinear lookup reads all.

Sides are nested (17, 33, 65: 2^k + 1), so every coarse node is a fine node and upsampling is exact there. The sum is
built once a step; a gradient on the fine grid reaches all levels, which lets coarse shape move faster than noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...utils.errors import InputError
from ...utils.ramps import Moment
from .base import Field, Query
from .heads import Head
from .rows import trilinear, weighted_rows


@dataclass(frozen=True)
class GridConfig:
    """A dense pyramid."""

    sides: tuple[int, ...] = (17, 33, 65)  # nodes along an edge, coarse to fine
    starts: tuple[float, ...] = (0, 0, 0)  # share of the run at which each level begins to learn
    geometry_lr: float = 0.01  # of the coarsest level, metres a step (sdf) or logits a step (density)
    geometry_decay: float = 0.5  # factor on it from level to level; 0.5 keeps slopes alike, 1 lets fine levels roughen
    color_lr: float = 0.05  # logits a step

    def __post_init__(self) -> None:
        if len(self.sides) != len(self.starts) or not self.sides or min(self.sides) < 2:
            raise InputError(f"grid: sides {self.sides} and starts {self.starts} must be equally long, sides >= 2")
        if list(self.sides) != sorted(self.sides):
            raise InputError(f"grid: sides {self.sides} must grow")
        if not all(0 <= start <= 1 for start in self.starts):
            raise InputError(f"grid: starts {self.starts} must be shares of the run, in [0, 1]")


class Lookup:
    """The query of a grid (1, 4, s, s, s)."""

    def __init__(self, grid: Tensor, half: float) -> None:
        self.grid, self.half = grid, half
        self.table = grid[0].flatten(1).t().contiguous()  # (s^3, 4)

    def __call__(self, points: Tensor) -> Tensor:
        """Trilinear (N, 4) at points (N, 3)."""
        return weighted_rows(self.table, *trilinear(points, self.grid.shape[-1], self.half))


class GridField(Field):
    """Sum of dense grids of geometry and colour."""

    kind = "grid"

    def __init__(self, config: GridConfig, head: Head, half: float = 1.0, generator: torch.Generator | None = None):
        super().__init__(head, half)
        self.config = config
        self.geometry = nn.ParameterList([torch.zeros(1, 1, s, s, s) for s in config.sides])
        self.colors = nn.ParameterList([torch.zeros(1, 3, s, s, s) for s in config.sides])
        self.register_buffer("levels", torch.tensor(sum(start <= 0 for start in config.starts)))
        self.levels: Tensor
        self._count_levels()
        self.register_load_state_dict_post_hook(lambda module, _: module._count_levels())

    def _count_levels(self) -> None:
        """Keeps the number of levels where asking for it does not wait for a device."""
        self._active = max(1, int(self.levels))

    @property
    def active(self) -> int:
        """Levels that are summed."""
        return self._active

    @property
    def side(self) -> int:
        """Nodes along an edge of the summed grid."""
        return self.config.sides[self.active - 1]

    @property
    def spacing(self) -> float:
        """Edge of a fine cell in metres."""
        return 2 * self.half_side / (self.side - 1)

    def summed(self, channels: slice = slice(None)) -> Tensor:
        """The sum of the active levels (1, C, s, s, s), indexed [x, y, z]."""
        total: Tensor | None = None
        for geometry, color in list(zip(self.geometry, self.colors, strict=True))[: self.active]:
            level = torch.cat([geometry, color], dim=1)[:, channels]
            total = level if total is None else level + _upsample(total, level.shape[-1])
        assert total is not None
        return total

    @property
    def kept_numbers(self) -> int:
        """See Field: eight rows of 8 bytes and their weights."""
        return 24

    def query(self) -> Query:
        """Trilinear lookup in the summed grid."""
        return Lookup(self.summed(), self.half_side)

    def roughness(self, query: Query | None = None) -> Tensor:
        """Mean squared second difference of geometry (per cell edge) plus that of colour, over the summed grid."""
        grid = query.grid if isinstance(query, Lookup) else self.summed()
        share = grid.new_tensor([self.spacing**-2, 1 / 3, 1 / 3, 1 / 3])
        total = grid.new_zeros(())
        for axis in (2, 3, 4):
            n = grid.shape[axis]
            ends = torch.lerp(grid.narrow(axis, 0, n - 2), grid.narrow(axis, 2, n - 2), 0.5)
            half_bend = (ends - grid.narrow(axis, 1, n - 2)).flatten(2)
            total = total + (share * torch.linalg.vector_norm(half_bend, dim=2).square()).sum() * 4 / half_bend.shape[2]
        return total

    def on_step(self, now: Moment) -> None:
        """Adds levels whose start has come."""
        super().on_step(now)
        reached = sum(now.reached(start) for start in self.config.starts)
        self.levels.fill_(reached)
        self._active = max(1, reached)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Each geometry level and colour move at their own rates; a learnt beta at 0.01 a step."""
        config = self.config
        groups = [
            {"params": [level], "lr": lr * config.geometry_lr * config.geometry_decay**depth}
            for depth, level in enumerate(self.geometry)
        ]
        groups.append({"params": list(self.colors), "lr": lr * config.color_lr})
        learnt = [p for p in self.head.parameters() if p.requires_grad]
        return groups + ([{"params": learnt, "lr": lr * 0.01}] if learnt else [])


def _upsample(grid: Tensor, side: int) -> Tensor:
    """Trilinear (1, C, side, side, side); nested sides are doubled by midpoints, which costs less."""
    if side != 2 * grid.shape[-1] - 1:
        return nn.functional.interpolate(grid, size=(side,) * 3, mode="trilinear", align_corners=True)
    for axis in (2, 3, 4):
        last = grid.shape[axis] - 1
        low = grid.narrow(axis, 0, last)
        middle = torch.lerp(low, grid.narrow(axis, 1, last), 0.5)
        woven = torch.stack([low, middle], dim=axis + 1).flatten(axis, axis + 1)
        grid = torch.cat([woven, grid.narrow(axis, last, 1)], dim=axis)
    return grid
