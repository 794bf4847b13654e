"""Cameras, metres and confidence: a solver under outliers, heads against a constant, and whether probabilities hold.

Without weights of a camera head (weights/toybox-camera, or --prior FOLDER) its rows are left out, and "head" says so;
the solver, the metres of the depth head and its confidence are measured all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..geometry.camera_image import (
    angles_of_code,
    angles_of_tangents,
    code_of_angles,
    pixel_tangents,
    tangents_of_angles,
    within_range,
)
from ..geometry.cameras import Camera
from ..geometry.metric import Anchors, Measured
from ..geometry.pinhole_fit import fit_pinhole
from ..pipelines.calibrated import Scenes, measured_scenes
from ..pipelines.image_to_camera import ImageToCamera
from ..pipelines.image_to_geometry import ImageToDepth, ImageToGeometry
from ..pipelines.metric_depth import metric_of
from ..pipelines.picture_inputs import DEFAULT_FOV_DEG
from ..pipelines.sureness import ENSEMBLE, seen_features
from ..tasks.confidence import ErrorModel, coverage, fit_error_model
from ..tasks.data import CameraColumns, GeometryData
from ..tasks.geometry_head import GeometryHead
from ..tasks.heads import load_head
from ..tasks.metrics import spearman
from ..toybox.dataset import RenderJob, render_group
from ..utils.errors import InputError
from .intervals import spread
from .real_cameras import real_cameras
from .real_depth import real_frames
from .rendered import RenderedPlaces
from .runner import Context

KINDS = ("room", "interior", "street", "table")
LEVELS = (0.5, 0.8, 0.9)


@dataclass(frozen=True)
class CalibrateBench:
    """Sizes of the experiment."""

    solver_seeds: int = 20
    solver_px: int = 64
    outliers: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4)
    trials: int = 1000
    """of the published RANSAC"""
    groups: int = 8
    """of each kind of place, four views each: for the constant (train), confidence (val), and everything (test)"""
    size: int = 96


QUICK = CalibrateBench(3, 48, (0.0, 0.3), 200, 1, 64)


def run(context: Context) -> dict[str, Any]:
    """Solver, fields of view, equivariance, metres, confidence, real photographs."""
    config = QUICK if context.quick else CalibrateBench()
    head, depth_head = _head(context.prior, "camera"), _head(context.prior, "depth")
    sets = {
        split: [RenderedPlaces(split, config.groups, config.size, kind) for kind in KINDS] for split in ("val", "test")
    }
    constant = _usual_fov(config)
    table = solver_rows(config) + field_rows(head, sets["test"], constant)
    if head is not None:
        table += equivariance_rows(head, sets["test"])
    sure: dict[str, Any] = {}
    if depth_head is not None:
        table += metric_rows(depth_head, sets["test"], head)
        rows, sure = confidence_rows(depth_head, sets["val"], sets["test"])
        table += rows
    return {
        "config": asdict(config),
        "seeds": list(range(config.solver_seeds)),
        "head": "none" if head is None else asdict(head.config),
        "constant_fov_deg": constant,
        "table": table,
        "confidence": sure,
        "real": real_rows(head, constant),
    }


def _head(prior: str, target: str) -> GeometryHead | None:
    """The head of a prior that predicts a target; None where there are no such weights."""
    try:
        return load_head(prior, (target,))
    except InputError:
        return None


def published_ransac(x: np.ndarray, u: np.ndarray, trials: int, rng: np.random.Generator) -> tuple[float, float]:
    """(f, c) of u = f x + c as DM-Calib's code finds them: total least squares through two points, inliers within 1 of
    the line in the (tangent, px) plane, the most inliers of so many trials, refitted to those."""
    points = np.stack([x, u], 1)

    def line(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        middle = chosen.mean(0)
        return middle, np.linalg.svd(chosen - middle, full_matrices=False)[2][0]

    best, most = points, -1
    for _ in range(trials):
        middle, along = line(points[rng.choice(len(points), 2, replace=False)])
        apart = points - middle
        inside = np.abs(apart[:, 0] * along[1] - apart[:, 1] * along[0]) <= 1
        if inside.sum() > most:
            best, most = points[inside], int(inside.sum())
    middle, along = line(best)
    focal = along[1] / along[0]
    return float(focal), float(middle[1] - focal * middle[0])


def solver_rows(config: CalibrateBench) -> list[dict[str, Any]]:
    """Relative error of fx, mean and spread over random cameras, at each share of rays that look anywhere."""
    rows = []
    side = config.solver_px
    for share in config.outliers:
        ours, theirs = [], []
        for seed in range(config.solver_seeds):
            rng = np.random.default_rng(seed)
            fx, fy = rng.uniform(0.8, 1.8, 2) * side
            cx, cy = (0.5 + rng.uniform(-0.15, 0.15, 2)) * side
            K = torch.tensor([[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]], dtype=torch.float64)
            code = code_of_angles(angles_of_tangents(pixel_tangents(K, side, side)))
            wrong = torch.from_numpy(rng.random((1, 1, side, side)) < share)
            noise = torch.from_numpy(rng.uniform(-1, 1, (1, 2, side, side)))
            rays = tangents_of_angles(angles_of_code(torch.where(wrong, noise, code)))
            ours.append(abs(fit_pinhole(rays, within_range(rays), (side, side)).K[0, 0] / fx - 1))
            u = np.tile(np.arange(side) + 0.5, side)
            found, _ = published_ransac(rays[0, 0].numpy().ravel(), u, config.trials, rng)
            theirs.append(abs(found / fx - 1))
        for name, errors in (("this solver", ours), ("published RANSAC", theirs)):
            row = {"method": f"{name}, {100 * share:.0f} % outliers", "focal": spread(errors)}
            rows.append({**row, "focal_worst": float(f"{max(errors):.3g}")})
    return rows


def _usual_fov(config: CalibrateBench) -> float:
    """The median field of view of training cameras, in degrees: what one would say of any picture."""
    found = []
    for kind in KINDS:
        job = RenderJob(kind, "train", config.groups, 16)
        for index in range(config.groups):
            K = render_group(job, index)["K"]
            found += np.rad2deg(2 * np.arctan(8 / K[:, 1, 1])).tolist()
    return round(float(np.median(found)), 2)


def field_rows(head: GeometryHead | None, sets: list[RenderedPlaces], constant: float) -> list[dict[str, Any]]:
    """Errors of the vertical field of view on test places, in degrees."""
    pipe = None if head is None else ImageToCamera(head)
    said: dict[str, list[float]] = {"constant field of view": []}
    for places in sets:
        for i in range(len(places)):
            one = np.array([i])
            image, K = places.images(one)[0], places.column("K", one)[0]
            true = float(np.rad2deg(2 * np.arctan(image.shape[0] / (2 * K[1, 1]))))
            said["constant field of view"].append(abs(constant - true))
            if pipe is not None:
                said.setdefault("camera head", []).append(abs(_fov(pipe, image) - true))
    return [{"method": name, "fov_deg": spread(errors)} for name, errors in said.items()]


def _fov(pipe: ImageToCamera, image: np.ndarray) -> float:
    """Vertical, in degrees; 0 where no camera fits."""
    try:
        return float(pipe(image).fov_deg[0, 1])
    except InputError:
        return 0.0


def equivariance_rows(head: GeometryHead, sets: list[RenderedPlaces]) -> list[dict[str, Any]]:
    """How far the focal length moves, in degrees of the field of view of the whole picture, when the picture is
    mirrored, padded, resized or cut to its middle."""
    pipe = ImageToCamera(head)
    changes: dict[str, Callable[[np.ndarray], tuple[np.ndarray, float]]] = {
        "mirror": lambda image: (np.ascontiguousarray(image[:, ::-1]), 1.0),
        "padding": lambda image: (np.pad(image, ((9, 5), (4, 13), (0, 0))), 1.0),
        "twice the size": lambda image: (image.repeat(2, 0).repeat(2, 1), 2.0),
        "its middle": lambda image: (np.ascontiguousarray(_middle(image)), 1.0),
    }
    moved: dict[str, list[float]] = {name: [] for name in changes}
    for places in sets:
        for i in range(0, len(places), 4):
            image = places.images(np.array([i]))[0]
            height = image.shape[0]
            try:
                before = pipe(image).K[0, 1, 1]
                for name, change in changes.items():
                    changed, scale = change(image)
                    after = pipe(changed).K[0, 1, 1] / scale
                    fov = [2 * np.rad2deg(np.arctan(height / (2 * f))) for f in (before, after)]
                    moved[name].append(abs(fov[0] - fov[1]))
            except InputError:  # an untrained head
                continue
    return [{"method": f"camera head, {name}", "fov_moves_deg": spread(v)} for name, v in moved.items() if v]


def _middle(image: np.ndarray) -> np.ndarray:
    height, width, _ = image.shape
    return image[height // 8 : height - height // 8, width // 8 : width - width // 8]


def metric_rows(
    head: GeometryHead, sets: list[RenderedPlaces], camera_head: GeometryHead | None = None
) -> list[dict[str, Any]]:
    """AbsRel without alignment when one distance is known, by the camera that the depth is seen through; the predicted
    one only where there is a head of cameras."""
    look, told = ImageToGeometry(head), None if camera_head is None else ImageToCamera(camera_head)
    names = ("true camera", "focal length 25 % too long", "no camera", *(("predicted camera",) if told else ()))
    errors: dict[str, list[float]] = {name: [] for name in names}
    for places in sets:
        for i in range(len(places)):
            one = np.array([i])
            image, depth = places.images(one)[0], places.column("depth_m", one)[0].astype(np.float32)
            true = torch.from_numpy(places.column("K", one))
            made = look(image)
            side = image.shape[0]
            at = side // 2
            if depth[at, at] <= 0:
                continue
            u = at + 0.5
            x, y = (u - float(true[0, 0, 2])) / float(true[0, 0, 0]), (u - float(true[0, 1, 2])) / float(true[0, 1, 1])
            known = Anchors(Measured(u, u, float(depth[at, at]) * float(np.sqrt(1 + x * x + y * y))))
            usual = Camera.orbit(0.0, 0.0, 1.0, DEFAULT_FOV_DEG, side)
            level = replace(usual, c2w=torch.eye(4)[None], K=true)
            longer = true * torch.tensor([1.25, 1.25, 1.0])[:, None]
            longer[:, :2, 2] = true[:, :2, 2]
            cameras = [level, replace(level, K=longer), replace(level, K=usual.K)]
            if told is not None:
                cameras.append(replace(level, K=_predicted(told, image, usual)))
            for name, camera in zip(errors, cameras, strict=True):
                metric = metric_of(made, camera, known)
                metres = made.depth.one_metres(metric.near_m, metric.far_m, 0)
                seen = depth > 0
                errors[name].append(float((np.abs(metres - depth) / np.maximum(depth, 1e-3))[seen].mean()))
    return [{"method": f"metres, {name}", "abs_rel_metric": spread(values)} for name, values in errors.items()]


def _predicted(pipe: ImageToCamera, image: np.ndarray, usual: Camera) -> torch.Tensor:
    """K (1, 3, 3) of a picture; that of the usual camera where none fits, as `depth --metric` takes."""
    try:
        return torch.from_numpy(np.asarray(pipe(image).K)).to(usual.K)
    except InputError:
        return usual.K


def confidence_rows(
    head: GeometryHead, val: list[RenderedPlaces], test: list[RenderedPlaces]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Coverage and rank correlation on test places and photographs of models fitted to validation places."""
    fitted, tested = (
        measured_scenes(head, GeometryData([CameraColumns(p) for p in places], columns=head.codec.columns()), 10**6)
        for places in (val, test)
    )
    rows, facts = [], {}
    for name, scenes in fitted.items():
        codec = head.codec.parts[name]
        model = fit_error_model(scenes.features, scenes.errors, codec.error_unit, codec.tolerance)
        facts[name] = asdict(model)
        rows.append(confidence_row(f"confidence of {name}, test places", model, tested[name]))
    photographs = _photographs(head)
    if photographs.errors:
        model = ErrorModel.read(facts[photographs_target()])
        rows.append(confidence_row(f"confidence of {photographs_target()}, photographs", model, photographs))
    return rows, facts


