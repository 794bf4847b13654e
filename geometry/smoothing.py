"""How rough a triangle mesh is, differentiably: vertices against their neighbours, faces against theirs."""

from __future__ import annotations

import torch
from torch import Tensor


def umbrella(vertices: Tensor, faces: Tensor) -> Tensor:
    """Mean of its neighbours minus each vertex (V, 3); faces (F, 3) of a closed mesh."""
    start, end = faces.reshape(-1), faces.roll(-1, dims=1).reshape(-1)  # each edge of a closed mesh twice
    around = torch.zeros_like(vertices).index_add(0, start, vertices[end])
    count = torch.zeros_like(vertices[:, :1]).index_add(0, start, torch.ones_like(vertices[start, :1]))
    return torch.where(count > 0, around / count.clamp_min(1) - vertices, torch.zeros_like(vertices))


def bend(vertices: Tensor, faces: Tensor) -> Tensor:
    """Mean squared distance of the vertices from the mean of their neighbours, over the mean squared edge; a scalar."""
    sides = (vertices[faces.roll(-1, dims=1)] - vertices[faces]).square().sum(-1)
    return umbrella(vertices, faces).square().sum(-1).mean() / sides.mean().detach()


def creases(vertices: Tensor, faces: Tensor) -> Tensor:
    """Mean of 1 - cos between the normals of the two faces of each edge, a scalar; 0 on a plane."""
    a, b, c = vertices[faces].unbind(1)
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - a, c - a), dim=-1, eps=1e-20)
    half = torch.stack([faces, faces.roll(-1, 1)], dim=-1).view(-1, 2)
    low, high = half.min(dim=1).values, half.max(dim=1).values
    key = low * (int(faces.max()) + 1) + high
    order = torch.argsort(key, stable=True)
    same = key[order][1:] == key[order][:-1]
    one, other = order[:-1][same] // 3, order[1:][same] // 3
    return (1 - (normal[one] * normal[other]).sum(-1)).mean()
