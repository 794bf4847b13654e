"""What the trials of the table of heads share: sizes, data rendered once, sources, budget, and how errors are taken.

A head stands on one of three sources: the embedded prior, the same network with random weights, or the colours of the
picture alone. Whatever learns gets the same number of updates, batches, pictures and the same rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.priors import StableDiffusionPrior
from ..core.training.config import TrainerConfig
from ..core.training.objectives.base import Trainable
from ..core.training.sampling_order import Data
from ..tasks.codecs import CameraCodec, DepthCodec, NormalCodec, TargetCodec
from ..tasks.data import AugmentConfig, CameraColumns, GeometryData
from ..tasks.train import random_unet_like
from ..toybox.pbr_set import PbrSet
from ..toybox.sensor import SensorModel
from ..toybox.sensor_pairs import SensorPairs
from ..utils.pictures import grid, save_image
from .materialfusion import HEAD, LitBalls
from .preimage_depth import DAMAGES
from .remembered import Memory, once_encoded
from .rendered import RenderedPlaces
from .short_training import trained

PRIOR, RANDOM, COLOURS = SOURCES = ("embedded prior", "random weights", "RGB only")
PICTURES, TRUTH, DAMAGED = "pictures", "truth", "damaged"  # strips of the sheets
PLAIN = AugmentConfig(gain=0, contrast=0, noise=0)  # mirrored or not: the codec reads each picture twice at most
Record = dict[str, Any]
Maps = Callable[[Tensor], Tensor]  # (B, C, H, W) of images (B, 3, H, W) in [0, 1]


class Asked(NamedTuple):
    """A head as it is asked, and how many network rows it has asked so far."""

    maps: Maps
    nfe: Callable[[], int]


@dataclass(frozen=True)
class HeadsBench:
    """Sizes of the experiment."""

    updates: int = 150
    """of whatever learns, for each head, source and seed"""
    batch: int = 4
    lr: float = 1e-3
    seeds: tuple[int, ...] = (0, 1, 2)
    size: int = 32
    """px of rooms and surfaces"""
    groups: tuple[int, int] = (48, 8)
    """rooms to learn from and to measure on, four eyes each"""
    steady: tuple[int, int, int] = (8, 4, 50)
    """pictures, starting noises and steps of the sampler whose variance is compared"""
    members: int = 10
    """of an ensemble of that sampler"""
    pairs: int = 24
    """of toys whose points are carried over, others for each seed"""
    pair_px: int = 64
    materials: tuple[int, int, int] = (96, 48, 10)
    """learnt from, drawn, and steps of a drawing"""
    balls: tuple[int, int] = (96, 2)
    """learnt from, and explained for each seed"""
    fit_steps: int = 60
    """of an explanation"""
    sensor_steps: int = 10
    """of a drawn measurement"""
    shown: int = 6
    """pictures on the sheets"""
    work: str = "runs/bench/heads"


QUICK = HeadsBench(
    updates=2,
    batch=2,
    seeds=(0,),
    groups=(2, 1),
    steady=(1, 2, 2),
    members=2,
    pairs=1,
    materials=(4, 3, 2),
    balls=(2, 1),
    fit_steps=2,
    sensor_steps=2,
    shown=2,
    work="runs/bench/heads-quick",
)


@dataclass
class Lab:
    """One prior, its data, and where pictures of a trial are kept."""

    config: HeadsBench
    given: StableDiffusionPrior
    place: Path
    sheets: bool = False
    """whether the running trial leaves pictures for the sheets"""
    memory: Memory = field(default_factory=Memory)
    """of what frozen networks say of pictures, while something learns"""

    @cached_property
    def prior(self) -> StableDiffusionPrior:
        """The embedded prior, whose codec reads each picture of a training once."""
        return once_encoded(self.given, self.memory)

    def prior_of(self, source: str, seed: int) -> StableDiffusionPrior:
        """The prior, or the same with a network that has learnt nothing."""
        if source == PRIOR:
            return self.prior
        return self.prior.with_network(random_unet_like(self.prior.network, seed), self.prior.prediction_type)  # type: ignore[arg-type]

    def settings(self, seed: int) -> TrainerConfig:
        """The budget of every training."""
        config = self.config
        return TrainerConfig(
            steps=config.updates,
            batch=config.batch,
            lr=config.lr,
            seed=seed,
            warmup=config.updates // 20,
            ema=0.98,
            save_every=config.updates,
        )

    @cached_property
    def rooms(self) -> tuple[RenderedPlaces, RenderedPlaces]:
        """To learn from, and to measure on, with all maps."""
        learnt, held = self.config.groups
        size = self.config.size
        return RenderedPlaces("train", learnt, size, maps=True), RenderedPlaces("test", held, size, maps=True)

    @cached_property
    def train(self) -> GeometryData:
        """Rooms with depth, normals and rays."""
        columns = [kind.column for kind in (DepthCodec, NormalCodec, CameraCodec)]
        return GeometryData([CameraColumns(self.rooms[0])], PLAIN, columns)

    @cached_property
    def test(self) -> dict[str, np.ndarray]:
        """All test rooms as a batch, and their cameras "K" (B, 3, 3)."""
        data = GeometryData([CameraColumns(self.rooms[1])], PLAIN, self.train.columns)
        every = np.arange(len(data))
        return {**data.batch(every, None), "K": self.rooms[1].column("K", every)}

    @cached_property
    def surfaces(self) -> PbrSet:
        """Surfaces with their words, to learn from."""
        return PbrSet("train", self.config.materials[0], self.config.size)

    @cached_property
    def balls(self) -> GeometryData:
        """Balls under lamps with what they are made of, to learn from."""
        codec = HEAD.codec()
        return GeometryData([LitBalls("train", self.config.balls[0], self.config.size)], PLAIN, codec.columns())

    @cached_property
    def measured(self) -> tuple[SensorPairs, SensorPairs]:
        """What a sensor measures of the rooms."""
        one, other = (SensorPairs(rooms, SensorModel(window_px=0.7)) for rooms in self.rooms)
        return one, other

    @contextmanager
    def learnt(self, objective: Trainable, seed: int, data: Data | None = None) -> Iterator[Record]:
        """What a training within the budget has cost; inside, the modules hold the averaged weights.

        data: the rooms, unless given.
        """
        data, settings = data or self.train, self.settings(seed)
        began, self.memory.on = time.process_time(), True
        with torch.enable_grad(), trained(objective, data, settings):
            took, self.memory.on = time.process_time() - began, False
            yield {"updates": settings.steps, "batch": settings.batch, "train_s": took}

    def mapped(self, name: str, codec: TargetCodec, measure: str, asked: Asked) -> Record:
        """The mean of a codec's metric over the test rooms, clean and damaged; pictures of it, when these are kept."""
        target, valid = codec.truth(torch.from_numpy(self.test[codec.column.batch]).float())

        def error(images: np.ndarray) -> float:
            return float(codec.metrics(asked.maps(tensor(images)), target, valid)[measure].nanmean())

        if self.sheets:
            self._shown(name, codec, asked.maps, target, valid)
        return self.recorded(error, asked.nfe)

    def recorded(self, error: Callable[[np.ndarray], float], nfe: Callable[[], int]) -> Record:
        """Error on the test rooms (lower is better), calls and seconds of a picture, and the error on damaged rooms
        over that; `nfe` counts the network rows asked so far."""
        return recorded(error, nfe, self.test["images"], self.test["depth_m"])

    def _shown(self, name: str, codec: TargetCodec, maps: Maps, target: Tensor, valid: Tensor) -> None:
        """Strips for the sheets: a few test rooms, and the first one clean and damaged in every way."""
        pictures = self.test["images"][: self.config.shown]
        first = (pictures[:1], self.test["depth_m"][:1])
        worse = np.concatenate([pictures[:1], *(damage(*first) for damage in DAMAGES.values())])
        places = [*range(len(pictures)), *[0] * len(worse)]
        found = maps(tensor(np.concatenate([pictures, worse])))
        both = [codec.compared(found[i : i + 1], target[k : k + 1], valid[k : k + 1]) for i, k in enumerate(places)]
        head = name.rsplit(", ", 1)[0]
        for title, tiles in (
            (PICTURES, pictures),
            (f"{PICTURES}, {DAMAGED}", worse),
            (name, [said for said, _ in both[: len(pictures)]]),
            (f"{name}, {DAMAGED}", [said for said, _ in both[len(pictures) :]]),
            (f"{head}, {TRUTH}", [true for _, true in both[: len(pictures)]]),
        ):
            save_image(self.place / f"{title}.png", grid(list(tiles), columns=len(tiles)))


def recorded(
    error: Callable[[np.ndarray], float], nfe: Callable[[], int], images: np.ndarray, depth_m: np.ndarray
) -> Record:
    """See Lab.recorded; of images uint8 (B, H, W, 3) whose depth (B, H, W) says what fog does."""
    before, began = nfe(), time.process_time()
    clean = error(images)
    took, calls = time.process_time() - began, nfe() - before
    made: Record = {"error": clean, "calls": calls / len(images), "picture_s": took / len(images)}
    for name, damage in DAMAGES.items():
        made[name] = error(damage(images, depth_m)) / max(clean, 1e-9)
    return made


def tensor(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) as (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