def photographs_target() -> str:
    """The target that photographs have a truth for."""
    return ImageToDepth.needs[0]


def confidence_row(name: str, model: ErrorModel, scenes: Scenes) -> dict[str, Any]:
    """How often the bounds hold, and rank correlations with the error of the predicted size and of the bare spread."""
    row: dict[str, Any] = {"method": name, "scenes": len(scenes.errors)}
    for level in LEVELS:
        row[f"coverage_{100 * level:.0f}"] = round(coverage(model, scenes.features, scenes.errors, level), 4)
    pairs = list(zip(scenes.features, scenes.errors, strict=True))
    sure = [spearman(torch.from_numpy(model.sigma(f)), torch.from_numpy(e)) for f, e in pairs]
    bare = [spearman(torch.from_numpy(f[:, 0]), torch.from_numpy(e)) for f, e in pairs]
    right = np.concatenate([(e <= model.tolerance) for _, e in pairs]).astype(float)
    said = np.concatenate([model.probability(f) for f, _ in pairs])
    return {
        **row,
        "rank_correlation": spread(sure),
        "rank_correlation_of_spread": spread(bare),
        "right": round(float(right.mean()), 4),
        "said_right": round(float(said.mean()), 4),
        "calibration_error": round(_calibration_error(said, right), 4),
    }


