"""Digests of tensors: what something was made from, in sixteen hex digits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def digest(tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> str:
    """16 hex digits of the sha256 of all names and values, in name order; values count as `dtype` holds them."""
    made = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        made.update(name.encode())
        made.update(value.detach().cpu().to(dtype).contiguous().numpy().tobytes())
    return made.hexdigest()[:16]
