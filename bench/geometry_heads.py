"""Depth and normals: the embedded head against constants, planes and a head without the prior; real frames too.

Depth is aligned to the truth by least squares in depth, the baselines likewise: the plane is fitted to the truth
itself, so it is the best plane there is. Numbers are means over images; spreads are over seeds or images as named.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.priors import StableDiffusionPrior, load_prior
from ..core.training.config import TrainerConfig
from ..core.training.trainer import Trainer
from ..pipelines.image_to_geometry import ImageToDepth, ImageToGeometry
from ..tasks.data import AugmentConfig, GeometryData
from ..tasks.geometry_head import GeometryHead, HeadConfig
from ..tasks.heads import load_head
from ..tasks.metrics import align, depth_errors, normal_errors, spearman
from ..tasks.train import HeadObjective, LossConfig, random_unet_like
from ..toybox.dataset import RenderJob, render_group
from ..utils.errors import InputError
from ..utils.pictures import colourise, grid, normals_to_rgb, save_image, to_uint8
from .intervals import share, spread
from .real_depth import real_frames
from .runner import Context

DEPTH_NAMES = ("abs_rel", "delta1", "rmse", "silog")
NORMAL_NAMES = ("mean", "median", "below_11.25", "below_30")


@dataclass(frozen=True)
class GeometryBench:
    """Sizes of the experiment."""

    test_groups: int = 64
    """rooms of the test split, four eyes each"""
    place_groups: int = 24
    """streets, tables and interiors of the test split, four eyes each"""
    size: int = 96
    ensembles: tuple[int, ...] = (1, 3, 5)
    budget_steps: int = 300
    """updates of each head in the comparison with and without the prior"""
    budget_groups: int = 128
    budget_seeds: tuple[int, ...] = (0, 1)
    budget_head: HeadConfig = field(default_factory=lambda: HeadConfig(kind="sample", timestep=20))
    budget_loss: LossConfig = field(default_factory=lambda: LossConfig(loss="regression"))
    batch: int = 16
    lr: float = 4e-3


QUICK = GeometryBench(2, 1, 64, (1, 2), 4, 2, (0,), batch=4)


class RenderedPlaces:
    """Rooms, streets, tables or interiors rendered into memory, with the columns of a rendered set."""

    def __init__(self, split: str, groups: int, size: int, kind: str = "room") -> None:
        job = RenderJob(kind, split, groups, size, geometry=True)
        parts = [render_group(job, index) for index in range(groups)]
        self._columns = {name: np.concatenate([p[name] for p in parts]) for name in ("rgb", "depth_m", "normal")}

    def __len__(self) -> int:
        return len(self._columns["rgb"])

    def images(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, 3)."""
        return self._columns["rgb"][indices]

    def column(self, name: str, indices: np.ndarray) -> np.ndarray:
        """A stored channel."""
        return self._columns[name][indices]


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


