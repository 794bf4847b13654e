"""A CLIPTokenizer in which every word of a vocabulary is one token and any other text still tokenises.

Byte-level pair encoding as CLIP's (Radford et al. 2021): 256 bytes, 256 bytes that end a word ("</w>"), one token a
merge, then the start and end tokens with the highest ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTokenizer

from ....utils.errors import InputError

END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 32


def build_tokenizer(words: Iterable[str], max_length: int = MAX_LENGTH) -> CLIPTokenizer:
    """Trains the merges on the word list until each word is one token. Raises InputError for unusable words."""
    words = sorted(set(words))
    if not words or any(not w or w != w.lower() or len(w.split()) != 1 for w in words):
        raise InputError("the vocabulary must hold single lower-case words")
    merges = _merges(words)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [
        *alphabet,
        *(letter + END_OF_WORD for letter in alphabet),
        *("".join(pair) for pair in merges),
        START,
        END,
    ]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def text_config(tokenizer: CLIPTokenizer, width: int, layers: int, heads: int) -> CLIPTextConfig:
    """A small CLIP text model for this tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def save_tokenizer(tokenizer: CLIPTokenizer, out: str | Path) -> Path:
    """Writes the transformers folder, with CLIP's own vocab.json and merges.txt beside tokenizer.json."""
    out = Path(out)
    tokenizer.save_pretrained(out)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (out / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    lines = "".join(f"{a} {b}\n" for a, b in model["merges"])
    (out / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
    return out


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Merges of the words, the same in every process: the letters that end a word are numbered beforehand.

    The trainer would number them in the order of a hash table, and breaks ties by those numbers.
    """
    letters = sorted({letter for word in words for letter in word})
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1_000_000,
        min_frequency=1,
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
        special_tokens=[letter + END_OF_WORD for letter in letters],
    )
    learner.train_from_iterator(words, trainer)
    return [(a, b) for a, b in json.loads(learner.to_str())["model"]["merges"]]
