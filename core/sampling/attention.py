"""Where the image looks at the text: attention maps read off diffusers networks while they run.

A tap registers pre-hooks on the attention modules and computes softmax(q k^T) beside them, so the network's own outputs
stay bit for bit what they were, whatever attention kernel it uses. U-Nets: image queries on text keys. Joint
transformers (SD3, FLUX double blocks): image queries on all keys, of which the text part is kept as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn
from torch.nn import functional as F

from ...utils.errors import InputError
from ..priors.base import Prior
from ..priors.diffusers import DiffusersPrior, StableDiffusion3Prior

PLACE = re.compile(
    r"\b(?:(?:to|on|at) the (?:left|right|top|side) of|in front of|on top of|(?:left|right) of|next to|close to|and|"
    r"with|beside|behind|under|underneath|below|beneath|above|over|near|against|inside|between|on|in|at|holding)\b",
    re.IGNORECASE,
)
OPENING = re.compile(
    r"(?:(?:a |an |the )?\w+ of (?=(?:a|an|the|one|two|three|four|some) ))?(?:a|an|the|one|two|three|four|some) ",
    re.IGNORECASE,
)
VIEW = re.compile(r"\w+ view|seen from(?: .*)?", re.IGNORECASE)


class AttentionTap:
    """Records the maps of every text attention between entering and leaving; differentiable.

    >>> with AttentionTap(prior.network) as tap:
    ...     denoiser.ask(x, level, ("cond",))
    >>> maps = tap.maps(x.shape[-2:])
    """

    def __init__(self, network: nn.Module) -> None:
        self._modules = [module for module in network.modules() if _reads_text(module)]
        if not self._modules:
            raise InputError(
                f"{type(network).__name__} has no attention to text to look at; use a text-conditional prior"
            )
        self._recorded: list[Tensor] = []
        self._handles: list[Any] = []

    def __enter__(self) -> AttentionTap:
        self._recorded = []
        self._handles = [m.register_forward_pre_hook(self._record, with_kwargs=True) for m in self._modules]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def maps(self, size: Sequence[int]) -> Tensor:
        """(B, tokens, h, w): mean over heads and modules at the finest recorded size, lightly blurred.

        `size` is (h, w) of the latents, which tells the shape of every map.
        """
        if not self._recorded:
            raise InputError("the network did not run inside the tap: nothing was recorded")
        grids = [_as_picture(item, size) for item in self._recorded]
        finest = max((grid.shape[-2:] for grid in grids), key=lambda shape: shape[0] * shape[1])
        resized = [
            grid if grid.shape[-2:] == finest else F.interpolate(grid, finest, mode="bilinear") for grid in grids
        ]
        return _blurred(torch.stack(resized).mean(0))

    def _record(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        image = args[0] if args else kwargs["hidden_states"]
        text = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
        if text is None:
            return
        if getattr(module, "add_k_proj", None) is not None:
            self._recorded.append(_joint(module, image, text, kwargs.get("image_rotary_emb")))
        else:
            self._recorded.append(_crossed(module, image, text))


def _reads_text(module: Any) -> bool:
    if not (hasattr(module, "to_q") and hasattr(module, "to_k")):
        return False
    return getattr(module, "add_k_proj", None) is not None or bool(getattr(module, "is_cross_attention", False))


def _crossed(module: Any, image: Tensor, text: Tensor) -> Tensor:
    """(B, tokens, pixels) of a U-Net's cross attention."""
    if module.norm_cross:
        text = module.norm_encoder_hidden_states(text)
    query, key = (_heads(module, part) for part in (module.to_q(image), module.to_k(text)))
    return _probabilities(_normed(module, "norm_q", query), _normed(module, "norm_k", key))


