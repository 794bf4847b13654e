"""Material sets in memory: maps with captions, pictures without maps, and photographs of both."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..utils.errors import InputError
from .materials import linear_from_srgb, srgb_from_linear
from .pbr import LABELLED, PICTURED, PbrMaps, draw_pbr, pbr_caption, pbr_maps
from .programs import stable_hash

MAPS = ("albedo", "normal", "height", "roughness", "metallic")


def photographed(maps: PbrMaps, rng: np.random.Generator) -> np.ndarray:
    """The surface (H, W, 3) sRGB seen from above under a lamp from some side and a sky; Blinn-Phong (1977).

    The lamp is far, so that the picture of a tileable material tiles.
    """
    angle, lift = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.2)
    lamp = np.array([np.cos(angle) * np.cos(lift), np.sin(angle) * np.cos(lift), np.sin(lift)])
    half = lamp + [0.0, 0.0, 1.0]
    half /= np.linalg.norm(half)
    albedo, metal = linear_from_srgb(maps.albedo_srgb), maps.metallic[..., None]
    sky = 0.35 * (0.5 + 0.5 * maps.normal[..., 2:])
    lit = np.clip(maps.normal @ lamp, 0, None)[..., None]
    power = 2 / np.maximum(maps.roughness, 0.1)[..., None] ** 4
    shine = np.clip(maps.normal @ half, 0, None)[..., None] ** power * (power + 2) / 8
    mirror = 0.04 * (1 - metal) + albedo * metal
    light = albedo * (1 - 0.7 * metal) * (sky + lit) + mirror * lit * np.minimum(shine, 4.0)
    return srgb_from_linear(light * rng.uniform(0.8, 1.2)).astype(np.float32)


class PbrSet:
    """Materials of a split with all maps, and as many pictures of materials whose maps nobody knows.

    Batches: the names of MAPS float32 (B, H, W[, 3]), "photo" uint8 (B, H, W, 3), "captions"; and "textures" uint8
    (B, H, W, 3), albedos alone, with "texture_captions". Every visit with `rng` shifts a material around its tile.
    """

    def __init__(
        self,
        split: str,
        count: int,
        size: int,
        families: tuple[str, ...] = tuple(LABELLED),
        pictured: tuple[str, ...] = tuple(PICTURED),
    ) -> None:
        if count < 1 or size < 8:
            raise InputError(f"count={count}, size={size}: need count >= 1 and size >= 8")
        self.programs = [draw_pbr(split, i, families) for i in range(count)]
        self.made = [pbr_maps(program, size) for program in self.programs]
        self.drawn = [draw_pbr(split, i, (*families, *pictured)) for i in range(count)]
        self.textures = np.stack([_bytes(pbr_maps(program, size).albedo_srgb) for program in self.drawn])
        self.size, self.identity = size, {"split": split, "count": count, "size": size, "families": families}

    def __len__(self) -> int:
        return len(self.programs)

    def batch(self, indices: np.ndarray, rng: np.random.Generator | None) -> dict[str, Any]:
        """See the class."""
        rows: list[PbrMaps] = []
        photos, textures, others = [], [], []
        for index in (int(i) for i in indices):
            maps = self.made[index]
            noise = np.random.default_rng(stable_hash("photo", index)) if rng is None else rng
            other = index if rng is None else int(rng.integers(len(self.drawn)))
            texture = self.textures[other]
            if rng is not None:
                shift, along = (tuple(int(s) for s in rng.integers(self.size, size=2)) for _ in range(2))
                maps = PbrMaps(*(np.roll(one, shift, (0, 1)) for one in maps))
                texture = np.roll(texture, along, (0, 1))
            rows.append(maps)
            photos.append(_bytes(photographed(maps, noise)))
            textures.append(texture)
            others.append(other)
        found = {name: np.stack([row[k] for row in rows]) for k, name in enumerate(MAPS)}
        return {
            **found,
            "photo": np.stack(photos),
            "captions": [pbr_caption(self.programs[int(i)]) for i in indices],
            "textures": np.stack(textures),
            "texture_captions": [pbr_caption(self.drawn[i]) for i in others],
        }


def _bytes(unit: np.ndarray) -> np.ndarray:
    return np.round(unit.clip(0, 1) * 255).astype(np.uint8)
