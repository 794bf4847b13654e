"""Several targets of one image side by side: what a head predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import InputError
from .base import Column, TargetCodec


@dataclass(frozen=True)
class StackCodec:
    """Several targets of one image, a group of pictures each, in the order of `parts`."""

    parts: Mapping[str, TargetCodec]

    @property
    def groups(self) -> int:
        """Number of groups n."""
        return len(self.parts)

    def columns(self) -> list[Column]:
        """Where the ground truth of the parts is."""
        return [codec.column for codec in self.parts.values()]

    def truth(self, batch: Mapping[str, Any], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """(targets by name, where all of them are known (B, 1, H, W)) of a batch of arrays."""
        found = {
            name: codec.truth(torch.from_numpy(batch[codec.column.batch]).to(device).float())
            for name, codec in self.parts.items()
        }
        valid = torch.stack([known for _, known in found.values()]).all(0)
        return {name: target for name, (target, _) in found.items()}, valid

    def beside(self, targets: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        """The targets with what they hold of the images themselves."""
        return {name: codec.beside(targets[name], images) for name, codec in self.parts.items()}

    def encode(self, targets: Mapping[str, Tensor], valid: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """(pictures (B, n, 3, H, W), states by name)."""
        coded = {name: codec.encode(targets[name], valid) for name, codec in self.parts.items()}
        return torch.stack([pictures for pictures, _ in coded.values()], 1), {k: s for k, (_, s) in coded.items()}

    def decode(self, pictures: Tensor, states: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
        """Targets by name of pictures (B, n, 3, H, W)."""
        if pictures.ndim != 5 or pictures.shape[1] != self.groups:
            raise InputError(f"pictures have shape {tuple(pictures.shape)}, expected (B, {self.groups}, 3, H, W)")
        states = states or {}
        return {
            name: codec.decode(pictures[:, i], states.get(name)) for i, (name, codec) in enumerate(self.parts.items())
        }

    def weights(self, changed: Mapping[str, float]) -> dict[str, float]:
        """Weights of the parts of the loss, with changes. Raises InputError for a part there is not."""
        known = {part: weight for codec in self.parts.values() for part, weight in codec.weights.items()}
        unknown = [part for part in changed if part not in known]
        if unknown:
            raise InputError(f"the loss of {', '.join(self.parts)} has no part {unknown[0]!r}; have {', '.join(known)}")
        return known | dict(changed)

    def loss(self, pictures: Tensor, targets: Mapping[str, Tensor], valid: Tensor) -> dict[str, Tensor]:
        """Parts of the training losses of pictures (B, n, 3, H, W), scalars."""
        parts: dict[str, Tensor] = {}
        for group, (name, codec) in zip(pictures.unbind(1), self.parts.items(), strict=True):
            parts |= codec.loss(group, targets[name], valid)
        return parts

    def metrics(
        self, maps: Mapping[str, Tensor], targets: Mapping[str, Tensor], valid: Tensor, summary: bool = False
    ) -> dict[str, Tensor]:
        """Metrics of the maps there are, (B,) each; `summary`: only those that validation reports."""
        errors: dict[str, Tensor] = {}
        for name, codec in self.parts.items():
            if name in maps:
                found = codec.metrics(maps[name], targets[name], valid)
                errors |= {key: found[key] for key in codec.summary} if summary else found
        return errors
