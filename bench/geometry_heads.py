"""Depth and normals: the embedded head against constants, planes and a head without the prior; real frames too.

Depth is aligned to the truth by least squares in depth, the baselines likewise: the plane is fitted to the truth
itself, so it is the best plane there is. Numbers are means over images; spreads are over seeds or images as named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.priors import StableDiffusionPrior, load_prior
from ..core.training.config import TrainerConfig
from ..pipelines.image_to_geometry import ImageToDepth, ImageToGeometry
from ..tasks.codecs import convert_normals
from ..tasks.data import AugmentConfig, GeometryData
from ..tasks.geometry_head import GeometryHead, HeadConfig
from ..tasks.heads import load_head
from ..tasks.metrics import align, depth_errors, spearman
from ..tasks.outputs import GeometryOutput
from ..tasks.train import HeadObjective, LossConfig, random_unet_like
from ..utils.errors import InputError
from ..utils.pictures import grid, save_image, to_uint8
from .intervals import share, spread
from .real_depth import real_frames
from .rendered import RenderedPlaces
from .runner import Context
from .short_training import trained

SHOWN = (
    *("abs_rel", "delta1", "rmse", "silog"),
    *("normals_mean", "normals_median", "normals_below_11.25", "normals_below_30"),
)
BRIEFLY = SHOWN[:5]  # depth, and the mean angle
BOTH = HeadConfig().codec()  # depth and normals


@dataclass(frozen=True)
class GeometryBench:
    """Sizes of the experiment."""

    test_groups: int = 48
    """rooms of the test split, four eyes each"""
    place_groups: int = 24
    """streets, tables and interiors of the test split, four eyes each"""
    size: int = 96
    ensembles: tuple[int, ...] = (1, 3, 5)
    budget_steps: int = 150
    """updates of each head in the comparison with and without the prior"""
    budget_groups: int = 128
    budget_seeds: tuple[int, ...] = (0, 1, 2)
    budget_head: HeadConfig = field(default_factory=lambda: HeadConfig(kind="sample", timestep=20))
    budget_loss: LossConfig = field(default_factory=lambda: LossConfig(loss="regression"))
    batch: int = 16
    lr: float = 4e-3


QUICK = GeometryBench(2, 1, 64, (1, 2), 4, 2, (0,), batch=4)


def run(context: Context) -> dict[str, Any]:
    """Test rooms, equal budgets with and without the prior, ensembles, real frames."""
    config = QUICK if context.quick else GeometryBench()
    rooms = RenderedPlaces("test", config.test_groups, config.size)
    data = GeometryData([rooms])
    batch = data.batch(np.arange(len(data)), None)
    head = _shipped(context.prior)
    table = baselines(batch) + equal_budget(context.prior, config, batch)
    if head is not None:
        table += [ensemble_row(head, batch, size) for size in config.ensembles]
        for kind in ("street", "table", "interior"):
            table += place_rows(head, kind, config)
        _picture(head, batch, context.picture())
    real = real_rows(head, config.ensembles[-1])
    return {
        "config": asdict(config),
        "seeds": list(config.budget_seeds),
        "images": len(data),
        "head": "none" if head is None else asdict(head.config),
        "table": [*table, *real_summary(real)],
        "real": real,
    }


def _shipped(prior: str) -> GeometryHead | None:
    """The head that goes with a prior, None when there is none."""
    try:
        return load_head(prior)
    except InputError:
        return None


@dataclass(frozen=True)
class Truth:
    """What maps are measured against."""

    targets: dict[str, Tensor]
    """(B, C, H, W) by name, as the codecs decode them"""
    valid: Tensor
    """(B, 1, H, W)"""

    @classmethod
    def of(cls, batch: dict[str, np.ndarray]) -> Truth:
        """Depth and normals of a batch; what is seen has a depth."""
        targets, _ = BOTH.truth(batch, torch.device("cpu"))
        depth_m = targets["depth"]
        return cls(targets, depth_m > 0)


def error_row(maps: Mapping[str, Tensor], truth: Truth) -> dict[str, Any]:
    """Errors of the maps there are: mean and standard deviation over images, and those pooled over the set."""
    errors = BOTH.metrics(maps, truth.targets, truth.valid)
    row: dict[str, Any] = {name: spread(errors[name].numpy()) for name in SHOWN if name in errors}
    for name, codec in BOTH.parts.items():
        if name in maps:
            pooled = codec.pooled(maps[name], truth.targets[name], truth.valid)
            row |= {key: round(value.item(), 3) for key, value in pooled.items()}
    return row


def best_plane(depth: Tensor, valid: Tensor, disparity: bool) -> Tensor:
    """The plane a + b x + c y that fits each depth map (B, H, W), or its inverse, best; back in depth."""
    height, width = depth.shape[1:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    basis = torch.stack([torch.ones_like(x), x, y], -1).reshape(-1, 3).double()
    planes = []
    for one, keep in zip(depth.double(), valid, strict=True):
        inside = keep.flatten()
        values = one.flatten()[inside]
        fit = torch.linalg.lstsq(basis[inside], (1 / values if disparity else values)[:, None]).solution
        plane = (basis @ fit).reshape(height, width)
        planes.append(1 / plane.clamp(min=1e-3) if disparity else plane)
    return torch.stack(planes).float()


def baselines(batch: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """What needs no network: constant depth, best planes, constant and mean normals."""
    truth = Truth.of(batch)
    depth, normals = truth.targets["depth"], truth.targets["normals"]
    toward = torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1).expand_as(normals)
    stored = convert_normals(torch.from_numpy(batch["normals"]).permute(0, 3, 1, 2), "opencv", "viewer")
    mean = (stored * truth.valid).mean(0, keepdim=True).expand_as(normals)
    planes = {kind: best_plane(depth[:, 0], truth.valid[:, 0], kind == "disparity") for kind in ("depth", "disparity")}
    made: dict[str, dict[str, Tensor]] = {
        "constant": {"depth": torch.zeros_like(depth), "normals": toward},
        "mean normals of the set": {"normals": mean + 1e-9 * toward},
        **{f"best plane in {kind}": {"depth": plane[:, None]} for kind, plane in planes.items()},
    }
    return [{"method": name, **error_row(maps, truth)} for name, maps in made.items()]


def equal_budget(prior_name: str, config: GeometryBench, batch: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Heads trained for the same updates on the same rooms from the prior and from random weights."""
    prior = load_prior(prior_name)
    if not isinstance(prior, StableDiffusionPrior):
        return []
    rooms = RenderedPlaces("train", config.budget_groups, min(config.size, 64))
    rows = []
    for start in ("prior", "random"):
        results = [_trained(prior, start, seed, config, rooms, batch) for seed in config.budget_seeds]
        numbers = {name: spread([result[name] for result in results]) for name in results[0]}
        rows.append({"method": f"head, {config.budget_steps} updates from {start}", "spread": "seeds", **numbers})
    return rows


