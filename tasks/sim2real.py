"""What a depth sensor would measure of clean depth: Stable-Sim2Real (2025), one network asked in two stages.

Stage 1 draws the residual between measured and clean depth, told the clean depth; stage 2 draws it again, told what
stage 1 drew too. A stage is the prior's U-Net with its encoder frozen, controlled by a copy of that encoder which reads
the latents of the hint (`latent_control`); it answers x0 and is walked by DDIM without guidance or text.

Latents are those of the prior's VAE, or with `latents: patches` the pixels themselves, p x p of them as p^2 channels:
a codec that was made for pictures does not give back noise that differs from pixel to pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core.priors import Condition, weights_root
from ..core.priors.control import CONTROL, PictureControl
from ..core.priors.diffusers import StableDiffusionPrior, StableDiffusionXLPrior
from ..core.priors.rows import COND
from ..core.sampling import DDIM, Denoiser, Level, NoiseSchedule, Prediction, Sampler
from ..core.sampling.grids import Spacing
from ..core.sampling.sampler import StepCallback
from ..core.training.adapters import adapted, own_weights, packed
from ..core.training.checkpoints import copy_into
from ..core.training.export import folder_path
from ..utils.configs import load_config, to_dict
from ..utils.errors import InputError
from ..utils.files import check_named, read_json, write_json
from ..utils.runs import versions
from ..utils.seeds import generator, sample_noise
from .bases import named_prior
from .codecs.residual import ResidualDepthCodec, SensorOutput
from .latent_control import DECODER, ENCODER, LatentControl, grown_unet
from .tiling import blend, tile_boxes

MANIFEST = "sensor.json"
EMBEDDED = "toybox-sim2real"
HOW_TO_TRAIN = "train one: `unproject train sim2real` and `unproject train sim2real-refine`, then give its folder"
UNetPrior = StableDiffusionPrior | StableDiffusionXLPrior


@dataclass(frozen=True)
class SensorConfig:
    """How a stage is asked; saved with its weights."""

    stage: Literal[1, 2] = 1
    """2: it is told what stage 1 drew"""
    codec: ResidualDepthCodec = field(default_factory=ResidualDepthCodec)
    latents: Literal["vae", "patches"] = "vae"
    """of the prior's VAE, or the pixels themselves"""
    patch: int = 2
    """p, pixels of a side of a patch"""
    gain: float = 1.0
    """on the latents of residuals, so that they have about unit variance"""
    rank: int = 0
    """of the adapters that the decoder and the copy of the encoder learn as; 0: all their weights. What reads and
    writes latents that are not the prior's is learnt whole"""
    enlarge: int = 1
    """each pixel of the sensor becomes so many, squared, before the VAE"""
    steps: int = 50
    spacing: Spacing = "leading"
    tile: int = 64
    """latents; larger maps are asked in windows of so many"""
    overlap: int = 16
    """latents that neighbouring windows share"""

    def __post_init__(self) -> None:
        if self.stage not in (1, 2) or self.latents not in ("vae", "patches"):
            raise InputError(f"stage={self.stage} must be 1 or 2, latents={self.latents!r} vae or patches")
        if min(self.enlarge, self.patch, self.steps) < 1 or self.gain <= 0 or self.rank < 0:
            told = f"enlarge={self.enlarge}, patch={self.patch}, steps={self.steps} must be at least 1"
            raise InputError(f"{told}, gain={self.gain} above 0, rank={self.rank} not below 0")
        if not 0 <= self.overlap < self.tile:
            raise InputError(f"overlap={self.overlap} must lie in [0, tile={self.tile})")


