"""Materials with a codec of their own: folders laid out as the published StableMaterials (gvecchio/StableMaterials).

The VAE reads nine channels (`codecs.pbr.to_native`) and has 18 of latents, the U-Net 18 in and out. It is told one
token, the projected pooled embedding of CLIP, of a text or of a picture alike; without either, that of a black picture.
`unet_lcm` is distilled to four steps and told the guidance scale. Weights are safetensors; no code is fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.priors import Condition, Rows, StableDiffusionPrior
from ..core.priors.rows import COND, NULL
from ..core.sampling.tileable import decode_tileable
from ..utils.errors import InputError
from ..utils.files import read_json
from .codecs.pbr import NATIVE, MaterialMaps, from_native, to_native

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's, of sRGB in [0, 1]
PARTS = ("unet", "vae", "text_encoder", "vision_encoder", "tokenizer", "scheduler")


class NativeMaterialPrior(StableDiffusionPrior):
    """A prior of material latents (B, 18, h, w)."""

    def __init__(self, pipe: Any, vision: Any, name: str = "") -> None:
        """`pipe` has a text encoder with a projection; `vision` is the picture encoder of the same space."""
        self.vision = vision
        super().__init__(pipe, name)
        given = (self.vae.config.in_channels, self.vae.config.latent_channels, pipe.unet.config.in_channels)
        if given[0] != NATIVE or given[1] != given[2]:
            raise InputError(f"the VAE of {self.name} has {given[0]} channels in and {given[1]} of latents, the U-Net "
                             f"{given[2]}; need {NATIVE} and equal ones")  # fmt: skip

    def modules(self) -> dict[str, Any]:
        """See Prior.modules."""
        return {**super().modules(), "vision_encoder": self.vision}

    def encode_text(self, prompts: str | Sequence[str], negative: str | Sequence[str] | None = None) -> Condition:
        """See Prior.encode_text; the unconditional branch is a black picture, or the negative texts where given."""
        told = super().encode_text(prompts, negative)
        if negative is not None:
            return told
        null = self._seen(torch.zeros(1, 3, 8, 8)).expand(told.rows, -1, -1)
        return Condition({COND: told[COND], NULL: Rows({"text": null})}, told.prompts)

    @torch.no_grad()
    def _embed(self, texts: list[str]) -> Tensor:
        tokenizer, limit = self._tokenizer()
        ids = tokenizer(texts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt").input_ids
        return self.pipe.text_encoder(ids.to(self.device)).text_embeds[:, None]

    @torch.no_grad()
    def _seen(self, photos: Tensor) -> Tensor:
        """Tokens (B, 1, D) of pictures (B, 3, H, W) in [0, 1]: the middle square, as CLIP wants it."""
        return self.vision(clip_pixels(photos, self.vision)).image_embeds[:, None]

    def described(self, texts: Sequence[str], photos: Tensor | None = None) -> Condition:
        """Condition of texts, or of photographs (B, 3, H, W) in [0, 1] in their place: there is one token."""
        told = self.encode_text(list(texts))
        if photos is None:
            return told
        if any(text.strip() for text in texts):
            raise InputError("this prior is told a text or a picture, not both; leave the prompt empty")
        return Condition({COND: Rows({"text": self._seen(photos)}), NULL: told[NULL]}, told.prompts)

    def encode_maps(self, maps: MaterialMaps) -> Tensor:
        """Latents (B, 18, h, w)."""
        return self.encode(to_native(maps) / 2 + 0.5)

    def decode_maps(self, latents: Tensor, tileable: bool = False) -> MaterialMaps:
        """Maps of latents (B, 18, h, w)."""
        images = decode_tileable(self, latents, False) if tileable else self.decode(latents, clamp=False)
        return from_native(2 * images - 1)


def clip_pixels(photos: Tensor, vision: Any) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] as a picture encoder of CLIP wants them: their middle square, normalised."""
    side, short = vision.config.image_size, min(photos.shape[2:])
    top, left = ((length - short) // 2 for length in photos.shape[2:])
    square = photos[..., top : top + short, left : left + short]
    small = F.interpolate(square.float(), (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (small.new_tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    return ((small - mean) / std).to(next(vision.parameters()))


def is_native(folder: Path) -> bool:
    """Whether a folder is laid out as the published weights."""
    config = folder / "vae" / "config.json"
    return config.is_file() and read_json(config).get("in_channels") == NATIVE


def load_native(
    folder: Path, fast: bool = True, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[NativeMaterialPrior, bool]:
    """(the prior, whether it is the distilled one), which `fast` takes where it is there.

    Raises InputError for parts that are missing or cannot be read.
    """
    import diffusers
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    missing = [name for name in PARTS if not (folder / name).is_dir()]
    if missing:
        raise InputError(f"{folder} lacks {', '.join(missing)}; fetch the whole repository gvecchio/StableMaterials")
    distilled = fast and (folder / "unet_lcm").is_dir()
    how = {"use_safetensors": True, "torch_dtype": dtype}
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    kind = getattr(diffusers, str(scheduler.get("_class_name", "DDIMScheduler")), diffusers.DDIMScheduler)
    try:
        unet = diffusers.UNet2DConditionModel.from_pretrained(folder / ("unet_lcm" if distilled else "unet"), **how)
        vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae", **how)
        text = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder", use_safetensors=True, dtype=dtype)
        vision = CLIPVisionModelWithProjection.from_pretrained(folder / "vision_encoder", use_safetensors=True,
                                                               dtype=dtype)  # fmt: skip
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is not whole: {str(error).splitlines()[0]}") from error
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text,
        tokenizer=tokenizer,
        scheduler=kind.from_config(scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    prior = NativeMaterialPrior(pipe, vision, folder.name)
    prior.to(device)
    return prior, distilled
