"""A sharper second look at a one-step guess (Ye et al. 2024, StableNormal): few steps at low noise, told the picture's
latents and what the picture means.

The guess is the latent of a one-step head (their YOSO). The refiner tells x0; it is a copy of the prior's U-Net with
a control by the picture's latents (`latent_control`) and features of the frozen prior added inside (`meaning`), walked
by `HeldThenDDIM` from the guess itself. The noise of each row is seeded by its own starting state, so that a batch is
its rows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ..core.priors import Condition, Rows
from ..core.priors.control import CONTROL, PictureControl
from ..core.sampling import Denoiser, Kind, Level, NoiseSchedule, Sampler
from ..core.sampling.features import Look, picture_features
from ..core.sampling.solvers.held import HeldGrid, HeldThenDDIM
from ..core.training.adapters import adapted
from ..utils.configs import load_config
from ..utils.errors import InputError
from ..utils.files import read_json
from ..utils.seeds import generator
from .geometry_head import ENDS, MANIFEST, GeometryHead, HeadConfig
from .head_files import read_weights
from .latent_control import CONTROL_ENDS, LatentControl
from .meaning import MEANING, AddedMeaning, MeaningEncoder
from .one_map import OneMapHead
from .one_step import OneStepHead
from .walk import USUAL, Walk

READ_WHOLE = {"unet": ENDS, "hint": CONTROL_ENDS, "meaning": ("merge", "gates")}


@dataclass(frozen=True)
class RefineConfig:
    """How a guess is refined."""

    target: str = "normals"
    """of the head's targets"""
    steps: int = 10
    held: float = 0.5
    """share of the steps that stay at one level"""
    kind: Literal["prior", "sample"] = "prior"
    """what the network's output means: what the prior's does, so that a fresh refiner already denoises, or x0 itself,
    as published; x0 is read of either"""
    prompt: str = ""
    """published: "The normal map" """
    meaning: bool = True
    """whether features of the prior are added inside"""
    rank: int = 0
    """of the adapters that its networks learn as, beside what reads and writes; 0: all their weights"""
    look: Look = field(default_factory=Look)
    """how these features are taken"""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps={self.steps} must be at least 1")


