"""Orbits of rendered objects as training batches: latents of all frames, encoded once, and the pictures themselves."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKL

from ...utils.errors import InputError
from ...utils.progress import Progress
from .latents import weights_hash
from .objectives.vae import Pictures, posterior_means

CHUNK = 64  # pictures encoded together


class OrbitPictures(Pictures, Protocol):
    """Pictures of which some are the frames of orbits."""

    def groups(self) -> np.ndarray: ...  # indices (G, F), azimuths 360 / F degrees apart

    def cameras(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...  # c2w (n, 4, 4), K (n, 3, 3)


class OrbitClips:
    """{"latents": (B, F, C, h, w) float32 posterior means, unscaled; "pictures": (B, H, W, 3) uint8, the first frames;
    "elevation": (B,) radians}. Each time an orbit begins at another of its frames."""

    def __init__(self, latents: np.ndarray, pictures: np.ndarray, elevation: np.ndarray, vae: str) -> None:
        """latents (G, F, C, h, w), pictures (G, F, H, W, 3) uint8, elevation (G,); `vae`: hash of the codec."""
        self.latents, self.pictures, self.elevation = latents, pictures, elevation.astype(np.float32)
        self.identity = {"vae": vae, "orbits": len(latents), "frames": latents.shape[1]}

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, Any]:
        """See the class; without `rng` orbits begin at their own first frame."""
        count = self.latents.shape[1]
        starts = np.zeros(len(indices), int) if rng is None else rng.integers(count, size=len(indices))
        order = (starts[:, None] + np.arange(count)) % count  # (B, F)
        return {
            "latents": self.latents[indices[:, None], order].astype(np.float32),
            "pictures": self.pictures[indices, starts],
            "elevation": self.elevation[indices],
        }


@torch.no_grad()
def encoded_orbits(
    vae: AutoencoderKL, pictures: OrbitPictures, frames: int, least_motion: float = 0.0, label: str = "encoding"
) -> OrbitClips:
    """The orbits of a rendered set for a codec.

    least_motion: orbits whose neighbouring frames differ by less (`motion`) are left out: what does not move teaches
    to stand still. Raises InputError where none are left, or groups are no orbits of `frames`.
    """
    groups = np.asarray(pictures.groups())
    if len(groups) == 0 or groups.shape[1] != frames:
        found = f"groups of {groups.shape[1]} views" if len(groups) else "no groups"
        raise InputError(
            f"the data set holds {found}, not orbits of {frames}; render one with `unproject toybox --render --kind "
            "orbit`"
        )
    shown = np.stack([pictures.images(group) for group in groups])  # (G, F, H, W, 3)
    kept = np.array([motion(clip) >= least_motion for clip in shown])
    if not kept.any():
        raise InputError(f"least_motion={least_motion} leaves none of {len(groups)} orbits; lower it")
    groups, shown = groups[kept], shown[kept]
    parts = []
    with Progress(groups.size, label) as bar:
        for some in np.array_split(groups.ravel(), max(1, groups.size // CHUNK)):
            parts.append(posterior_means(vae, pictures, some).cpu().half().numpy())
            bar.advance(len(some))
    latents = np.concatenate(parts).reshape(*groups.shape, *parts[0].shape[1:])
    c2w, _ = pictures.cameras(groups[:, 0])
    return OrbitClips(latents, shown, elevations(c2w), weights_hash(vae))


def elevations(c2w: np.ndarray) -> np.ndarray:
    """Radians (n,) above the horizon of cameras (n, 4, 4) that look at the origin."""
    eye = c2w[:, :3, 3]
    return np.arcsin(np.clip(eye[:, 2] / np.linalg.norm(eye, axis=1), -1, 1))


def motion(clip: np.ndarray) -> float:
    """Mean absolute difference of neighbouring frames (F, H, W, 3) uint8, in [0, 1]; what stands still has 0."""
    return float(np.abs(np.diff(clip.astype(np.float32), axis=0)).mean() / 255)
