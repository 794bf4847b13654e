"""Latents of a picture data set, encoded once: float16 shards on disk, one array in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from diffusers import AutoencoderKL

from ...utils.digests import digest
from ...utils.errors import InputError
from ...utils.files import atomic_path, read_json, write_json
from ...utils.progress import Progress
from .objectives.vae import Pictures, posterior_means

SHARD = 4096  # pictures
CHUNK = 64


class Captioned(Protocol):
    """Texts by number; with `rng` a paraphrase is drawn."""

    def captions(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> list[str]: ...


class CaptionedPictures(Pictures, Captioned, Protocol):
    """Pictures with texts."""


@runtime_checkable
class GroupedPictures(Protocol):
    """Pictures of which some are four views of one object."""

    def groups(self) -> np.ndarray: ...  # indices (G, 4)

    def cameras(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...  # c2w (n, 4, 4), K (n, 3, 3)


def weights_hash(model: torch.nn.Module) -> str:
    """16 hex digits of the sha256 of all weights, in name order."""
    return digest(model.state_dict())


def encode_latents(vae: AutoencoderKL, pictures: Pictures, out: str | Path) -> Path:
    """Writes posterior means times scaling_factor, float16 (n, C, h, w), in shards; finished shards are kept.

    Raises InputError when `out` holds latents of another codec.
    """
    out, scale = Path(out), float(vae.config.scaling_factor)
    description = {"vae": weights_hash(vae), "scaling_factor": scale}
    present = read_json(out / "latents.json") if (out / "latents.json").exists() else description
    if any(present.get(key) != value for key, value in description.items()):
        raise InputError(f"{out} holds latents of another codec; choose a new folder")
    with Progress(len(pictures), "encoding") as bar:
        for number, start in enumerate(range(0, len(pictures), SHARD)):
            indices = np.arange(start, min(start + SHARD, len(pictures)))
            path = out / f"latents-{number:05d}.npy"
            if not (path.exists() and len(np.load(path, mmap_mode="r")) == len(indices)):
                parts = [
                    posterior_means(vae, pictures, p) * scale
                    for p in np.array_split(indices, -(-len(indices) // CHUNK))
                ]
                with atomic_path(path) as temporary:
                    np.save(temporary, torch.cat(parts).cpu().to(torch.float16).contiguous().numpy())
            bar.advance(len(indices))
    write_json(out / "latents.json", {**description, "count": len(pictures)})
    return out


class LatentSet:
    """Training batches {"latents": float16 (B, C, h, w), "captions": list of B} of pictures encoded once."""

    def __init__(self, folder: str | Path, pictures: CaptionedPictures) -> None:
        folder = Path(folder)
        if not (folder / "latents.json").exists():
            raise InputError(f"{folder} holds no finished latents; run scripts.encode_latents first")
        description = read_json(folder / "latents.json")
        if description["count"] != len(pictures):
            raise InputError(
                f"{folder} holds {description['count']} latents but the data set has {len(pictures)} pictures; "
                "run scripts.encode_latents again with the same folders in the same order"
            )
        self.latents = np.concatenate([np.load(p) for p in sorted(folder.glob("latents-*.npy"))])
        self.pictures, self.identity = pictures, {"vae": description["vae"]}

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, Any]:
        """Latents and one caption a picture: a paraphrase drawn with `rng`, the canonical one without."""
        return {"latents": self.latents[indices], "captions": self.pictures.captions(indices, rng)}


class ViewGroups:
    """Batches of four-view groups, mixed with batches of single pictures of the same number of rows.

    {"latents": (B F, C, h, w), "captions": list of B F, "c2w": (B F, 4, 4) float32 or None, "frames": F or 1}
    """

    def __init__(self, latents: LatentSet, phrases: Captioned, single_share: float) -> None:
        """`phrases.captions` describe the object whatever the view; `latents.pictures` has groups() and cameras()."""
        self.latents, self.phrases, self.single_share = latents, phrases, single_share
        pictures = latents.pictures
        if not isinstance(pictures, GroupedPictures) or len(pictures.groups()) == 0:
            raise InputError("the data set has no four-view groups; render objects, not scenes")
        self.groups, self.cameras = np.asarray(pictures.groups()), pictures.cameras
        self.identity = {**latents.identity, "groups": len(self.groups), "single_share": single_share}

    def __len__(self) -> int:
        return len(self.groups)

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, Any]:
        """Groups `indices`, or with probability `single_share` random single pictures instead (never without rng)."""
        views = self.groups[indices]  # (B, F)
        frames = views.shape[1]
        if rng is not None and rng.random() < self.single_share:
            singles = rng.integers(len(self.latents), size=views.size)
            return {**self.latents.batch(singles, rng), "c2w": None, "frames": 1}
        texts = self.phrases.captions(views[:, 0], rng)
        c2w, _ = self.cameras(views.ravel())
        captions = [text for text in texts for _ in range(frames)]
        return {"latents": self.latents.latents[views.ravel()], "captions": captions, "c2w": c2w, "frames": frames}
