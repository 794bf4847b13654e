"""Reading two objects: where each of them is, then what it is, seen from near.

In a picture of two objects each is small. The judge's network was trained on objects that fill the picture, and shown
the true window around each it names them well; so a small attention network on the judge's own feature maps finds the
two windows, in the order of their relation (the left, nearer or upper one first; DETR's queries, Carion et al. 2020),
each is enlarged, and a copy of the judge's last stage reads it. The judge itself stays as it is.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..utils.files import atomic_path, read_json, write_json
from .judge_net import JudgeNet

MARGIN = 1.35  # side of the enlarged window over the longer side of the box
RELATIONS_READ = 4  # of judge.ORDERED_RELATIONS, the first of which is none


@dataclass(frozen=True)
class PairShape:
    """Shape of the part that finds the windows."""

    width: int = 128
    layers: int = 2
    heads: int = 4


class PairLogits(NamedTuple):
    """Of B pictures; the objects in the order of their relation."""

    boxes: Tensor  # (B, 2, 4) centre x, y, width and height, fractions of the picture
    relation: Tensor  # (B, 4)
    noun: Tensor  # (B, 2, nouns)
    colour: Tensor  # (B, 2, colours)


class PairReader(nn.Module):
    """Finds and reads two objects with the feature maps of a folded judge, which it does not hold."""

    def __init__(self, judge: JudgeNet, shape: PairShape) -> None:
        super().__init__()
        self.shape = shape
        seen, side = judge.shape.widths[-2], judge.shape.image_size >> (len(judge.shape.widths) - 1)
        self.tokens = nn.Linear(seen, shape.width)
        self.places = nn.Parameter(0.02 * torch.randn(side * side, shape.width))
        self.queries = nn.Parameter(torch.randn(2, shape.width))
        layer = nn.TransformerDecoderLayer(
            shape.width, shape.heads, 4 * shape.width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.finder = nn.TransformerDecoder(layer, shape.layers, nn.LayerNorm(shape.width))
        self.box, self.relation = nn.Linear(shape.width, 4), nn.Linear(2 * shape.width, RELATIONS_READ)
        self.late = judge.late_part()
        self.noun, self.colour = copy.deepcopy(judge.heads["noun"]), copy.deepcopy(judge.heads["colour"])
        self.requires_grad_(True)

    def find(self, early: Tensor) -> tuple[Tensor, Tensor]:
        """(boxes (B, 2, 4), relation logits (B, 4)) from the judge's early maps (B, C, h, w) of whole pictures."""
        tokens = self.tokens(early.flatten(2).mT) + self.places
        found = self.finder(self.queries.expand(len(early), -1, -1), tokens)
        return torch.sigmoid(self.box(found)), self.relation(found.flatten(1))

    def read(self, early: Tensor) -> tuple[Tensor, Tensor]:
        """(noun logits, colour logits), each (n, answers), from early maps of enlarged windows."""
        features = self.late(early)
        return self.noun(features), self.colour(features)

    def forward(self, judge: JudgeNet, images: Tensor, boxes: Tensor | None = None) -> PairLogits:
        """Reads pictures (B, 3, S, S) in [0, 1] through the windows it finds, or through `boxes` (B, 2, 4) if given."""
        with torch.no_grad():
            whole = judge.early(images)
        found, relation = self.find(whole)
        windows = enlarged(images, (found if boxes is None else boxes).detach())
        with torch.no_grad():
            near = judge.early(windows.flatten(0, 1))
        noun, colour = (logits.unflatten(0, (len(images), 2)) for logits in self.read(near))
        return PairLogits(found, relation, noun, colour)


def enlarged(images: Tensor, boxes: Tensor) -> Tensor:
    """Square windows (B, n, 3, S, S) around boxes (B, n, 4) of pictures (B, 3, S, S), MARGIN times the longer side."""
    size, count = images.shape[-1], boxes.shape[1]
    half = 0.5 * MARGIN * boxes[..., 2:].amax(-1).clamp_min(1 / size)  # (B, n)
    matrix = images.new_zeros((len(images), count, 2, 3))
    matrix[..., 0, 0] = matrix[..., 1, 1] = 2 * half
    matrix[..., 2] = 2 * boxes[..., :2] - 1
    places = F.affine_grid(matrix.flatten(0, 1), [len(images) * count, 3, size, size], align_corners=False)
    repeated = images.repeat_interleave(count, 0)
    windows = F.grid_sample(repeated, places, padding_mode="border", align_corners=False)
    return windows.unflatten(0, (len(images), count))


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4)."""
    low = torch.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = torch.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    shared = (high - low).clamp_min(0).prod(-1)
    return shared / (a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - shared).clamp_min(1e-9)


def save_pairs(reader: PairReader, folder: str | Path) -> Path:
    """Writes pairs.safetensors (fp16) and pairs.json beside the judge; returns the folder."""
    folder = Path(folder)
    state = {name: value.detach().half().contiguous().cpu() for name, value in reader.state_dict().items()}
    with atomic_path(folder / "pairs.safetensors") as temporary:
        save_file(state, temporary)
    write_json(folder / "pairs.json", vars(reader.shape))
    return folder


def load_pairs(judge: JudgeNet, folder: str | Path) -> PairReader | None:
    """The reader beside a judge, frozen; None where there is none."""
    folder = Path(folder)
    if not (folder / "pairs.safetensors").is_file():
        return None
    reader = PairReader(judge, PairShape(**read_json(folder / "pairs.json")))
    reader.load_state_dict({name: value.float() for name, value in load_file(folder / "pairs.safetensors").items()})
    return reader.eval().requires_grad_(False)
