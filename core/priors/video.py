"""Priors that draw several frames of one picture: Stable Video Diffusion (Blattmann et al. 2023) and its orbits (SV3D).

Rows of a batch are frames, those of one picture contiguous. The conditional branch carries
    token   (B F, 1, D)         the picture's CLIP embedding, read by all cross-attentions;
    concat  (B F, C, h, w)      the mode of the codec's posterior of picture + cond_aug * noise, NOT scaled;
    micro   (B F, n)            fps - 1, motion bucket, cond_aug, or cond_aug alone (SV3D without camera angles);
the unconditional one has zeros for token and concat and the same micro. States are variance-preserving,
x = (x0 + sigma n) / sqrt(sigma^2 + 1), which is what the network of the EDM formula is shown.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...utils.errors import InputError
from ...utils.seeds import sample_noise
from .base import Recommended
from .diffusers import DiffusersPrior
from .placement import execution_device
from .rows import COND, NULL, Condition, Rows

TOKEN, MICRO = "token", "micro"
CLIP_PX = 224  # of the published image encoders
VECTORS = {3: "fps, motion bucket and cond_aug (Stable Video Diffusion)", 1: "cond_aug (SV3D-u)"}


def noised_mode(
    vae: Any, images: Tensor, strength: float, generator: torch.Generator | Sequence[torch.Generator]
) -> Tensor:
    """Latents (B, C, h, w), unscaled, of pictures (B, 3, H, W) in [0, 1] with noise of this deviation in [-1, 1]."""
    noise = sample_noise(images.shape[1:], generator, len(images), images.device)
    shown = (2 * images - 1 + strength * noise).to(execution_device(vae), vae.dtype)
    return vae.encode(shown).latent_dist.mode()


class FramesPrior(DiffusersPrior):
    """A prior that is told a picture and draws `frames` of what it shows."""

    orbits: bool  # whether frames go around an object once, at its picture's height; else they are a film
    picture_frame: int = 0  # the frame of an orbit that is the picture; azimuths count from it
    scales: tuple[float, float] = (1.0, 3.0)  # of guidance: at the picture, and furthest from it
    cond_aug: float = 0.02  # standard deviation of the noise on a picture in [-1, 1]

    @abstractmethod
    def encode_picture(
        self,
        images: Tensor,
        generator: torch.Generator | Sequence[torch.Generator],
        frames: int | None = None,
        elevation_deg: float = 0.0,
        cond_aug: float | None = None,
    ) -> Condition:
        """Condition of B * frames rows.

        Args:
            images: (B, 3, H, W) in [0, 1], sRGB.
            generator: of the noise on the pictures, one for all or one for each.
            frames: to draw of each; None: as many as it learnt.
            elevation_deg: height from which an object is seen, of priors that are told.
            cond_aug: standard deviation of that noise, for pictures in [-1, 1]; None: as it learnt.
        """

    def azimuths(self, frames: int) -> list[float]:
        """Degrees around the object from its picture, of the frames of an orbit."""
        return [360.0 * ((k - self.picture_frame) % frames) / frames for k in range(frames)]

    def encode_text(self, prompts: str | Sequence[str], negative: str | Sequence[str] | None = None) -> Condition:
        """Refused: it reads a picture."""
        raise InputError(f"the prior {self.name!r} is told a picture, not words; use `unproject image-to-views`")

    def truncated(self, prompt: str) -> str:
        """See Prior.truncated; it reads no prompt."""
        return ""


class StableVideoPrior(FramesPrior):
    """Stable Video Diffusion in diffusers' layout, and SV3D-u in the same: one number of micro-conditioning."""

    recommended = Recommended(3.0, 25)
    reads = frozenset({TOKEN, "concat", MICRO})
    upcasts = True
    uses = ("image_encoder", "feature_extractor")
    fps, motion_bucket = 7, 127

    def __init__(self, pipe: Any, name: str = "", frozen: bool = True) -> None:
        """Raises InputError for a network that is told what is not known here (SV3D-p: angles of each frame)."""
        super().__init__(pipe, name, frozen)
        settings = pipe.unet.config
        self.latent_shape = (settings["out_channels"], *self.latent_shape[1:])
        self.frames = int(settings["num_frames"])
        width, each = settings["projection_class_embeddings_input_dim"], settings["addition_time_embed_dim"]
        self._told = width // each
        if width % each or self._told not in VECTORS:
            known = " or ".join(VECTORS.values())
            raise InputError(f"{self.name}: its network is told {width} numbers, not {known}; it cannot be asked")
        self.orbits = self._told == 1
        if self.orbits:  # the last frame is the picture, 21 frames of a full turn, SV3D's own settings
            self.picture_frame, self.cond_aug, self.scales = self.frames - 1, 1e-5, (1.0, 2.5)
            self.recommended = Recommended(2.5, 50)
        self.decoded_at_once = self.frames  # more frames together agree better where the decoder mixes them

    def encode_picture(
        self,
        images: Tensor,
        generator: torch.Generator | Sequence[torch.Generator],
        frames: int | None = None,
        elevation_deg: float = 0.0,
        cond_aug: float | None = None,
    ) -> Condition:
        """See FramesPrior.encode_picture; sides are multiples of the codec's factor."""
        count, strength = frames or self.frames, self.cond_aug if cond_aug is None else cond_aug
        if any(side % self.vae_factor for side in images.shape[2:]):
            sides = f"{images.shape[3]} x {images.shape[2]}"
            raise InputError(f"the picture has {sides} px; {self.name} needs multiples of {self.vae_factor}")
        with torch.no_grad():
            token = self._token(images)
            concat = noised_mode(self.vae, images, strength, generator).to(token)
        numbers = [self.fps - 1, self.motion_bucket, strength] if self._told == 3 else [strength]
        micro = torch.tensor([numbers], dtype=token.dtype, device=token.device).expand(len(images), -1)
        told = {TOKEN: token, "concat": concat, MICRO: micro}
        none = {**told, TOKEN: torch.zeros_like(token), "concat": torch.zeros_like(concat)}
        return Condition({name: grouped(rows, count) for name, rows in {COND: told, NULL: none}.items()})

    def _token(self, images: Tensor) -> Tensor:
        """CLIP embeddings (B, 1, D), resized with antialiasing in [-1, 1] as the network learnt it."""
        from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as stock  # heavy

        small = stock._resize_with_antialiasing(2 * images.float() - 1, (CLIP_PX, CLIP_PX))
        where = execution_device(self.pipe.image_encoder)
        token: Tensor = self.pipe._encode_image((small + 1) / 2, where, 1, False)
        return token

    def _forward(self, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        shown = torch.cat([x, rows["concat"].to(x)], 1).to(self.dtype).unflatten(0, (-1, rows.frames))
        firsts = slice(None, None, rows.frames)
        asked = {"encoder_hidden_states": rows[TOKEN][firsts].to(self.dtype), "added_time_ids": rows[MICRO][firsts]}
        answer: Tensor = self.network(shown, time[firsts], **asked, return_dict=False)[0]
        return answer.flatten(0, 1)

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        """See Prior.decode; `decoded_at_once` frames see each other, as the stock pipeline decodes its chunks."""
        scaled = (latents / self.vae.config.scaling_factor).to(execution_device(self.vae), self.vae.dtype)
        parts = [
            self.vae.decode(part, num_frames=len(part), return_dict=False)[0].float()
            for part in scaled.split(self.decoded_at_once)
        ]
        images = torch.cat(parts) / 2 + 0.5
        return images.clamp(0, 1) if clamp else images


def grouped(tensors: dict[str, Tensor], frames: int) -> Rows:
    """Rows of pictures (B, ...) as those of their frames (B frames, ...)."""
    return Rows({name: value.repeat_interleave(frames, 0) for name, value in tensors.items()}, frames)