def _trained(
    prior: StableDiffusionPrior,
    start: str,
    seed: int,
    config: GeometryBench,
    rooms: RenderedPlaces,
    batch: dict[str, np.ndarray],
) -> dict[str, float]:
    """Errors on the test rooms after a short training, and its seconds."""
    head = GeometryHead.from_prior(prior, config.budget_head)
    if start == "random":
        head = GeometryHead(prior, random_unet_like(head.unet, seed), head.config)
    objective = HeadObjective(config.budget_loss, head)
    settings = TrainerConfig(
        steps=config.budget_steps,
        batch=config.batch,
        optimizer="muon",
        lr=config.lr,
        seed=seed,
        warmup=config.budget_steps // 20,
        ema=0.98,
    )
    truth = Truth.of(batch)
    with trained(objective, GeometryData([rooms], AugmentConfig()), settings) as trainer:
        maps = _maps(_predicted(head, batch, 1))
    errors = BOTH.metrics(maps, truth.targets, truth.valid)
    return {
        **{name: float(errors[name].mean()) for name in BRIEFLY},
        "seconds": round(trainer.seconds, 1),
    }


def _predicted(head: GeometryHead, batch: dict[str, np.ndarray], members: int) -> GeometryOutput:
    """Tensors at the size of the images."""
    return ImageToGeometry(head)(list(batch["images"]), ensemble_size=members, output_type="pt")


def _maps(made: GeometryOutput) -> dict[str, Tensor]:
    return {name: torch.as_tensor(part.prediction) for name, part in made.maps.items()}


