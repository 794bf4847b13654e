"""Several pieces as one: their textures on one sheet, repeated ones repeated; else colours at the vertices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from ..stored import TEXTURES, Image8
from .piece import Floats, Ints, Notes, Piece, vertex_look

MARGIN = 2  # texels around each picture, for bilinear lookup
LARGEST = 8192  # px of a sheet's side
MOST_COPIES = 64  # of a picture that repeats over a piece
NEUTRAL = {"base_color": (255, 255, 255), "metallic_roughness": (255, 255, 0), "normal": (128, 128, 255)}
NO_COLOR = 0.8  # sRGB grey of pieces without a colour beside coloured ones


def joined(pieces: list[Piece], notes: Notes) -> Piece:
    """All pieces as one. Textures stay textures where every piece has one or a single colour."""
    if len(pieces) == 1:
        return pieces[0]
    textured = [piece for piece in pieces if piece.textures]
    if textured and all(piece.textures or _one_color(piece) for piece in pieces):
        return _on_one_sheet([piece if piece.textures else _as_picture(piece) for piece in pieces], notes)
    if textured:
        notes.add("textures (other pieces have vertex colours, so all become vertex colours)")
    plain = [_as_colors(piece) for piece in pieces]
    if any(piece.colors is not None for piece in plain):
        for piece in plain:
            piece.colors = np.full_like(piece.positions, NO_COLOR) if piece.colors is None else piece.colors
    return _stacked(plain)


def _stacked(pieces: list[Piece]) -> Piece:
    """Arrays one behind the other; normals when all have them."""
    starts = np.cumsum([0] + [len(piece.positions) for piece in pieces[:-1]])
    normals = [piece.normals for piece in pieces if piece.normals is not None]
    colors = [piece.colors for piece in pieces if piece.colors is not None]
    return Piece(
        positions=np.concatenate([piece.positions for piece in pieces]),
        faces=np.concatenate([piece.faces + start for piece, start in zip(pieces, starts, strict=True)]),
        normals=np.concatenate(normals) if len(normals) == len(pieces) else None,
        colors=np.concatenate(colors) if len(colors) == len(pieces) else None,
    )


def _as_colors(piece: Piece) -> Piece:
    if "base_color" not in piece.textures:
        return replace(piece, textures={}, uv=None, uv_faces=None)
    return replace(piece, textures={}, uv=None, uv_faces=None, colors=vertex_look(piece))


def _one_color(piece: Piece) -> bool:
    return piece.colors is None or not np.ptp(piece.colors, axis=0).any()


def _as_picture(piece: Piece) -> Piece:
    """A piece of a single colour with that colour as its texture."""
    color = np.full(3, NO_COLOR) if piece.colors is None else piece.colors[0]
    image = np.tile(np.rint(color * 255).astype(np.uint8), (4, 4, 1))
    uv, corners = np.full((1, 2), 0.5), np.zeros_like(piece.faces)
    return replace(piece, textures={"base_color": image}, uv=uv, uv_faces=corners, colors=None)


def _on_one_sheet(pieces: list[Piece], notes: Notes) -> Piece:
    """A sheet with each piece's pictures, and coordinates into it."""
    names = [name for name in TEXTURES if any(name in piece.textures for piece in pieces)]
    corners, images = [], []
    for piece in pieces:
        uv, copies = _unwrapped(piece)
        if copies[0] * copies[1] > MOST_COPIES:
            notes.add(f"a texture that repeats {copies[0]} x {copies[1]} times over its piece (as vertex colours)")
            return _stacked([_as_colors(one) for one in pieces])
        corners.append(uv / copies)
        images.append(_pictures(piece, names, copies))
    sizes = [next(iter(group.values())).shape[:2] for group in images]
    places, (height, width) = _shelves([(h + 2 * MARGIN, w + 2 * MARGIN) for h, w in sizes])
    shrink = max(1.0, max(height, width) / LARGEST)
    if shrink > 1:
        notes.add(f"texture detail (one sheet of {width} x {height} px is too large; reduced {shrink:.1f} times)")
        sizes = [(max(1, int(h / shrink) - 2 * MARGIN), max(1, int(w / shrink) - 2 * MARGIN)) for h, w in sizes]
        places, (height, width) = _shelves([(h + 2 * MARGIN, w + 2 * MARGIN) for h, w in sizes])
    sheets = {name: np.zeros((height, width, 3), np.uint8) for name in names}
    flat = []
    for group, size, (top, left), uv in zip(images, sizes, places, corners, strict=True):
        h, w = size
        for name, image in group.items():
            fitted = image if image.shape[:2] == size else np.asarray(Image.fromarray(image).resize((w, h)))
            padded = np.pad(fitted, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="edge")
            sheets[name][top : top + h + 2 * MARGIN, left : left + w + 2 * MARGIN] = padded
        x, y = left + MARGIN + uv[..., 0] * w, top + MARGIN + (1 - uv[..., 1]) * h
        flat.append(np.stack([x / width, 1 - y / height], axis=-1).reshape(-1, 2))
    whole = _stacked([replace(piece, colors=None) for piece in pieces])
    unique, index = np.unique(np.concatenate(flat), axis=0, return_inverse=True)
    return replace(whole, textures=sheets, uv=unique, uv_faces=index.reshape(-1, 3).astype(np.int64))


def _unwrapped(piece: Piece) -> tuple[Floats, Ints]:
    """Corner coordinates (F, 3, 2) of each triangle, moved by whole pictures to start in the first, and how many
    copies (across, down) they reach over."""
    assert piece.uv is not None and piece.uv_faces is not None
    corners = piece.uv[piece.uv_faces]  # (F, 3, 2)
    low = np.floor(corners.min(axis=1, keepdims=True) + 1e-6)
    inside = corners - low
    # a triangle at u = 1 exactly belongs to the picture it ends
    inside = np.where((inside.max(axis=1, keepdims=True) <= 1e-6) & (low > 0), inside + 1, inside)
    copies = np.maximum(np.ceil(inside.max(axis=(0, 1), initial=0.0) - 1e-4), 1)
    return inside, copies.astype(np.int64)


def _pictures(piece: Piece, names: list[str], copies: Ints) -> dict[str, Image8]:
    """A picture for every name, all of the largest one's size, repeated."""
    height = max(image.shape[0] for image in piece.textures.values())
    width = max(image.shape[1] for image in piece.textures.values())
    found = {}
    for name in names:
        image = piece.textures.get(name)
        if image is None:
            image = np.tile(np.array(NEUTRAL[name], np.uint8), (height, width, 1))
        elif image.shape[:2] != (height, width):
            image = np.asarray(Image.fromarray(image).resize((width, height)))
        found[name] = np.tile(image, (int(copies[1]), int(copies[0]), 1))
    return found


def _shelves(sizes: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Corners (top, left) of rectangles (height, width) in rows, the tall ones first; and the sheet's size."""
    wide = max(max(w for _, w in sizes), int(np.ceil(np.sqrt(sum(h * w for h, w in sizes)))))
    places: dict[int, tuple[int, int]] = {}
    top = left = row = used = 0
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i][0], i)):
        height, width = sizes[i]
        if left and left + width > wide:
            top, left, row = top + row, 0, 0
        places[i] = (top, left)
        left, row, used = left + width, max(row, height), max(used, left + width)
    return [places[i] for i in range(len(sizes))], (top + row, used)