class RefinedHead(OneMapHead):
    """A one-step head and the refiner of one of its targets."""

    kind = "refined"
    stands_on = 'the one-step head that this refines, for example base="toybox-geometry"'

    def __init__(self, first: GeometryHead | OneStepHead, settings: RefineConfig, seed: int = 0) -> None:
        """An untrained refiner: the prior's own U-Net, told nothing new yet by the meaning."""
        if settings.target not in first.config.targets:
            raise InputError(f"target={settings.target!r}: the head predicts {', '.join(first.config.targets)}")
        self.first, prior = first, first.prior
        asked, told = int(prior.network.config["in_channels"]), int(prior.vae.config["latent_channels"])  # type: ignore[index]
        if asked != told:
            raise InputError(
                f"the one-step head brings a codec of {told} channels, where the prior's own has {asked}: a refiner "
                "needs a head on the prior's own, as `unproject train normals-one-step` makes"
            )
        codecs = {name: first.config.codecs[name] for name in first.config.codecs if name == settings.target}
        kind: Kind = prior.prediction_type if settings.kind == "prior" else "sample"
        config = HeadConfig(
            targets=(settings.target,),
            kind=kind,
            start="noise",
            steps=settings.steps,
            spacing="leading",
            processing_resolution=first.config.processing_resolution,
            alignment=first.config.alignment,
            codecs=codecs,
        )
        super().__init__(prior, settings, config)
        self.schedule = NoiseSchedule.from_config(prior.scheduler_config)
        self.unet: UNet2DConditionModel = copy.deepcopy(self.prior.network)
        self.hint = LatentControl(self.unet, self.prior.latent_shape[0], seed)
        controls: list[PictureControl] = [PictureControl(self.hint, row=CONTROL)]
        if settings.meaning:
            channels = sum(one.shape[1] for one in self._features(torch.zeros(1, *self.prior.latent_shape)))
            self.meaning = MeaningEncoder(self.unet, channels, seed)
            controls.append(AddedMeaning(self.meaning, unet=self.unet))
        if settings.rank:
            for name, module in self.modules().items():
                adapted(module, settings.rank, whole=READ_WHOLE[name], seed=seed)
        self.asked = self.prior.with_network(self.unet, kind).controlled(controls)
        self.text = self.prior.encode_text([settings.prompt])["cond"]["text"]
        self._before = self.prior.nfe

    @property
    def nfe(self) -> int:
        """Network rows asked so far: by the first head, for features, and by the refiner."""
        return self.first.nfe + (self.prior.nfe - self._before) + self.asked.nfe

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return self.first.device

    def modules(self) -> dict[str, nn.Module]:
        """What learns."""
        return {"unet": self.unet, "hint": self.hint, **({"meaning": self.meaning} if self.settings.meaning else {})}

    def with_settings(self, **changes: Any) -> RefinedHead:
        """The same networks walked otherwise: steps or held share."""
        other = copy.copy(self)
        other.settings = replace(self.settings, **changes)
        other.config = replace(self.config, steps=other.settings.steps)
        return other

    def _features(self, latents: Tensor) -> list[Tensor]:
        return picture_features(self.prior, latents.to(self.prior.device), self.settings.look)

    def guess(self, image_latents: Tensor, start: Tensor) -> Tensor:
        """The first head's latents (B, C, h, w) of the target; `start` is its noise where it takes some."""
        whole = start.repeat(1, self.first.groups, 1, 1)
        begun = torch.zeros_like(whole) if self.first.config.start == "zeros" else whole
        found = self.first.predict(image_latents, begun)
        return found.chunk(self.first.groups, 1)[self.first.config.targets.index(self.settings.target)]

    def condition(self, image_latents: Tensor) -> Condition:
        """What the refiner is told of images (B, C, h, w)."""
        count, size = len(image_latents), image_latents.shape[2:]
        rows = {"text": self.text.to(image_latents.device).expand(count, -1, -1), CONTROL: image_latents}
        if self.settings.meaning:
            seen = self._features(image_latents)
            sized = [nn.functional.interpolate(one, size, mode="bilinear") for one in seen]
            rows[MEANING] = torch.cat(
                [one / one.square().mean((1, 2, 3), keepdim=True).sqrt().clamp(min=1e-6) for one in sized], 1
            )
        return Condition({"cond": Rows(rows)})

    def grid(self, steps: int | None = None) -> HeldGrid:
        """The levels of a run."""
        return HeldGrid.of(self.schedule, steps or self.settings.steps, self.settings.held)

    def levels(self) -> list[Level]:
        """The distinct levels that the refiner is asked at."""
        asked = self.grid().levels[:-1]
        return list({level.index: level for level in asked}.values())

    @torch.no_grad()
    def predict(self, image_latents: Tensor, start: Tensor, walk: Walk = USUAL) -> Tensor:
        """Refined latents (B, C, h, w) of images (B, C, h, w); `start`, noise of that shape, seeds what is drawn."""
        grid = self.grid(walk.steps)
        denoiser = Denoiser(self.asked, self.condition(image_latents))
        guess = self.guess(image_latents, start)
        return Sampler(HeldThenDDIM(grid)).run(denoiser, guess, grid.levels, own_generators(start), walk.callback)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> RefinedHead:
        """Moves and casts the networks."""
        self.first.to(device, dtype)
        for module in self.modules().values():
            module.to(device=device, dtype=dtype)
        self.asked.to(device, dtype)
        self.text = self.text.to(device=device, dtype=dtype)
        return self

    @classmethod
    def load(cls, folder: str | Path, first: GeometryHead | OneStepHead) -> RefinedHead:
        """Reads what `save` wrote onto the one-step head that it names (`heads.load_head` finds it)."""
        folder = Path(folder)
        head = cls(first, load_config(RefineConfig, read_json(folder / MANIFEST)["config"]))
        read_weights(folder, head.modules(), first.device)
        return head


def own_generators(start: Tensor) -> Sequence[torch.Generator]:
    """A generator for each row of a starting state (B, C, h, w), seeded by its first values."""
    bits = start.detach().float().cpu().flatten(1)[:, :2].contiguous().view(torch.int32).tolist()
    return [generator((abs(int(a)) << 31) + abs(int(b))) for a, b in bits]
