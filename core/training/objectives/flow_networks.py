"""The networks of a small SD3: a diffusion transformer that starts as the identity, and its CLIP text encoders.

Stock SD3 pipelines append zero tokens to the text where no T5 encoder is present (256 unless asked otherwise). The
joint attention has no positions for text, so n zero tokens stay equal through all layers and n of them act as one
whose attention weight is n times as large: `HeavyLastKey` computes with one what the pipeline does with n.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from .tokenizer import text_config


@dataclass(frozen=True)
class FlowNetworks:
    """Shapes. The defaults have 4.5 M parameters and a forward pass of 0.3 GFLOP at 64 px, text included."""

    width: int = 160
    heads: int = 5
    layers: int = 4
    patch_size: int = 2
    """latent cells a token is wide; 1 costs four times the tokens"""
    latent_size: int = 16
    """default side of the latents"""
    latent_channels: int = 4
    largest_latent: int = 64
    """largest side of the latents that positions exist for"""
    text_width: int = 128
    text_layers: tuple[int, int] = (2, 1)
    """depth of the two text encoders; tokens leave before the last layer, so 1 gives the bare word embeddings"""
    text_heads: int = 4


def build_transformer(config: FlowNetworks) -> SD3Transformer2DModel:
    """An SD3 transformer with normalised queries and keys, initialised as DiT (Peebles & Xie 2023, section 3.2)."""
    transformer = SD3Transformer2DModel(
        sample_size=config.latent_size,
        patch_size=config.patch_size,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        num_layers=config.layers,
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        joint_attention_dim=2 * config.text_width,
        caption_projection_dim=config.width,
        pooled_projection_dim=2 * config.text_width,
        pos_embed_max_size=config.largest_latent // config.patch_size,
        qk_norm="rms_norm",
    )
    _initialise(transformer)
    return transformer


@torch.no_grad()
def _initialise(transformer: SD3Transformer2DModel) -> None:
    """Xavier for linear maps, zero for modulations and output (every block starts as the identity), and positions
    one radian apart whatever the largest size: the class spreads its table over the default size instead."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    embed = transformer.pos_embed
    nn.init.xavier_uniform_(embed.proj.weight.view(embed.proj.weight.shape[0], -1))
    nn.init.zeros_(embed.proj.bias)
    side = embed.pos_embed_max_size
    table = get_2d_sincos_pos_embed(transformer.inner_dim, side, base_size=side, output_type="pt")
    embed.pos_embed.copy_(table.to(embed.pos_embed))
    time = transformer.time_text_embed.timestep_embedder
    for layer in (time.linear_1, time.linear_2):
        nn.init.normal_(layer.weight, std=0.02)
    modulations = [norm for block in transformer.transformer_blocks for norm in (block.norm1, block.norm1_context)]
    for layer in (*(norm.linear for norm in modulations), transformer.norm_out.linear, transformer.proj_out):
        nn.init.zeros_(layer.weight)


def build_text_encoder(config: FlowNetworks, tokenizer: CLIPTokenizer, layers: int) -> CLIPTextModelWithProjection:
    """A small CLIP text model with its pooled projection, for this tokenizer."""
    return CLIPTextModelWithProjection(text_config(tokenizer, config.text_width, layers, config.text_heads))


class HeavyLastKey(TorchFunctionMode):
    """Inside, the last key of every attention counts `multiplicity` (B,) times; 0 hides it.

    softmax with weights n_j exp(q k_j) is softmax with log n_j added to the logits.
    """

    def __init__(self, multiplicity: Tensor) -> None:
        super().__init__()
        self.log_count = multiplicity.log()[:, None, None, None]  # (B, 1, 1, 1)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Adds the bias to scaled_dot_product_attention and leaves every other function alone."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            query, key = args[:2]
            bias = query.new_zeros(query.shape[0], 1, 1, key.shape[-2])
            bias[..., -1:] = self.log_count.to(bias)
            kwargs = {**kwargs, "attn_mask": bias}
        return func(*args, **kwargs)