def ensemble_row(head: GeometryHead, batch: dict[str, np.ndarray], members: int) -> dict[str, Any]:
    """The shipped head with an ensemble; rank correlations of its uncertainties with the errors."""
    truth, made = Truth.of(batch), _predicted(head, batch, members)
    row: dict[str, Any] = {"method": f"shipped head, ensemble {members}", "nfe": made.nfe / len(truth.valid)}
    row |= error_row(_maps(made), truth)
    for name, part in made.maps.items():
        if part.uncertainty is not None:
            error = BOTH.parts[name].error(torch.as_tensor(part.prediction), truth.targets[name], truth.valid)
            groups = zip(torch.as_tensor(part.uncertainty)[:, 0], error, truth.valid[:, 0], strict=True)
            row[f"{name}_uncertainty_spearman"] = spread([spearman(s[keep], e[keep]) for s, e, keep in groups])
    return row


def place_rows(head: GeometryHead, kind: str, config: GeometryBench) -> list[dict[str, Any]]:
    """The best plane and the shipped head on test streets, tables or interiors."""
    data = GeometryData([RenderedPlaces("test", config.place_groups, config.size, kind)])
    batch = data.batch(np.arange(len(data)), None)
    truth = Truth.of(batch)
    plane = best_plane(truth.targets["depth"][:, 0], truth.valid[:, 0], False)
    rows = [{"method": "best plane in depth", **error_row({"depth": plane[:, None]}, truth)}]
    rows.append(ensemble_row(head, batch, 1))
    return [{**row, "method": f"{row['method']}, {kind}s"} for row in rows]


def real_rows(head: GeometryHead | None, members: int) -> list[dict[str, Any]]:
    """Baselines, the shipped head and an ensemble of it on every real frame; empty when the frames are absent."""
    rows = []
    pipe = None if head is None else _depth_of(head)
    for frame in real_frames():
        depth = torch.from_numpy(frame.depth_m)[None]
        valid = depth > 0
        row: dict[str, Any] = {
            "frame": frame.name,
            "truth": frame.truth,
            "valid_share": round(float(valid.float().mean()), 3),
        }
        candidates = {"constant": torch.zeros_like(depth), "plane": best_plane(depth, valid, False)}
        if pipe is not None:
            for name, size in (("head", 1), (f"head, ensemble {members}", members)):
                unit = torch.from_numpy(pipe(frame.image, ensemble_size=size).depth)[:, None]
                candidates[name] = F.interpolate(unit, depth.shape[1:], mode="bilinear")[:, 0]
        for name, unit in candidates.items():
            errors = depth_errors(align(unit, depth, valid), depth, valid)
            row[name] = {key: round(errors[key].item(), 4) for key in ("abs_rel", "delta1")}
        rows.append(row)
    return rows


def _depth_of(head: GeometryHead) -> ImageToDepth | None:
    """None for a head that predicts no depth."""
    try:
        return ImageToDepth(head)
    except InputError:
        return None


def real_summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the real frames, and on how many of them a head has a lower AbsRel than constant and plane."""
    names = [name for name in (rows[0] if rows else {}) if isinstance(rows[0][name], dict)]
    made: list[dict[str, Any]] = []
    for name in names:
        errors = {key: spread([row[name][key] for row in rows]) for key in ("abs_rel", "delta1")}
        made.append({"method": f"{name}, real frames", **errors})
        if name.startswith("head"):
            better = [row[name]["abs_rel"] < min(row[n]["abs_rel"] for n in ("constant", "plane")) for row in rows]
            made[-1]["beats_constant_and_plane"] = share(better)
    return made


def _picture(head: GeometryHead, batch: dict[str, np.ndarray], path: Path, rows: Sequence[int] = range(6)) -> None:
    """Image, then prediction and truth of each target, of a few rooms."""
    picked = [i for i in rows if i < len(batch["images"])]
    part = {name: values[picked] for name, values in batch.items()}
    truth, maps, tiles = Truth.of(part), _maps(_predicted(head, part, 1)), []
    for k in range(len(picked)):
        one = slice(k, k + 1)
        tiles.append(to_uint8(part["images"][k]))
        for name, codec in head.codec.parts.items():
            tiles += codec.compared(maps[name][one], truth.targets[name][one], truth.valid[one])
    save_image(path, grid(tiles, columns=len(tiles) // len(picked)))