class SensorStage:
    """A network that draws residuals, and the prior whose codec and empty prompt it uses."""

    def __init__(self, prior: UNetPrior, config: SensorConfig = SensorConfig(), seed: int = 0) -> None:
        """As it is before it has learnt; new kernels come from the seed."""
        self.prior, self.config, self.codec = prior, config, config.codec
        self.schedule = NoiseSchedule.from_config(prior.scheduler_config)
        own = int(prior.network.config["in_channels"])  # type: ignore[index]
        self.unit = config.patch**2 if config.latents == "patches" else own  # channels of a picture
        self.channels = self.unit * self.codec.groups
        hint = self.unit if config.stage == 1 else self.unit + self.channels
        self.unet = grown_unet(prior.network, self.channels, seed)  # type: ignore[arg-type]
        self.control = LatentControl(prior.network, hint, seed)  # type: ignore[arg-type]
        first = ("conv_in",) if config.latents == "patches" or self.channels != own else ()
        ends = DECODER[bool(config.rank) :]  # which write latents
        adapted(self.unet, config.rank, DECODER[:1], (*ends, *first), seed)
        self.control.requires_grad_(True)
        if config.rank:
            adapted(self.control, config.rank, [f"body.{part}" for part in ENCODER], ("merge",), seed)
        asked = prior.with_network(self.unet, "sample")
        self.asked = asked.controlled([PictureControl(self.control)])
        self._empty = Condition({COND: prior.encode_text("")[COND]})

    @property
    def cell(self) -> int:
        """Pixels of the sensor whose sides have to be whole multiples of it."""
        if self.config.latents == "patches":
            return self.config.patch
        return self.prior.vae_factor // math.gcd(self.prior.vae_factor, self.config.enlarge)

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the latents of a map whose sides are multiples of `cell`."""
        grown, factor = (
            (1, self.config.patch) if self.config.latents == "patches" else (self.config.enlarge, self.prior.vae_factor)
        )
        return height * grown // factor, width * grown // factor

    def modules(self) -> dict[str, nn.Module]:
        """What learns."""
        return {"unet": self.unet, "control": self.control}

    def to_latents(self, pictures: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Latents (B, C, h, w) of a picture (B, 3, H, W) in [-1, 1]; with `rng` a draw from the VAE's posterior."""
        if self.config.latents == "patches":
            return F.pixel_unshuffle(pictures[:, :1], self.config.patch)
        large = pictures.repeat_interleave(self.config.enlarge, 2).repeat_interleave(self.config.enlarge, 3)
        return self.prior.encode(large / 2 + 0.5, sample=rng is not None, generator=rng)

    def to_picture(self, latents: Tensor) -> Tensor:
        """Inverse of `to_latents`, as far as there is one."""
        if self.config.latents == "patches":
            return F.pixel_shuffle(latents, self.config.patch).expand(-1, 3, -1, -1)
        return F.avg_pool2d(2 * self.prior.decode(latents, clamp=False) - 1, self.config.enlarge)

    def encode(self, measured: Tensor, clean: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Latents (B, groups C, h, w) of measured depth (B, 1, H, W) beside the clean one."""
        residual, *holes = (self.to_latents(one, rng) for one in self.codec.encode(measured, clean).unbind(1))
        return torch.cat([self.config.gain * residual, *holes], 1)

    def decode(self, latents: Tensor, clean: Tensor) -> Tensor:
        """Measured depth (B, 1, H, W) of latents."""
        residual, *holes = latents.split(self.unit, 1)
        groups = [residual / self.config.gain, *holes]
        return self.codec.decode(torch.stack([self.to_picture(one) for one in groups], 1), clean)

    def hint(self, clean: Tensor, first: Tensor | None, rng: torch.Generator | None = None) -> Tensor:
        """Latents (B, c, h, w) that the stage is told: of the clean depth, and of what stage 1 drew."""
        if (first is None) != (self.config.stage == 1):
            given = "nothing" if first is None else "a first measurement"
            raise InputError(f"stage {self.config.stage} got {given} beside the clean depth; stage 2 alone takes one")
        told = [self.to_latents(self.codec.clean_picture(clean), rng)]
        return torch.cat(told if first is None else [*told, self.encode(first, clean, rng)], 1)

    def denoiser(self, hint: Tensor) -> Denoiser:
        """The stage for fixed hints (B, c, h, w)."""
        return Denoiser(self.asked, self._empty.for_batch(len(hint)).with_rows(**{CONTROL: hint}))

    def windowed(self, hint: Tensor) -> Callable[[Tensor, Level], Prediction]:
        """`denoiser` of any size: windows of one state, whose answers are blended at every level.

        Windows see the same noise, so that what they draw of it agrees; blending finished windows would average it.
        """
        height, width = hint.shape[2:]
        boxes = tile_boxes(height, width, self.config.tile, self.config.overlap)
        parts = [self.denoiser(box.of(hint)) for box in boxes]
        if len(parts) == 1:
            return parts[0]

        def ask(x: Tensor, level: Level) -> Prediction:
            found = [part(box.of(x), level).x0 for part, box in zip(parts, boxes, strict=True)]
            return Prediction(x, level, blend(found, boxes, height, width), "sample")

        return ask

    @torch.no_grad()
    def draw(
        self,
        clean: Tensor,
        first: Tensor | None,
        generators: Sequence[torch.Generator],
        steps: int | None = None,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Measured depth (B, 1, H, W) in metres of clean depth whose sides are multiples of `cell`."""
        hint = self.hint(clean, first)
        noise = sample_noise((self.channels, *hint.shape[2:]), generators, len(hint), hint.device)
        levels = self.schedule.grid(steps or self.config.steps, self.config.spacing, "zero")
        latents = Sampler(DDIM()).run(self.windowed(hint), noise, levels, callback=callback)
        return self.decode(latents, clean)

    def tensors(self) -> dict[str, Tensor]:
        """The weights that learn, by name; the others are the prior's."""
        return {f"{part}.{name}": p for part, m in self.modules().items() for name, p in own_weights(m).items()}


class SensorSimulator:
    """One or two stages that turn clean depth into what a sensor measures."""

    def __init__(self, stages: Sequence[SensorStage], base: str | None = None) -> None:
        """`base`: name or folder of the prior, for `save`."""
        self.stages, self.base = list(stages), base
        if [stage.config.stage for stage in self.stages] not in ([1], [1, 2]):
            raise InputError("a simulator is stage 1, or stage 1 and stage 2 in this order")
        if len({stage.codec for stage in self.stages}) > 1:
            raise InputError("both stages need the same codec; train stage 2 on stage 1's")

    @property
    def codec(self) -> ResidualDepthCodec:
        """How measurements are told."""
        return self.stages[0].codec

    @property
    def nfe(self) -> int:
        """Network rows asked so far."""
        return sum(stage.asked.nfe for stage in self.stages)

    def __call__(
        self,
        depth_m: np.ndarray | Tensor,
        seed: int | Sequence[int] = 0,
        num_inference_steps: int | None = None,
        ensemble_size: int = 1,
        generator_of: Sequence[torch.Generator] | None = None,
        callback_on_step_end: StepCallback | None = None,
    ) -> SensorOutput:
        """What a sensor would measure.

        Args:
            depth_m: clean z-depth (H, W) or (N, H, W) in metres of any size, 0 where nothing is.
            seed: one for each map, or the first of consecutive ones.
            num_inference_steps: of each stage; None: its own.
            ensemble_size: with more than one, `spread_of` so many measurements is the uncertainty; the first of them is
                the measurement.
            generator_of: a generator for each map instead of seeds.
            callback_on_step_end: called after every step of every stage; see `Sampler.run`.

        Raises InputError for depth of another shape or without any metre in the codec's range.
        """
        clean, count = self._checked(depth_m, ensemble_size)
        if generator_of is None:
            seeds = [seed + i for i in range(count)] if isinstance(seed, int) else list(seed)
            if len(seeds) != count:
                raise InputError(f"seed names {len(seeds)} seeds for {count} maps; give one for each")
            sources = [generator(one) for one in seeds]
        else:
            sources = list(generator_of)
            if len(sources) != count:
                raise InputError(f"got {len(sources)} generators for {count} maps; give one for each")
        before = self.nfe
        members = [
            self.measured(clean, sources, num_inference_steps, callback_on_step_end) for _ in range(ensemble_size)
        ]
        first = members[0].permute(0, 2, 3, 1).cpu().numpy()
        spread = None
        if ensemble_size > 1:
            spread = spread_of(torch.stack(members)).permute(0, 2, 3, 1).cpu().numpy()
        return SensorOutput(
            prediction=first,
            uncertainty=spread,
            valid=first > 0,
            nfe=self.nfe - before,
            seed=seed if isinstance(seed, int) else None,
            coded_by=self.codec,
        )

    def measured(
        self,
        clean: Tensor,
        sources: Sequence[torch.Generator],
        steps: int | None = None,
        callback: StepCallback | None = None,
        stages: int | None = None,
    ) -> Tensor:
        """Measured depth (B, 1, H, W) of clean depth like it; `stages`: only the first so many."""
        height, width = clean.shape[2:]
        cell = math.lcm(*(stage.cell for stage in self.stages))
        padded = F.pad(clean, (0, -width % cell, 0, -height % cell), mode="replicate")
        found: Tensor | None = None
        for stage in self.stages[:stages]:
            found = stage.draw(padded, found, sources, steps, callback)
        assert found is not None
        return found[..., :height, :width]

    def _checked(self, depth_m: np.ndarray | Tensor, members: int) -> tuple[Tensor, int]:
        depth = torch.as_tensor(depth_m)
        if depth.ndim not in (2, 3) or min(depth.shape[-2:]) < 2:
            raise InputError(f"depth_m has shape {tuple(depth.shape)}, expected (H, W) or (N, H, W) in metres")
        if members < 1:
            raise InputError(f"ensemble_size={members} must be at least 1")
        clean = depth.reshape(-1, 1, *depth.shape[-2:]).to(self.stages[0].unet.device, torch.float32)
        clean = torch.where(torch.isfinite(clean), clean, 0.0)
        if not bool(self.codec.seen(clean).flatten(1).any(1).all()):
            near, far = self.codec.range_m[0], self.codec.largest_m
            raise InputError(f"depth_m holds a map without any depth between {near:g} and {far:g} m; is it in metres?")
        return clean, len(clean)

    def save(self, folder: str | Path, base: str | None = None, **facts: Any) -> Path:
        """Writes stage1.safetensors (and stage2), what learnt in fp16, and sensor.json with `facts`.

        Raises InputError without the base's name and for a folder that holds something else.
        """
        folder, base = Path(folder), base or self.base
        if base is None:
            raise InputError('base=None: name the prior that the stages were made of, for example base="toybox"')
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file()):
            raise InputError(f"{folder} is no folder of a sensor and would be replaced; choose another folder")
        with folder_path(folder) as temporary:
            for stage in self.stages:
                save_file(packed(stage.tensors()), temporary / f"stage{stage.config.stage}.safetensors")
            told = {"base": base, "stages": [to_dict(stage.config) for stage in self.stages]}
            write_json(temporary / MANIFEST, {**told, "versions": versions(), **facts})
        return folder


