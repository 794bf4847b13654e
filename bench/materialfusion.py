"""MaterialFusion on balls with procedural materials: what a material prior adds to inverse rendering.

Balls of held-out materials are photographed from all around under few lamps and a sky. Materials and light are fitted
from the same start by (a) the pictures alone, (b) with smoothness, (c) with the prior's pull too, at several
strengths. Albedo is compared after one factor a channel, the ball with these albedos under lights that nobody fitted.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.priors import StableDiffusionPrior, load_prior
from ..core.training.config import TrainerConfig
from ..core.training.trainer import Trainer
from ..generate.inverse_render import InverseConfig, InverseRendering, MaterialGuide
from ..geometry.cameras import Camera
from ..geometry.colors import linear_from_srgb, srgb_from_linear
from ..geometry.environment import Environment
from ..geometry.lit import lit_views, reflected, seen_of, textured
from ..geometry.meshes import Mesh
from ..geometry.posed import PosedImages, around
from ..tasks.data import AugmentConfig, GeometryData
from ..tasks.geometry_head import GeometryHead, HeadConfig
from ..tasks.material_files import REPEATS, sphere
from ..tasks.material_score import MaterialScore, ScoreConfig
from ..tasks.train import HeadObjective, LossConfig
from ..toybox.pbr import FAMILIES, draw_pbr, pbr_maps
from ..utils.errors import InputError
from ..utils.pictures import grid, save_image
from .intervals import digits, spread
from .rendered import InMemory
from .runner import Context

DISTANCE, FOV_DEG = 1.9, 36.0
HEAD = HeadConfig(("albedo", "surface"), "v_prediction", "noise", 5, processing_resolution=64)


@dataclass(frozen=True)
class FusionBench:
    """Sizes of the experiment."""

    train: int = 160
    """balls that the prior learns from, each seen once"""
    steps: int = 300
    """updates of the prior"""
    batch: int = 8
    lr: float = 2e-3
    balls: int = 3
    """to explain"""
    views: int = 8
    size: int = 64
    fit_steps: int = 150
    strengths: tuple[float, ...] = (1.0, 10.0)
    """of the prior's pull"""
    lights: int = 5
    """held out"""


QUICK = FusionBench(8, 3, 4, balls=1, views=3, size=32, fit_steps=4, strengths=(1.0,), lights=2)


def lamps(seed: int, rows: int = 8) -> Environment:
    """A sky and up to three soft lamps, of any colour near white."""
    rng = np.random.default_rng(seed)
    light = Environment(torch.zeros(rows, 2 * rows, 3))
    towards = light.directions.numpy()
    total = (0.15 + 0.3 * rng.random()) * (0.75 + 0.25 * towards[:, 2:]) * np.ones(3)
    for _ in range(int(rng.integers(1, 4))):
        axis = rng.normal(size=3)
        axis[2] = abs(axis[2])
        axis /= np.linalg.norm(axis)
        lobe = np.exp(rng.uniform(4, 16) * (towards @ axis - 1))
        total = total + rng.uniform(1, 4) * lobe[:, None] * (1 + 0.15 * rng.normal(size=3)).clip(0.5, 1.5)
    return Environment(torch.from_numpy(total.astype(np.float32)).reshape(rows, 2 * rows, 3))


def ball(split: str, index: int, texture: int = 96) -> Mesh:
    """A ball of one procedural material, wrapped around it twice."""
    maps = pbr_maps(draw_pbr(split, index, tuple(FAMILIES)), texture, 1)
    flat = np.zeros_like(maps.normal)
    flat[..., 2] = 1
    arrays = {"albedo": maps.albedo_srgb, "normal": flat, "height": maps.height,
              "roughness": maps.roughness.clip(0.1, 1), "metallic": 0.6 * maps.metallic}  # fmt: skip
    made = sphere(arrays, 24)
    assert made.uv is not None
    return replace(made, uv=made.uv / torch.tensor(REPEATS) * torch.tensor([2.0, 1.0]))


def cameras_of(views: int, size: int) -> Camera:
    """From all around."""
    return around(views, size, DISTANCE, FOV_DEG)


