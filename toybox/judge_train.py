"""Training of the judge: labelled renders, the loss over all questions, and its validation.

The objective has the shape of core.training's objectives without importing them: `modules`, `frozen`, `config`,
`loss(batch, rng, step)`, `validate()`, `preview(step, out)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..utils.errors import InputError
from .dataset import RenderedSet
from .judge import ABSENT, ORDERED_RELATIONS, Judge, head_sizes, labels_of, object_labels, questions, save_judge
from .judge_augment import Augment
from .judge_net import JudgeNet, JudgeShape, build_net, continue_from
from .programs import ObjectProgram

FIRST_INDEX = 10_000_000  # the judge's renders begin here; no generator trains on indices that high
SIDEWAYS_DEG = 8.0  # views this close to 90 degrees are no example for front or back


@dataclass(frozen=True)
class JudgeConfig:
    """What the judge is and how its questions are weighed."""

    shape: JudgeShape = field(default_factory=JudgeShape)
    augment: Augment = field(default_factory=Augment)
    weights: dict[str, float] = field(
        default_factory=lambda: {
            "noun": 2.0,
            "pattern": 0.25,
            "finish": 0.1,
            "count": 0.25,
            "second_noun": 0.25,
            "second_colour": 0.25,
            "front": 0.5,
            "azimuth": 0.5,
        }
    )
    """weight of a question's loss where it is not 1; "front" and "azimuth" are questions too"""
    validation_images: int = 512
    calibration_batches: int = 24
    """batches that measure the normalisation statistics of the averaged weights"""


class JudgeLoss(NamedTuple):
    """A scalar to minimise and named scalars to log."""

    loss: Tensor
    logs: dict[str, Tensor]


class LabelledViews:
    """Pictures and labels of rendered objects and scenes, as batches of arrays."""

    def __init__(self, pictures: RenderedSet) -> None:
        self.pictures = pictures
        rows = [self.row(i) for i in range(len(pictures))]
        self.labels = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        self.identity = {"folders": [folder.name for folder in pictures.folders]}

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """images uint8 (B, S, S, 3) and the labels (B,); `rng` is unused: the loss augments."""
        return {"images": self.pictures.images(indices), **{k: v[indices] for k, v in self.labels.items()}}

    def row(self, index: int) -> dict[str, Any]:
        """The labels of a picture."""
        program, record = self.pictures.program(index), self.pictures.records[index]
        if isinstance(program, ObjectProgram):
            return object_labels(program, float(record["azimuth_deg"]))
        return {**labels_of(program), "front": float("nan"), "azimuth_deg": float("nan")}


