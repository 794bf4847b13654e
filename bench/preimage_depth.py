"""Depth out of a frozen prior's preimage (PrimeDepth) against a random network's and against the latents alone.

The same refiner learns for the same updates on the same rooms; only what it reads differs. Damaged pictures (fog,
noise, colour) say how much the error grows. Averages are of disparities brought to [0, 1] each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.priors import StableDiffusionPrior, load_prior
from ..core.training.config import TrainerConfig
from ..pipelines.image_to_geometry import ImageToDepth
from ..tasks.codecs import DepthCodec
from ..tasks.data import AugmentConfig, GeometryData
from ..tasks.geometry_head import GeometryHead, HeadConfig
from ..tasks.heads import load_head
from ..tasks.map_head import MapHead
from ..tasks.metrics import align, depth_errors
from ..tasks.preimage_head import PreimageConfig, PreimageHead
from ..tasks.refine_train import PreimageObjective
from ..tasks.refiner import RefinerConfig
from ..tasks.train import LossConfig, random_unet_like
from ..utils.errors import InputError
from ..utils.pictures import colourise, grid, save_image, to_uint8
from ..utils.seeds import generator
from .geometry_heads import Truth
from .intervals import spread
from .rendered import RenderedPlaces
from .runner import Context
from .short_training import trained

HAZE = 0.6  # share of the light that fog takes at the farthest point
GRAIN = 0.08
TINT = (1.25, 0.9, 0.7)


@dataclass(frozen=True)
class PreimageBench:
    """Sizes of the experiment."""

    test_groups: int = 12
    train_groups: int = 64
    size: int = 48
    steps: int = 250
    batch: int = 4
    lr: float = 3e-3
    seeds: tuple[int, ...] = (0, 1)
    out_channels: int = 64
    long: tuple[int, int] = (50, 10)
    """steps and members of the sampler whose time is compared"""


QUICK = PreimageBench(1, 2, 32, 3, 2, seeds=(0,), long=(2, 2))
Read = Callable[[MapHead, np.ndarray], Tensor]


def run(context: Context) -> dict[str, Any]:
    """What each reader gains, how much damage costs, averages, and seconds."""
    config = QUICK if context.quick else PreimageBench()
    prior = load_prior(context.prior)
    if not isinstance(prior, StableDiffusionPrior):
        raise InputError(f"prior {context.prior!r} is not a Stable Diffusion prior, whose U-Net has a preimage")
    rooms = GeometryData([RenderedPlaces("train", config.train_groups, config.size)], AugmentConfig())
    test = GeometryData([RenderedPlaces("test", config.test_groups, config.size)])
    batch = test.batch(np.arange(len(test)), None)
    results: dict[str, list[dict[str, Any]]] = {}
    last: dict[str, Tensor] = {}
    for seed in config.seeds:
        for name, head in readers(prior, config, seed).items():
            settings = TrainerConfig(
                steps=config.steps, batch=config.batch, optimizer="muon", lr=config.lr, seed=seed,
                warmup=config.steps // 20, ema=0.98,
            )  # fmt: skip
            with trained(
                PreimageObjective(LossConfig(weights={"depth": 3, "anchor": 1}), head), rooms, settings
            ) as run:
                results.setdefault(name, []).append({**errors_of(head, batch), "train_s": round(run.seconds, 1)})
                last[name] = disparity(head, batch["images"])
    table = [summarised(name, rows) for name, rows in results.items()]
    table += averaged(last, batch) + shipped_rows(context.prior, batch)
    _picture(context, batch, last)
    costs = seconds(prior, config, batch["images"][0])
    found = {"claims": claims({row["method"]: row for row in table}), "cost": costs}
    return {"config": asdict(config), "seeds": list(config.seeds), "images": len(test), "table": table, **found}


def readers(prior: StableDiffusionPrior, config: PreimageBench, seed: int) -> dict[str, PreimageHead]:
    """The same refiner on what four sources say of a picture."""
    told = PreimageConfig(
        HeadConfig(
            targets=("depth",), kind="sample", processing_resolution=0, codecs={"depth": {"space": "disparity"}}
        ),
        RefinerConfig(out_channels=config.out_channels),
    )
    bare = replace(told, refiner=replace(told.refiner, attention=False))
    random = prior.with_network(random_unet_like(prior.network, seed), prior.prediction_type)
    return {
        "latents alone": PreimageHead(prior, replace(bare, sees="latents"), seed=seed),
        "preimage of a random network": PreimageHead(random, told, seed=seed),
        "preimage of the prior": PreimageHead(prior, told, seed=seed),
        "preimage without attention": PreimageHead(prior, bare, seed=seed),
    }


def disparity(head: MapHead, images: np.ndarray) -> Tensor:
    """Predicted disparity (B, H, W) in [0, 1]; of a head of linear depth 1 - depth."""
    made = torch.as_tensor(ImageToDepth(head)(list(images), output_type="pt").prediction)[:, 0]
    return made if space_of(head) == "disparity" else 1 - made


def space_of(head: MapHead) -> str:
    """Of a head's depth: disparity, linear or log."""
    return str(head.config.codecs.get("depth", {}).get("space", DepthCodec.space))


