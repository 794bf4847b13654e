"""Looks: the twelve colours, the finishes, the procedural patterns and the fixed looks of the part slots.

Albedo is linear RGB in [0, 1] unless a name ends in _srgb. Patterns are functions of the canonical object coordinates,
so they need no UV map and are the same from every view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .textures import TEXTURES

COLOURS_SRGB: dict[str, tuple[int, int, int]] = {
    "red": (205, 32, 36),
    "orange": (240, 126, 26),
    "yellow": (246, 210, 36),
    "green": (44, 150, 60),
    "cyan": (40, 188, 200),
    "blue": (36, 78, 200),
    "purple": (126, 50, 168),
    "pink": (244, 130, 180),
    "brown": (112, 66, 34),
    "white": (240, 240, 236),
    "gray": (128, 130, 134),
    "black": (30, 30, 33),
}
PATTERNS = ("plain", "striped", "checkered", "dotted", "brick")
FINISHES = ("plastic", "matte", "shiny", "metal", "wooden")
FINISH_ROUGHNESS_METALLIC = {
    "plastic": (0.45, 0.0),
    "matte": (0.95, 0.0),
    "shiny": (0.12, 0.0),
    "metal": (0.28, 1.0),
    "wooden": (0.65, 0.0),
}


def linear_from_srgb(value: np.ndarray) -> np.ndarray:
    """sRGB transfer function to linear light, values in [0, 1] (IEC 61966-2-1)."""
    value = np.asarray(value)
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(value: np.ndarray) -> np.ndarray:
    """Linear light to sRGB, values clipped to [0, 1] (IEC 61966-2-1)."""
    value = np.clip(value, 0.0, 1.0)
    return np.where(value <= 0.0031308, 12.92 * value, 1.055 * value ** (1 / 2.4) - 0.055)


def colour_linear(name: str) -> np.ndarray:
    """Linear albedo (3,) of a colour word."""
    return linear_from_srgb(np.array(COLOURS_SRGB[name]) / 255.0)


# Fixed looks: albedo_srgb (0-255), roughness, metallic.
SLOT_LOOKS: dict[str, tuple[tuple[int, int, int], float, float]] = {
    "dark": ((38, 38, 42), 0.6, 0.0),
    "light": ((238, 236, 228), 0.6, 0.0),
    "metal": ((180, 184, 190), 0.35, 1.0),
    "wood": ((142, 100, 60), 0.7, 0.0),
    "glass": ((172, 208, 224), 0.1, 0.0),
    "leaf": ((60, 120, 48), 0.7, 0.0),
    "accent": ((236, 190, 60), 0.5, 0.0),
    "lamp": ((255, 242, 170), 0.3, 0.0),
    "signal": ((214, 30, 30), 0.3, 0.0),
    "skin": ((226, 182, 148), 0.7, 0.0),
}


@dataclass(frozen=True)
class Look:
    """The surface of one slot of one object."""

    albedo: tuple[float, float, float]  # linear
    roughness: float
    metallic: float
    pattern: str = "plain"
    grain: bool = False  # wood grain over the albedo
    phase: float = 0.0  # shifts the pattern, object coordinates
    scale: float = 1.0  # pattern frequency factor
    texture: str = ""  # one of textures.TEXTURES over the albedo
    emission: float = 0.0  # radiance per albedo it gives off by itself


def second_tone(albedo: np.ndarray) -> np.ndarray:
    """The other colour of a two-tone pattern: near-white over dark and mid tones, dark over light ones."""
    luminance = albedo @ np.array([0.2126, 0.7152, 0.0722])
    return 0.22 * albedo if luminance > 0.42 else 0.25 * albedo + 0.62


def _striped(p: np.ndarray, phase: float) -> np.ndarray:
    return (p[:, 2] * 2.6 + 0.35 * p[:, 1] + phase) % 1.0 < 0.38


def _checkered(p: np.ndarray, phase: float) -> np.ndarray:
    return np.floor(p * 3.1 + phase + 0.013).astype(np.int64).sum(1) % 2 == 1


def _dotted(p: np.ndarray, phase: float) -> np.ndarray:
    cell = (p * 2.7 + phase) % 1.0 - 0.5
    cell[:, 1] = ((p[:, 1] * 2.7 + phase + 0.5 * (np.floor(p[:, 2] * 2.7 + phase) % 2)) % 1.0) - 0.5
    return (cell**2).sum(1) < 0.34**2


def _brick(p: np.ndarray, phase: float) -> np.ndarray:
    row = p[:, 2] * 4.2 + phase
    along = (p[:, 0] + p[:, 1]) * 2.1 + 0.5 * (np.floor(row) % 2)
    return (row % 1.0 < 0.2) | (along % 1.0 < 0.1)


PATTERN_MASKS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "striped": _striped,
    "checkered": _checkered,
    "dotted": _dotted,
    "brick": _brick,
}


def albedo_at(look: Look, p: np.ndarray) -> np.ndarray:
    """Linear albedo (N, 3) at canonical object coordinates p (N, 3)."""
    base = np.asarray(look.albedo, np.float32)
    albedo = np.broadcast_to(base, p.shape).astype(np.float32)
    if look.grain:
        wobble = 0.05 * np.sin(7.0 * p[:, 2] + 3.0 * p[:, 1]) + 0.03 * np.sin(13.0 * p[:, 1] - 5.0 * p[:, 2])
        rings = np.hypot(p[:, 0] + 0.9 + wobble, 0.8 * p[:, 1]) * 5.0 + look.phase
        band = np.abs(rings % 1.0 - 0.5) * 2.0
        albedo = albedo * (0.62 + 0.46 * band[:, None]).astype(np.float32)
    if look.pattern != "plain":
        mask = PATTERN_MASKS[look.pattern](p * look.scale, look.phase)
        albedo = np.where(mask[:, None], second_tone(base).astype(np.float32), albedo)
    if look.texture:
        albedo = albedo * TEXTURES[look.texture](p * look.scale, int(look.phase * 1e6)).astype(np.float32)
    return np.clip(albedo, 0.0, 1.0)


def object_looks(colour: str, pattern: str, finish: str, phase: float, scale: float) -> dict[str, Look]:
    """The look of every slot of an object painted in `colour` with this pattern and finish."""
    roughness, metallic = FINISH_ROUGHNESS_METALLIC[finish]
    albedo = colour_linear(colour)
    grain = finish == "wooden"
    looks = {
        slot: Look(tuple(linear_from_srgb(np.array(rgb) / 255.0)), rough, metal, grain=slot == "wood")
        for slot, (rgb, rough, metal) in SLOT_LOOKS.items()
    }
    looks["body"] = Look(tuple(albedo), roughness, metallic, pattern, grain, phase, scale)
    looks["trim"] = Look(tuple(0.45 * albedo), roughness, metallic, "plain", grain, phase, scale)
    return looks
