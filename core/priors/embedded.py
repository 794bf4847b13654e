"""The embedded toybox priors, all with a known vocabulary: a miniature Stable Diffusion 1.5, its multi-view sibling,
and a miniature SD3."""

from __future__ import annotations

import copy
import difflib
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...utils.errors import InputError
from ...utils.files import read_json, write_json
from .base import Recommended
from .diffusers import DiffusersPrior, StableDiffusion3Prior, StableDiffusionPrior, paired, two_branches
from .multiview import FRAMES, MultiViewUNet
from .rows import Condition, Rows

VOCABULARY_FILE = "vocabulary.json"
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[^\w\s.,;:!?'\"()/_-]+")  # words, or runs of symbols such as emoji
_GRAMMAR = """a about across again all along also am among an and another any are as at be been being both but by can
could did do does each either every for from has have having he her here him his i if in into is it its just like made
make me much my of off on onto or other our own quite she should so some such than that the their them then there these
they this those through to too toward towards until upon us very via was we were what when where which while who whose
will with would you your"""
_COMMON = frozenset(_GRAMMAR.split())  # nobody misses these words in a picture
TOYBOX = Recommended(guidance=4.0, steps=20)
TOYBOX_MULTIVIEW = Recommended(guidance=5.0, steps=30)
TOYBOX_DIT = Recommended(guidance=5.0, steps=20, spacing="trailing", solver="euler")


@dataclass(frozen=True)
class Vocabulary:
    """Words that a prior has seen; without any it knows all."""

    entries: tuple[str, ...] = ()

    @functools.cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(word for entry in self.entries for word in _WORD.findall(entry.lower()))

    def unknown(self, prompt: str) -> list[tuple[str, list[str]]]:
        """The words of a prompt that are not among them, each with those that were meant; words of grammar are left
        out, and a known word is near when it looks like what was meant to be written: likeness of letters says nothing
        about meaning."""
        if not self._known:
            return []
        known = self._known | _COMMON
        return [(word, self._meant(word)) for word in dict.fromkeys(_WORD.findall(prompt.lower())) if word not in known]

    def _meant(self, word: str) -> list[str]:
        """Known words that differ from a word as a slip of the fingers does."""
        alike = [known for known in sorted(self._known) if len(known) > 3 and known[0] == word[0]]
        return difflib.get_close_matches(word, alike, n=2, cutoff=0.83)


class KnowsWords(DiffusersPrior):
    """A prior that knows which words it has seen."""

    def __init__(self, pipe: Any, name: str, vocabulary: tuple[str, ...] = (), frozen: bool = True) -> None:
        super().__init__(pipe, name, frozen)
        self.vocabulary = vocabulary
        if vocabulary:  # closed worlds of small pictures are the toybox's
            self.recipe = "toybox"

    def unknown_words(self, prompt: str) -> list[tuple[str, list[str]]]:
        """See Prior.unknown_words and Vocabulary.unknown."""
        return Vocabulary(self.vocabulary).unknown(prompt)

    def save(self, folder: str | Path) -> Path:
        """See Prior.save; the vocabulary goes along."""
        folder = super().save(folder)
        write_vocabulary(folder, self.vocabulary)
        return folder


class EmbeddedPrior(KnowsWords, StableDiffusionPrior):
    """A Stable Diffusion prior that knows which words it has seen."""

    recommended = TOYBOX

    def __init__(self, pipe: Any, name: str = "toybox", vocabulary: tuple[str, ...] = (), frozen: bool = True) -> None:
        super().__init__(pipe, name, vocabulary, frozen)


class EmbeddedFlowPrior(KnowsWords, StableDiffusion3Prior):
    """An SD3 prior that knows which words it has seen and reads the text alone.

    Without a T5 encoder the stock pipeline puts 256 zero tokens behind the text, four times the work of this network;
    here there are none, as with the stock pipeline's `max_sequence_length=0`.
    """

    recommended = TOYBOX_DIT
    known_px = (32, 96)

    def __init__(
        self, pipe: Any, name: str = "toybox-dit", vocabulary: tuple[str, ...] = (), frozen: bool = True
    ) -> None:
        super().__init__(pipe, name, vocabulary, frozen)

    def encode_text(self, prompts: str | Sequence[str], negative: str | Sequence[str] | None = None) -> Condition:
        """See Prior.encode_text; every distinct prompt is encoded once."""
        texts, against = paired(prompts, negative)
        distinct = list(dict.fromkeys([*texts, *against]))
        with torch.no_grad():
            embeds, _, pooled, _ = self.pipe.encode_prompt(
                distinct, None, None, device=self.device, do_classifier_free_guidance=False, max_sequence_length=0
            )
        rows, null = ([distinct.index(text) for text in listed] for listed in (texts, against))
        return two_branches(embeds[rows], pooled[rows], embeds[null], pooled[null], texts)


class MultiViewPrior(EmbeddedPrior):
    """A prior whose U-Net sees several views of an object at once and is told their cameras."""

    recommended = TOYBOX_MULTIVIEW
    reads = frozenset({"text", "concat", "cameras"})
    steered_by = ()
    reads_pictures = False

    def __init__(
        self,
        pipe: Any,
        views: MultiViewUNet,
        name: str = "toybox-mv",
        vocabulary: tuple[str, ...] = (),
        frames: int = FRAMES,
        frozen: bool = True,
    ) -> None:
        """`pipe` gives the VAE, text encoder, tokenizer and scheduler; its own U-Net is replaced.

        `frames` is the number of views it learnt to draw at once; others may be asked for.
        """
        pipe.register_modules(unet=views.unet)
        self.views, self.frames = views, frames
        super().__init__(pipe, name, vocabulary, frozen)

    def modules(self) -> dict[str, nn.Module]:
        """See Prior.modules."""
        return {**super().modules(), "camera_embedding": self.views.camera_embedding}

    def _forward(self, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        if self.network is not self.views.unet:  # with_network: one that sees single images
            return super()._forward(x, time, rows)
        embeds = rows["text"].to(self.dtype)
        return self.views(self._state(x, rows), time, embeds, rows.get("cameras"), rows.frames)

    def save(self, folder: str | Path) -> Path:
        """See Prior.save: the multi-view files, and everything else in base/."""
        folder = Path(folder)
        super().save(folder / "base")
        return self.views.save(folder, base="base", shared=True, frames=self.frames, image_size=self.image_size)

    def with_views(self, views: MultiViewUNet) -> MultiViewPrior:
        """This prior with another network of several views; everything else is shared. It counts its own calls."""
        other = copy.copy(self)
        other.views, other.network, other.nfe, other.dtype = views, views.unet, 0, views.dtype
        return other

    def learnt_at(self, side: int) -> MultiViewPrior:
        """This prior, which draws views of `side` px: not those that its 2-D base learnt."""
        rows = side // self.vae_factor
        self.latent_shape, self.image_size = (self.latent_shape[0], rows, rows), rows * self.vae_factor
        return self


def read_vocabulary(folder: Path) -> tuple[str, ...]:
    """Words of vocabulary.json, empty when there is none."""
    path = folder / VOCABULARY_FILE
    if not path.is_file():
        return ()
    words = read_json(path)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InputError(f"{path} must be a list of words")
    return tuple(words)


def write_vocabulary(folder: Path, words: tuple[str, ...]) -> None:
    """Writes vocabulary.json when there are words."""
    if words:
        write_json(folder / VOCABULARY_FILE, list(words))
