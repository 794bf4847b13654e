"""A part of a training set small enough to travel: pictures, or packed latents with texts written beforehand and
cameras, in one file. Where it is trained on, neither renders nor the world they show are needed.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...utils.errors import InputError
from ...utils.files import atomic_path
from .latents import UNIT, Captioned, GroupedPictures, LatentSet
from .objectives.vae import Pictures

GROUP_SHARE = 0.7  # of the packed pictures that are views of four-view groups


class Packed(NamedTuple):
    """The size of what was packed."""

    pictures: int
    groups: int
    megabytes: float


def pack_pictures(pictures: Pictures, path: str | Path, megabytes: float = 40.0, seed: int = 0) -> Packed:
    """Writes random pictures of a set, as many as fill no more than about `megabytes` when compressed.

    What a compressed picture takes is measured on 256 of them.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(pictures))
    probe = pictures.images(np.sort(order[:256]))
    each = sum(len(zlib.compress(one.tobytes(), 6)) for one in probe) / len(probe)
    chosen = np.sort(order[: max(1, int(0.97e6 * megabytes / each))])
    images = np.concatenate([pictures.images(part) for part in np.array_split(chosen, -(-len(chosen) // 256))])
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, images=images)
    return Packed(len(images), 0, round(Path(path).stat().st_size / 1e6, 2))


class PackedPictures:
    """What `pack_pictures` wrote: a picture set and training batches of it."""

    def __init__(self, path: str | Path) -> None:
        """Raises InputError when the file is no pack."""
        self._images = _read(path, "images")["images"]
        self.identity = {"pictures": len(self._images)}

    def __len__(self) -> int:
        return len(self._images)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, 3)."""
        return self._images[indices]

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        """{"images": uint8 (n, H, W, 3)}; `rng` is unused."""
        return {"images": self._images[indices]}


def _read(path: str | Path, *names: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} holds nothing packed ({error}); write it with pack") from error


def pack(
    latents: LatentSet, phrases: Captioned, path: str | Path, megabytes: float = 40.0, texts: int = 8, seed: int = 0
) -> Packed:
    """Writes a random part of `latents` that fills no more than about `megabytes`: whole four-view groups, and for
    the rest pictures that belong to none. `texts` paraphrases are kept of each picture and, from `phrases`, group.

    Raises InputError for unpacked latents and when not even one group has room.
    """
    if latents.latents.dtype != np.int8 or not isinstance(latents.pictures, GroupedPictures):
        raise InputError("only latents of renders that were encoded with --pack can be packed to travel")
    rng = np.random.default_rng(seed)
    groups = np.asarray(latents.pictures.groups())
    room = int(1e6 * megabytes / (latents.latents[0].nbytes + 8 * texts))  # a text takes about 8 bytes when compressed
    singles = np.setdiff1d(np.arange(len(latents)), groups)
    wanted = min(len(groups), int(room * (GROUP_SHARE if len(singles) else 1.0)) // 4)
    if wanted < 1:
        raise InputError(f"megabytes={megabytes} has room for {room} pictures; a group needs four")
    chosen = groups[np.sort(rng.permutation(len(groups))[:wanted])]
    others = np.sort(rng.permutation(singles)[: max(0, room - 4 * wanted)])
    every = np.concatenate([chosen.ravel(), others]).astype(np.int64)
    c2w, _ = latents.pictures.cameras(chosen.ravel())
    said = [latents.pictures.captions(every, rng) for _ in range(texts)]
    called = [phrases.captions(chosen[:, 0], rng) for _ in range(texts)]
    document = {**latents.identity, "texts": said, "phrases": called}
    with atomic_path(path) as temporary:
        np.savez_compressed(
            temporary, latents=latents.latents[every], c2w=c2w.astype(np.float32),
            document=np.frombuffer(json.dumps(document).encode(), np.uint8),
        )  # fmt: skip
    return Packed(len(every), wanted, round(Path(path).stat().st_size / 1e6, 2))


class PackedLatents:
    """What `pack` wrote, as the latent set of `ViewGroups`: its own pictures, of which the first are the groups."""

    def __init__(self, path: str | Path) -> None:
        """Raises InputError when the file is no pack."""
        arrays = _read(path, "latents", "c2w", "document")
        self.latents, self._c2w = arrays["latents"], arrays["c2w"]
        document = json.loads(arrays["document"].tobytes())
        self._texts, self._phrases = document["texts"], document["phrases"]
        self.identity = {"vae": document["vae"], "pictures": len(self.latents), "groups": len(self._c2w) // 4}
        self.phrases = _Phrases(self._phrases)

    @property
    def pictures(self) -> PackedLatents:
        """Itself: groups and cameras."""
        return self

    def __len__(self) -> int:
        return len(self.latents)

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Latents (n, C, h, w) float32."""
        return self.latents[indices] * np.float32(UNIT)

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, Any]:
        """As LatentSet.batch; the text is one of those that were packed, the first without `rng`."""
        texts = [self._texts[0 if rng is None else int(rng.integers(len(self._texts)))][int(i)] for i in indices]
        return {"latents": self.rows(indices), "captions": texts}

    def groups(self) -> np.ndarray:
        """Indices (G, 4)."""
        return np.arange(len(self._c2w)).reshape(-1, 4)

    def cameras(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """c2w (n, 4, 4) float32 of members of groups; K is not kept and unit."""
        return self._c2w[indices], np.tile(np.eye(3, dtype=np.float32), (len(indices), 1, 1))


class _Phrases:
    """Texts of groups, asked for by the number of their first picture."""

    def __init__(self, phrases: list[list[str]]) -> None:
        self._phrases = phrases

    def captions(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> list[str]:
        return [
            self._phrases[0 if rng is None else int(rng.integers(len(self._phrases)))][int(i) // 4] for i in indices
        ]
