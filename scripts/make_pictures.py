"""Make the pictures of the README from the shipped weights: python -m unproject.scripts.make_pictures [--out FOLDER].

images.png: prompts drawn by the embedded prior. places.png: rooms, streets, things close by and interiors, with depth.
geometry.png: rendered rooms and interiors, their true depth, the estimated one and the estimated normals.
camera-NAME.png: what a convention of cameras means. shape-NAME.png: a representation. rule-NAME.png: what a rule made,
cut from the picture of its bench. textures.png: a mesh from words with and without filled texels.
turntable.gif: a mesh from words, all around. verb-NAME.png: what a command makes, small. Nothing is chosen: seed 0.
students-drawn.png: the same prompts by the prior and its students. sensor.png, surfaces.png, relight.png,
picture-to-mesh.png: see head_pictures.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ..core.distillation.export import load_student
from ..core.priors import load_prior
from ..generate.finish import surface_of
from ..generate.views import views_around
from ..geometry.bake import bake
from ..geometry.cameras import Camera
from ..geometry.raycast import RayMesh
from ..geometry.representation import Representation
from ..geometry.turntable import render_turntable
from ..geometry.unwrap import unwrap
from ..pipelines.edit_image import EditImage
from ..pipelines.image_to_geometry import ImageToGeometry
from ..pipelines.metric_depth import metric_of
from ..pipelines.picture_camera import PictureCamera
from ..pipelines.picture_geometry import PictureGeometry
from ..pipelines.picture_inputs import photo_camera
from ..pipelines.restore_image import RestoreImage
from ..pipelines.shortcuts import text_to_mesh
from ..pipelines.text_to_image import TextToImage, TextToImageOutput
from ..pipelines.text_to_mesh import TextToMesh
from ..pipelines.text_to_shape import MeshRecipe
from ..toybox.samples import sample
from ..utils.errors import InputError
from ..utils.pictures import colourise, grid, normals_to_rgb, save_gif, save_image, to_rgb8
from .camera_pictures import write_conventions
from .head_pictures import pictured, sensor, surfaces, taken_apart
from .shape_pictures import representation_pictures, rule_pictures

VERB_PX = 112

STUDENTS = {"toybox": 20, "toybox-lcm": 4, "toybox-1step": 1, "toybox-small": 20, "toybox-w4": 20}  # and their calls
PROMPTS = (
    "a red chair",
    "a blue car",
    "a yellow duck",
    "a white rabbit",
    "a green bottle",
    "a purple mug",
    "an orange lamp",
    "a brown table",
    "a red mushroom",
    "a blue house",
    "a green cactus",
    "a black cat",
    "a pink castle",
    "a gray robot",
)


def images(out: Path) -> Path:
    """Two drawings of each prompt, twice as large, so that the labels can be read."""
    prompts = [p for p in PROMPTS for _ in range(2)]
    drawn = TextToImage.from_pretrained("toybox")(prompts, seed=0, output_type="np")
    assert isinstance(drawn, TextToImageOutput)
    return save_image(out / "images.png", grid(list(np.asarray(drawn.images)), columns=7, labels=prompts, scale=2))


def students(out: Path) -> Path:
    """The first prompts by the prior and by each student that comes along, a row each, from the same noises."""
    chosen, tiles, labels = PROMPTS[:8], [], []
    for name, calls in STUDENTS.items():
        drawer = TextToImage(load_student(name) if name != "toybox" else load_prior(name))
        made: Any = drawer(list(chosen), seed=0, num_inference_steps=calls, output_type="np")
        tiles += list(np.asarray(made.images))
        labels += [f"{name}, {calls} call" + "s" * (calls > 1)] + [""] * (len(chosen) - 1)
    return save_image(out / "students-drawn.png", grid(tiles, columns=len(chosen), labels=labels, scale=2))


def places(out: Path, count: int = 4) -> Path:
    """Samples of the validation split, a row for each kind."""
    rows: list[npt.NDArray[Any]] = []
    for kind in ("room", "street", "table", "interior"):
        for index in range(count):
            seen = sample("val", index, kind, 128).renderings[0]
            assert seen.depth_m is not None
            rows += [seen.rgb, colourise(seen.depth_m, mask=seen.depth_m > 0)]
    return save_image(out / "places.png", grid(rows, columns=2 * count))


def geometry(out: Path, rooms: int = 2, interiors: int = 4) -> Path:
    """Rooms and interiors of the test split."""
    pipe = ImageToGeometry.from_pretrained("toybox")
    rows: list[npt.NDArray[Any]] = []
    for kind, index in [("room", i) for i in range(rooms)] + [("interior", i) for i in range(interiors)]:
        truth = sample("test", index, kind, 192).renderings[0]
        found = pipe(truth.rgb)
        if found.depth is None or found.normals is None or truth.depth_m is None:
            raise InputError("the embedded head must predict depth and normals")
        rows += [truth.rgb, colourise(truth.depth_m), colourise(found.depth.depth[0])]
        rows.append(normals_to_rgb(found.normals.normals[0]))
    return save_image(out / "geometry.png", grid(rows, columns=8))


def turntable(out: Path) -> Path:
    """The mesh of the demo's prompt, all around."""
    mesh = text_to_mesh("a red chair", seed=0).mesh
    return save_gif(out / "turntable.gif", render_turntable(mesh, frames=36, size=176), fps=14)


