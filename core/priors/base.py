"""The one interface behind which every frozen backbone sits.

Latents are (B, C, h, w) and already scaled as the network wants them; images are (B, 3, H, W) in [0, 1], sRGB.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ...utils.errors import InputError, UnprojectError
from .rows import LEVEL_TIME, Condition, Rows

PredictionType = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]
Spacing = Literal["trailing", "leading", "linspace", "logsnr", "karras"]
P = TypeVar("P", bound="Prior")


@dataclass(frozen=True)
class Recommended:
    """Sampling settings that suit a prior; None means the schedule's own."""

    guidance: float = 7.5
    steps: int = 50
    spacing: Spacing | None = None
    solver: str = "ddim"
    distilled: bool = False
    """to a few steps: other numbers of steps and solvers do not suit it"""
    step_counts: tuple[int, ...] = ()
    """numbers of steps that it can take; empty: any"""


class Prior(ABC):
    """A frozen backbone. `nfe` counts network rows asked so far."""

    name: str = "prior"
    prediction_type: PredictionType = "epsilon"
    scheduler_config: Mapping[str, Any]
    latent_shape: tuple[int, int, int]
    image_size: int
    vae_factor: int = 1
    known_px: tuple[int, int] | None = None  # smallest and largest side it learnt to draw; None: `latent_shape` alone
    latent_multiple: int = 1  # latent sides must be multiples of this
    network: nn.Module | None = None  # the denoising network; None for priors without one
    frames: int = 1  # views of one object that it draws at once; 1: single images
    recipe: str = "stable-diffusion"  # name of the settings of generators that suit it (configs/text-to-mesh/)
    guidance_embedded: bool = False  # the guidance scale is an input of the network, not a second branch
    negative_embedded: bool = False  # so is the negative prompt; its scale is in the weights
    recommended: Recommended = Recommended()
    reads: frozenset[str] = frozenset({"text"})  # names of the rows that the network is told, beside a guidance scale
    dtype: torch.dtype = torch.float32
    nfe: int = 0
    rows_at_once: int | None = None  # asked in one call of the network, for less memory; None: all
    _device: torch.device = torch.device("cpu")

    @property
    def device(self) -> torch.device:
        """Where states and conditions have to be."""
        return self._device

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """The networks by name."""

    @abstractmethod
    def encode_text(self, prompts: str | Sequence[str], negative: str | Sequence[str] | None = None) -> Condition:
        """Condition with an unconditional branch (the negative prompts, or the empty one)."""

    @abstractmethod
    def _forward(self, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        """One network call: states (B, C, h, w), model times (B,), B rows."""

    @abstractmethod
    def encode(
        self, images: Tensor, sample: bool = False, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """Scaled latents (B, C, h, w) of images (B, 3, H, W) in [0, 1]; differentiable.

        The posterior's mean, or with `sample` a draw from it.
        """

    @abstractmethod
    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of scaled latents; differentiable, outside [0, 1] too with clamp=False."""

    def predict(self, x: Tensor, time: Tensor | float, rows: Rows) -> Tensor:
        """Raw network output (B, C, h, w) in the dtype of x (at least float32 for half networks).

        Args:
            x: state (B, C, h, w).
            time: model time, a number or (B,), fractional allowed.
            rows: B of them, or one group, repeated.

        Raises InputError for rows that the network does not read.
        """
        count = x.shape[0]
        read = self.reads | {"guidance"} if self.guidance_embedded else self.reads
        if odd := rows.tensors.keys() - read - {LEVEL_TIME}:
            told = f"takes no rows called {', '.join(sorted(odd))}; it reads {', '.join(sorted(read))}"
            raise InputError(f"the prior {self.name!r} {told}")
        rows = rows.for_batch(count)
        self.nfe += count
        if not isinstance(time, Tensor):
            time = torch.tensor(time, dtype=torch.promote_types(x.dtype, torch.float32))
        time = time.to(x.device).expand(count)
        part = count if self.rows_at_once is None else max(self.rows_at_once // rows.frames, 1) * rows.frames
        if part >= count:
            return self._forward(x, time, rows).to(x.dtype)
        parts = [slice(first, first + part) for first in range(0, count, part)]
        return torch.cat([self._forward(x[one], time[one], rows.index(one)) for one in parts]).to(x.dtype)

    def encode_bytes(self, height: int, width: int, by_block: bool = False) -> int:
        """About how much autograd keeps of an encoded image (`encode_by_block`); 0 where that is little."""
        return 0

    def encode_by_block(self, wanted: bool) -> None:  # noqa: B027 (most priors have nothing to do)
        """Whether the encoder's blocks are computed again in the backward pass, where it has such: less is kept."""

    def row_bytes(self, height: int, width: int) -> int:
        """About how much a row of a network call needs for an image of that size while it lasts; 0 where unknown."""
        return 0

    def decode_bytes(self, height: int, width: int) -> int:
        """About how much the decoder needs for an image of that size; 0 where unknown."""
        return 0

    def smaller_setting(self) -> str:
        """What to do when this prior needs more memory than there is."""
        return "use smaller renders (optimise.sizes) or another device"

    @property
    def multiview(self) -> bool:
        """Whether the views of an object see each other and are told their cameras."""
        return self.frames > 1

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of every network."""
        for module in self.modules().values():
            yield from module.parameters()

    def freeze(self: P) -> P:
        """No gradients for the weights, evaluation mode; gradients still flow through."""
        for module in self.modules().values():
            module.requires_grad_(False).eval()
        return self

    def to(self: P, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> P:
        """Moves and casts every network."""
        for module in self.modules().values():
            module.to(device=device, dtype=self._dtype_for(module, dtype))
        self._device = torch.device(device) if device is not None else self._device
        self.dtype = dtype or self.dtype
        return self

    def _dtype_for(self, module: nn.Module, dtype: torch.dtype | None) -> torch.dtype | None:
        """The dtype a network is cast to when the prior is cast to `dtype`."""
        return dtype

    def tokens(self, latents: Tensor) -> int:
        """Image tokens of a latent batch, for flows whose shift depends on them; 0 when it does not."""
        return 0

    def truncated(self, prompt: str) -> str:
        """The end of the prompt that the text encoder cannot see; empty when all of it is seen."""
        return ""

    def unknown_words(self, prompt: str) -> list[tuple[str, list[str]]]:
        """Words the prior has never seen with the nearest words it knows; empty for open-vocabulary priors."""
        return []

    def save(self, folder: str | Path) -> Path:
        """Writes a folder `load_prior` reads."""
        raise UnprojectError(f"the prior {self.name!r} has no files to save")
