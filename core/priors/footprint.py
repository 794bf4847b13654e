"""What a backbone needs of memory, in numbers (4 bytes in float32, 2 in half precision), from its configs.

Encoder of a VAE, kept by autograd per pixel of a picture (`encoder_numbers`): a residual block keeps its input, the
outputs of its first norm and activation, the output of its first convolution and those of its second norm and
activation, 3 c_in + 3 c_out; a downsampling its padded input; attention its input, norm, q, k, v, and the sum before
the last projection; level i has 4^-i of the pixels. For Stable Diffusion's that is 3043; 3029 are measured.

Denoising network, at its fullest without gradients (`network_numbers`): a U-Net is fullest in one of its up blocks, in
proportion to that level's width and pixels; a transformer in proportion to its width and its image and text tokens. The
factors were measured by `scripts.memory_constants` on the published configs, with tensors that have no values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ATTENTION = 7  # maps of its width that attention keeps
SD_VAE: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}  # of all the registry's


def encoder_numbers(config: Mapping[str, Any], by_block: bool = False) -> float:
    """Numbers per pixel that autograd keeps of an AutoencoderKL's encoder with frozen weights.

    by_block: where the blocks are computed again in the backward pass (diffusers' gradient checkpointing), which keeps
    what each is given, and all of one.
    """
    channels = list(config["block_out_channels"])
    layers = int(config.get("layers_per_block") or 1)
    blocks, given, before = [], [], channels[0]
    for level, width in enumerate(channels):
        down = width if level < len(channels) - 1 else 0
        blocks.append((3 * before + 3 * width + 6 * width * (layers - 1) + down) / 4**level)
        given.append(before / 4**level)
        before = width
    share = 4.0 ** -(len(channels) - 1)
    blocks.append(share * (12 + (ATTENTION if config.get("mid_block_add_attention", True) else 0)) * before)
    ends = float(config.get("in_channels") or 3) + share * 3 * before
    return ends + (sum(given) + share * before + max(blocks) if by_block else sum(blocks))


def decoder_numbers(config: Mapping[str, Any]) -> float:
    """Numbers per pixel that live at once in the decoder without gradients: three maps of its last block."""
    channels = list(config["block_out_channels"])
    return 3.0 * channels[min(1, len(channels) - 1)]


ATTENDING, PLAIN = 26.0, 15.9  # maps of a level's width that live at once in its up block, with and without attention

TRANSFORMERS = {"SD3Transformer2DModel": (13.4, 333), "FluxTransformer2DModel": (15.3, 512)}  # maps; text tokens


def network_numbers(kind: str, config: Mapping[str, Any], pixels: int) -> float:
    """Numbers that live at once in a call of a network of the class `kind`, for a row of so many latent pixels."""
    if kind == "UNet2DConditionModel":
        kinds = reversed(config["up_block_types"])
        levels = enumerate(zip(config["block_out_channels"], kinds, strict=True))
        return pixels * max((ATTENDING if "CrossAttn" in up else PLAIN) * c / 4**level for level, (c, up) in levels)
    if kind in TRANSFORMERS:
        factor, text = TRANSFORMERS[kind]
        return factor * config["num_attention_heads"] * config["attention_head_dim"] * (pixels / 4 + text)
    return 0.0
