"""Clean depth of rendered views and what the toybox sensor measures of it: pairs for simulators of sensors."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ..utils.errors import InputError
from .materials import linear_from_srgb
from .programs import stable_hash
from .sensor import SensorModel, incidence, measure


class MapColumns(Protocol):
    """Columns of a set that was rendered with maps: depth_m, normal, albedo, material and K (`dataset.RenderedSet`)."""

    def __len__(self) -> int: ...

    def column(self, name: str, indices: np.ndarray) -> np.ndarray: ...

    def cameras(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


class SensorPairs:
    """Batches {"clean", "measured" (B, H, W) float32 in metres, "K" (B, 3, 3)}, mirrored and measured anew with `rng`.

    Without `rng` each view has the one measurement that its number and `seed` say.
    """

    def __init__(self, views: MapColumns, model: SensorModel | None = None, seed: int = 0) -> None:
        if not len(views):
            raise InputError("give rendered views with maps; make some with `unproject toybox --render --maps`")
        self.views, self.model, self.seed = views, model or SensorModel(), seed
        self.identity = {"length": len(views), "seed": seed}

    def __len__(self) -> int:
        return len(self.views)

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, Any]:
        """See the class."""
        rows = [self._row(int(i), rng) for i in indices]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def incidence(self, indices: np.ndarray) -> np.ndarray:
        """Angles (B, H, W) in radians at which the surfaces are seen."""
        _, K = self.views.cameras(indices)
        normals = self.views.column("normal", indices) / 127.0
        return np.stack([incidence(one, k.astype(float)) for one, k in zip(normals, K, strict=True)])

    def _row(self, index: int, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
        one = np.array([index])
        clean, normal, albedo, material = (
            self.views.column(name, one)[0].astype(np.float32) for name in ("depth_m", "normal", "albedo", "material")
        )
        K = self.views.cameras(one)[1][0].astype(np.float32)
        if rng is not None and rng.random() < 0.5:  # before it is measured: the projector stays on its side
            clean, normal, albedo, material = (part[:, ::-1] for part in (clean, normal, albedo, material))
            normal = normal * np.array([-1, 1, 1], np.float32)
            K = np.array([[K[0, 0], -K[0, 1], clean.shape[1] - K[0, 2]], *K[1:]], np.float32)
        noise = np.random.default_rng(stable_hash("sensor", self.seed, index)) if rng is None else rng
        measured = measure(
            clean,
            K.astype(float),
            noise,
            self.model,
            normal / 127.0,
            linear_from_srgb(albedo / 255.0),
            material[..., 0] / 255.0,
            material[..., 1] / 255.0,
        )
        return {"clean": np.ascontiguousarray(clean), "measured": measured, "K": K}
