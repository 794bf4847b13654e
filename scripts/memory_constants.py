"""The facts of configs/priors.yaml about memory, measured on the published architectures with tensors without values.

    python -m unproject.scripts.memory_constants [NAME ...]

Weights are never made: networks are built of fake tensors, called once, and the bytes that live at once are counted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.priors.registry import registry
from ..utils.live_bytes import LiveBytes

Call = Callable[[int], Any]  # one row of a network at a latent side
SD2: dict[str, Any] = {"attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD3: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
}
SD35: dict[str, Any] = {"pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"}


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


def unet(width: int, added: bool = False, **config: Any) -> tuple[nn.Module, Call]:
    """A U-Net whose text is `width` wide."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(cross_attention_dim=width, **config)
    more = {"added_cond_kwargs": {"text_embeds": _zeros(1, 1280), "time_ids": _zeros(1, 6)}} if added else {}
    return model, lambda side: model(_zeros(1, 4, side, side), _zeros(1), _zeros(1, 77, width), **more)


def sd3(**config: Any) -> tuple[nn.Module, Call]:
    """The transformer of SD3, told by CLIP and T5."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(sample_size=128, **SD3, **config)
    text = {"encoder_hidden_states": _zeros(1, 77 + 256, 4096), "pooled_projections": _zeros(1, 2048)}
    return model, lambda side: model(hidden_states=_zeros(1, 16, side, side), timestep=_zeros(1), **text)


def flux(guided: bool, tokens: int) -> tuple[nn.Module, Call]:
    """The transformer of FLUX.1, told by T5."""
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(in_channels=64, guidance_embeds=guided)
    text = {"encoder_hidden_states": _zeros(1, tokens, 4096), "pooled_projections": _zeros(1, 768)}
    text |= {"txt_ids": _zeros(tokens, 3), **({"guidance": _zeros(1)} if guided else {})}

    def call(side: int) -> Any:
        patches = side * side // 4
        return model(hidden_states=_zeros(1, patches, 64), timestep=_zeros(1), img_ids=_zeros(patches, 3), **text)

    return model, call


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Call]]] = {
    "sd15": lambda: unet(768),
    "sd21-base": lambda: unet(1024, **SD2),
    "sd21": lambda: unet(1024, **SD2),
    "mvdream": lambda: unet(1024, **SD2),
    "sdxl": lambda: unet(2048, True, **SDXL),
    "sd3": lambda: sd3(pos_embed_max_size=192),
    "sd35-medium": lambda: sd3(**SD35),
    "flux-dev": lambda: flux(True, 512),
    "flux-schnell": lambda: flux(False, 256),
}


def measured(name: str) -> tuple[float, float]:
    """(millions of parameters and buffers, numbers per latent pixel in a call at the prior's own size)."""
    from torch._subclasses import FakeTensorMode

    side = registry()[name].image_size // 8
    with FakeTensorMode(), torch.no_grad():
        model, call = NETWORKS[name]()
        model.eval()
        with LiveBytes() as live:
            call(side)
        return sum(t.numel() for t in model.state_dict().values()) / 1e6, live.peak / 4 / side**2


def main(names: list[str]) -> int:
    """Prints what is measured beside what is written."""
    for name in names or list(NETWORKS):
        millions, live = measured(name)
        entry = registry()[name]
        print(f"{name}: network {millions:.1f} (written {entry.parts['network']}), live {live:.0f} ({entry.live:.0f})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
