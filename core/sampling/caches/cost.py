"""Multiply-accumulates of network calls, counted by torch where they happen, whole or by unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from .hooks import module_path


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Operations of the CPU's fused attention, which torch's counter does not know."""
    return sdpa_flop_count(query, key, value)


FORMULAS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def count_macs(run: Callable[[], object]) -> int:
    """Multiply-accumulates of everything `run` computes (products of convolutions, linear layers and attention)."""
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        run()
    return counter.get_total_flops() // 2


def unit_macs(network: nn.Module, units: Sequence[str], run: Callable[[], object]) -> dict[str, int]:
    """Multiply-accumulates spent inside each unit of `network` while `run` calls it."""
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        run()
    name = type(network).__name__
    counts = {path.rpartition(f"{name}.")[2]: sum(ops.values()) for path, ops in counter.get_flop_counts().items()}
    return {unit: counts.get(module_path(unit), 0) // 2 for unit in units}
