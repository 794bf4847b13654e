"""Worlds in which another axis is up, turned into ours."""

from __future__ import annotations

import torch
from torch import Tensor

from ..utils.errors import InputError

AXES = ("x", "y", "z")


def upright(up: str) -> Tensor | None:
    """The rotation (4, 4) that brings "+y", "-y", "+x" ... to +z by the shortest way; None for "+z".

    Raises InputError for what names no axis.
    """
    if len(up) != 2 or up[0] not in "+-" or up[1] not in AXES:
        raise InputError(f"up={up!r} is no axis; use +x, -x, +y, -y, +z or -z")
    if up == "+z":
        return None
    source, axis = torch.zeros(3, dtype=torch.float64), AXES.index(up[1])
    source[axis] = 1.0 if up[0] == "+" else -1.0
    matrix = torch.eye(4, dtype=torch.float64)
    if up == "-z":  # half a turn about the front
        matrix[1, 1] = matrix[2, 2] = -1
        return matrix
    target = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    third = torch.linalg.cross(source, target)
    matrix[:3, :3] = torch.outer(target, source) - torch.outer(source, target) + torch.outer(third, third)
    return matrix
