"""The readers as they are fuzzed: each reads a file and looks at what came out."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...cli.commands import COMMANDS, parse
from ...cli.common import execute
from ...cli.files import inspect_path, is_point_cloud
from ...cli.outputs import distinct_slug
from ...cli.prompts import check_prompt, chosen_prompts
from ...cli.replay import replayed
from ...core.priors import load_prior
from ...core.priors.registry import Registry
from ...core.priors.single_file import kind_of, shapes_of
from ...core.sampling.calibration import Calibration
from ...core.training.checkpoints import read_tensors
from ...geometry.camera_files import load_colmap, load_nerfstudio
from ...geometry.cameras import Camera
from ...geometry.environment import Environment
from ...geometry.meshes import Mesh
from ...geometry.points import PointCloud
from ...geometry.splats.files import load_splats
from ...pipelines.prompts import warn_about, warn_about_negatives
from ...pipelines.text_to_mesh import MeshRecipe
from ...scripts import (
    amortised_recipe,
    head_recipes,
    material_recipes,
    orbit_recipe,
    recipes,
    sensor_recipes,
    texture_recipe,
    turbo_recipe,
)
from ...scripts.train import read_recipe
from ...tasks.depth_files import read_depth
from ...toybox.captions import parse as parse_caption
from ...utils.configs import load_config, read_yaml, to_yaml
from ...utils.decoding import has_transparency, image_size, read_layers
from ...utils.errors import InputError
from .cases import OddError

MOST_PIXELS = 4_000_000


def depth(path: Path) -> None:
    """A depth map."""
    found = read_depth(path)
    finite("depth", found.depth_m, 0.0)


def light(path: Path) -> None:
    """An environment."""
    finite("radiance", Environment.load(path).radiance, 0.0)


def finite(name: str, values: Any, low: float = -math.inf, high: float = math.inf) -> None:
    """Raises OddError for numbers that are not finite or not between the bounds."""
    array = values.detach().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.size and not (np.isfinite(array).all() and array.min() >= low and array.max() <= high):
        raise OddError(f"{name} holds values outside [{low:g}, {high:g}] or none at all")


def picture(path: Path) -> None:
    """A picture as commands read it."""
    size, seen = image_size(path), has_transparency(path)
    layers = read_layers(path, MOST_PIXELS, 1)
    height, width, _ = layers.rgb.shape
    if (width, height) != size:
        raise OddError(f"its header says {size}, the picture has {width} x {height}")
    if layers.alpha is not None:
        finite("alpha", layers.alpha, 0, 1)
        if not seen:
            raise OddError("it is transparent where its header says it is not")
    finite("the picture", layers.over_white(), 0, 1 + 1e-6)


def mesh(path: Path) -> None:
    """A mesh."""
    found = Mesh.load(path)
    finite("vertices", found.vertices)
    if not len(found.faces):
        raise OddError("no faces")
    finite("faces", found.faces, 0, len(found.vertices) - 1)
    for name in ("uv", "vertex_normals"):
        if getattr(found, name) is not None:
            finite(name, getattr(found, name))
    if found.vertex_colors is not None:
        finite("colours", found.vertex_colors, 0, 1)
    if found.uv is not None and found.uv_faces is not None:
        finite("uv_faces", found.uv_faces, 0, len(found.uv) - 1)


def either(path: Path) -> None:
    """A mesh or points, whatever the file says it is, as `inspect` and `convert` do."""
    if not is_point_cloud(path):
        mesh(path)
        return
    cloud = PointCloud.load(path)
    finite("points", cloud.points)
    if cloud.colors is not None:
        finite("colours", cloud.colors, 0, 1)
    if cloud.normals is not None:
        finite("normals", cloud.normals)


def looked_at(path: Path) -> None:
    """Any file, as `inspect` tells of it, without the validator, which is another program."""
    programs = os.environ.get("PATH", "")
    os.environ["PATH"] = ""
    try:
        json.dumps(inspect_path(path))
    finally:
        os.environ["PATH"] = programs


def splats(path: Path) -> None:
    """Splats."""
    cloud = load_splats(path)
    for name in ("means", "log_scales", "quaternions", "logits", "sh"):
        finite(name, getattr(cloud, name))


def cameras(path: Path) -> None:
    """transforms.json."""
    _cameras(*load_nerfstudio(path))


def model(path: Path) -> None:
    """The COLMAP model of a file's folder."""
    _cameras(*load_colmap(path.parent))


