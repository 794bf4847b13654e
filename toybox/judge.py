"""The judge: a frozen small network that says what a toybox picture shows.

It is trained on renders only, with its own index range, and never serves as a loss of any generator, so its answers
measure generated pictures. Its own accuracy on test renders is in docs/results/judge.json. The relation of two
objects is judged in one order: "right of" and "behind" are the other object "left of" and "in front of".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from ..utils.errors import InputError
from ..utils.files import atomic_path, read_json, weights_root, write_json
from .captions import DEFAULTS, Meaning, Phrase
from .catalogue import NOUNS
from .judge_net import JudgeNet, JudgeShape, folded, without_norms
from .judge_pairs import PairReader, load_pairs
from .materials import COLOURS_SRGB, FINISHES, PATTERNS
from .programs import COUNTS, ObjectProgram, Program, RoomProgram, SceneProgram

ORDERED_RELATIONS = ("", "left of", "in front of", "on top of")
MIRRORED = {"right of": "left of", "behind": "in front of"}
ABSENT = -1  # label of a question that a picture does not answer


def questions() -> dict[str, tuple[str, ...]]:
    """The answers to choose from, for each question; those of `second_*` are about the other object of a relation."""
    nouns, colours = tuple(NOUNS), tuple(COLOURS_SRGB)
    return {
        "noun": nouns,
        "colour": colours,
        "pattern": PATTERNS,
        "finish": FINISHES,
        "count": tuple(COUNTS.values()),
        "relation": ORDERED_RELATIONS,
        "second_noun": nouns,
        "second_colour": colours,
    }


def head_sizes(answers: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Outputs of each head: one for each answer, the logit of `front`, and (cos, sin) of the azimuth."""
    return {**{name: len(words) for name, words in answers.items()}, "front": 1, "azimuth": 2}


def in_order(first: Any, relation: str, second: Any) -> tuple[Any, str, Any]:
    """The relation read from its left, nearer or upper member."""
    return (second, MIRRORED[relation], first) if relation in MIRRORED else (first, relation, second)


