"""An orbit around an object from one picture of it, by a prior of single images with temporal blocks.

What SV3D (Voleti et al. 2024) makes of Stable Video Diffusion, in small: frame k looks from k / F of a turn further
than the picture, frame 0 is the picture itself. The network is told the picture's latents (unscaled, on further
channels), a token of them, the noise on the picture, and elevation and azimuth of each frame; its text is the empty
one. The unconditional branch has zeros for latents and token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...utils.configs import load_config, to_dict
from ...utils.digests import digest
from ...utils.errors import InputError
from ...utils.files import atomic_path, read_json, write_json
from .base import Recommended
from .diffusers import StableDiffusionPrior
from .multiview import base_beside
from .planes import sharing
from .rows import COND, NULL, Condition, Rows
from .temporal import TemporalConfig, TemporalParts, TemporalUNet
from .video import TOKEN, FramesPrior, grouped, noised_mode

MANIFEST, WEIGHTS = "orbit.json", "orbit.safetensors"
FRAMES = 8  # of a turn
ANGLES = "angles"  # rows (B F, 3): cond_aug, elevation and azimuth in radians


class OrbitPrior(FramesPrior):
    """A prior of single images and what lets it draw orbits; the image prior stays as it is, its weights are shared."""

    recommended = Recommended(2.0, 25)
    reads = frozenset({"text", TOKEN, "concat", ANGLES})
    orbits, scales = True, (1.0, 2.0)
    network: TemporalUNet

    def __init__(
        self,
        base: StableDiffusionPrior,
        config: TemporalConfig | None = None,
        frames: int = FRAMES,
        name: str = "",
        seed: int = 0,
        frozen: bool = True,
    ) -> None:
        """`seed`: of the first weights. Raises InputError for a base that is no 2-D Stable Diffusion prior."""
        if not isinstance(base, StableDiffusionPrior) or base.multiview:
            raise InputError(f"orbits are drawn by a Stable Diffusion prior of single images, which {base.name} is not")
        if frames < 2:
            raise InputError(f"frames={frames}: an orbit has at least 2")
        config = config or TemporalConfig()
        super().__init__(base.pipe, name or f"{base.name}-orbit", frozen=False)
        self.base, self.temporal, self.frames, self.recipe = base, config, frames, base.recipe
        channels = int(base.vae.config["latent_channels"])
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
            parts = TemporalParts(base.network, channels, 3, config)  # type: ignore[arg-type]
        self.network = TemporalUNet(sharing(base.network), parts.to(base.device, base.dtype))
        with torch.no_grad():
            self._text = base.encode_text("")[COND]["text"]  # (1, L, D)
        if frozen:
            self.freeze()

    @property
    def parts(self) -> TemporalParts:
        """What learns."""
        return self.network.parts

    def modules(self) -> dict[str, nn.Module]:
        """See Prior.modules."""
        return {**super().modules(), "unet": self.network}

    def encode_picture(
        self,
        images: Tensor,
        generator: torch.Generator | Sequence[torch.Generator],
        frames: int | None = None,
        elevation_deg: float = 0.0,
        cond_aug: float | None = None,
    ) -> Condition:
        """See FramesPrior.encode_picture."""
        count, strength = frames or self.frames, self.cond_aug if cond_aug is None else cond_aug
        with torch.no_grad():
            latents = noised_mode(self.vae, images, strength, generator).float()
            turns = torch.deg2rad(torch.tensor(self.azimuths(count), device=latents.device))
            height = latents.new_full((count,), math.radians(elevation_deg))
            angles = torch.stack([torch.full_like(height, strength), height, turns], -1).repeat(len(images), 1)
            return self.told(latents, angles, count)

    def told(self, latents: Tensor, angles: Tensor, frames: int, kept: Tensor | None = None) -> Condition:
        """The condition of pictures' latents (B, C, h, w), unscaled, with the angles (B F, 3) of their frames.

        kept: (B,) of 0 and 1: where it is 0 the conditional branch too is told nothing, as training needs it.
        """
        token = self.parts.token(latents.to(self.parts.token.last.weight.dtype))
        if kept is not None:
            token, latents = kept[:, None, None].to(token) * token, kept[:, None, None, None].to(latents) * latents
        rows = grouped({TOKEN: token, "concat": latents}, frames)
        text = self._text.to(latents.device).expand(len(rows), -1, -1)
        cond = rows.with_tensors(text=text, **{ANGLES: angles})
        null = cond.with_tensors(**{name: torch.zeros_like(cond[name]) for name in (TOKEN, "concat")})
        return Condition({COND: cond, NULL: null})

    def _forward(self, x: Tensor, time: Tensor, rows: Rows) -> Tensor:
        told = [rows[name].to(self.dtype) for name in ("text", TOKEN, "concat")]
        return self.network(x.to(self.dtype), time, *told, rows[ANGLES], rows.frames)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> OrbitPrior:
        """See Prior.to; the base goes along."""
        self.base.to(device, dtype)
        super().to(device, dtype)
        self._text = self._text.to(device, dtype)
        return self

    def save(self, folder: str | Path) -> Path:
        """See Prior.save: the adapter, and the base in base/."""
        self.base.save(Path(folder) / "base")
        return self.save_adapter(folder, "base")

    def save_adapter(self, folder: str | Path, base: str, **about: Any) -> Path:
        """Writes orbit.safetensors (half precision) and orbit.json with what else there is `about` it; `base` is a
        folder inside or beside, or the name of a prior."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        halves = {name: value.detach().cpu().half().contiguous() for name, value in self.parts.state_dict().items()}
        with atomic_path(folder / WEIGHTS) as temporary:
            save_file(halves, temporary)
        described = {"base": base, "base_hash": network_hash(self.base), "frames": self.frames}
        write_json(folder / MANIFEST, {**described, "config": to_dict(self.temporal), **about})
        return folder

    def take(self, folder: str | Path) -> OrbitPrior:
        """Takes the weights of a folder over. Raises InputError for those of another base or form."""
        folder = Path(folder)
        about = read_manifest(folder)
        if about["base_hash"] != network_hash(self.base):
            raise InputError(
                f"{folder} belongs to the prior {about['base']} of other weights than {self.base.name} has; train anew "
                "(unproject train orbits)"
            )
        try:
            weights = load_file(folder / WEIGHTS)
            self.parts.load_state_dict({name: value.float() for name, value in weights.items()})
        except Exception as error:  # the readers raise many kinds for what is damaged or of another form
            raise InputError(f"{folder / WEIGHTS} is missing, damaged or of another form ({error})") from error
        return self


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The orbit.json of a folder. Raises InputError when it is missing or malformed."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise InputError(f"{folder} holds no {MANIFEST}; give the export/ of `unproject train orbits`")
    about = read_json(path)
    needed = {"base": str, "base_hash": str, "frames": int, "config": dict}
    if not isinstance(about, dict) or any(not isinstance(about.get(key), kind) for key, kind in needed.items()):
        raise InputError(f"{path} must name {', '.join(needed)}")
    return about


def base_of(folder: str | Path) -> Path | str:
    """Where the image prior of an orbit folder is: inside it, beside it, or the name of a prior."""
    return base_beside(folder, read_manifest(folder)["base"])


def load_orbits(folder: str | Path, base: StableDiffusionPrior, name: str = "") -> OrbitPrior:
    """What `save` or `save_adapter` wrote, on its image prior. Raises InputError where they do not belong together."""
    about = read_manifest(folder)
    prior = OrbitPrior(base, load_config(TemporalConfig, about["config"]), about["frames"], name or Path(folder).name)
    return prior.take(folder)


def network_hash(prior: StableDiffusionPrior) -> str:
    """Of a prior's network, in whatever precision it is held."""
    return digest(prior.network.state_dict(), torch.float16)
