"""Training of a geometry head on images with exact depth and normals; one objective, three losses.

"end_to_end" (Garcia et al. 2025): one call at t = T - 1 with z = 0, decoded inside the graph, task losses on pixels.
"regression": the same call, squared error of the latents. No decoder in the graph: a cheaper first stage.
"latent" (Ke et al. 2024): denoising of the target latents with annealed multi-resolution noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ..core.sampling import Prediction
from ..core.training.objectives.base import LossOut, Objective, fixed_init
from ..utils.pictures import colourise, grid, normals_to_rgb, save_image, to_uint8
from .codecs import DepthCodec, convert_normals, unit_length
from .data import AugmentConfig, GeometryData
from .geometry_head import GeometryHead, HeadConfig
from .metrics import align, depth_errors, fit_affine, masked_mean, normal_errors
from .noise import annealed_noise

COS_LIMIT = 1 - 1e-5  # the slope of arccos is infinite at 1


@dataclass(frozen=True)
class LossConfig:
    """What is minimised."""

    loss: Literal["end_to_end", "regression", "latent"] = "end_to_end"
    depth: float = 1.0
    """weight of the L1 error after least-squares alignment, in units of half the depth range"""
    relative: float = 0.0
    """weight of the same error in metres over the true depth, to first order: what AbsRel counts"""
    anchor: float = 0.5
    """weight of the L1 error without alignment: keeps larger = farther and the output in its range"""
    edges: float = 0.5
    """weight of the error of depth differences between neighbours at 3 scales, after alignment"""
    normals: float = 1.0
    """weight of the mean angle in radians"""
    annealed: float = 0.9
    """strength of the low frequencies of the latent loss's noise at t = T; 0 = plain noise"""
    validation_images: int = 256
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class HeadTraining:
    """What a run of the objective is defined by."""

    head: HeadConfig
    losses: LossConfig


