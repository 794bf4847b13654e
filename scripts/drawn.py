"""Rendered sets with their latents, as recipes name them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.training.latents import LatentSet
from ..toybox.dataset import RenderedSet
from ..toybox.maps import MapPictures


@dataclass(frozen=True)
class Drawn:
    """Rendered pictures and their latents, which scripts.encode_latents wrote for the same folders and kinds."""

    data: tuple[str, ...]
    """rendered folders of one size"""
    latents: str
    kinds: tuple[str, ...] = ("picture",)
    """what of each view was encoded (toybox.maps.MAPS)"""


class ObjectPhrases:
    """Captions of what is there and what kind of map shows it, whatever the view."""

    def __init__(self, pictures: MapPictures) -> None:
        self.pictures = pictures

    def captions(self, indices: np.ndarray, rng: np.random.Generator | None = None) -> list[str]:
        """One caption for each picture, without its view word."""
        return self.pictures.captions(indices, rng, views=False)


def drawn(parts: tuple[Drawn, ...], strange: float = 0.0) -> tuple[LatentSet, MapPictures]:
    """The latents of all parts, one after the other, and what they are latents of; no pictures are read."""
    pictures = MapPictures([(RenderedSet(part.data, columns=()), part.kinds) for part in parts], strange=strange)
    return LatentSet([part.latents for part in parts], pictures), pictures