def _joint(module: Any, image: Tensor, text: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """(B, tokens, pixels) of a joint attention; rotary positions count text first."""
    count = text.shape[1]
    query = _normed(module, "norm_q", _heads(module, module.to_q(image)))
    key = _normed(module, "norm_k", _heads(module, module.to_k(image)))
    own = _normed(module, "norm_added_k", _heads(module, module.add_k_proj(text)))
    key = torch.cat([own, key], 1)
    if rotary is not None:
        query = apply_rotary_emb(query, (rotary[0][count:], rotary[1][count:]), sequence_dim=1)
        key = apply_rotary_emb(key, rotary, sequence_dim=1)
    return _probabilities(query, key)[:, :count]


def _heads(module: Any, projected: Tensor) -> Tensor:
    """(B, length, heads, width)."""
    return projected.unflatten(-1, (module.heads, -1))


def _normed(module: Any, name: str, value: Tensor) -> Tensor:
    norm = getattr(module, name, None)
    return value if norm is None else norm(value)


def _probabilities(query: Tensor, key: Tensor) -> Tensor:
    """Mean over heads of softmax over all keys, (B, keys, queries), at least float32."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    logits = torch.einsum("bphd,bthd->bhtp", query.to(dtype), key.to(dtype)) * query.shape[-1] ** -0.5
    return logits.softmax(2).mean(1)


def _as_picture(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(B, tokens, pixels) as (B, tokens, rows, columns) in the proportions of `size`."""
    pixels = maps.shape[-1]
    rows = max(round((pixels * size[0] / size[1]) ** 0.5), 1)
    if pixels % rows:
        raise InputError(f"{pixels} attention pixels do not fit latents of {tuple(size)}; pass the latents' (h, w)")
    return maps.unflatten(-1, (rows, pixels // rows))


def _blurred(maps: Tensor) -> Tensor:
    """3 x 3 Gaussian of standard deviation 1, edges reflected (repeated where a side is a single pixel)."""
    taps = torch.exp(-0.5 * torch.tensor([1.0, 0.0, 1.0], dtype=maps.dtype, device=maps.device))
    taps = taps / taps.sum()
    kernel = (taps[:, None] * taps)[None, None]
    batch, tokens = maps.shape[:2]
    mode = "reflect" if min(maps.shape[-2:]) > 1 else "replicate"
    padded = F.pad(maps.flatten(0, 1)[:, None], (1, 1, 1, 1), mode=mode)
    return F.conv2d(padded, kernel)[:, 0].unflatten(0, (batch, tokens))


def subject_tokens(prior: Prior, prompt: str, subjects: Sequence[str]) -> list[list[int]]:
    """Positions of each subject's words in the text sequence the network attends to, over all its encoders.

    Raises InputError for a subject that the prompt does not contain.
    """
    groups: list[list[int]] = [[] for _ in subjects]
    for tokenizer, offset, limit in _tokenizers(prior):
        words = list(tokenizer(prompt, truncation=True, max_length=limit).input_ids)
        used: set[int] = set()
        for group, subject in zip(groups, subjects):
            wanted = list(tokenizer(subject, add_special_tokens=False).input_ids)
            place = _found(words, wanted, used)
            if place is None:
                raise InputError(f"subject {subject!r} is not in the prompt {prompt!r}; use its own words")
            span = range(place, place + len(wanted))
            used.update(span)
            group += [offset + position for position in span]
    return groups


def subject_phrases(prompt: str) -> list[str]:
    """The subjects of a simple sentence, in its own words: "a red chair behind two dogs" gives red chair, dogs.

    Splits at commas, "and" and words of place; articles, counts, "a picture of" and views are left out.
    """
    parts = [PLACE.split(part) for part in re.split(r"[,;.]", prompt)]
    found = [OPENING.sub("", words.strip(), count=1).strip() for part in parts for words in part]
    return [words for words in found if words and not VIEW.fullmatch(words)]


def _found(words: list[int], wanted: list[int], used: set[int]) -> int | None:
    """First place where `wanted` stands on positions that no other subject took."""
    for place in range(len(words) - len(wanted) + 1):
        if wanted and words[place : place + len(wanted)] == wanted and not used & {*range(place, place + len(wanted))}:
            return place
    return None


def _tokenizers(prior: Prior) -> list[tuple[Any, int, int]]:
    """(tokenizer, position of its first token, length limit) for each encoder whose tokens are in the sequence."""
    if not isinstance(prior, DiffusersPrior):
        raise InputError(f"the prior {prior.name!r} has no tokenizer; give the token positions yourself")
    seen_most, limit = prior._tokenizer()
    if not isinstance(prior, StableDiffusion3Prior):
        return [(seen_most, 0, limit)]
    clip = prior.pipe.tokenizer
    first = (clip, 0, clip.model_max_length)
    return [first] if seen_most is clip else [first, (seen_most, clip.model_max_length, limit)]
