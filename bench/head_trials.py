"""Trials of the heads that say maps of a room: depth, normals, cameras and metres, each on every source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.sampling import Kind
from ..geometry.cameras import Camera
from ..geometry.pinhole_fit import fit_pinhole
from ..pipelines.picture_inputs import DEFAULT_FOV_DEG
from ..tasks.codecs import CameraCodec, DepthCodec, NormalCodec, TargetCodec
from ..tasks.codecs.metric import MetresCodec
from ..tasks.geometry_head import GeometryHead, HeadConfig
from ..tasks.map_head import MapHead
from ..tasks.metric_head import MetricConfig, MetricHead, MetricObjective
from ..tasks.one_step import OneStepConfig, OneStepHead
from ..tasks.preimage_head import PreimageConfig, PreimageHead
from ..tasks.refine import RefineConfig, RefinedHead
from ..tasks.refine_train import OneStepObjective, PreimageObjective, RefineObjective
from ..tasks.refiner import RefinerConfig
from ..tasks.train import HeadObjective, LossConfig
from ..utils.errors import InputError
from .head_lab import COLOURS, PRIOR, Asked, Lab, Record, tensor
from .pixel_head import PixelObjective
from .refined_normals import measured
from .remembered import once_guessed, once_seen

DEPTH, PRIMEDEPTH, METRES = "depth", "depth --head primedepth", "depth --metric"
ONE_STEP, REFINED, CAMERA = "normals --head one-step", "normals --refine", "calibrate"
MEASURES = {
    DEPTH: "AbsRel, aligned",
    PRIMEDEPTH: "AbsRel, aligned",
    METRES: "AbsRel in metres",
    ONE_STEP: "mean angle, degrees",
    REFINED: "mean angle, degrees",
    CAMERA: "median error of the field of view, degrees",
}
REGRESSION = LossConfig(loss="regression")
CLEAN = 20  # train index that one-step heads are told: that of an almost clean picture


def one_step(target: str, kind: Kind = "sample") -> HeadConfig:
    """Of a head that is asked once."""
    return HeadConfig(targets=(target,), kind=kind, timestep=CLEAN, processing_resolution=0)


def of(objective: HeadObjective, target: str) -> Asked:
    """A head of maps as its objective asks it."""
    head: MapHead = objective.head
    return Asked(lambda images: objective.predict(images)[target], lambda: head.nfe)


def from_colours(lab: Lab, codec: TargetCodec, seed: int, measure: Callable[[Asked], Record]) -> Record:
    """What the pixels alone tell of a map, measured while the averaged weights are in the network."""
    objective, asked = PixelObjective(codec, seed), 0

    def maps(images: Tensor) -> Tensor:
        nonlocal asked
        asked += len(images)
        return objective.predict(images)

    with lab.learnt(objective, seed) as cost:
        return {**measure(Asked(maps, lambda: asked)), **cost}


def depth(lab: Lab, source: str, seed: int) -> dict[str, Record]:
    """A one-step regressor that begins as the prior (Marigold's layout, asked as E2E-FT)."""
    codec = DepthCodec()

    def measure(asked: Asked) -> Record:
        return lab.mapped(f"{DEPTH}, {source}", codec, "abs_rel", asked)

    if source == COLOURS:
        return {DEPTH: from_colours(lab, codec, seed, measure)}
    objective = HeadObjective(REGRESSION, GeometryHead.from_prior(lab.prior_of(source, seed), one_step("depth")))
    with lab.learnt(objective, seed) as cost:
        return {DEPTH: {**measure(of(objective, "depth")), **cost}}


def primedepth(lab: Lab, source: str, seed: int) -> dict[str, Record]:
    """A small decoder that reads the frozen network's preimage."""
    told = HeadConfig(("depth",), "sample", processing_resolution=0, codecs={"depth": {"space": "disparity"}})
    codec = told.codec().parts["depth"]

    def measure(asked: Asked) -> Record:
        return lab.mapped(f"{PRIMEDEPTH}, {source}", codec, "abs_rel", asked)

    if source == COLOURS:
        return {PRIMEDEPTH: from_colours(lab, codec, seed, measure)}
    settings = PreimageConfig(told, RefinerConfig(out_channels=64))
    head = once_seen(PreimageHead(lab.prior_of(source, seed), settings, seed=seed), lab.memory)
    objective = PreimageObjective(LossConfig(weights={"depth": 3, "anchor": 1}), head)
    with lab.learnt(objective, seed) as cost:
        return {PRIMEDEPTH: {**measure(of(objective, "depth")), **cost}}


def normals(lab: Lab, source: str, seed: int) -> dict[str, Record]:
    """One step told the picture beside the network, and a second look at what it says (StableNormal)."""
    codec = NormalCodec()

    def measure(name: str, asked: Asked) -> Record:
        return lab.mapped(f"{name}, {source}", codec, "normals_mean", asked)

    if source == COLOURS:
        same = from_colours(lab, codec, seed, lambda asked: measure(ONE_STEP, asked))
        return {ONE_STEP: same, REFINED: same}
    prior = lab.prior_of(source, seed)
    first = OneStepHead(prior, OneStepConfig(processing_resolution=0), seed=seed)
    begun = OneStepObjective(REGRESSION, first)
    with lab.learnt(begun, seed) as cost:
        made = {ONE_STEP: {**measure(ONE_STEP, of(begun, "normals")), **cost}}
        refiner = RefinedHead(once_guessed(first, lab.memory), RefineConfig(), seed)
        objective = RefineObjective(REGRESSION, refiner)
        with lab.learnt(objective, seed) as more:
            made[REFINED] = {**measure(REFINED, of(objective, "normals")), **more}
            if source == PRIOR:
                made[REFINED] |= steadiness(lab, refiner, seed)
    return made


def steadiness(lab: Lab, refiner: RefinedHead, seed: int) -> Record:
    """Variance over starting noises of a refiner and of a sampler with the same budget, and the calls of the sampler's
    ensemble."""
    pictures, noises, steps = lab.config.steady
    few = {name: values[:pictures] for name, values in lab.test.items()}
    told = HeadConfig(("normals",), "v_prediction", "noise", steps, processing_resolution=0)
    sampler = GeometryHead.from_prior(refiner.prior, told)
    with lab.learnt(HeadObjective(LossConfig(loss="latent"), sampler), seed):
        rows = [measured(name, head, few, noises) for name, head in (("refined", refiner), ("sampler", sampler))]
    refined, sampled = (row["variance_deg"]["mean"] for row in rows)
    return {
        "variance": refined,
        "variance_of_sampler": sampled,
        "calls_of_ensemble": rows[1]["calls"] * lab.config.members,
    }


def cameras(lab: Lab, source: str, seed: int) -> dict[str, Record]:
    """Where pixels look, as a picture, and metres told such a picture (DM-Calib)."""
    codec, metres = CameraCodec(), MetresCodec()
    if source == COLOURS:
        return {
            CAMERA: from_colours(lab, codec, seed, lambda asked: of_fields(lab, asked)),
            METRES: from_colours(lab, metres, seed, lambda asked: lab.mapped(METRES, metres, "abs_rel", asked)),
        }
    prior = lab.prior_of(source, seed)
    objective = HeadObjective(REGRESSION, GeometryHead.from_prior(prior, one_step("camera")))
    with lab.learnt(objective, seed) as cost:
        asked = of(objective, "camera")
        made = {CAMERA: {**of_fields(lab, asked), **cost}}
        said = matrices(asked.maps(tensor(lab.test["images"])))
    head = MetricHead(prior, MetricConfig(metres, processing_resolution=0))
    with lab.learnt(MetricObjective(LossConfig(), head), seed) as cost:
        made[METRES] = {**of_metres(lab, head), **cost, "predicted_camera": absolute(lab, head, said)}
    if source == PRIOR:
        blind = MetricHead(prior, MetricConfig(metres, camera=False, processing_resolution=0))
        with lab.learnt(MetricObjective(LossConfig(), blind), seed):
            made[METRES]["no_camera"] = absolute(lab, blind, torch.from_numpy(lab.test["K"]))
    return made


def of_fields(lab: Lab, asked: Asked) -> Record:
    """The median error of the vertical field of view in degrees, and that of the median of the training cameras."""
    side = lab.test["images"].shape[1]
    true = fields(torch.from_numpy(lab.test["K"]), side)
    usual = float(np.median(fields(torch.from_numpy(lab.rooms[0].column("K", np.arange(len(lab.train)))), side)))

    def error(images: np.ndarray) -> float:
        return float(np.median(np.abs(fields(matrices(asked.maps(tensor(images))), side) - true)))

    return {**lab.recorded(error, asked.nfe), "constant": float(np.median(np.abs(usual - true)))}


def fields(K: Tensor, height: int) -> np.ndarray:
    """Vertical fields of view (B,) of cameras K (B, 3, 3), degrees."""
    return np.rad2deg(2 * np.arctan(height / (2 * K[:, 1, 1].double().numpy())))


def matrices(rays: Tensor) -> Tensor:
    """K (B, 3, 3) of tangents (B, 2, H, W); that of the usual field of view where no pinhole fits."""
    height, width = rays.shape[2:]
    usual = Camera.orbit(0.0, 0.0, 1.0, DEFAULT_FOV_DEG, width, height).K[0]
    found = []
    for one in rays.split(1):
        try:
            fitted = fit_pinhole(one, torch.ones_like(one[:, :1], dtype=torch.bool), (width, height))
            found.append(torch.from_numpy(fitted.K).to(usual))
        except InputError:
            found.append(usual)
    return torch.stack(found)


def of_metres(lab: Lab, head: MetricHead) -> Record:
    """AbsRel in metres through the true cameras."""
    K = torch.from_numpy(lab.test["K"])
    return lab.recorded(lambda images: absolute(lab, head, K, images), lambda: head.nfe)


def absolute(lab: Lab, head: MetricHead, K: Tensor, images: np.ndarray | None = None) -> float:
    """AbsRel of metres through cameras K (B, 3, 3), nothing aligned."""
    depth, valid = head.codec.truth(torch.from_numpy(lab.test["depth_m"]).float())
    shown = tensor(lab.test["images"] if images is None else images)
    found: Any = head.codec.metrics(head.metres(shown, K), depth, valid)["abs_rel"]
    return float(found.nanmean())


MAPPED = {"depth": depth, "primedepth": primedepth, "normals": normals, "cameras": cameras}
