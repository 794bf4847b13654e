"""Work on rows in parts whose activations are computed again in the backward pass: less memory, the same gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_parts(function: Callable[..., Tensor], at_once: int | None, *rows: Tensor) -> Tensor:
    """function(*rows), with the activations of at most `at_once` rows in memory.

    A part keeps its rows alone and is computed a second time when its gradient is due, so that the parts never meet.
    What the function closes over gets gradients too; it must give the same again, so it draws no random numbers.

    Args:
        function: of tensors (n, ...) to a tensor (n, ...), row by row.
        at_once: rows of a part; None or enough for all: one part, which is kept and not computed again.
        rows: each (N, ...).
    """
    if at_once is None or at_once >= len(rows[0]):
        return function(*rows)
    parts = zip(*(tensor.split(at_once) for tensor in rows))
    return torch.cat([checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
