"""Meshes in seconds from multi-view normals (Direct2.5): what fusing exact normal maps of toybox objects gives.

All rows see the same pictures: exact world normals and coverage of `size` px from views around the equator. Baselines:
the visual hull alone, and Poisson's surface through the exact depth of the same views (Kazhdan and Hoppe 2013).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open3d
import torch
from torch import Tensor

from ..generate.fuse import FuseConfig, fuse_normals
from ..geometry.cameras import Camera, orbit_distance
from ..geometry.extract import mesh_from
from ..geometry.hull import visual_hull
from ..geometry.meshes import Mesh
from ..geometry.metrics import compare_meshes
from ..geometry.raycast import RayMesh
from ..geometry.solid import examine, solid_surface
from ..toybox.programs import ObjectProgram
from ..toybox.render import Renderer
from ..toybox.scenes import object_scene, placed_vertices
from ..utils.errors import InputError
from ..utils.pictures import grid, save_image
from ..utils.seeds import generator
from .embedded_prior import test_programs
from .intervals import share, spread
from .runner import Context

HULL, POISSON, FUSED = "visual hull", "Poisson of exact depth", "fusion from exact maps"
FOV_DEG = 40.0


@dataclass(frozen=True)
class Direct25Bench:
    """Sizes of the experiment."""

    objects: int = 6  # of distinct nouns
    size: int = 96  # px
    views: tuple[int, ...] = (4, 8)
    fuse: FuseConfig = field(default_factory=FuseConfig)
    samples: int = 50_000  # points a mesh in the measures
    pictured: int = 6


QUICK = Direct25Bench(2, 48, (4,), FuseConfig(hull=32, steps=40, edge=(0.06, 0.23)), 5000, 2)


class Seen(NamedTuple):
    """An object and its pictures."""

    noun: str
    truth: Mesh
    camera: Camera
    normals: Tensor  # (B, H, W, 3) world
    masks: Tensor  # (B, H, W)
    depth: Tensor  # (B, H, W) metres, 0 on the background


def run(context: Context) -> dict[str, Any]:
    """Every way on every object, the table and a picture."""
    config = QUICK if context.quick else Direct25Bench()
    programs = chosen_programs(config.objects)
    table, shown = [], []
    for views in config.views:
        scenes = [look(program, views, config.size) for program in programs]
        ways: dict[str, Callable[[Seen], Mesh]] = {
            HULL: lambda seen: solid_surface(visual_hull(seen.masks, seen.camera, config.fuse.hull), 0.0, 12_000),
            POISSON: poisson,
            FUSED: lambda seen: fuse_normals(seen.normals, seen.masks, seen.camera, config.fuse),
        }
        for way, make in ways.items():
            made = [measured(make, seen, config, context.seed) for seen in scenes]
            table.append({"way": way, "views": views, **summary([record for _, record in made])})
            if views == config.views[0]:
                shown.append([mesh for mesh, _ in made[: config.pictured]])
    shown.append([seen.truth for seen in scenes[: config.pictured]])
    hulls = {row["views"]: row["chamfer"]["mean"] for row in table if row["way"] == HULL}
    for row in table:
        row["of_hull_chamfer"] = round(row["chamfer"]["mean"] / hulls[row["views"]], 3)
    table.sort(key=lambda row: row["way"] != HULL)
    save_sheet(context.picture(), shown)
    return {
        "config": asdict(config),
        "seeds": [program.seed for program in programs],
        "table": table,
        "objects": [program.noun for program in programs],
    }


def chosen_programs(count: int) -> list[ObjectProgram]:
    """The first test programs with distinct nouns."""
    found: dict[str, ObjectProgram] = {}
    for program in test_programs(20 * count):
        found.setdefault(program.noun, program)
    return list(found.values())[:count]


def look(program: ObjectProgram, views: int, size: int) -> Seen:
    """The object as its toybox scene places it, and its exact maps from around the equator."""
    scene = object_scene(program, np.random.default_rng(program.seed))
    camera = Camera.orbit([360.0 * i / views for i in range(views)], 0.0, orbit_distance(0.95, FOV_DEG), FOV_DEG, size)
    renderer = Renderer(scene)
    poses = zip(camera.c2w.double().numpy(), camera.K.double().numpy(), strict=True)
    drawn = [renderer.render(c2w, K, size, samples=4) for c2w, K in poses]
    maps = [np.stack([getattr(one, name) for one in drawn]) for name in ("normal", "alpha", "depth_m")]
    normals, alpha, depth = (torch.from_numpy(m).float() for m in maps)
    truth = mesh_from(placed_vertices(scene.objects[0]), scene.objects[0].toy.faces)
    return Seen(program.noun, truth, camera, normals, alpha[..., 0], depth)


def poisson(seen: Seen) -> Mesh:
    """Poisson's surface through the points that the views show, with their normals."""
    hit = seen.depth > 0
    cloud = open3d.geometry.PointCloud()
    cloud.points = open3d.utility.Vector3dVector(seen.camera.unproject(seen.depth)[hit].double().numpy())
    cloud.normals = open3d.utility.Vector3dVector(seen.normals[hit].double().numpy())
    made, _ = open3d.geometry.TriangleMesh.create_from_point_cloud_poisson(cloud, depth=7, n_threads=1)
    return mesh_from(np.asarray(made.vertices), np.asarray(made.triangles))


def measured(make: Callable[[Seen], Mesh], seen: Seen, config: Direct25Bench, seed: int) -> tuple[Mesh, dict[str, Any]]:
    """A mesh and how near it is to the object; processor seconds of one thread."""
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is no solid is counted below
        mesh = make(seen)
    took = time.process_time() - began
    record: dict[str, Any] = compare_meshes(mesh, seen.truth, config.samples, generator(seed))
    return mesh, {**record, "seconds": took, "solid": not examine(mesh).faults, "faces": len(mesh.faces)}


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The measures of one row."""
    if not records:
        raise InputError("no object was looked at; objects must be at least 1")
    names = ("f_score", "chamfer", "normal_consistency", "seconds")
    return {
        **{name: spread([r[name] for r in records]) for name in names},
        "solid": share([r["solid"] for r in records]),
    }


def save_sheet(path: Path, rows: list[list[Mesh]]) -> None:
    """A row of meshes a way, the objects themselves last: world normals, a quarter from the front."""
    camera = Camera.orbit(35.0, 20.0, orbit_distance(0.95, FOV_DEG), FOV_DEG, 128)
    tiles = []
    for mesh in (mesh for row in rows for mesh in row):
        seen = RayMesh(Mesh(mesh.vertices, mesh.faces)).render(camera, ("normal",), supersample=2)
        normal = torch.where(seen.alpha > 0, 0.5 * seen.normal + 0.5, torch.ones_like(seen.normal))
        tiles.append(normal[0].numpy())
    save_image(path, grid(tiles, columns=len(rows[0])))