def _cameras(found: Camera, names: list[str]) -> None:
    if found.batch != len(names) or not names:
        raise OddError(f"{len(names)} names for {found.batch} cameras")
    finite("c2w", found.c2w)
    finite("K", found.K)
    turn = found.c2w[:, :3, :3].double()
    if float((turn @ turn.mT - torch.eye(3, dtype=torch.float64)).abs().max()) > 1e-2:
        raise OddError("a pose that is no rotation")


RECIPES = {
    "vae": recipes.VAERecipe,
    "diffusion": recipes.DiffusionRecipe,
    "flow": recipes.FlowRecipe,
    "multiview": recipes.MultiViewRecipe,
    "judge": recipes.JudgeRecipe,
    "judge-pairs": recipes.PairsRecipe,
    "geometry-head": recipes.GeometryRecipe,
    "pixels": recipes.PixelRecipe,
    "primedepth": head_recipes.PreimageRecipe,
    "one-step": head_recipes.OneStepRecipe,
    "metric-depth": head_recipes.MetricRecipe,
    "normals-refine": head_recipes.RefineRecipe,
    "sim2real": sensor_recipes.SensorRecipe,
    "materials": material_recipes.MaterialRecipe,
    "materials-few-steps": material_recipes.FewStepRecipe,
    "triplane-turbo": turbo_recipe.TurboRecipe,
    "amortised": amortised_recipe.AmortisedRecipe,
    "direct25-texture": texture_recipe.TextureRecipe,
    "orbits": orbit_recipe.OrbitRecipe,
}


def config(path: Path) -> None:
    """A recipe, a registry or a record of a run; what was understood reads back equal."""
    if path.suffix == ".json":
        command, _ = replayed(["--config", str(path)], COMMANDS)
        json.dumps(str(command))
        return
    kind: Any = MeshRecipe
    source: Any = path
    if path.name.startswith("priors"):
        kind = Registry
    elif path.name.startswith("train"):
        _, source = read_recipe(str(path), [])
        kind = RECIPES[read_yaml(path)["objective"]]
    try:
        to_yaml(load_config(kind, source))
    except InputError as error:  # as read_recipe's maker does
        raise InputError(f"recipe {path}: {error}") from error


def tensors(path: Path) -> None:
    """A file of tensors: a calibration where it is called so, else a checkpoint, adapter or part of a training."""
    if path.name.startswith("calibration"):
        json.dumps(dict(Calibration.load(path, "statistics").settings))
        return
    kind_of(shapes_of(path))
    read_tensors(path.parent, path.stem)


def prompt(path: Path) -> None:
    """A prompt alone and in a file, as the embedded prior sees it, with the name that its files get."""
    text = os.fsdecode(path.read_bytes())
    slug = distinct_slug(text)
    if not slug or "/" in slug or "\0" in slug or len(os.fsencode(slug)) > 220:
        raise OddError(f"the file name {slug!r}")
    chosen_prompts(None, path)
    prior = _prior()
    with contextlib.suppress(InputError):
        parse_caption(text)
    warn_about_negatives(prior, text, "sd15")
    warn_about(prior, text, "sd15")
    prior.encode_text([text], text)
    check_prompt(text)


@functools.cache
def _prior() -> Any:
    return load_prior("toybox")


def options(path: Path) -> None:
    """A command line up to the point where the work would begin; it leaves nothing behind."""
    words = _line(path.read_bytes())
    before = _listing()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            execute(parse([*words, "--dry-run"]))
        except SystemExit as stop:
            code = stop.code
            if code not in (0, 2, None):
                raise OddError(f"exit code {code}") from stop
            if code == 2:
                told = err.getvalue() + out.getvalue()
                raise InputError(told or "nothing was said") from stop
        except OSError as error:  # the command line tells of the machine's own errors
            if not error.strerror:
                raise
            raise InputError(str(error)[:300]) from error
    if _listing() != before:
        raise OddError("a dry run left files behind")


def _line(data: bytes) -> list[str]:
    """The words of a command line: a JSON list of them, or whatever else stands there; no word holds a zero."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = os.fsdecode(data).split()
    words = found if isinstance(found, list) else [found]
    return [str(word).replace("\0", "")[:4000] for word in words[:200]]


def _listing() -> set[str]:
    return {str(path) for path in Path().rglob("*")}
