"""Frozen networks asked once for each picture, while short trainings see the same few hundred again and again."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.priors import StableDiffusionPrior
from ..core.sampling.preimage import Preimage
from ..tasks.one_step import OneStepHead
from ..tasks.preimage_head import PreimageHead
from ..tasks.walk import USUAL, Walk


@dataclass
class Memory:
    """Whether what was said before is said again: while something learns, not while heads are timed."""

    on: bool = False


class Remembered:
    """What a frozen call says of rows (B, ...), asked once for each row, which is known by its values."""

    def __init__(self, call: Callable[[Tensor], Sequence[Tensor]], memory: Memory) -> None:
        """`call` gives one or several tensors of B rows; a row of them depends on its own row alone."""
        self.call, self.memory = call, memory
        self._known: dict[bytes, tuple[Tensor, ...]] = {}

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The same as `call`, which is not differentiated."""
        if not self.memory.on:
            return tuple(self.call(rows))
        names = [_name(row) for row in rows.detach().cpu()]
        missing = {name: i for i, name in enumerate(names) if name not in self._known}
        if missing:
            found = self.call(rows[list(missing.values())])
            self._known |= dict(zip(missing, zip(*(part.split(1) for part in found), strict=True), strict=True))
        return tuple(torch.cat(parts) for parts in zip(*(self._known[name] for name in names), strict=True))


def _name(row: Tensor) -> bytes:
    return hashlib.blake2b(row.contiguous().numpy().tobytes() + str(tuple(row.shape)).encode()).digest()


def once_encoded(prior: StableDiffusionPrior, memory: Memory) -> StableDiffusionPrior:
    """The prior, which encodes each picture once; draws from the posterior and gradients are made anew."""
    known = Remembered(lambda pictures: (prior.encode(pictures),), memory)

    def encode(
        images: Tensor, sample: bool = False, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor:
        if sample or images.requires_grad:
            return prior.encode(images, sample, generator)
        return known(images)[0]

    other = copy.copy(prior)
    other.encode = encode  # type: ignore[method-assign]
    return other


def once_seen(head: PreimageHead, memory: Memory) -> PreimageHead:
    """The head, whose frozen prior looks at each picture once."""
    look = head.seen

    def parts(latents: Tensor) -> Sequence[Tensor]:
        found = look(latents)
        return (*found.features, *found.attention)

    known = Remembered(parts, memory)

    def seen(latents: Tensor) -> Preimage:
        made = known(latents)
        return Preimage(made[: len(made) // 2], made[len(made) // 2 :])

    head.seen = seen  # type: ignore[method-assign]
    return head


def once_guessed(head: OneStepHead, memory: Memory) -> OneStepHead:
    """The same networks, which no longer learn and begin with zeros, asked once for each picture."""
    answer, other = head.answer, copy.copy(head)
    known = Remembered(lambda latents: (answer(latents, torch.zeros_like(latents)),), memory)

    def predict(image_latents: Tensor, start: Tensor, walk: Walk = USUAL) -> Tensor:
        return known(image_latents)[0]

    other.predict = predict  # type: ignore[method-assign]
    return other
