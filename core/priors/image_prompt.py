"""IP-Adapter (Ye et al. 2023): a picture beside the words, read by cross-attention of its own in every layer.

The picture's embedding rides on the rows of the condition under "image_prompt"; the unconditional branch carries what
stands for no picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...utils.errors import InputError
from ...utils.files import read_json, split_scale
from .base import Prior
from .build import quiet, told
from .control import IMAGE_PROMPT
from .diffusers import DiffusersPrior
from .rows import COND, NULL, Condition
from .single_file import shapes_of

ENCODER = "image_encoder"  # the folder of the encoder, beside the adapter or where h94/IP-Adapter keeps it


def add_image_prompt(prior: DiffusersPrior, adapter: str | Path, encoder: str | Path | None = None) -> None:
    """Teaches a prior's U-Net to read a picture; from then on its conditions need one (`with_picture`).

    Args:
        prior: of Stable Diffusion or SDXL, changed in place.
        adapter: safetensors file, or FILE:SCALE.
        encoder: folder of the CLIP image encoder; None: image_encoder/ beside the file, or that of the collection.

    Raises InputError for other files, other backbones and where the encoder is missing.
    """
    if not prior.reads_pictures:
        raise InputError(
            f"image prompts go with the U-Nets of Stable Diffusion and SDXL that draw single images, not {prior.name!r}"
        )
    path, scale = split_scale(adapter, "ip_adapter")
    width = embedding_width(path)
    folder = Path(encoder) if encoder is not None else find_encoder(path, width)
    from transformers import CLIPVisionModelWithProjection

    pipe = prior.pipe
    with told(f"the IP-Adapter {path} on {prior.name}", prior.device), quiet():
        eyes = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=prior.dtype, local_files_only=True)
        pipe.register_modules(image_encoder=eyes.to(prior.device).requires_grad_(False).eval())
        pipe.load_ip_adapter(str(path.parent), subfolder="", weight_name=path.name, local_files_only=True)
        pipe.set_ip_adapter_scale(scale)
    prior.network.to(prior.device, prior.dtype).requires_grad_(False).eval()
    prior.reads = prior.reads | {IMAGE_PROMPT}
    prior.name = f"{prior.name}+{path.stem}:{scale:g}"


def embedding_width(path: Path) -> int:
    """The width of the picture's embedding that an adapter reads. Raises InputError for what is no IP-Adapter."""
    shapes = shapes_of(path)
    for name in ("image_proj.proj.weight", "image_proj.proj_in.weight"):
        if name in shapes and any(key.startswith("ip_adapter.") for key in shapes):
            return shapes[name][1]
    raise InputError(f"ip_adapter={str(path)!r} is no IP-Adapter for pictures: it lacks image_proj or ip_adapter")


def find_encoder(path: Path, width: int) -> Path:
    """The folder of an image encoder of this width near an adapter's file."""
    places = [path.parent / ENCODER, path.parent.parent / "models" / ENCODER, path.parent.parent / ENCODER]
    for place in places:
        if (place / "config.json").is_file():
            settings = read_json(place / "config.json")
            if width in (settings.get("projection_dim"), settings.get("hidden_size")):
                return place
    listed = ", ".join(map(str, places[:2]))
    raise InputError(
        f"ip_adapter={str(path)!r} needs a CLIP image encoder of width {width}; put its folder at {listed}"
    )


@torch.no_grad()
def with_picture(prior: Prior, condition: Condition, images: Tensor) -> Condition:
    """A condition that carries pictures (B, 3, H, W) in [0, 1], one for each of its rows or one for all."""
    if IMAGE_PROMPT not in prior.reads or not isinstance(prior, DiffusersPrior):
        raise InputError(f"the prior {prior.name!r} reads no pictures; load it with ip_adapter=FILE (--ip-adapter)")
    shown, nothing = encoded(prior, images)
    parts = {
        name: rows.with_tensors(**{IMAGE_PROMPT: nothing if name == NULL else shown})
        for name, rows in condition.branches.items()
    }
    return Condition({COND: parts[COND], **parts}, condition.prompts)


def encoded(prior: DiffusersPrior, images: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings of pictures and of none: (B, D), or (B, L, D) for adapters that read the tokens of the encoder."""
    pipe: Any = prior.pipe
    listed = [Image.fromarray(_bytes(image)) for image in images]
    pixels = pipe.feature_extractor(listed, return_tensors="pt").pixel_values.to(prior.device, prior.dtype)
    network: Any = prior.network
    layers = network.encoder_hid_proj.image_projection_layers
    if type(layers[0]).__name__ == "ImageProjection":
        shown: Tensor = pipe.image_encoder(pixels).image_embeds
        return shown, torch.zeros_like(shown)
    shown, nothing = (
        pipe.image_encoder(part, output_hidden_states=True).hidden_states[-2]
        for part in (pixels, torch.zeros_like(pixels))
    )
    return shown, nothing


def _bytes(image: Tensor) -> Any:
    """(H, W, 3) uint8 of a picture (3, H, W) in [0, 1]."""
    return (image.float().cpu() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
