"""Latents of a picture data set, encoded once: float16 or packed int8 shards on disk, one array in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ...utils.digests import digest
from ...utils.errors import InputError
from ...utils.files import atomic_path, read_json, write_json
from ...utils.progress import Progress
from .objectives.vae import Pictures, posterior_means

SHARD = 4096  # pictures
CHUNK = 64
UNIT = 1 / 24  # of packed latents, whose deviation is 1: what is beyond 5.3 deviations is clipped


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


class Encoded(Protocol):
    """Latents in memory with their texts: a LatentSet, or one that was packed to travel."""

    identity: dict[str, Any]

    @property
    def pictures(self) -> Any: ...

    def __len__(self) -> int: ...

    def rows(self, indices: np.ndarray) -> np.ndarray: ...

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, Any]: ...


def weights_hash(model: torch.nn.Module) -> str:
    """16 hex digits of the sha256 of all weights, in name order."""
    return digest(model.state_dict())


def encode_latents(vae: AutoencoderKL, pictures: Pictures, out: str | Path, packed: bool = False) -> Path:
    """Writes posterior means times scaling_factor (n, C, h, w) in shards, float16 or int8 in units of UNIT; finished
    shards are kept.

    Raises InputError when `out` holds latents of another codec, or packed otherwise.
    """
    out, scale = Path(out), float(vae.config.scaling_factor)
    description = {"vae": weights_hash(vae), "scaling_factor": scale, "unit": UNIT if packed else None}
    present = read_json(out / "latents.json") if (out / "latents.json").exists() else description
    if any(present.get(key) != value for key, value in description.items()):
        raise InputError(f"{out} holds latents of another codec, or packed in another way; choose a new folder")
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
                    np.save(temporary, _stored(torch.cat(parts).cpu().contiguous(), packed))
            bar.advance(len(indices))
    write_json(out / "latents.json", {**description, "count": len(pictures)})
    return out


def _stored(latents: Tensor, packed: bool) -> np.ndarray:
    if not packed:
        return latents.to(torch.float16).numpy()
    return (latents / UNIT).round().clamp(-127, 127).to(torch.int8).numpy()


class LatentSet:
    """Training batches {"latents": float (B, C, h, w), "captions": list of B} of pictures encoded once."""

    def __init__(self, folder: str | Path | Sequence[str | Path], pictures: CaptionedPictures) -> None:
        """`folder` or folders, one after the other, hold the latents of all `pictures` in their order.

        Raises InputError for folders that are unfinished, of different codecs, or of another number of pictures.
        """
        folders = [Path(f) for f in ([folder] if isinstance(folder, (str, Path)) else folder)]
        found = [_description(one) for one in folders]
        if any(one[key] != found[0][key] for one in found for key in ("vae", "unit")):
            raise InputError(f"{', '.join(map(str, folders))} hold latents of different codecs; encode them again")
        count = sum(one["count"] for one in found)
        if count != len(pictures):
            raise InputError(
                f"{', '.join(map(str, folders))}: {count} latents, but the data set has {len(pictures)} pictures; "
                "run scripts.encode_latents again with the same folders in the same order"
            )
        self.latents = np.concatenate([np.load(p) for one in folders for p in sorted(one.glob("latents-*.npy"))])
        self.pictures: CaptionedPictures = pictures
        self.identity: dict[str, Any] = {"vae": found[0]["vae"]}
        self._unit = found[0]["unit"]

    def __len__(self) -> int:
        return len(self.latents)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Latents (n, C, h, w), float16, or float32 of packed ones."""
        rows = self.latents[indices]
        return rows if self._unit is None else rows * np.float32(self._unit)

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, Any]:
        """Latents and one caption a picture: a paraphrase drawn with `rng`, the canonical one without."""
        return {"latents": self.rows(indices), "captions": self.pictures.captions(indices, rng)}


def _description(folder: Path) -> dict[str, Any]:
    if not (folder / "latents.json").exists():
        raise InputError(f"{folder} holds no finished latents; run scripts.encode_latents first")
    return {"unit": None, **read_json(folder / "latents.json")}


class ViewGroups:
    """Batches of four-view groups, mixed with batches of single pictures of the same number of rows.

    {"latents": (B F, C, h, w), "captions": list of B F, "c2w": (B F, 4, 4) float32 or None, "frames": F or 1}
    """

    def __init__(self, latents: Encoded, phrases: Captioned, single_share: float) -> None:
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
        return {"latents": self.latents.rows(views.ravel()), "captions": captions, "c2w": c2w, "frames": frames}
