"""Trials of the heads that say no map of a room: points of two pictures, surfaces, lit objects, a sensor's depth.

Where a head reads no picture or draws none, "RGB only" is what does without a network: the colours around a point; the
pixels of a surface with the same words, shuffled; the photographs without a material prior; hand-made noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.sampling.tileable import seam_energy
from ..generate.inverse_render import InverseConfig
from ..pipelines.match_images import MatchImages
from ..tasks.correspondence import MatchConfig
from ..tasks.encoders import Joined
from ..tasks.geometry_head import GeometryHead
from ..tasks.material_score import MaterialScore
from ..tasks.material_train import MaterialLoss, MaterialObjective
from ..tasks.materials import MaterialConfig, MaterialGenerator, MaterialPrior
from ..tasks.sim2real import SensorConfig, SensorSimulator, SensorStage
from ..tasks.sim2real_train import SensorObjective
from ..tasks.train import HeadObjective, LossConfig
from ..toybox.judge import Judge
from ..toybox.judge_net import FeatureMaps
from ..toybox.pbr import LABELLED
from ..toybox.pbr_set import PbrSet
from .distances import frechet
from .head_lab import COLOURS, PRIOR, Lab, Record, recorded
from .match import Way, colours, measured
from .match_pairs import Pair, toy_pair
from .materialfusion import HEAD, FusionBench, explained
from .materials import MaterialBench, albedos, drawn, texts
from .sim2real import CODEC, Scenes, Sim2realBench, distances, drawing, hand_made

MATCH, MATERIALS, INVERSE, SENSOR = "match", "materials", "inverse-render", "sim2real"
OTHER_MEASURES = {
    MATCH: "share of points off by a tenth of the box",
    MATERIALS: "Frechet distance of albedos",
    INVERSE: "error of the albedo",
    SENSOR: "Wasserstein distance of residuals, mm",
}


def matching(lab: Lab, source: str, seed: int) -> dict[str, Record]:
    """Key points of toys of one kind, carried over by features; nothing learns."""
    config = lab.config
    pairs = [toy_pair(config.pairs * seed + i, config.pair_px) for i in range(config.pairs)]
    plain, alone = MatchConfig(size=config.pair_px), MatchConfig(alpha=0.0, size=config.pair_px)
    prior = lab.prior_of(source, seed)
    pipe = MatchImages(prior, colours, alone) if source == COLOURS else MatchImages(prior, None, plain)

    def missed(pipe: MatchImages, images: np.ndarray) -> float:
        shown = [replace(pair, pictures=(a, b)) for pair, a, b in zip(pairs, *halves(images), strict=True)]
        return 1.0 - float(measured(Way("", pipe, {}), shown)["pck"]["value"])

    images = stacked(pairs)
    far = np.ones(images.shape[:3])  # toys stand at one distance: fog is even
    made = recorded(lambda damaged: missed(pipe, damaged), lambda: pipe.prior.nfe, images, far)
    if source == PRIOR:
        encoder = Joined(FeatureMaps(Judge.from_pretrained().net))
        made["second_encoder"] = missed(MatchImages(prior, encoder, alone), images)
        made["fused"] = missed(MatchImages(prior, encoder, plain), images)
    return {MATCH: made}


def stacked(pairs: Sequence[Pair]) -> np.ndarray:
    """The first pictures of all pairs, then the second ones, uint8 (2 N, H, W, 3)."""
    pictures = [pair.pictures[side] for side in (0, 1) for pair in pairs]
    return np.rint(255 * np.stack(pictures)).astype(np.uint8)


def halves(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverse of `stacked`: float32 in [0, 1]."""
    one, other = np.split(images.astype(np.float32) / 255, 2)
    return one, other


def surfaces(lab: Lab, source: str, seed: int) -> dict[str, Record]:
    """Surfaces of held-out words; the distance of their albedos from true ones."""
    known, count, steps = lab.config.materials
    config = MaterialBench(count=known, drawn=count, sampled=steps, size=lab.config.size)
    data, judge, words = lab.surfaces, Judge.from_pretrained(), texts(tuple(LABELLED), count)
    true = judge.features(albedos(tuple(LABELLED), count, config.size))

    def off(albedo: Tensor) -> float:
        return frechet(true, judge.features(albedo))

    if source == COLOURS:
        began = time.process_time()
        made = off(shuffled(data, words, seed))
        return {MATERIALS: {"error": made, "calls": 0.0, "picture_s": (time.process_time() - began) / count}}
    prior = MaterialPrior.from_prior(lab.prior_of(source, seed))
    objective = MaterialObjective(prior, MaterialLoss(critic=None))
    with lab.learnt(objective, seed, data) as cost:
        make = MaterialGenerator(prior, MaterialConfig(steps, config.guidance))
        began = time.process_time()
        found = drawn(make, words, config, seed, tileable=True)
        took = time.process_time() - began
        plain = drawn(make, words, config, seed, tileable=False)
        record: Record = {"error": off(found.maps.albedo), "calls": found.nfe / count, "picture_s": took / count}
        seams = {name: float(seam_energy(one.maps.albedo).mean()) for name, one in (("seams", found), ("cut", plain))}
    return {MATERIALS: {**record, **seams, **cost}}


