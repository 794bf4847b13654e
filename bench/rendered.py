"""Places rendered into memory, for experiments that learn from a few hundred pictures and measure on others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..toybox.dataset import RenderJob, render_group


class InMemory:
    """Pictures and maps by name, as arrays (n, H, W, C) of one length; "rgb" is among them (`GeometryPictures`)."""

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        self._columns = dict(columns)

    def __len__(self) -> int:
        return len(self._columns["rgb"])

    def images(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, 3)."""
        return self._columns["rgb"][indices]

    def column(self, name: str, indices: np.ndarray) -> np.ndarray:
        """A stored channel."""
        return self._columns[name][indices]


class RenderedPlaces(InMemory):
    """Rooms, streets, tables or interiors of a split, four eyes each, with the columns of a rendered set."""

    def __init__(self, split: str, groups: int, size: int, kind: str = "room", maps: bool = False) -> None:
        """`maps`: also coverage, albedo, roughness and metallic."""
        job = RenderJob(kind, split, groups, size, geometry=True, maps=maps)
        parts = [render_group(job, index) for index in range(groups)]
        names = [name for name in parts[0] if name != "records"]
        super().__init__({name: np.concatenate([part[name] for part in parts]) for name in names})

    def cameras(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """c2w (n, 4, 4) and K (n, 3, 3)."""
        return self._columns["c2w"][indices], self._columns["K"][indices]
