"""What the files of a prior say of it, read without its networks: what can be told before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...utils.errors import InputError
from ...utils.files import read_json, weights_root
from .build import WITH_VOCABULARY
from .embedded import Vocabulary, read_vocabulary
from .multiview import base_of
from .registry import EMBEDDED, entry_of


@dataclass(frozen=True)
class PriorFacts:
    """As the loaded prior tells them."""

    name: str
    own_px: int  # side of the pictures that it learnt
    known_px: tuple[int, int] | None = None  # see Prior.known_px
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    tokenizer: Path | None = None  # where its files lie

    def unknown_words(self, prompt: str) -> list[tuple[str, list[str]]]:
        """See Prior.unknown_words."""
        return self.vocabulary.unknown(prompt)

    def truncated(self, prompt: str) -> str:
        """See Prior.truncated."""
        if self.tokenizer is None:
            return ""
        from transformers import CLIPTokenizer

        from .diffusers import cut_words

        tokenizer = CLIPTokenizer.from_pretrained(self.tokenizer)
        return cut_words(tokenizer, tokenizer.model_max_length, prompt)


def prior_facts(name: str) -> PriorFacts | None:
    """Facts of an embedded prior, a folder or a name of the table; None where its files do not tell them."""
    folder = weights_root() / name if name in EMBEDDED else Path(name)
    try:
        known = None if name in EMBEDDED else entry_of(name)
        if known is not None:
            return PriorFacts(name, known[1].image_size)
        return _of_folder(folder, name)
    except (InputError, AttributeError, KeyError, TypeError, ValueError):  # loading it will say what is wrong
        return None


def _of_folder(folder: Path, name: str) -> PriorFacts | None:
    own = None
    if (folder / "mv.json").is_file():
        own = read_json(folder / "mv.json").get("image_size")
        base = base_of(folder)
        folder = weights_root() / base if base in EMBEDDED else Path(base)
    if not (folder / "model_index.json").is_file():
        return None
    network = folder / ("unet" if (folder / "unet").is_dir() else "transformer")
    cells = int(read_json(network / "config.json")["sample_size"])
    factor = 2 ** (len(read_json(folder / "vae" / "config.json")["block_out_channels"]) - 1)
    words = Vocabulary(read_vocabulary(folder))
    closed: Any = WITH_VOCABULARY.get(str(read_json(folder / "model_index.json").get("_class_name")))
    known = closed.known_px if closed is not None and words.entries else None
    tokenizer = folder / "tokenizer"
    is_clip = closed is not None and words.entries and tokenizer.is_dir()
    return PriorFacts(name, int(own or cells * factor), known, words, tokenizer if is_clip else None)
