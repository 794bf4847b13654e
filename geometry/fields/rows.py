"""Weighted sums of table rows: the one primitive under dense grids and hash grids, fast on a CPU in plain torch.

out[n] = sum_k weight[n, k] table[index[n, k]], and d out[n] / d weight[n, k] = table[index[n, k]] leads on to points.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _WeightedRows(torch.autograd.Function):
    """embedding_bag forward; its own backward sorts the indices, a scatter is six times faster."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(table, index, weight)
        return torch.nn.functional.embedding_bag(index, table, mode="sum", per_sample_weights=weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        table, index, weight = ctx.saved_tensors
        grad = grads[0]
        for_table = for_weight = None
        if ctx.needs_input_grad[0]:
            for_table = table_gradient(table, index, weight, grad)
        if ctx.needs_input_grad[2]:
            for_weight = weight_gradient(table, index, grad)
        return for_table, None, for_weight


def table_gradient(table: Tensor, index: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """d loss / d table (V, C) of weighted rows whose sums (N, C) have the gradient `grad`."""
    spread = (grad[:, None] * weight[..., None]).reshape(-1, grad.shape[1])  # (N K, C)
    return torch.zeros_like(table).scatter_add_(0, index.reshape(-1, 1).expand_as(spread), spread)


def weight_gradient(table: Tensor, index: Tensor, grad: Tensor) -> Tensor:
    """d loss / d weight (N, K) of the same."""
    return (table[index] * grad[:, None]).sum(-1)


def weighted_rows(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """(N, C) from table (V, C), index (N, K) int64 and weight (N, K); differentiable in table and weight."""
    return _WeightedRows.apply(table, index, weight)


def trilinear(points: Tensor, side: int, half: float) -> tuple[Tensor, Tensor]:
    """Corner rows (N, 8) int64 and weights (N, 8) of points (N, 3) in a lattice of side^3 nodes.

    Node (i, j, k) along (x, y, z) lies at -half + 2 half (i, j, k) / (side - 1) and is row (i side + j) side + k, so a
    table reshaped to (side, side, side, C) is indexed [x, y, z]. Points outside are clamped to the border.
    """
    low, fraction = cell_of(points, side, half)
    x, y, z = corner_steps(points.device).unbind(-1)
    offsets = (x * side + y) * side + z
    base = (low[:, 0] * side + low[:, 1]) * side + low[:, 2]
    return base[:, None] + offsets, corner_weights(fraction)


def corner_steps(device: torch.device) -> Tensor:
    """The eight corners of a cell (8, 3) int64, in 0 and 1, x slowest; made where they are used, not sent there."""
    number = torch.arange(8, device=device)
    return torch.stack((number // 4, number // 2 % 2, number % 2), dim=-1)


def cell_of(points: Tensor, side: int, half: float) -> tuple[Tensor, Tensor]:
    """Lower corner (N, 3) int64 and position inside the cell (N, 3) in [0, 1]."""
    position = ((points + half) * ((side - 1) / (2 * half))).clamp(0, side - 1)
    low = position.floor().clamp_max(side - 2)
    return low.long(), position - low


def corner_weights(fraction: Tensor) -> Tensor:
    """Trilinear weights (N, 8) in the order of `corner_steps`."""
    x, y, z = fraction.unbind(-1)
    ends_x, ends_y, ends_z = ((1 - v, v) for v in (x, y, z))
    pairs = [a * b for a in ends_x for b in ends_y]
    return torch.stack([pair * c for pair in pairs for c in ends_z], dim=-1)