class HeadObjective(Objective):
    """Trains the U-Net of a head; the prior's VAE stays frozen and inside the graph."""

    def __init__(self, config: LossConfig, head: GeometryHead, held_out: GeometryData | None = None) -> None:
        self.losses, self.head, self.held_out = config, head, held_out
        self.config = HeadTraining(head.config, config)
        head.unet.requires_grad_(True)
        head.empty_prompt()
        self.modules: dict[str, nn.Module] = {"unet": head.unet}
        self.frozen: dict[str, nn.Module] = {"vae": head.prior.vae}

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss."""
        images, targets, valid = self.tensors(batch)
        with torch.no_grad():
            condition = self.head.encode_image(images)
        if self.losses.loss == "latent":
            return self._latent_loss(condition, targets, valid, rng)
        if self.losses.loss == "regression":
            return self._regression_loss(condition, targets, valid)
        return self._end_to_end_loss(condition, targets, valid)

    def tensors(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """(images (B, 3, H, W) in [0, 1], targets by name in the codec's frame, valid (B, 1, H, W))."""
        device = self.head.device
        images = torch.from_numpy(batch["images"]).to(device).permute(0, 3, 1, 2).float() / 255
        depth = torch.from_numpy(batch["depth_m"]).to(device)[:, None].float()
        normals = torch.from_numpy(batch["normals"]).to(device).permute(0, 3, 1, 2).float()
        valid = (depth > 0) & torch.isfinite(depth)
        seen = normals.norm(dim=1, keepdim=True) > 0.5
        turned = convert_normals(unit_length(normals), "opencv", "viewer")
        return images, {"depth": depth, "normals": turned}, valid & seen

    def predict_pictures(self, condition: Tensor) -> Tensor:
        """The one-step regressor: pictures (B, n, 3, H, W), about [-1, 1], of image latents; differentiable."""
        return self.head.decode_pictures(self._one_step(condition))

    def _one_step(self, condition: Tensor) -> Tensor:
        x = condition.new_zeros((len(condition), *self.head.shape(condition)))
        prediction: Prediction = self.head.denoiser(condition)(x, self.head.first_level())
        return prediction.x0

    def _regression_loss(self, condition: Tensor, targets: dict[str, Tensor], valid: Tensor) -> LossOut:
        with torch.no_grad():
            clean, _ = self.head.encode_targets(targets, valid)
        keep = latent_mask(valid, self.head.prior.vae_factor)
        error = masked_mean((self._one_step(condition) - clean).square().mean(1), keep[:, 0]).nan_to_num(0.0).mean()
        return LossOut(error, {"latent_mse": error.detach()})

    def _end_to_end_loss(self, condition: Tensor, targets: dict[str, Tensor], valid: Tensor) -> LossOut:
        pictures = self.predict_pictures(condition)
        logs: dict[str, Tensor] = {}
        total = pictures.new_zeros(())
        for group, name in zip(pictures.unbind(1), self.head.config.targets, strict=True):
            codec = self.head.codec.parts[name]
            coded, state = codec.encode(targets[name], valid)
            if isinstance(codec, DepthCodec):
                parts = self._depth_parts(group, coded, valid, codec.relative_unit(targets[name], valid, state))
            else:
                parts = self._normal_parts(group, coded, valid)
            for key, (weight, value) in parts.items():
                total = total + weight * value
                logs[key] = value.detach()
        return LossOut(total, logs)

    def _depth_parts(
        self, group: Tensor, coded: Tensor, valid: Tensor, unit: Tensor
    ) -> dict[str, tuple[float, Tensor]]:
        """Affine-invariant L1, plain and relative, L1 as it is, and edges, against the coded target in [-1, 1].

        The fitted scale is kept positive: with a free sign a head that starts inverted stays inverted.
        """
        prediction, target, keep = group.mean(1), coded[:, 0], valid[:, 0]
        fitted = fit_affine(prediction, target, keep, ridge=1e-3, positive=True)(prediction.double()).float()
        error = fitted - target
        return {
            "depth": (self.losses.depth, _mean(error.abs(), keep)),
            "relative": (self.losses.relative, _mean(error.abs() * unit[:, 0], keep)),
            "anchor": (self.losses.anchor, _mean((prediction - target).abs(), keep)),
            "edges": (self.losses.edges, edge_error(error, keep)),
        }

    def _normal_parts(self, group: Tensor, coded: Tensor, valid: Tensor) -> dict[str, tuple[float, Tensor]]:
        cosine = (unit_length(group) * unit_length(coded)).sum(1)
        angle = cosine.clamp(-COS_LIMIT, COS_LIMIT).arccos()
        return {"normals": (self.losses.normals, _mean(angle, valid[:, 0]))}

    def _latent_loss(
        self, condition: Tensor, targets: dict[str, Tensor], valid: Tensor, rng: torch.Generator
    ) -> LossOut:
        head = self.head
        with torch.no_grad():
            clean, _ = head.encode_targets(targets, valid)
        steps = head.schedule.steps
        t = torch.randint(steps, (len(clean),), generator=rng)
        noise = annealed_noise(clean.shape, self.losses.annealed * t / steps, rng).to(clean)
        level = head.schedule.at_index(t.to(clean.device))
        noisy = head.schedule.add_noise(clean, noise, level)
        raw = head.denoiser(condition)(noisy, level).raw
        wanted = head.schedule.target(head.config.kind, clean, noise, level)
        keep = latent_mask(valid, head.prior.vae_factor)
        error = masked_mean((raw - wanted).square().mean(1), keep[:, 0]).nan_to_num(0.0).mean()
        return LossOut(error, {"latent_mse": error.detach()})

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Errors on held-out images at the head's own settings; depth is aligned by least squares."""
        if self.held_out is None:
            return {}
        count = min(self.losses.validation_images, len(self.held_out))
        picked = np.linspace(0, len(self.held_out) - 1, count).astype(int)
        rows: dict[str, list[Tensor]] = {}
        for indices in np.array_split(picked, max(1, count // 16)):
            images, targets, valid = self.tensors(self.held_out.batch(indices, None))
            for key, value in head_errors(self.predict(images, int(indices[0])), targets, valid).items():
                rows.setdefault(key, []).append(value)
        return {key: float(torch.cat(values).nanmean()) for key, values in rows.items()}

    @torch.no_grad()
    def predict(self, images: Tensor, seed: int = 0) -> dict[str, Tensor]:
        """Maps by name at the head's own settings."""
        head = self.head
        condition = head.encode_image(images)
        shape = (len(images), *head.shape(condition))
        if head.config.start == "zeros":
            start = condition.new_zeros(shape)
        else:
            start = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(condition)
        return head.decode(head.predict(condition, start))

    @torch.no_grad()
    def preview(self, step: int, out: Path) -> list[Path]:
        """Rows of image, depth, true depth, normals, true normals."""
        if self.held_out is None:
            return []
        indices = np.linspace(0, len(self.held_out) - 1, 6).astype(int)
        images, targets, valid = self.tensors(self.held_out.batch(indices, None))
        maps = self.predict(images)
        tiles: list[np.ndarray] = []
        for i, image in enumerate(images):
            keep = valid[i, 0].cpu().numpy()
            tiles.append(to_uint8(image))
            for name in self.head.config.targets:
                pair = (maps[name][i], targets[name][i])
                if name == "depth":
                    tiles += [colourise(pair[0], mask=keep), colourise(pair[1], mask=keep)]
                else:
                    tiles += [normals_to_rgb(value * valid[i]) for value in pair]
        return [save_image(out / f"geometry-{step:07d}.png", grid(tiles, columns=1 + 2 * self.head.groups))]


def head_errors(maps: dict[str, Tensor], targets: dict[str, Tensor], valid: Tensor) -> dict[str, Tensor]:
    """abs_rel, delta1 and silog of depth after alignment, mean and below_30 of normals; (B,) each.

    `upright` is 1 where depth needed a positive scale: the alignment would forgive an inverted head.
    """
    keep = valid[:, 0]
    errors: dict[str, Tensor] = {}
    if "depth" in maps:
        truth = targets["depth"][:, 0]
        errors["upright"] = (fit_affine(maps["depth"][:, 0], truth, keep).scale > 0).double()
        found = depth_errors(align(maps["depth"][:, 0], truth, keep), truth, keep)
        errors |= {name: found[name] for name in ("abs_rel", "delta1", "silog")}
    if "normals" in maps:
        angles = normal_errors(maps["normals"], targets["normals"], keep)
        errors |= {f"normals_{name}": angles[name] for name in ("mean", "below_30")}
    return errors


def edge_error(error: Tensor, valid: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of the error (B, H, W) between valid neighbours, at strides 1, 2, 4 (MiDaS)."""
    total = error.new_zeros(())
    for k in range(scales):
        values, keep = error[:, :: 2**k, :: 2**k], valid[:, :: 2**k, :: 2**k]
        for axis in (1, 2):
            pairs = keep.narrow(axis, 1, keep.shape[axis] - 1) & keep.narrow(axis, 0, keep.shape[axis] - 1)
            total = total + _mean(values.diff(dim=axis).abs(), pairs)
    return total / (2 * scales)


def latent_mask(valid: Tensor, factor: int) -> Tensor:
    """Latent cells (B, 1, h, w) all of whose pixels are valid."""
    return F.max_pool2d((~valid).float(), factor) == 0


def random_unet_like(unet: UNet2DConditionModel, seed: int) -> UNet2DConditionModel:
    """A network of the same shape with fresh random weights: the baseline without a prior."""
    with fixed_init(seed):
        return type(unet).from_config(unet.config)


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over images of the mean over valid pixels; images without any count 0."""
    return masked_mean(values, valid).nan_to_num(0.0).mean()