def labels_of(program: Program) -> dict[str, int]:
    """The index of the true answer to each question, ABSENT where the picture has none."""
    if isinstance(program, RoomProgram):
        raise InputError("the judge looks at objects and scenes, not at rooms")
    answers = questions()
    relation = program.relation if isinstance(program, SceneProgram) else ""
    members = program.members if isinstance(program, SceneProgram) else (program,)
    first, ordered, second = in_order(members[0], relation, members[-1])
    labels = {k: answers[k].index(getattr(first, k)) for k in ("noun", "colour", "pattern", "finish")}
    labels["relation"] = ORDERED_RELATIONS.index(ordered)
    count = program.count if isinstance(program, SceneProgram) else 1
    labels["count"] = ABSENT if relation else tuple(COUNTS).index(count)
    for name in ("noun", "colour"):
        labels[f"second_{name}"] = answers[name].index(getattr(second, name)) if relation else ABSENT
    return labels


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in B pictures. Probabilities (B, answers) on the CPU, answers in the order of `answers`."""

    answers: dict[str, tuple[str, ...]]
    probs: dict[str, Tensor]
    front_visible: Tensor
    """(B,) probability that the camera stands in the half-space the front looks into"""
    azimuth_deg: Tensor
    """(B,) in [0, 360), 0 looks at the front; for single objects"""

    def best(self, question: str) -> list[str]:
        """The most probable answer of each picture."""
        words = self.answers[question]
        return [words[i] for i in self.probs[question].argmax(1).tolist()]

    @property
    def noun_probs(self) -> Tensor:
        """(B, nouns)."""
        return self.probs["noun"]

    @property
    def colour_probs(self) -> Tensor:
        """(B, 12)."""
        return self.probs["colour"]

    @property
    def nouns(self) -> list[str]:
        """The noun of each picture; of two objects the left, nearer or upper one."""
        return self.best("noun")

    @property
    def colours(self) -> list[str]:
        """The colour of that object."""
        return self.best("colour")

    @property
    def views(self) -> list[str]:
        """front, side or back of each single object, within 45 degrees of their axis."""
        return [_side(float((azimuth + 180) % 360 - 180)) for azimuth in self.azimuth_deg]

    def agrees(self, meanings: Sequence[Meaning]) -> dict[str, np.ndarray]:
        """For each thing sentences can say, flags (B,): True where the picture shows what its sentence says.

        What a sentence leaves out agrees with every picture. "all" is their conjunction.
        """
        if len(meanings) != len(self.front_visible):
            raise InputError(f"got {len(meanings)} meanings for {len(self.front_visible)} pictures")
        seen = [dict(zip(self.answers, row)) for row in zip(*(self.best(q) for q in self.answers))]
        turned = (self.azimuth_deg + 180) % 360 - 180
        rows = [_agreement(m, s, float(t)) for m, s, t in zip(meanings, seen, turned)]
        flags = {name: np.array([row[name] for row in rows], bool) for name in rows[0]} if rows else {}
        return {**flags, "all": np.logical_and.reduce(list(flags.values()))} if flags else {}


def _agreement(meaning: Meaning, seen: dict[str, str], turned_deg: float) -> dict[str, bool]:
    first, relation, second = in_order(meaning.phrases[0], meaning.relation or "", meaning.phrases[-1])
    said: Phrase = first
    right = {name: getattr(said, name) in (None, seen[name]) for name in ("noun", "colour", *DEFAULTS) if name in seen}
    right["relation"] = relation == seen["relation"]
    right["count"] = bool(relation) or COUNTS[meaning.count] == seen["count"]
    for name in ("noun", "colour"):
        right[f"second_{name}"] = not relation or getattr(second, name) in (None, seen[f"second_{name}"])
    right["view"] = meaning.view in (None, "top", _side(turned_deg))
    return right


def _side(turned_deg: float) -> str:
    """The view class of an azimuth in [-180, 180]."""
    return "front" if abs(turned_deg) <= 45 else "back" if abs(turned_deg) >= 135 else "side"


class Judge:
    """The frozen judge. Pictures are (B, 3, H, W) sRGB in [0, 1]; other sizes than its own are resized by area."""

    def __init__(self, net: JudgeNet, answers: Mapping[str, Sequence[str]], pairs: PairReader | None = None) -> None:
        self.net, self.pairs = net.eval().requires_grad_(False), pairs
        self.answers = {name: tuple(words) for name, words in answers.items()}
        self.size = net.shape.image_size

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None, device: torch.device | str = "cpu") -> Judge:
        """The judge in `folder` (judge.json and judge.safetensors); without one, the embedded judge.

        Its reader of pairs lies in the same folder, that of the embedded judge in judge-pairs beside it: a result that
        asks nothing of two objects does not rest on it. Raises InputError when the folder holds no judge.
        """
        readers = Path(folder) if folder is not None else weights_root() / "judge-pairs"
        folder = Path(folder) if folder is not None else weights_root() / "judge"
        if not (folder / "judge.json").is_file() or not (folder / "judge.safetensors").is_file():
            raise InputError(f"{folder} holds no judge; set UNPROJECT_WEIGHTS, or train one (scripts.train judge)")
        card = read_json(folder / "judge.json")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in card["shape"].items()}
        net = without_norms(JudgeShape(**values), head_sizes(card["answers"]))
        net.load_state_dict({k: v.float() for k, v in load_file(folder / "judge.safetensors").items()})
        pairs = load_pairs(net, readers)
        net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(net, card["answers"], None if pairs is None else pairs.to(device))

    @torch.no_grad()
    def __call__(self, images: Tensor, pairs: bool = False) -> Verdict:
        """What the pictures show. With `pairs` they are read as pictures of two objects, each seen from near.

        Raises InputError for pairs when this judge has no reader of them.
        """
        images = self._prepared(images)
        logits = self.net(images)
        if pairs:
            logits |= self._two(images)
        logits = {k: v.float().cpu() for k, v in logits.items()}
        direction = logits.pop("azimuth")
        front = torch.sigmoid(logits.pop("front")[:, 0])
        azimuth = torch.rad2deg(torch.atan2(direction[:, 1], direction[:, 0])) % 360
        probs = {name: logits[name].softmax(1) for name in self.answers}
        return Verdict(self.answers, probs, front, azimuth)

    def _two(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of the questions that two objects answer."""
        if self.pairs is None:
            raise InputError(
                "this judge has no pairs.safetensors; train its reader of pairs (scripts.train judge-pairs)"
            )
        found = self.pairs(self.net, images)
        both = {"noun": found.noun, "colour": found.colour}
        first = {name: logits[:, 0] for name, logits in both.items()}
        second = {f"second_{name}": logits[:, 1] for name, logits in both.items()}
        return {**first, **second, "relation": found.relation}

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Feature vectors (B, 192) on the CPU, whose distribution is compared with that of renders."""
        return self.net.features(self._prepared(images)).float().cpu()

    @torch.no_grad()
    def front_visible(self, images: Tensor) -> Tensor:
        """(B,) probability that the camera stands in front of the object."""
        return self(images).front_visible

    def _prepared(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise InputError(f"images have shape {tuple(images.shape)}, {images.dtype}; expected floats (B, 3, H, W)")
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="area")
        like = self.net.stem.weight
        images = images.to(like.device, like.dtype).clamp(0, 1)
        return images.contiguous(memory_format=torch.channels_last)


def save_judge(net: JudgeNet, folder: str | Path, notes: Mapping[str, Any] | None = None) -> Path:
    """Writes judge.safetensors (fp16, normalisations folded in) and judge.json; returns the folder."""
    folder = Path(folder)
    state = {k: v.detach().half().contiguous().cpu() for k, v in folded(net).state_dict().items()}
    shape = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(net.shape).items()}
    with atomic_path(folder / "judge.safetensors") as temporary:
        save_file(state, temporary)
    answers = {name: list(words) for name, words in questions().items()}
    write_json(folder / "judge.json", {"shape": shape, "answers": answers, **(notes or {})})
    return folder


def object_labels(program: ObjectProgram, azimuth_deg: float) -> dict[str, float]:
    """Labels of one view of a single object: those of `labels_of`, and whether its front looks at the camera."""
    turned = abs((azimuth_deg + 180) % 360 - 180)
    return {**labels_of(program), "front": float(turned < 90), "azimuth_deg": azimuth_deg}
