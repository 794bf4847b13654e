"""Pictures of the docs: what sensors and surfaces look like, a ball taken apart, meshes from one picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..bench.materialfusion import ball, cameras_of, lamps, layers
from ..bench.rendered import RenderedPlaces
from ..bench.text_to_mesh import true_looks
from ..generate.inverse_render import InverseConfig
from ..geometry.cameras import Camera
from ..geometry.posed import PosedImages
from ..geometry.raycast import RayMesh
from ..pipelines.image_to_mesh import ImageToMesh
from ..pipelines.inverse_render import ImagesToMaterials, relit
from ..tasks.codecs.residual import ResidualDepthCodec
from ..tasks.sim2real import load_sensor
from ..toybox.pbr import FAMILIES, draw_pbr, pbr_maps
from ..toybox.programs import ObjectProgram
from ..toybox.reading import read_picture
from ..toybox.sensor import SensorModel
from ..toybox.sensor_pairs import SensorPairs
from ..utils.pictures import grid, normals_to_rgb, save_image, to_rgb8


def sensor(out: Path, size: int = 96) -> Path:
    """Four views of a room: their exact depth, what the toybox's sensor measures, and what the shipped one draws."""
    batch = SensorPairs(RenderedPlaces("val", 1, size, maps=True), SensorModel(window_px=0.7)).batch(np.arange(4), None)
    batch["drawn"] = load_sensor("toybox")(batch["clean"]).depth_m
    tiles: list[Any] = []
    for name in ("clean", "measured", "drawn"):
        for depth, clean in zip(batch[name], batch["clean"], strict=True):
            tiles.append(ResidualDepthCodec(largest_m=min(4.9, float(clean.max()))).picture(depth[..., None]))
    return save_image(out / "sensor.png", grid(tiles, columns=4, scale=2))


def surfaces(out: Path, size: int = 96) -> Path:
    """A material of each family of the toybox, a column each: albedo, normal, height, roughness, metallic."""
    made = [pbr_maps(draw_pbr("val", 1, (family,)), size) for family in FAMILIES]
    rows: list[list[Any]] = [
        [one.albedo_srgb for one in made],
        [normals_to_rgb(one.normal) for one in made],
        *[[getattr(one, name) for one in made] for name in ("height", "roughness", "metallic")],
    ]
    return save_image(out / "surfaces.png", grid([to_rgb8(tile) for row in rows for tile in row], columns=len(made)))


def taken_apart(out: Path, size: int = 96, steps: int = 200) -> Path:
    """`inverse-render --prior none` and `relight`: two of eight pictures, then the ball under two other lights."""
    mesh, cameras = ball("test", 3), cameras_of(8, size)
    seen = layers(mesh, cameras, lamps(11))
    pictures = PosedImages(cameras, torch.from_numpy(seen["rgb"]), torch.from_numpy(seen["alpha"]))
    bare = replace(mesh, textures={}, uv=None, uv_faces=None)
    made = ImagesToMaterials()(pictures, bare, InverseConfig(steps=steps))
    shown = [seen["rgb"][0], seen["rgb"][1]]
    for number in (21, 22):
        picture = relit(made.mesh, cameras[[0]], lamps(number))[0].astype(np.float32) / 255
        shown.append(picture[..., :3] * picture[..., 3:] + 1 - picture[..., 3:])
    return save_image(out / "relight.png", grid([to_rgb8(one) for one in shown], columns=4, scale=2))


def pictured(out: Path, px: int = 112) -> Path:
    """One picture of a toy, the views that are drawn beside it, and the mesh of all from three sides; the first row is
    verb-image-to-mesh.png as well, shorter."""
    pipe, rows = ImageToMesh.from_pretrained("toybox", reader=read_picture), []
    for noun, colour in (("duck", "yellow"), ("mug", "blue"), ("chair", "red")):
        camera = Camera.orbit([20.0], 15.0, 3.5, 33.5, 96)
        rgb, alpha = true_looks(ObjectProgram(noun, colour, seed=0), 0, camera)
        picture, mask = (to_rgb8(one) for one in (rgb[0], alpha[0, ..., 0]))
        made = pipe(picture, mask, seed=0)
        sides = Camera.orbit([30.0, 150.0, 270.0], 20.0, 3.4, 33.5, px)
        shown = RayMesh(made.mesh).render(sides, background=1.0, supersample=2).rgb
        rows.append([picture, *made.views.views[1:], *shown])
    small = [[np.asarray(Image.fromarray(to_rgb8(one)).resize((px, px))) for one in row] for row in rows]
    save_image(out / "verb-image-to-mesh.png", grid([small[0][0], *small[0][-3:-1]], columns=3))
    return save_image(out / "picture-to-mesh.png", grid([one for row in small for one in row], columns=7))