def _calibration_error(said: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Mean gap of frequency and probability over bins of it (expected calibration error)."""
    bin_of = np.minimum((said * bins).astype(int), bins - 1)
    gaps = [(bin_of == b).mean() * abs(said[bin_of == b].mean() - right[bin_of == b].mean()) for b in set(bin_of)]
    return float(np.sum(gaps))


def _photographs(head: GeometryHead) -> Scenes:
    """Features and errors of an ensemble's depth on the real frames; nothing where they are absent."""
    scenes = Scenes([], [])
    target = photographs_target()
    codec = head.codec.parts[target]
    for frame in real_frames():
        depth = torch.from_numpy(frame.depth_m)[None, None]
        image = torch.from_numpy(np.ascontiguousarray(frame.image)).permute(2, 0, 1)[None]
        made = ImageToGeometry(head)(image, ensemble_size=ENSEMBLE, output_type="pt").maps[target]
        maps, wide = (torch.as_tensor(one).float() for one in (made.prediction, made.uncertainty))
        told = torch.from_numpy(seen_features(maps, wide, image, head.config.processing_resolution))
        size = (depth.shape[2], depth.shape[3])
        features = F.interpolate(told.permute(0, 3, 1, 2), size, mode="bilinear")[0].flatten(1).T.numpy()
        valid = depth > 0
        error = codec.error(F.interpolate(maps, size, mode="bilinear"), depth, valid)[0].flatten().double().numpy()
        keep = np.flatnonzero(valid.flatten().numpy())
        keep = keep[np.linspace(0, len(keep) - 1, min(4000, len(keep))).astype(int)]
        scenes.features.append(features[keep])
        scenes.errors.append(error[keep])
    return scenes


def real_rows(head: GeometryHead | None, constant: float) -> list[dict[str, Any]]:
    """Vertical fields of view of real photographs in degrees: what is known, and what is said; as it comes."""
    pipe = None if head is None else ImageToCamera(head)
    rows: list[dict[str, Any]] = []
    for photo in real_cameras():
        row: dict[str, Any] = {"photo": photo.name, "truth": photo.truth, "fov_deg": round(photo.fov_y_deg, 2)}
        said = {"constant": constant, "exif": photo.exif_fov_deg}
        if pipe is not None:
            said["camera head"] = _fov(pipe, photo.image())
        errors = {name: round(abs(v - photo.fov_y_deg), 2) for name, v in said.items() if v is not None}
        rows.append({**row, **{f"{name} error": value for name, value in errors.items()}})
    return rows
