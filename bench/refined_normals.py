"""Refined normals: one step, one step and a second look, a sampler of 50 steps, and its ensemble (StableNormal).

The first head is the shipped one where there is one, else one that learns here. The refiner and the sampler learn here,
for the same updates on the same rooms. Sharpness is the mean angle within 3 px of where depth or normals jump; variance
is the mean angle of the members to their mean direction over starting noises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.priors import StableDiffusionPrior, load_prior
from ..core.training.config import TrainerConfig
from ..pipelines.image_to_geometry import ImageToNormals
from ..tasks.alternatives import load_alternative
from ..tasks.codecs import NormalCodec
from ..tasks.data import GeometryData
from ..tasks.ensemble import ensemble_directions
from ..tasks.geometry_head import GeometryHead, HeadConfig
from ..tasks.map_head import MapHead
from ..tasks.metrics import angles_deg
from ..tasks.one_step import OneStepHead
from ..tasks.refine import RefineConfig, RefinedHead
from ..tasks.refine_train import RefineObjective
from ..tasks.train import HeadObjective, LossConfig
from ..utils.errors import InputError
from ..utils.pictures import grid, normals_to_rgb, save_image, to_uint8
from .geometry_heads import Truth
from .intervals import spread
from .rendered import RenderedPlaces
from .runner import Context
from .short_training import trained

NEAR_PX = 3
JUMP = 1.1  # of the depths of neighbours
TURN_DEG = 30.0  # between the normals of neighbours


@dataclass(frozen=True)
class RefineBench:
    """Sizes of the experiment."""

    test_groups: int = 4
    """rooms, four eyes each"""
    train_groups: int = 64
    size: int = 48
    steps: int = 200
    """updates of refiner, sampler, and of the first head where none is shipped"""
    batch: int = 8
    lr: float = 3e-3
    seeds: int = 4
    """starting noises"""
    sampler_steps: int = 50
    members: int = 10
    first: HeadConfig = field(default_factory=lambda: HeadConfig(kind="sample", timestep=20))
    seed: int = 0


QUICK = RefineBench(1, 2, 32, 3, 2, seeds=2, sampler_steps=3, members=2)


def run(context: Context) -> dict[str, Any]:
    """All rows, the ablations, and a picture."""
    config = QUICK if context.quick else RefineBench(seed=context.seed)
    prior = load_prior(context.prior)
    if not isinstance(prior, StableDiffusionPrior):
        raise InputError(f"prior {context.prior!r} is not a Stable Diffusion prior, which refiners begin with")
    rooms = GeometryData([RenderedPlaces("train", config.train_groups, config.size)])
    test = GeometryData([RenderedPlaces("test", config.test_groups, config.size)])
    batch = test.batch(np.arange(len(test)), None)
    first, shipped = first_head(prior, config, rooms, context.quick)
    refined = fitted_refiner(first, RefineConfig(), config, rooms)
    plain = fitted_refiner(first, RefineConfig(meaning=False), config, rooms)
    sampler = fitted_sampler(prior, config, rooms)
    rows = [
        measured("one step", first, batch, 1),
        measured("one step, refined", refined, batch, config.seeds),
        measured(f"sampler, {config.sampler_steps} steps", sampler, batch, config.seeds),
        measured(f"sampler, ensemble {config.members}", sampler, batch, 1, config.members),
        measured("refined without the meaning", plain, batch, config.seeds),
        measured("refined without the hold", refined.with_settings(held=0.0), batch, config.seeds),
        measured("refined in 4 steps", refined.with_settings(steps=4), batch, config.seeds),
    ]
    rows += shipped_row(batch, config.seeds)
    _picture(context, batch, {"one": first, "refined": refined, "sampler": sampler})
    found = {"first_head": "shipped" if shipped else "trained here", "claims": claims(rows)}
    return {"config": asdict(config), "seeds": list(range(config.seeds)), "table": rows, **found}


def settings(config: RefineBench) -> TrainerConfig:
    """Of every short training here."""
    return TrainerConfig(
        steps=config.steps,
        batch=config.batch,
        optimizer="muon",
        lr=config.lr,
        seed=config.seed,
        warmup=config.steps // 20,
        ema=0.98,
    )


def first_head(
    prior: StableDiffusionPrior, config: RefineBench, rooms: GeometryData, quick: bool = False
) -> tuple[GeometryHead | OneStepHead, bool]:
    """(the one-step head, whether it is the shipped one); quick runs try the training."""
    try:
        found: MapHead | None = None if quick else load_alternative("one-step", "normals")
    except InputError:  # there are no such weights
        found = None
    if isinstance(found, OneStepHead) and found.prior.name == prior.name:
        return found, True
    head = GeometryHead.from_prior(prior, config.first)
    with trained(HeadObjective(LossConfig(loss="regression"), head), rooms, settings(config)):
        return _kept(head), False


def _kept(head: GeometryHead) -> GeometryHead:
    """A head whose weights no longer change when a training gives back its own."""
    copy = GeometryHead.from_prior(head.prior, head.config)
    copy.unet.load_state_dict(head.unet.state_dict())
    copy.unet.requires_grad_(False).eval()
    return copy


def shipped_row(batch: dict[str, np.ndarray], seeds: int) -> list[dict[str, Any]]:
    """The refiner that comes with the package, which learnt longer; none where there is none."""
    try:
        head = load_alternative("refiner", "normals")
    except InputError:
        return []
    return [measured("the refiner as shipped", head, batch, seeds)]


def fitted_refiner(
    first: GeometryHead | OneStepHead, told: RefineConfig, config: RefineBench, rooms: GeometryData
) -> RefinedHead:
    """A refiner after the short training."""
    head, kept = RefinedHead(first, told, config.seed), RefinedHead(first, told, config.seed)
    with trained(RefineObjective(LossConfig(loss="regression"), head), rooms, settings(config)):
        for name, module in head.modules().items():
            kept.modules()[name].load_state_dict(module.state_dict())
    for module in kept.modules().values():
        module.requires_grad_(False).eval()
    return kept


def fitted_sampler(prior: StableDiffusionPrior, config: RefineBench, rooms: GeometryData) -> GeometryHead:
    """A sampler of normals (Marigold) after the short training."""
    told = HeadConfig(
        targets=("normals",), kind="v_prediction", start="noise", steps=config.sampler_steps, processing_resolution=0
    )
    head = GeometryHead.from_prior(prior, told)
    with trained(HeadObjective(LossConfig(loss="latent"), head), rooms, settings(config)):
        return _kept(head)


def measured(name: str, head: MapHead, batch: dict[str, np.ndarray], seeds: int, members: int = 1) -> dict[str, Any]:
    """Mean angle, that near jumps, the spread over starting noises, and network rows of a picture."""
    truth = Truth.of(batch)
    pipe, wanted, valid = ImageToNormals(head), truth.targets["normals"], truth.valid
    before, images = head.nfe, list(batch["images"])
    runs = [torch.as_tensor(_asked(pipe, images, seed, members)) for seed in range(seeds)]
    calls = (head.nfe - before) / (seeds * len(images))
    edges = near_jumps(truth.targets["depth"], wanted, valid)
    angles = torch.stack([angles_deg(one, wanted) for one in runs])  # (S, B, H, W)
    row: dict[str, Any] = {
        "method": name,
        "calls": round(calls, 1),
        "angle": spread(_means(angles, valid[:, 0])),
        "angle_near_jumps": spread(_means(angles, edges)),
    }
    if seeds > 1:
        apart = [
            ensemble_directions(torch.stack([one[i] for one in runs]), "mean").uncertainty for i in range(len(images))
        ]
        row["variance_deg"] = spread([180 * float(one[0, 0][v].mean()) for one, v in zip(apart, valid[:, 0])])
    return row


def _asked(pipe: ImageToNormals, images: list[np.ndarray], seed: int, members: int) -> Any:
    return pipe(images, seed=seed, ensemble_size=members, output_type="pt").prediction


def _means(angles: Tensor, keep: Tensor) -> list[float]:
    """Of each image, over its pixels and all runs."""
    return [float(angles[:, i][:, keep[i]].mean()) for i in range(len(keep)) if bool(keep[i].any())]


def near_jumps(depth_m: Tensor, normals: Tensor, valid: Tensor) -> Tensor:
    """(B, H, W) bool: valid pixels within 3 px of neighbours whose depths are a tenth or normals 30 degrees apart."""
    jumps = torch.zeros_like(depth_m, dtype=torch.bool)
    for axis in (2, 3):
        one, two = (part.narrow(axis, k, depth_m.shape[axis] - 1) for part in (depth_m,) for k in (0, 1))
        turned = angles_deg(*(normals.narrow(axis, k, normals.shape[axis] - 1) for k in (0, 1)))[:, None] > TURN_DEG
        apart = (torch.maximum(one, two) > JUMP * torch.minimum(one, two)) | turned
        jumps.narrow(axis, 0, apart.shape[axis]).logical_or_(apart)
    near = F.max_pool2d(jumps.float(), 2 * NEAR_PX + 1, stride=1, padding=NEAR_PX) > 0
    return (near & valid)[:, 0]


def claims(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The card's ratios: variance, angle near jumps, calls."""
    one, refined, sampler, ensemble = rows[:4]
    return {
        "variance_of_the_samplers": round(refined["variance_deg"]["mean"] / sampler["variance_deg"]["mean"], 3),
        "angle_near_jumps_of_one_steps": round(
            refined["angle_near_jumps"]["mean"] / one["angle_near_jumps"]["mean"], 3
        ),
        "angle_of_the_ensembles": round(refined["angle"]["mean"] / ensemble["angle"]["mean"], 3),
        "calls_of_the_ensemble": round(ensemble["calls"] / refined["calls"], 1),
    }


def _picture(context: Context, batch: dict[str, np.ndarray], heads: dict[str, MapHead]) -> None:
    """Image, truth, then each head's normals of four rooms."""
    truth, rows = Truth.of(batch).targets["normals"], range(0, len(batch["images"]), max(len(batch["images"]) // 4, 1))
    ask: Callable[[MapHead, int], Tensor] = lambda head, i: torch.as_tensor(  # noqa: E731
        _asked(ImageToNormals(head), [batch["images"][i]], 0, 1)
    )
    tiles = []
    for i in rows:
        tiles += [to_uint8(batch["images"][i]), NormalCodec().picture(truth[i].permute(1, 2, 0).numpy())]
        tiles += [normals_to_rgb(ask(head, i)[0]) for head in heads.values()]
    save_image(context.picture(), grid(tiles, columns=2 + len(heads)))
