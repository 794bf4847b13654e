"""How much light is taken out of a base colour: lit renders of toybox objects, baked onto the objects themselves.

Truth is the albedo of the toybox from cameras between those of all painters. Beside the lit texture and the one without
shading stands the best that one grey factor a texture could do, which is no use of light and shape at all.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.priors import load_prior, multi_view_sibling
from ..generate.view_albedo import AlbedoConfig, without_shading
from ..generate.view_normals import Ring
from ..geometry.bake import bake_views
from ..geometry.cameras import Camera
from ..geometry.colors import srgb_from_linear
from ..geometry.extract import mesh_from
from ..geometry.meshes import Mesh
from ..geometry.raycast import RayMesh
from ..geometry.unwrap import unwrap
from ..toybox.captions import Meaning, Phrase, say
from ..toybox.programs import ObjectProgram
from ..toybox.render import Renderer
from ..toybox.scenes import object_scene, placed_vertices
from ..utils.pictures import grid, save_image
from ..utils.seeds import generator
from .direct25 import chosen_programs
from .intervals import spread
from .runner import Context

LIT, GAIN, ALBEDO = "as painted", "as painted, best factor", "shading taken out"


@dataclass(frozen=True)
class ShadingBench:
    """Sizes of the experiment."""

    objects: int = 32  # of distinct nouns
    views: int = 8  # lit pictures that the texture is baked from
    size: int = 96  # px of these, and of those that are compared
    texture: int = 512
    pictured: int = 8


class Painted(NamedTuple):
    """An object with lit colours, and its true albedo from other cameras."""

    mesh: Mesh
    camera: Camera
    albedo: Tensor  # (B, H, W, 3) sRGB
    inside: Tensor  # (B, H, W) bool: no border of the object in the pixel


def painted(program: ObjectProgram, config: ShadingBench) -> Painted:
    """The object as its scene places and lights it."""
    scene = object_scene(program, np.random.default_rng(program.seed))
    renderer, ring = Renderer(scene), Ring(elevation_deg=15.0)
    around = ring.camera(config.views, config.size)
    poses = zip(around.c2w.double().numpy(), around.K.double().numpy(), strict=True)
    lit = np.stack([renderer.render(c2w, K, config.size, samples=4).rgb for c2w, K in poses])
    bare = unwrap(mesh_from(placed_vertices(scene.objects[0]), scene.objects[0].toy.faces), config.texture)
    mesh = bake_views(bare, torch.from_numpy(lit).float(), around, config.texture)
    between = ring.camera(8, config.size, 20.0)[[1, 3, 5, 7]]
    poses = zip(between.c2w.double().numpy(), between.K.double().numpy(), strict=True)
    truth = np.stack([renderer.smooth_albedo(c2w, K, config.size) for c2w, K in poses])
    inside = RayMesh(mesh).render(between, ("alpha",), supersample=2).alpha[..., 0] > 0.999
    return Painted(mesh, between, srgb_from_linear(torch.from_numpy(truth).float()), inside)


def shown(mesh: Mesh, seen: Painted) -> Tensor:
    """The base colour (B, H, W, 3) from the cameras that are compared."""
    return RayMesh(mesh).render(seen.camera, ("rgb",), supersample=2).rgb


def psnr(colours: Tensor, seen: Painted, factor: bool = False) -> float:
    """dB to the true albedo inside the object; `factor`: after the best common factor."""
    one, other = colours[seen.inside].double(), seen.albedo[seen.inside].double()
    if factor:
        one = one * ((one * other).sum() / one.square().sum().clamp_min(1e-12))
    return float(-10 * torch.log10((one - other).square().mean().clamp_min(1e-12)))


def run(context: Context) -> dict[str, Any]:
    """Every object with and without its light, and a picture."""
    config = ShadingBench(2, 4, 48, 128, 2) if context.quick else ShadingBench()
    prior = load_prior(multi_view_sibling(context.prior) or context.prior)
    records: dict[str, list[dict[str, float]]] = {LIT: [], GAIN: [], ALBEDO: []}
    tiles: list[list[np.ndarray]] = [[], [], []]
    programs = chosen_programs(config.objects)
    for program in programs:
        seen, prompt = painted(program, config), say(Meaning((Phrase(program.noun, program.colour),)))
        began, spent = time.process_time(), prior.nfe
        bare = without_shading(seen.mesh, prior, prompt, generator(context.seed + program.seed), AlbedoConfig())
        cost = {"seconds": time.process_time() - began, "nfe": prior.nfe - spent}
        before, after = shown(seen.mesh, seen), shown(bare, seen)
        records[LIT].append({"psnr": psnr(before, seen), "seconds": 0.0, "nfe": 0})
        records[GAIN].append({"psnr": psnr(before, seen, factor=True), "seconds": 0.0, "nfe": 0})
        records[ALBEDO].append({"psnr": psnr(after, seen), **cost})
        for row, picture in zip(tiles, (before, after, seen.albedo), strict=True):
            row.append(torch.where(seen.inside[..., None], picture, torch.ones(())).numpy()[0])
    save_image(context.picture(), grid([t for row in tiles for t in row[: config.pictured]], columns=config.pictured))
    table = [{"base_colour": name, **_row(made, records[LIT])} for name, made in records.items()]
    return {"config": asdict(config), "seeds": [p.seed for p in programs], "table": table}


def _row(made: list[dict[str, float]], lit: list[dict[str, float]]) -> dict[str, Any]:
    gains = [one["psnr"] - other["psnr"] for one, other in zip(made, lit, strict=True)]
    return {"albedo_psnr_db": spread([one["psnr"] for one in made]), "gain_db": spread(gains)} | {
        name: spread([one[name] for one in made]) for name in ("seconds", "nfe")
    }
