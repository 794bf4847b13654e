"""What a reader gives: pieces of a mesh in double precision, and the list of what could not be kept."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..colors import linear_from_srgb, srgb_from_linear, texture_at_vertices
from ..stored import Image8

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass
class Piece:
    """Triangles with one material, placed in our axes."""

    positions: Floats  # (V, 3)
    faces: Ints  # (F, 3)
    normals: Floats | None = None  # (V, 3)
    uv: Floats | None = None  # (Vt, 2), origin at the bottom left
    uv_faces: Ints | None = None  # (F, 3) into uv
    textures: dict[str, Image8] = field(default_factory=dict)
    colors: Floats | None = None  # (V, 3) sRGB in [0, 1]

    def drop_what_is_not_finite(self, notes: Notes) -> None:
        """Leaves out normals, colours and texture coordinates that hold a number which is none, by name."""
        self.normals = finite_or_none(self.normals, "normals", notes)
        self.colors = finite_or_none(self.colors, "colours", notes)
        self.uv = finite_or_none(self.uv, "texture coordinates", notes)
        if self.uv is None:
            self.uv_faces, self.textures = None, {}


@dataclass
class Notes:
    """Collects what a file holds and the mesh cannot, and says it in one warning."""

    path: Path
    lost: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Remembers a finding once."""
        if text not in self.lost:
            self.lost.append(text)

    def say(self) -> None:
        """One UserWarning for all, when there is anything to say."""
        if self.lost:
            warnings.warn(f"{self.path.name}: not kept: {'; '.join(self.lost)}", UserWarning, stacklevel=4)


def finite_or_none(values: Floats | None, what: str, notes: Notes) -> Floats | None:
    """The values; None, and a note of it, where some are not finite."""
    if values is None or bool(np.isfinite(values).all()):
        return values
    notes.add(f"{what}, some of which are not finite")
    return None


def srgb(linear: Any) -> Floats:
    """sRGB values of linear ones (..., 3), both in [0, 1]."""
    values = torch.as_tensor(np.asarray(linear, dtype=np.float64)).clamp(0, 1)
    return np.asarray(srgb_from_linear(values).numpy())


def linear(encoded: Any) -> Floats:
    """Linear values of sRGB ones (..., 3), both in [0, 1]."""
    values = torch.as_tensor(np.asarray(encoded, dtype=np.float64)).clamp(0, 1)
    return np.asarray(linear_from_srgb(values).numpy())


def tinted(image: Image8, factor: Floats) -> Image8:
    """A picture (H, W, 3) multiplied by a linear factor (3,) in linear light."""
    if np.all(factor == 1):
        return image
    steps = linear(np.arange(256) / 255)[:, None] * factor  # (256, 3)
    table = np.rint(srgb(steps) * 255).astype(np.uint8)
    return np.stack([table[image[..., c], c] for c in range(3)], axis=-1)


def colored(piece: Piece, factor: Floats | None, vertex: Floats | None, notes: Notes) -> Piece:
    """The base colour: texture x factor x vertex colour, multiplied in linear light.

    factor: linear (3,), None for a material without a colour. vertex: linear (V, 3). Textures and vertex colours that
    both vary become vertex colours, which is named.
    """
    texture = piece.textures.get("base_color")
    if texture is None:
        if vertex is None and factor is None:
            return piece
        tint = np.ones(3) if factor is None else factor
        base = np.ones_like(piece.positions) if vertex is None else vertex
        return replace(piece, colors=srgb(base * tint))
    tint = np.ones(3) if factor is None else factor
    if vertex is None or not np.ptp(vertex, axis=0).any():
        tint = tint if vertex is None else tint * vertex[0]
        return replace(piece, textures={**piece.textures, "base_color": tinted(texture, tint)})
    if piece.textures.keys() > {"base_color"} or np.ptp(texture.reshape(-1, 3), axis=0).any():
        notes.add("texture detail between vertices (a texture times vertex colours is kept as vertex colours)")
    at_vertices = linear(vertex_look(piece))
    return replace(piece, textures={}, uv=None, uv_faces=None, colors=srgb(at_vertices * vertex * tint))


def vertex_look(piece: Piece) -> Floats:
    """sRGB (V, 3) of the base texture at the vertices, the mean over the corners of each."""
    assert piece.uv is not None and piece.uv_faces is not None
    image = torch.from_numpy(piece.textures["base_color"].astype(np.float64) / 255)
    uv, corners, faces = (torch.from_numpy(np.ascontiguousarray(a)) for a in (piece.uv, piece.uv_faces, piece.faces))
    return np.asarray(texture_at_vertices(image, uv, corners, faces, len(piece.positions)).numpy())