def targets_of(batch: dict[str, np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """(depth (B, H, W), normals (B, 3, H, W) in the viewer frame, valid (B, H, W))."""
    depth = torch.from_numpy(batch["depth_m"])
    normals = torch.from_numpy(batch["normals"]).permute(0, 3, 1, 2) * torch.tensor([1.0, -1.0, -1.0]).reshape(3, 1, 1)
    return depth, normals, depth > 0


def depth_row(unit: Tensor, depth: Tensor, valid: Tensor) -> dict[str, Any]:
    """Depth errors of a prediction (B, H, W) after alignment: mean and standard deviation over images."""
    errors = depth_errors(align(unit, depth, valid), depth, valid)
    return {name: spread(errors[name].numpy()) for name in DEPTH_NAMES}


def normals_row(normals: Tensor, truth: Tensor, valid: Tensor) -> dict[str, Any]:
    """Normal errors (B, 3, H, W): per image and averaged, and the mean over all pixels of the set."""
    errors = normal_errors(normals, truth, valid)
    pooled = normal_errors(normals, truth, valid, pooling="pixels")["mean"].item()
    rows = {f"normals_{name}": spread(errors[name].numpy()) for name in NORMAL_NAMES}
    return {**rows, "normals_mean_pooled": round(pooled, 3)}


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
    depth, normals, valid = targets_of(batch)
    toward = torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1).expand_as(normals)
    mean = (normals * valid[:, None]).mean(0, keepdim=True).expand_as(normals)
    return [
        {
            "method": "constant",
            **depth_row(torch.zeros_like(depth), depth, valid),
            **normals_row(toward, normals, valid),
        },
        {"method": "mean normals of the set", **normals_row(mean + 1e-9 * toward, normals, valid)},
        {"method": "best plane in depth", **depth_row(best_plane(depth, valid, False), depth, valid)},
        {"method": "best plane in disparity", **depth_row(best_plane(depth, valid, True), depth, valid)},
    ]


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
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(settings, objective, GeometryData([rooms], AugmentConfig()), Path(folder) / "run", "cpu")
        trainer.run()
    depth, normals, valid = targets_of(batch)
    with trainer.averaged():
        pipe = ImageToGeometry(head)
        maps = _predicted(pipe, batch, 1)
    errors = depth_errors(align(maps["depth"][:, 0], depth, valid), depth, valid)
    angles = normal_errors(maps["normals"], normals, valid)
    return {
        **{name: float(errors[name].mean()) for name in DEPTH_NAMES},
        "normals_mean": float(angles["mean"].mean()),
        "seconds": round(trainer.seconds, 1),
    }


def _predicted(pipe: ImageToGeometry, batch: dict[str, np.ndarray], members: int) -> dict[str, Tensor]:
    """Maps (B, C, H, W) at the size of the images, with "spread" for ensembles."""
    made = pipe(list(batch["images"]), ensemble_size=members, output_type="pt")
    maps = {"nfe": torch.tensor(made.nfe)}
    for name in ("depth", "normals"):
        part = getattr(made, name)
        if part is not None:
            maps[name] = part.prediction
            if part.uncertainty is not None:
                maps[f"{name}_spread"] = part.uncertainty
    return maps


def ensemble_row(head: GeometryHead, batch: dict[str, np.ndarray], members: int) -> dict[str, Any]:
    """The shipped head with an ensemble; rank correlation of its uncertainty with the error."""
    depth, normals, valid = targets_of(batch)
    maps = _predicted(ImageToGeometry(head), batch, members)
    row: dict[str, Any] = {"method": f"shipped head, ensemble {members}", "nfe": float(maps["nfe"]) / len(depth)}
    if "depth" in maps:
        row |= depth_row(maps["depth"][:, 0], depth, valid)
    if "normals" in maps:
        row |= normals_row(maps["normals"], normals, valid)
    if "depth_spread" in maps:
        error = (align(maps["depth"][:, 0], depth, valid) - depth).abs() / depth.clamp(min=1e-6)
        pairs = zip(maps["depth_spread"][:, 0], error, valid, strict=True)
        row["uncertainty_spearman"] = spread([spearman(s[keep], e[keep]) for s, e, keep in pairs])
    return row


def place_rows(head: GeometryHead, kind: str, config: GeometryBench) -> list[dict[str, Any]]:
    """The best plane and the shipped head on test streets, tables or interiors."""
    data = GeometryData([RenderedPlaces("test", config.place_groups, config.size, kind)])
    batch = data.batch(np.arange(len(data)), None)
    depth, _, valid = targets_of(batch)
    plane = depth_row(best_plane(depth, valid, False), depth, valid)
    rows = [{"method": "best plane in depth", **plane}, ensemble_row(head, batch, 1)]
    return [{**row, "method": f"{row['method']}, {kind}s"} for row in rows]


def real_rows(head: GeometryHead | None, members: int) -> list[dict[str, Any]]:
    """Baselines, the shipped head and an ensemble of it on every real frame; empty when the frames are absent."""
    rows = []
    pipe = None if head is None or "depth" not in head.config.targets else ImageToDepth(head)
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
    """Image, predicted and true depth, predicted and true normals of a few rooms."""
    depth, normals, valid = targets_of(batch)
    picked = [i for i in rows if i < len(depth)]
    part = {name: values[picked] for name, values in batch.items()}
    maps, tiles = _predicted(ImageToGeometry(head), part, 1), []
    for k, i in enumerate(picked):
        tiles.append(to_uint8(batch["images"][i]))
        if "depth" in maps:
            metres = align(maps["depth"][k : k + 1, 0], depth[i : i + 1], valid[i : i + 1])[0]
            low, high = float(depth[i].min()), float(depth[i].max())
            tiles += [colourise(values, low=low, high=high) for values in (metres, depth[i])]
        if "normals" in maps:
            tiles += [normals_to_rgb(maps["normals"][k]), normals_to_rgb(normals[i])]
    save_image(path, grid(tiles, columns=len(tiles) // len(picked)))