class LitBalls(InMemory):
    """Pictures of balls under lamps with their materials (`GeometryPictures`)."""

    def __init__(self, split: str, count: int, size: int) -> None:
        cameras = cameras_of(max(count, 2), size)
        parts = []
        for i in range(count):
            parts.append(layers(ball(split, i), cameras[i], lamps(7 * i + 1)))
        super().__init__({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def layers(mesh: Mesh, cameras: Camera, light: Environment) -> dict[str, np.ndarray]:
    """rgb over white, albedo and material (V, H, W, C) as bytes, 0 where nothing is, and coverage (V, H, W, 1)."""
    linear, alpha = lit_views(mesh, cameras, light)
    seen = seen_of(mesh, cameras)
    albedo, roughness, metallic = textured(mesh, seen.uv)
    made = {
        "rgb": srgb_from_linear(linear.clamp(0, 1)) * alpha + (1 - alpha),
        "albedo": seen.image(srgb_from_linear(albedo)),
        "material": seen.image(torch.cat([roughness, metallic], 1)),
        "alpha": alpha,
    }
    return {name: (255 * value).round().to(torch.uint8).numpy() for name, value in made.items()}


def run(context: Context) -> dict[str, Any]:
    """The prior, then every ball explained in every way."""
    config = QUICK if context.quick else FusionBench()
    base = load_prior(context.prior)
    if not isinstance(base, StableDiffusionPrior):
        raise InputError(f"--prior {context.prior} is no Stable Diffusion prior")
    head, seconds = trained_head(base, config)
    usual = InverseConfig(steps=config.fit_steps, guide_size=config.size)
    plain = replace(usual, smooth_albedo=0.0, smooth_surface=0.0)
    ways: dict[str, tuple[InverseConfig, MaterialGuide | None]] = {
        "pictures alone": (plain, None),
        "with smoothness": (usual, None),
    }
    default = ScoreConfig()
    for strength in config.strengths:
        score = ScoreConfig(strength * default.latent, strength * default.picture)
        ways[f"with the prior, strength {strength:g}"] = (usual, MaterialScore(head, score))
    errors: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    tiles: list[np.ndarray] = []
    for index in range(config.balls):
        shown = []
        for name, (how, guide) in ways.items():
            row, picture = explained(index, how, guide, config)
            errors[name].append(row)
            shown.append(picture)
        tiles += [truth_of(index, config), *shown]
    save_image(context.picture(), grid(tiles, columns=1 + len(ways)))
    table = []
    for name, rows in errors.items():
        first = errors["pictures alone"]
        gains = {f"{key}_gain": spread([row[key] - one[key] for row, one in zip(rows, first, strict=True)])
                 for key in ("albedo_psnr", "relit_psnr")}  # fmt: skip
        table.append({"method": name, **{key: spread([row[key] for row in rows]) for key in rows[0]}, **gains})
    return {
        "config": asdict(config),
        "seeds": list(range(config.balls)),
        "table": table,
        "training_seconds": seconds,
    }


def trained_head(base: StableDiffusionPrior, config: FusionBench) -> tuple[GeometryHead, float]:
    """A head that draws albedo and surface of lit balls, and its seconds of training."""
    head = GeometryHead.from_prior(base, HEAD)
    balls = LitBalls("train", config.train, config.size)
    data = GeometryData([balls], AugmentConfig(flip=False, gain=0.1, contrast=0.1), head.codec.columns())
    objective = HeadObjective(LossConfig(loss="latent", annealed=0.0), head)
    settings = TrainerConfig(steps=config.steps, batch=config.batch, optimizer="muon", lr=config.lr,
                             warmup=config.steps // 20, ema=0.99)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(settings, objective, data, Path(folder) / "run", "cpu")
        trainer.run()
    with trainer.averaged():
        kept = {name: value.clone() for name, value in head.unet.state_dict().items()}
    head.unet.load_state_dict(kept)
    head.unet.requires_grad_(False).eval()
    return head, round(trainer.seconds, 1)


def explained(
    index: int, how: InverseConfig, guide: MaterialGuide | None, config: FusionBench
) -> tuple[dict[str, float], np.ndarray]:
    """Errors of a test ball's materials in dB, and a picture of the albedo that was found."""
    mesh, cameras = ball("test", index), cameras_of(config.views, config.size)
    seen = layers(mesh, cameras, lamps(1000 + index))
    pictures = PosedImages(cameras, torch.from_numpy(seen["rgb"]), torch.from_numpy(seen["alpha"]))
    bare = replace(mesh, textures={}, uv=None, uv_faces=None)
    made = InverseRendering(bare, pictures, how, guide, seed=index).run()
    truth, found = (textured(one, seen_of(one, cameras).uv) for one in (mesh, made.mesh))
    true_srgb, found_srgb = (srgb_from_linear(part[0]) for part in (truth, found))
    factor = (true_srgb * found_srgb).sum(0) / found_srgb.square().sum(0).clamp(min=1e-9)
    scaled = (factor * found_srgb).clamp(0, 1)
    place = seen_of(mesh, cameras)
    relit = []
    for k in range(config.lights):
        light = lamps(5000 + 10 * index + k)
        shaded = [
            srgb_from_linear(reflected(albedo, part[1], part[2], place.normal, place.view, light).clamp(0, 1))
            for albedo, part in ((truth[0], truth), (linear_from_srgb(scaled), found))
        ]
        relit.append(_psnr(*shaded))
    row = {
        "albedo_psnr": _psnr(scaled, true_srgb),
        "relit_psnr": float(np.mean(relit)),
        "roughness_mse": float((truth[1] - found[1]).square().mean()),
        "picture_loss": digits(made.history[-1]["picture"]),
    }
    shown = place.image(scaled, 1.0)[0]
    return row, (255 * shown).round().to(torch.uint8).numpy()


def truth_of(index: int, config: FusionBench) -> np.ndarray:
    """The first picture of a test ball."""
    return layers(ball("test", index), cameras_of(config.views, config.size), lamps(1000 + index))["rgb"][0]


def _psnr(one: Tensor, other: Tensor) -> float:
    return float(-10 * (one - other).square().mean().clamp(min=1e-10).log10())
