"""Region-adaptive sampling (RAS, 2025) on the SD3 and FLUX transformers of diffusers.

A sparse step sends only the active image tokens (and all text tokens) through the blocks. They attend to the keys and
values of every token, cached where not fresh; the others keep the velocity they last had. The network's output is
already merged, so schedulers and guidance stay as they are. What moved a token, d = x_{i+1} - x_i, is read off two
successive states, which makes the choice independent of solver and guidance, and equal in both guidance branches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from diffusers.hooks import ModelHook
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from ....utils.errors import InputError
from .base import COMPUTE, SHORT, Cache, Policy
from .hooks import RootHook, attach, detach, make_cache, network_of
from .selector import Regions, importance, select_tokens

SPARSE = frozenset({"velocity"})
PROCESSORS = ("JointAttnProcessor2_0", "FluxAttnProcessor")


class RegionPolicy(Policy):
    """Dense and sparse steps of a run."""

    def __init__(self, config: Regions) -> None:
        self.config = config

    def decide(self, step: int, level: float, branch: str) -> frozenset[str]:
        """See Policy.decide; a sparse step reuses the velocity of the last one."""
        return COMPUTE if self.config.dense(step) else SPARSE


class RegionRoot(RootHook):
    """Chooses the tokens of a call from the way the state has moved."""

    def __init__(self, cache: Cache, config: Regions, patch: int) -> None:
        """`patch`: side of a token's patch for states (B, C, h, w), 0 for packed states (B, P, 4 C)."""
        super().__init__(cache)
        self.config, self.patch = config, patch
        self.active: Tensor | None = None  # (B, A) tokens that run in this call; None: all
        self.tokens = 0
        self.keeps = False  # whether keys and values of this call are needed by the next

    def begin(self, state: Tensor, reused: frozenset[str]) -> None:
        """See RootHook.begin."""
        pixels = self._by_token(state.detach())
        self.tokens, self.active = pixels.shape[1], None
        self.keeps = not self.config.dense(self.cache.step + 1)
        if self.config.ratio == 1:
            return
        before, dropped = self.cache.load("state"), self.cache.load("dropped")
        if dropped is None:
            dropped = pixels.new_zeros(pixels.shape[:2])
        if reused and before is not None:
            moved = importance(pixels - before, self.config.metric)
            self.active, dropped = (self.config.select or select_tokens)(moved, dropped, self.config)
        self.cache.save("state", pixels.clone())
        self.cache.save("dropped", dropped)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """See RootHook.post_forward."""
        self.active = None
        return super().post_forward(module, output)

    def _by_token(self, state: Tensor) -> Tensor:
        """(B, P, C, s) in at least float32: channels and pixels of every token."""
        state = state.to(torch.promote_types(state.dtype, torch.float32))
        if not self.patch:
            return state.unflatten(-1, (-1, 4)) if state.shape[-1] % 4 == 0 else state[..., None]
        rows, columns = (side // self.patch for side in state.shape[-2:])
        grid = state.unflatten(3, (columns, self.patch)).unflatten(2, (rows, self.patch))  # (B, C, r, p, c, p)
        return grid.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 2)

    def chosen(self, values: Tensor) -> Tensor:
        """The active rows of (B, P, ...)."""
        assert self.active is not None
        return values.gather(1, self._index(values))

    def merged(self, kept: Tensor, fresh: Tensor) -> Tensor:
        """`kept` (B, P, ...) with the active rows replaced by `fresh` (B, A, ...)."""
        return kept.scatter(1, self._index(fresh), fresh)

    def _index(self, like: Tensor) -> Tensor:
        assert self.active is not None
        return self.active.reshape(*self.active.shape, *(1,) * (like.ndim - 2)).expand(-1, -1, *like.shape[2:])


class GatherHook(ModelHook):
    """After the embedding of the image tokens: only the active ones go on."""

    def __init__(self, root: RegionRoot) -> None:
        super().__init__()
        self.root = root

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        """Embedded tokens (B, P, D) to (B, A, D)."""
        return output if self.root.active is None else self.root.chosen(output)


class MergeHook(ModelHook):
    """After the last projection: velocities of all tokens, fresh where active."""

    def __init__(self, root: RegionRoot) -> None:
        super().__init__()
        self.root = root

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        """Velocities (B, A, c) to (B, P, c)."""
        cache = self.root.cache
        whole = output if self.root.active is None else self.root.merged(cache.load("velocity"), output)
        if self.root.config.ratio < 1:
            cache.save("velocity", whole.detach())
        return whole


class TokenHook(ModelHook):
    """After a key or value projection: all image tokens, cached where not fresh; leading text tokens are always fresh.

    What is stored precedes normalisation and rotary embedding, which act on each token at its own place.
    """

    def __init__(self, root: RegionRoot, unit: str) -> None:
        super().__init__()
        self.root, self.unit = root, unit

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        """Projections (B, T + A, D) to (B, T + P, D)."""
        root, cache = self.root, self.root.cache
        if root.active is None:
            if root.keeps:
                cache.save(self.unit, output[:, output.shape[1] - root.tokens :].detach())
            return output
        text = output.shape[1] - root.active.shape[1]
        whole = root.merged(cache.load(self.unit), output[:, text:])
        cache.save(self.unit, whole.detach())
        return torch.cat([output[:, :text], whole], 1) if text else whole