def spread_of(members: Tensor) -> Tensor:
    """Standard deviation (...) over members (E, ...) of those that were measured, 0 where fewer than two were."""
    there = (members > 0).to(members)
    count = there.sum(0)
    mean = (members * there).sum(0) / count.clamp(min=1)
    total = ((members - mean).square() * there).sum(0)
    return torch.where(count > 1, total / (count - 1).clamp(min=1), 0.0).sqrt()


def load_sensor(
    name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> SensorSimulator:
    """A frozen simulator: "toybox", or a folder that `SensorSimulator.save` wrote.

    Raises InputError when it is none, or its prior or weights are missing.
    """
    check_named(name, "the sensor's name", "give toybox or a folder")
    folder = weights_root() / EMBEDDED if str(name) == "toybox" else Path(name)
    if not (folder / MANIFEST).is_file():
        where = "the package holds no weights of a sensor" if str(name) == "toybox" else f"{folder} has no {MANIFEST}"
        raise InputError(f"--prior {name}: {where}; {HOW_TO_TRAIN}")
    told = read_json(folder / MANIFEST)
    if not isinstance(told, dict) or not {"base", "stages"} <= told.keys():
        raise InputError(f"{folder / MANIFEST} must name the base prior and hold the stages")
    kinds: tuple[type[UNetPrior], ...] = (StableDiffusionPrior, StableDiffusionXLPrior)
    prior = named_prior(folder, str(told["base"]), kinds, device, dtype)
    stages = []
    for config in told["stages"]:
        stage = SensorStage(prior, load_config(SensorConfig, config))
        path = folder / f"stage{stage.config.stage}.safetensors"
        try:
            weights = load_file(path)
        except OSError as error:
            raise InputError(f"{folder} is not a whole sensor: {path.name} cannot be read ({error})") from error
        copy_into(stage.tensors(), weights, str(path))
        for module in stage.modules().values():
            module.requires_grad_(False).eval().to(device, dtype)
        stages.append(stage)
    return SensorSimulator(stages, str(told["base"]))