def shuffled(data: PbrSet, words: Sequence[str], seed: int) -> Tensor:
    """Albedos (N, 3, H, W) with the colours of a known surface of the same words, or of any one, and nothing else."""
    batch, rng = data.batch(np.arange(len(data)), None), np.random.default_rng(seed)
    made = []
    for text in words:
        same = [i for i, caption in enumerate(batch["captions"]) if caption == text] or range(len(data))
        pixels = batch["albedo"][rng.choice(same)].reshape(-1, 3)
        made.append(rng.permutation(pixels).reshape(data.size, data.size, 3))
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float()


def inverse(lab: Lab, source: str, seed: int) -> dict[str, Record]:
    """Albedos of balls under unknown lamps, with a prior of materials that learnt here and without."""
    known, count = lab.config.balls
    config = FusionBench(known, balls=count, views=4, size=lab.config.size, fit_steps=lab.config.fit_steps, lights=2)
    usual = InverseConfig(steps=config.fit_steps, guide_size=config.size)
    if source == COLOURS:
        plain = replace(usual, smooth_albedo=0.0, smooth_surface=0.0)
        return {INVERSE: fitted(config, seed, lambda index: explained(index, plain, None, config)[0], lambda: 0)}
    told = replace(HEAD, processing_resolution=0)
    head = GeometryHead.from_prior(lab.prior_of(source, seed), told)
    objective = HeadObjective(LossConfig(loss="latent", annealed=0.0), head)
    with lab.learnt(objective, seed, lab.balls) as cost:
        guide = MaterialScore(head)
        made = fitted(config, seed, lambda index: explained(index, usual, guide, config)[0], lambda: head.nfe)
        return {INVERSE: {**made, **cost}}


def fitted(
    config: FusionBench, seed: int, explain: Callable[[int], dict[str, float]], nfe: Callable[[], int]
) -> Record:
    """Errors of a few test balls, others for each seed, with the network rows of one."""
    began, before = time.process_time(), nfe()
    with torch.enable_grad():
        rows = [explain(config.balls * seed + i) for i in range(config.balls)]
    took, calls = time.process_time() - began, nfe() - before
    means = {key: float(np.mean([row[key] for row in rows])) for key in ("albedo_psnr", "relit_psnr")}
    error = 10 ** (-means["albedo_psnr"] / 20)
    return {"error": error, "calls": calls / config.balls, "picture_s": took / config.balls, **means}


def sensing(lab: Lab, source: str, seed: int) -> dict[str, Record]:
    """Residuals of a simulated sensor's depth, of the first stage; it reads depth, so pictures are not damaged."""
    known, held = (Scenes.of(pairs) for pairs in lab.measured)
    config = Sim2realBench(draw_steps=lab.config.sensor_steps)

    def record(draw: Callable[[Scenes, int], Tensor]) -> Record:
        began = time.process_time()
        made = draw(held, seed)
        took = (time.process_time() - began) / len(held.clean)
        return {"error": distances(made, held)["wasserstein_mm"], "picture_s": took}

    if source == COLOURS:
        return {SENSOR: {**record(hand_made(known)["gaussian"]), "calls": 0.0}}
    settings = SensorConfig(1, CODEC, "patches", gain=6.0, steps=config.draw_steps)
    stage = SensorStage(lab.prior_of(source, seed), settings, seed)
    with lab.learnt(SensorObjective(stage), seed, lab.measured[0]) as cost:
        draw = drawing(SensorSimulator([stage]), 1, config)
        return {SENSOR: {**record(draw), **cost, "calls": float(config.draw_steps)}}


DRAWN: dict[str, Any] = {"match": matching, "materials": surfaces, "inverse-render": inverse, "sim2real": sensing}