class FluxAttentionHook(ModelHook):
    """FLUX attention with fewer queries than keys: the stock processor rotates both by one table."""

    def __init__(self, root: RegionRoot) -> None:
        super().__init__()
        self.root = root

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Attention of the text and the active tokens to the text and all image tokens."""
        if self.root.active is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        return _sparse_attention(module, self.root.active, **kwargs)


def _sparse_attention(
    attn: Any,
    active: Tensor,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    image_rotary_emb: tuple[Tensor, Tensor] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """FLUX attention; key and value projections answer for all image tokens, queries for `active` (B, A) only."""

    def heads(values: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        return norm(values.unflatten(-1, (-1, attn.head_dim)))  # (B, S, heads, head_dim)

    query = heads(attn.to_q(hidden_states), attn.norm_q)
    key = heads(attn.to_k(hidden_states), attn.norm_k)
    value = heads(attn.to_v(hidden_states), nn.Identity())
    if encoder_hidden_states is not None:
        query = torch.cat([heads(attn.add_q_proj(encoder_hidden_states), attn.norm_added_q), query], 1)
        key = torch.cat([heads(attn.add_k_proj(encoder_hidden_states), attn.norm_added_k), key], 1)
        value = torch.cat([heads(attn.add_v_proj(encoder_hidden_states), nn.Identity()), value], 1)
    text = query.shape[1] - active.shape[1]
    if image_rotary_emb is not None:
        key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)
        query = _rotated(query, image_rotary_emb, active, text)
    mixed = dispatch_attention_fn(query, key, value, backend=attn.processor._attention_backend)
    mixed = mixed.flatten(2, 3).to(query.dtype)
    if encoder_hidden_states is None:
        return mixed
    image = attn.to_out[1](attn.to_out[0](mixed[:, text:].contiguous()))
    return image, attn.to_add_out(mixed[:, :text].contiguous())


def _rotated(query: Tensor, table: tuple[Tensor, Tensor], active: Tensor, text: int) -> Tensor:
    """Queries (B, T + A, heads, d) rotated at their own places; samples differ, so they are laid end to end."""
    places = torch.cat([torch.arange(text, device=active.device).expand(active.shape[0], -1), active + text], 1)
    rows = tuple(part.to(places.device)[places].flatten(0, 1) for part in table)
    return apply_rotary_emb(query.flatten(0, 1)[None], rows, sequence_dim=1)[0].unflatten(0, query.shape[:2])


def apply_regions(target: Any, config: Regions | float = 0.5, steps: int | None = None) -> Cache:
    """Puts region-adaptive sampling on the transformer of a pipeline, a prior, or on a transformer; returns its cache.

    `config` may be just the ratio of tokens that run; `steps` are the network calls of a run where `target` cannot
    tell. In runs of fewer than 8 calls it is off, with a warning. Raises InputError for U-Nets, other transformers and
    attention that is not diffusers' own.
    """
    if not isinstance(config, Regions):
        config = Regions(float(config))
    network: Any = network_of(target)
    flux = isinstance(network, FluxTransformer2DModel)
    if not flux and not isinstance(network, SD3Transformer2DModel):
        unet = hasattr(network, "up_blocks")
        reason = "whose convolutions need the whole grid; use deep:3 there" if unet else "which is not one of them"
        raise InputError(f"regions leave out tokens of SD3 or FLUX transformers, not of a {_name(network)}, {reason}")
    cache = make_cache(target, RegionPolicy(config), steps, SHORT if config.ratio < 1 else 0)
    root = RegionRoot(cache, config, 0 if flux else int(network.config["patch_size"]))
    hooks: dict[str, ModelHook] = {}
    if config.ratio < 1:
        hooks = {"x_embedder" if flux else "pos_embed": GatherHook(root), "proj_out": MergeHook(root)}
        hooks |= _attention_hooks(network, root, flux)
    attach(network, root, hooks)
    return cache


def _attention_hooks(network: nn.Module, root: RegionRoot, flux: bool) -> dict[str, ModelHook]:
    hooks: dict[str, ModelHook] = {}
    for path, module in network.named_modules():
        if not hasattr(module, "to_k") or not hasattr(module, "processor"):
            continue
        processor: Any = module.processor
        if getattr(module, "fused_projections", False) or type(processor).__name__ not in PROCESSORS:
            raise InputError(
                f"{path} uses {type(processor).__name__}: regions need the stock attention; unfuse projections and "
                "unload adapters first"
            )
        hooks |= {f"{path}.{name}": TokenHook(root, f"{path}.{name}") for name in ("to_k", "to_v")}
        if flux:
            hooks[path] = FluxAttentionHook(root)
    return hooks


def _name(network: nn.Module) -> str:
    return type(network).__name__


def remove_regions(target: Any) -> None:
    """Takes the cache off again; the network is as it was."""
    detach(network_of(target))