def verbs(out: Path) -> Path:
    """A strip for each command: what it is given, where that is a picture, and what it makes."""
    photo = sample("test", 0, "interior", 192).renderings[0].rgb
    made = ImageToGeometry.from_pretrained("toybox")(photo)
    assert made.depth is not None and made.normals is not None
    camera = photo_camera(192, 192)
    surface = RayMesh(made.depth.surface(photo, camera, max_faces=60_000))
    aside = surface.render(replace(camera, c2w=_aside(25.0, 2.5) @ camera.c2w), background=1.0, light=None)
    strips: dict[str, list[Any]] = {
        "depth": [photo, colourise(made.depth.depth[0], low=0.0, high=1.0)],
        "normals": [photo, normals_to_rgb(made.normals.normals[0])],
        "pointcloud": [photo, aside.rgb[0]],
        "geometry": in_metres(photo),
        **_drawn(),
    }
    for name, pictures in strips.items():
        tiles = [np.asarray(Image.fromarray(to_rgb8(one)).resize((VERB_PX, VERB_PX))) for one in pictures]
        path = save_image(out / f"verb-{name}.png", grid(tiles, columns=len(tiles)))
    return path


def cameras(out: Path) -> Path:
    """What every convention of docs/cameras.md means."""
    return write_conventions(out)[-1]


def shapes(out: Path) -> Path:
    """Every representation."""
    return representation_pictures(out)[-1]


def rules(out: Path) -> Path:
    """Every rule, where its bench has run."""
    return rule_pictures(out.parent / "results", out)[-1]


def textures(out: Path) -> Path:
    """A mesh from words from below, where no view of the optimisation looks: what it began with, and filled; their
    maps."""
    made = TextToMesh.from_pretrained("toybox")("a red chair", seed=0)
    return textures_of(made.shape, made.config, out)


def textures_of(shape: Representation, recipe: MeshRecipe, out: Path) -> Path:
    """The same of what was optimised."""
    mesh = unwrap(surface_of(shape, recipe.mesh), recipe.mesh.texture)
    look = partial(shape.surface_color, config=recipe.mesh)
    below = Camera.orbit([30.0, 150.0, 270.0], -60.0, 2.4, 34.0, 192)
    tiles: list[Any] = []
    for seen_from in (None, views_around(recipe.optimise.views)):
        baked = bake(mesh, look, recipe.mesh.texture, seen_from=seen_from)
        sheet = Image.fromarray(baked.textures["base_color"]).resize((192, 192), Image.Resampling.BOX)
        tiles += [*RayMesh(baked).render(below, supersample=2).rgb, np.asarray(sheet)]
    return save_image(out / "textures.png", grid(tiles, columns=4))


def in_metres(photo: npt.NDArray[Any]) -> list[Any]:
    """A picture, its depth in metres with a legend's range, its normals, and its surface from aside."""
    made = ImageToGeometry.from_pretrained("toybox")(photo)
    camera = photo_camera(photo.shape[1], photo.shape[0])
    metric = metric_of(made, camera)
    whole = PictureGeometry(photo, made, PictureCamera(camera, "usual", None), metric)
    surface = RayMesh(whole.mesh(60_000))
    turned = replace(camera, c2w=_aside(25.0, 0.6 * metric.far_m) @ camera.c2w)
    seen = surface.render(turned, background=1.0, light=None)
    return [photo, colourise(whole.depth_m), normals_to_rgb(made.normals.normals[0]), seen.rgb[0]]


def _drawn() -> dict[str, list[Any]]:
    """Strips of the commands that draw."""
    drawer: Any = TextToImage.from_pretrained("toybox")
    prompts = ["a blue car", "a yellow duck", "a green bottle"]
    drawings = np.asarray(drawer(prompts, seed=0, output_type="np").images)
    chair = np.asarray(drawer("a red chair", seed=0, output_type="np").images)[0]
    editor: Any = EditImage(drawer.prior)
    edited = editor(chair, "a red chair", "a blue chair").images[0]
    small = to_rgb8(drawings[0]).reshape(16, 4, 16, 4, 3).mean((1, 3)).round().astype(np.uint8)
    restorer: Any = RestoreImage(drawer.prior)
    restored = restorer(small, "super-resolution:4", seed=0).images[0]
    return {
        "text-to-image": list(drawings),
        "edit": [chair, np.asarray(edited)],
        "restore": [small.repeat(4, 0).repeat(4, 1), np.asarray(restored)],
    }


def _aside(angle_deg: float, depth_m: float) -> torch.Tensor:
    """(4, 4): a turn about the vertical through the point `depth_m` before the camera of a photo, which looks along
    -x."""
    angle = math.radians(angle_deg)
    turn, there = torch.eye(4), torch.eye(4)
    turn[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    there[0, 3] = -depth_m
    return there @ turn @ torch.linalg.inv(there)


OWN = (images, students, places, geometry, cameras, shapes, rules, textures, turntable, verbs)
MAKERS = {make.__name__: make for make in (*OWN, sensor, surfaces, taken_apart, pictured)}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="make_pictures", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "images")
    parser.add_argument("--only", choices=sorted(MAKERS))
    options = parser.parse_args(arguments)
    for name, make in MAKERS.items():
        if options.only in (None, name):
            print(make(options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
