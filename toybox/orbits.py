"""Photographs of a toy from all around, with their cameras: what splats are fitted to and measured by."""

from __future__ import annotations

import math

import numpy as np
import torch

from ..geometry.meshes import Mesh
from ..geometry.posed import PosedImages, around
from ..utils.errors import InputError
from .captions import parse
from .materials import srgb_from_linear
from .programs import ObjectProgram
from .render import Renderer
from .scenes import Placed, Scene, object_scene, placed_vertices

FOV_DEG = 34.0


def toy(words: str, seed: int = 0) -> Scene:
    """The scene of one object in words, such as "a red chair"; the seed decides what they leave open.

    Raises InputError for words that are no single object.
    """
    meaning = parse(words)
    (phrase, *others) = meaning.phrases
    if others or meaning.count != 1:
        raise InputError(f"{words!r} is more than one object; name one, such as 'a red chair'")
    said = {name: value for name, value in vars(phrase).items() if value is not None}
    program = ObjectProgram(**{"colour": "grey", **said}, seed=seed)
    return object_scene(program, np.random.default_rng(seed))


def posed_orbit(scene: Scene, views: int = 100, size: int = 128, samples: int = 2) -> PosedImages:
    """Views from a spiral around the origin, RGBA; the light stays where it is."""
    cameras = around(views, size, 1 / math.sin(math.radians(0.5 * FOV_DEG)), FOV_DEG)
    renderer = Renderer(scene)
    colors, alphas = [], []
    for c2w, K in zip(cameras.c2w.double().numpy(), cameras.K.double().numpy(), strict=True):
        seen = renderer.render(c2w, K, size, samples, geometry=False)
        assert seen.foreground_linear is not None
        colors.append(srgb_from_linear(seen.foreground_linear / np.maximum(seen.alpha, 1e-3)))
        alphas.append(seen.alpha)
    rgb, alpha = (torch.from_numpy(np.stack(part)).float() for part in (colors, alphas))
    return PosedImages.from_floats(cameras, rgb, alpha)


def true_mesh(scene: Scene) -> Mesh:
    """The surfaces of all objects of a scene, where they stand."""
    placed: tuple[Placed, ...] = scene.objects
    offsets = np.cumsum([0, *(len(p.toy.vertices) for p in placed)])
    vertices = np.concatenate([placed_vertices(p) for p in placed])
    faces = np.concatenate([p.toy.faces + start for p, start in zip(placed, offsets[:-1], strict=True)])
    return Mesh(torch.from_numpy(vertices), torch.from_numpy(faces))