def errors_of(head: MapHead, batch: dict[str, np.ndarray]) -> dict[str, float]:
    """AbsRel and delta1 of the pictures, and AbsRel of damaged ones over that."""
    truth = Truth.of(batch)
    depth, valid = truth.targets["depth"][:, 0], truth.valid[:, 0]
    linear = space_of(head) != "disparity"

    def absolute(images: np.ndarray) -> dict[str, Tensor]:
        seen = disparity(head, images)
        fitted = align(1 - seen, depth, valid, "depth") if linear else align(seen, depth, valid, "disparity")
        return depth_errors(fitted, depth, valid)

    clean = absolute(batch["images"])
    row = {name: float(clean[name].nanmean()) for name in ("abs_rel", "delta1")}
    for name, damage in DAMAGES.items():
        worse = absolute(damage(batch["images"], depth.numpy()))["abs_rel"].nanmean()
        row[f"{name}_ratio"] = float(worse) / row["abs_rel"]
    return row


def fog(images: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
    """uint8 (B, H, W, 3) behind grey haze that thickens with depth (B, H, W): exp(-k d), k by the farthest point."""
    far = depth_m.reshape(len(depth_m), -1).max(1)[:, None, None]
    through = (1 - HAZE) ** (np.where(depth_m > 0, depth_m, far) / far)
    return np.rint(images * through[..., None] + 200 * (1 - through[..., None])).astype(np.uint8)


def grain(images: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
    """uint8 (B, H, W, 3) with Gaussian noise, the same for the same pictures."""
    noise = torch.randn(images.shape, generator=generator(0)).numpy()
    return np.rint((images + 255 * GRAIN * noise).clip(0, 255)).astype(np.uint8)


def tinted(images: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
    """uint8 (B, H, W, 3) under light of another colour."""
    return np.rint((images * np.array(TINT)).clip(0, 255)).astype(np.uint8)


DAMAGES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"fog": fog, "noise": grain, "colour": tinted}


def summarised(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and deviations over seeds."""
    return {"method": name, **{key: spread([row[key] for row in rows]) for key in rows[0]}}


def averaged(found: dict[str, Tensor], batch: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The average of the prior's reader and that of the latents, of the last seed."""
    truth = Truth.of(batch)
    depth, valid = truth.targets["depth"][:, 0], truth.valid[:, 0]
    both = [_unit(found[name]) for name in ("preimage of the prior", "latents alone")]
    errors = depth_errors(align((both[0] + both[1]) / 2, depth, valid, "disparity"), depth, valid)
    row = {name: spread(errors[name].numpy()) for name in ("abs_rel", "delta1")}
    return [{"method": "average of prior and latents", **row}]


def _unit(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-6)


def shipped_rows(name: str, batch: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The shipped fine-tuned head on the same pictures, clean and damaged; none where there is no such head."""
    try:
        head = load_head(name, ("depth",))
    except InputError:
        return []
    return [summarised("shipped fine-tuned head", [errors_of(head, batch)])]


def seconds(prior: StableDiffusionPrior, config: PreimageBench, image: np.ndarray) -> dict[str, float]:
    """Of one picture: a call of a reader, and of a sampler with many steps and members."""
    steps, members = config.long
    reader = readers(prior, config, 0)["preimage of the prior"]
    told = HeadConfig(targets=("depth",), kind="v_prediction", start="noise", steps=steps, processing_resolution=0)
    long = ImageToDepth(GeometryHead.from_prior(prior, told))
    short = ImageToDepth(reader)
    short(image)  # warm
    took = []
    for ask in (lambda: short(image), lambda: long(image, ensemble_size=members, seed=0)):
        began = time.perf_counter()
        ask()
        took.append(time.perf_counter() - began)
    return {"reader_s": round(took[0], 4), "sampler_s": round(took[1], 3), "ratio": round(took[1] / took[0], 1)}


def claims(rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Ratios of AbsRel: the prior's preimage to the others'."""
    prior = rows["preimage of the prior"]["abs_rel"]["mean"]
    others = ("preimage of a random network", "latents alone", "preimage without attention")
    return {f"of {name}": round(prior / rows[name]["abs_rel"]["mean"], 3) for name in others}


def _picture(context: Context, batch: dict[str, np.ndarray], found: dict[str, Tensor]) -> None:
    """Picture and disparities of four rooms."""
    tiles = []
    for i in range(0, len(batch["images"]), max(len(batch["images"]) // 4, 1)):
        tiles.append(to_uint8(batch["images"][i]))
        tiles += [colourise(one[i].numpy(), "Spectral") for one in found.values()]
    save_image(context.picture(), grid(tiles, columns=1 + len(found)))