def to_images(pictures: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (B, S, S, 3) to float32 (B, 3, S, S) in [0, 1], channels last in memory."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float().div_(255.0)


def mirrored(images: Tensor, batch: dict[str, Any], rng: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
    """Half of the pictures (B, 3, S, S) as a mirror shows them, with the azimuths that then hold.

    Pairs side by side stay as they are: their labels begin with the left one.
    """
    turned = (torch.rand(len(images), generator=rng) < 0.5).numpy()
    turned &= np.asarray(batch["relation"]) != ORDERED_RELATIONS.index("left of")
    flags = torch.from_numpy(turned).to(images.device)[:, None, None, None]
    azimuth = np.where(turned, -batch["azimuth_deg"], batch["azimuth_deg"])
    return torch.where(flags, images.flip(-1), images), {**batch, "azimuth_deg": azimuth}


class JudgeObjective:
    """Trains the judge's network; `held_out` are views that no training batch contains."""

    def __init__(self, config: JudgeConfig, train: LabelledViews, held_out: LabelledViews, seed: int = 0) -> None:
        self.config, self.train, self.held_out = config, train, held_out
        sizes = head_sizes(questions())
        unknown = [name for name in config.weights if name not in sizes]
        if unknown:
            raise InputError(f"weights names {', '.join(unknown)}; the questions are {', '.join(sizes)}")
        self.net: JudgeNet = build_net(config.shape, sizes, seed)
        self.modules: dict[str, nn.Module] = {"judge": self.net}
        self.frozen: dict[str, nn.Module] = {}

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> JudgeLoss:
        """Weighted sum of cross-entropies, of the front's binary one, and of |direction - (cos, sin)|^2."""
        images, batch = mirrored(to_images(batch["images"], self._device), batch, rng)
        logits = self.net(self.config.augment(images, rng))
        losses = {name: _choice_loss(logits[name], batch[name]) for name in questions()}
        losses |= _side_losses(logits, batch["azimuth_deg"])
        total = torch.stack([self.config.weights.get(name, 1.0) * value for name, value in losses.items()]).sum()
        right = _right(logits, batch)
        shares = {f"right_{k}": right[k].float().mean() for k in ("noun", "colour", "front") if len(right[k])}
        return JudgeLoss(total, {**{k: v.detach() for k, v in losses.items()}, **shares})

    def begin_with(self, judge: Judge) -> None:
        """Goes on from an exported judge, in a network as deep or deeper; what it says is the same at first.

        Raises InputError when its answers or its shape do not fit.
        """
        if judge.answers != questions():
            raise InputError("the judge to begin with was asked other questions; train one from scratch")
        continue_from(self.net, judge.net.to(self._device), self._augmented(self.config.calibration_batches))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Share of right answers to each question on held-out renders, and the median azimuth error in degrees."""
        self.calibrate()
        count = min(self.config.validation_images, len(self.held_out))
        chosen = np.linspace(0, len(self.held_out) - 1, count).round().astype(np.int64)
        right: dict[str, list[Tensor]] = {}
        errors = []
        for part in np.array_split(chosen, max(1, count // 64)):
            batch = self.held_out.batch(part, np.random.default_rng(0))
            logits = self.net(to_images(batch["images"], self._device))
            for name, flags in _right(logits, batch).items():
                right.setdefault(name, []).append(flags)
            said = torch.rad2deg(torch.atan2(logits["azimuth"][:, 1], logits["azimuth"][:, 0])).cpu().numpy()
            errors.append(np.abs((said - batch["azimuth_deg"] + 180) % 360 - 180))
        shares = {name: torch.cat(flags).float() for name, flags in right.items()}
        scores = {name: float(flags.mean()) for name, flags in shares.items() if len(flags)}
        off = np.concatenate(errors)
        return {**scores, **({"azimuth_deg": float(np.nanmedian(off))} if np.isfinite(off).any() else {})}

    def preview(self, step: int, out: Path) -> list[Path]:
        """The judge draws nothing."""
        return []

    @torch.no_grad()
    def calibrate(self) -> None:
        """Measures the normalisation statistics of the weights the network holds now, on augmented training views."""
        norms = [m for m in self.net.modules() if isinstance(m, nn.BatchNorm2d)]
        usual = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over the batches
        self.net.train()
        for images in self._augmented(self.config.calibration_batches):
            self.net.features(images)
        for norm, momentum in zip(norms, usual):
            norm.momentum = momentum
        self.net.eval()

    def _augmented(self, batches: int) -> Iterator[Tensor]:
        """Batches (64, 3, S, S) of augmented training views, always the same ones."""
        rng = torch.Generator().manual_seed(0)
        for _ in range(batches):
            indices = torch.randint(len(self.train), (64,), generator=rng).numpy()
            yield self.config.augment(to_images(self.train.pictures.images(indices), self._device), rng)

    def save(self, folder: Path) -> Path:
        """Writes the judge with its validation numbers."""
        return save_judge(self.net, folder, {"validation": {k: round(v, 5) for k, v in self.validate().items()}})

    @property
    def _device(self) -> torch.device:
        return self.net.stem.weight.device


def _choice_loss(logits: Tensor, labels: np.ndarray) -> Tensor:
    """Mean cross-entropy over the pictures that answer the question, 0 when none does."""
    target = torch.from_numpy(np.asarray(labels, np.int64)).to(logits.device)
    total = F.cross_entropy(logits, target, ignore_index=ABSENT, reduction="sum")
    return total / (target != ABSENT).sum().clamp_min(1)


def _side_losses(logits: dict[str, Tensor], azimuth_deg: np.ndarray) -> dict[str, Tensor]:
    """Losses of `front` and `azimuth`; scenes have no azimuth, and views from the side are neither front nor back."""
    angle = torch.from_numpy(np.deg2rad(azimuth_deg)).to(logits["front"])
    alone = torch.isfinite(angle)
    angle = torch.where(alone, angle, 0.0)
    clear = alone & (angle.cos().abs() > float(np.sin(np.deg2rad(SIDEWAYS_DEG))))
    front = F.binary_cross_entropy_with_logits(logits["front"][:, 0], (angle.cos() > 0).float(), reduction="none")
    off = (logits["azimuth"] - torch.stack([angle.cos(), angle.sin()], 1)).square().sum(1)
    return {
        "front": (front * clear).sum() / clear.sum().clamp_min(1),
        "azimuth": (off * alone).sum() / alone.sum().clamp_min(1),
    }


def _right(logits: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
    """Flags of right answers, for each question over the pictures that answer it; `front` within 45 degrees."""
    flags = {}
    for name in questions():
        labels = torch.from_numpy(np.asarray(batch[name], np.int64))
        flags[name] = (logits[name].detach().argmax(1).cpu() == labels)[labels != ABSENT]
    turned = torch.from_numpy(np.abs((batch["azimuth_deg"] + 180) % 360 - 180))
    clear = (turned <= 45) | (turned >= 135)
    flags["front"] = ((logits["front"].detach()[:, 0].cpu() > 0) == (turned < 90))[clear]
    return flags


def labelled(folders: Iterable[str | Path]) -> LabelledViews:
    """Labelled views of rendered folders. Raises InputError when one of them holds rooms."""
    return LabelledViews(RenderedSet(list(folders)))
