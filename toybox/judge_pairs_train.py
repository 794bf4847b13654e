"""Training of the judge's reader of two objects: renders of pairs with their boxes, its loss and its validation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..utils.errors import InputError
from .judge import ORDERED_RELATIONS, Judge, in_order, labels_of
from .judge_augment import Augment
from .judge_pairs import PairLogits, PairReader, PairShape, overlap, save_pairs
from .judge_train import JudgeLoss, LabelledViews, to_images
from .programs import SceneProgram

LEFT = ORDERED_RELATIONS.index("left of")


@dataclass(frozen=True)
class PairConfig:
    """What the reader is and how its questions are weighed."""

    shape: PairShape = field(default_factory=PairShape)
    augment: Augment = field(default_factory=lambda: Augment(move=0.0))
    """of whole pictures, whose boxes it has to leave in their places"""
    box: float = 5.0
    relation: float = 0.5
    noun: float = 1.0
    colour: float = 0.5
    jitter: float = 0.08
    """deviation of the windows that are read in training from the true ones, shares of their sides"""
    validation_images: int = 512

    def __post_init__(self) -> None:
        if self.augment.move:
            raise InputError(f"augment.move={self.augment.move} would move objects out of their boxes; set it to 0")


class PairViews(LabelledViews):
    """Pictures of pairs with, in the order of their relation, "noun" and "colour" (B, 2), "boxes" (B, 2, 4), and
    "relation" (B,)."""

    def row(self, index: int) -> dict[str, Any]:
        """See LabelledViews.row. Raises InputError for what is no pair."""
        program, record = self.pictures.program(index), self.pictures.records[index]
        if not isinstance(program, SceneProgram) or not program.relation or "boxes" not in record:
            raise InputError("the reader of pairs learns from renders of kind pair alone")
        said = labels_of(program)
        boxes = in_order(record["boxes"][0], program.relation, record["boxes"][1])
        return {
            "noun": [said["noun"], said["second_noun"]],
            "colour": [said["colour"], said["second_colour"]],
            "boxes": [boxes[0], boxes[2]],
            "relation": said["relation"],
        }


def mirrored(images: Tensor, labels: dict[str, Tensor], rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Half of the pictures (B, 3, S, S) as a mirror shows them; of objects side by side the other one is then first."""
    turned = torch.rand(len(images), generator=rng).to(images.device) < 0.5
    boxes = labels["boxes"].clone()
    boxes[turned, :, 0] = 1 - boxes[turned, :, 0]
    swapped = turned & (labels["relation"] == LEFT)
    changed = {**labels, "boxes": boxes}
    for name in ("noun", "colour", "boxes"):
        values = changed[name]
        changed[name] = torch.where(swapped.view(-1, *[1] * (values.ndim - 1)), values.flip(1), values)
    return torch.where(turned[:, None, None, None], images.flip(-1), images), changed


class PairObjective:
    """Trains the reader; the judge it reads for stays as it is. `held_out` are views no training batch contains."""

    def __init__(self, config: PairConfig, judge: Judge, held_out: PairViews, seed: int = 0) -> None:
        self.config, self.judge, self.held_out = config, judge, held_out
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
            self.reader = PairReader(judge.net, config.shape)
        self.modules: dict[str, nn.Module] = {"reader": self.reader}
        self.frozen: dict[str, nn.Module] = {"judge": judge.net}

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> JudgeLoss:
        """box |b - b'| + relation, noun and colour cross-entropies; windows are read near their true places."""
        images, labels = mirrored(to_images(batch["images"], self._device), self._on_device(batch), rng)
        images = self.config.augment(images, rng)
        boxes = labels["boxes"]
        noise = torch.randn(boxes.shape, generator=rng).to(boxes) * self.config.jitter
        windows = torch.cat(
            [boxes[..., :2] + noise[..., :2] * boxes[..., 2:], boxes[..., 2:] * noise[..., 2:].exp()], -1
        )
        logits = self.reader(self.judge.net, images, windows)
        losses = {
            "box": (logits.boxes - boxes).abs().mean(),
            "relation": F.cross_entropy(logits.relation, labels["relation"]),
            "noun": F.cross_entropy(logits.noun.flatten(0, 1), labels["noun"].flatten()),
            "colour": F.cross_entropy(logits.colour.flatten(0, 1), labels["colour"].flatten()),
        }
        total = torch.stack([getattr(self.config, name) * value for name, value in losses.items()]).sum()
        shares = {f"right_{name}": share.mean() for name, share in _right(logits, labels).items()}
        return JudgeLoss(total, {**{k: v.detach() for k, v in losses.items()}, **shares})

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Shares of held-out views right in each question and in both objects, and the mean overlap of the boxes."""
        count = min(self.config.validation_images, len(self.held_out))
        chosen = np.linspace(0, len(self.held_out) - 1, count).round().astype(np.int64)
        found: dict[str, list[Tensor]] = {}
        for part in np.array_split(chosen, max(1, count // 64)):
            batch = self.held_out.batch(part, np.random.default_rng(0))
            labels = self._on_device(batch)
            logits = self.reader(self.judge.net, to_images(batch["images"], self._device))
            right = _right(logits, labels) | {"overlap": overlap(logits.boxes, labels["boxes"])}
            for name, values in right.items():
                found.setdefault(name, []).append(values.flatten())
        return {name: float(torch.cat(values).mean()) for name, values in found.items()}

    def preview(self, step: int, out: Path) -> list[Path]:
        """The judge draws nothing."""
        return []

    def save(self, folder: Path) -> Path:
        """Writes the reader."""
        return save_pairs(self.reader, folder)

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        kinds = {"noun": torch.int64, "colour": torch.int64, "relation": torch.int64, "boxes": torch.float32}
        return {name: torch.as_tensor(batch[name]).to(self._device, kind) for name, kind in kinds.items()}

    @property
    def _device(self) -> torch.device:
        return self.reader.places.device


def _right(logits: PairLogits, labels: dict[str, Tensor]) -> dict[str, Tensor]:
    """Float flags (B,): one relation, (B, 2): nouns and colours, (B,): both nouns, and everything but the relation."""
    noun = (logits.noun.detach().argmax(-1) == labels["noun"]).float()
    colour = (logits.colour.detach().argmax(-1) == labels["colour"]).float()
    relation = (logits.relation.detach().argmax(-1) == labels["relation"]).float()
    both = noun.prod(1)
    return {"relation": relation, "noun": noun, "colour": colour, "nouns": both, "all": both * colour.prod(1)}
