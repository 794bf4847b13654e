"""The one interface behind which every frozen backbone sits, and the condition it is asked with.

Latents are (B, C, h, w) and already scaled as the network wants them; images are (B, 3, H, W) in [0, 1], sRGB.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ...utils.errors import InputError, UnprojectError

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


@dataclass
class Condition:
    """What the network is told, one row per image (for multi-view: views of one object contiguous)."""

    embeds: Tensor  # (B, L, D) text embeddings
    null: Tensor | None = None  # (B, L, D) of the negative or empty prompt
    pooled: Tensor | None = None  # (B, P)
    null_pooled: Tensor | None = None  # (B, P)
    prompts: list[str] = field(default_factory=list)
    cameras: Tensor | None = None  # (B, 16), row-major camera-to-world with unit translation
    frames: int = 1  # views that see each other
    extra: dict[str, Any] = field(default_factory=dict)  # e.g. "guidance" of guidance-distilled models

    @property
    def rows(self) -> int:
        """Number of images described."""
        return self.embeds.shape[0]

    def _mapped(self, change: Callable[[Tensor], Tensor], prompts: list[str]) -> Condition:
        tensors: dict[str, Any] = {
            f.name: change(v) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, prompts=prompts, **tensors)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Condition:
        """Every tensor on a device and in a dtype."""
        return self._mapped(lambda t: t.to(device=device, dtype=dtype), self.prompts)

    def repeat_interleave(self, n: int) -> Condition:
        """Every row n times, copies adjacent (images per prompt, views per object)."""
        prompts = [p for p in self.prompts for _ in range(n)]
        return self._mapped(lambda t: t.repeat_interleave(n, 0), prompts)

    def index(self, rows: slice | Tensor | Sequence[int]) -> Condition:
        """The chosen rows."""
        chosen = torch.arange(self.rows)[rows].tolist() if isinstance(rows, slice) else [int(i) for i in rows]
        prompts = [self.prompts[i] for i in chosen] if self.prompts else []
        return self._mapped(lambda t: t[torch.tensor(chosen, device=t.device)], prompts)

    def with_views(self, cameras: Tensor, frames: int) -> Condition:
        """Each prompt seen from `frames` cameras: (F, 16) shared by all prompts, or (rows * F, 16)."""
        grown = self.repeat_interleave(frames)
        if cameras.shape[0] == frames:
            cameras = cameras.repeat(self.rows, 1)
        if cameras.shape != (grown.rows, 16):
            raise InputError(
                f"cameras have shape {tuple(cameras.shape)}, expected {(grown.rows, 16)} or {(frames, 16)}"
            )
        return replace(grown, cameras=cameras.to(grown.embeds), frames=frames)

    def guided(self) -> Condition:
        """Both guidance branches in one batch (2B), unconditional rows first; cameras stay in both."""
        if self.null is None:
            raise InputError("this condition has no unconditional branch: encode the text with a negative prompt")
        pooled = None if self.pooled is None or self.null_pooled is None else torch.cat([self.null_pooled, self.pooled])
        return replace(
            self,
            embeds=torch.cat([self.null, self.embeds]),
            null=None,
            pooled=pooled,
            null_pooled=None,
            prompts=[*([""] * len(self.prompts)), *self.prompts],
            cameras=None if self.cameras is None else self.cameras.repeat(2, 1),
        )

    def matched(self, rows: int, embeds: Tensor | None = None) -> Condition:
        """This condition for a batch of `rows`: with other embeddings (a multiple of the rows), or one row expanded."""
        if embeds is None:
            if rows == self.rows:
                return self
            if self.rows == 1:
                return self.repeat_interleave(rows)
            raise InputError(f"a batch of {rows} latents does not fit a condition of {self.rows} rows")
        if embeds.shape[0] != rows or rows % self.rows:
            raise InputError(f"{embeds.shape[0]} embeddings and {self.rows} condition rows do not fit {rows} latents")
        copies = rows // self.rows
        pooled = self.pooled
        if pooled is not None and copies == 2 and self.null_pooled is not None:
            pooled = torch.cat([self.null_pooled, pooled])
        elif pooled is not None:
            pooled = pooled.repeat(copies, 1)
        cameras = None if self.cameras is None else self.cameras.repeat(copies, 1)
        return replace(self, embeds=embeds, null=None, pooled=pooled, null_pooled=None, cameras=cameras)


class Prior(ABC):
    """A frozen backbone. `nfe` counts network rows asked so far."""

    name: str = "prior"
    prediction_type: PredictionType = "epsilon"
    scheduler_config: Mapping[str, Any]
    latent_shape: tuple[int, int, int]
    image_size: int
    vae_factor: int = 1
    latent_multiple: int = 1  # latent sides must be multiples of this
    guidance_embedded: bool = False  # the guidance scale is an input of the network, not a second branch
    recommended: Recommended = Recommended()
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    nfe: int = 0

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """The networks by name."""

    @abstractmethod
    def encode_text(self, prompts: str | Sequence[str], negative: str | Sequence[str] | None = None) -> Condition:
        """Condition with an unconditional branch (the negative prompts, or the empty one)."""

    @abstractmethod
    def _forward(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        """One network call on matching rows, inputs already in the network's dtype."""

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

    def predict(
        self, x: Tensor, time: Tensor | float, condition: Condition, *, embeds: Tensor | None = None, **added: Any
    ) -> Tensor:
        """Raw network output (B, C, h, w) in the dtype of x (at least float32 for half networks).

        Args:
            x: state (B, C, h, w).
            time: model time, a number or (B,), fractional allowed.
            condition: B rows (or one, expanded); its `embeds` are used unless given.
            embeds: (B, L, D) instead of the condition's, e.g. both guidance branches; B a multiple of its rows.
            added: entries that override the condition's `extra`.
        """
        rows = x.shape[0]
        condition = condition.matched(rows, embeds)
        if added:
            condition = replace(condition, extra={**condition.extra, **added})
        self.nfe += rows
        if not isinstance(time, Tensor):
            time = torch.tensor(time, dtype=torch.promote_types(x.dtype, torch.float32))
        time = time.to(x.device).expand(rows)
        return self._forward(x, time, condition).to(x.dtype)

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
            module.to(device=device, dtype=dtype)
        self.device = torch.device(device) if device is not None else self.device
        self.dtype = dtype or self.dtype
        return self

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
