"""The small network behind hash grids and triplanes."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


class Decoder(nn.Module):
    """Features (N, D) -> hidden ReLU layers -> (N, 4): geometry value and colour logits; starts near zero."""

    def __init__(self, features: int, width: int, generator: torch.Generator | None = None, layers: int = 1) -> None:
        super().__init__()
        sizes = [features] + [width] * layers + [4]
        linears = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.layers = nn.ModuleList(linears)
        with torch.no_grad():
            for i, (layer, fan_in) in enumerate(zip(linears, sizes, strict=False)):
                bound = math.sqrt(6 / fan_in) * (0.02 if i == layers else 1.0)
                layer.weight.copy_((torch.rand(layer.weight.shape, generator=generator) * 2 - 1) * bound)
                layer.bias.zero_()

    @property
    def kept_numbers(self) -> int:
        """Numbers that autograd keeps of a row: what each layer is given."""
        return sum(layer.in_features for layer in self.layers if isinstance(layer, nn.Linear))

    def forward(self, features: Tensor) -> Tensor:
        """(N, 4) from (N, D)."""
        for layer in self.layers[:-1]:
            features = torch.relu(layer(features))
        return self.layers[-1](features)
