"""A method for nerfstudio, found by it through the entry points of this package.

    ns-train unproject-splats unproject-data --data capture

Our splats with our rasteriser, so that it trains on any processor. Other methods take the dataparser of this package
(`nerfstudio_data`), other dataparsers the method. splats.ply is written beside the checkpoints, in the world of the
pictures. Only nerfstudio imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification
from torch import Tensor

from ..generate.splat_fit import FAR, NEAR, SplatFitConfig
from ..geometry.interop import from_nerfstudio_cameras
from ..geometry.points import PointCloud
from ..geometry.shapes.gaussians import GROWN, GaussianConfig, Gaussians
from ..geometry.similarity import psnr, ssim
from ..geometry.splats import GaussianCloud, save_splats
from ..utils.ramps import Moment
from ..utils.seeds import generator as seeded
from .nerfstudio_data import UnprojectDataParserConfig

STEPS = 2000


@dataclass
class UnprojectSplatsConfig(ModelConfig):
    """Splats of `unproject fit`."""

    _target: type = field(default_factory=lambda: UnprojectSplats)
    enable_collider: bool = False  # of rays; here whole pictures are drawn
    degree: int = 2
    """of the harmonics, 0 to 3"""
    ssim_weight: float = 0.2
    """of 1 - SSIM in the loss; L1 has the rest"""
    mcmc: bool = False
    """relocate a given number of splats (3DGS-MCMC) instead of copying, splitting and removing them"""
    most: int = 100_000
    """splats at most"""


class UnprojectSplats(Model):
    """Gaussians that grow, drawn by compiled loops with derivatives written by hand."""

    config: UnprojectSplatsConfig

    def populate_modules(self) -> None:
        """Begins at the points of the dataparser, else in the box of the scene."""
        super().populate_modules()
        config, plain = self.config, SplatFitConfig().splats
        splats = replace(
            plain,
            degree=config.degree,
            extent=1.0,
            strategy="mcmc" if config.mcmc else "default",
            density=replace(plain.density, most=config.most),
            mcmc=replace(plain.mcmc, most=config.most),
        )
        self.shape = Gaussians.from_cloud(self._start(splats), splats)
        self.steps, self.random = STEPS, seeded(0)

    def _start(self, splats: GaussianConfig) -> GaussianCloud:
        seeds = self.kwargs.get("seed_points")
        if seeds is None:
            low, high = self.scene_box.aabb.cpu()
            places = low + (high - low) * torch.rand(splats.count, 3, generator=seeded(0))
            return GaussianCloud.from_points(places, None, splats.opacity, splats.size)
        points = PointCloud(seeds[0].cpu().float(), seeds[1].cpu().float() / 255)
        points = points.subsampled(self.config.most, seeded(0))
        return GaussianCloud.from_points(points.points, points.colors, splats.opacity, splats.size)

    def get_param_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """One group for each part, named as ours; their rates are those of the method."""
        return {name: [getattr(self.shape, name)] for name in GROWN}

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """Schedules before each step, growth after it, a file at the end."""
        trainer = attributes.trainer
        self.steps = trainer.config.max_num_iterations
        optimizers = attributes.optimizers.optimizers

        def before(step: int) -> None:
            self.shape.on_step(Moment(step, self.steps), self.random)

        def after(step: int) -> None:
            self.grow(Moment(step, self.steps), optimizers)

        def end(step: int) -> None:
            outputs = attributes.pipeline.datamanager.train_dataparser_outputs
            save_splats(self.in_the_world_of(outputs), trainer.base_dir / "splats.ply")

        places = TrainingCallbackLocation
        called = {before: places.BEFORE_TRAIN_ITERATION, after: places.AFTER_TRAIN_ITERATION, end: places.AFTER_TRAIN}
        return [TrainingCallback([place], update_every_num_iters=1, func=func) for func, place in called.items()]

    def grow(self, now: Moment, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        """Lets the number of splats follow the pictures, and the optimiser of each part follow them."""
        self.shape.after_backward(now)
        before = {name: getattr(self.shape, name) for name in GROWN}
        change = self.shape.after_step(now)
        for name, old in before.items():
            new = getattr(self.shape, name)
            if change is not None and new is not old:
                change.carry(optimizers[name], old, new, not change.names or name in change.names)
                optimizers[name].param_groups[0]["params"] = [new]

    def in_the_world_of(self, outputs: DataparserOutputs) -> GaussianCloud:
        """The splats where the pictures were taken."""
        there = torch.eye(4)
        there[:3] = outputs.dataparser_transform.cpu() * outputs.dataparser_scale
        return self.shape.cloud.detached().to("cpu").transformed(torch.linalg.inv(there))

    def get_outputs(self, ray_bundle: Cameras) -> dict[str, Tensor]:
        """rgb, depth and accumulation (H, W, C) of one camera; a random colour is behind what is learnt from."""
        camera = replace(from_nerfstudio_cameras(ray_bundle.reshape((-1,))), near=NEAR, far=FAR).to(self.device)
        behind = torch.rand(3, generator=self.random) if self.training else torch.ones(3)
        seen = self.shape.render(camera, ("rgb", "alpha", "depth"), behind.to(self.device))
        background = behind.to(self.device).expand_as(seen.rgb[0])
        return {"rgb": seen.rgb[0], "depth": seen.depth[0], "accumulation": seen.alpha[0], "background": background}

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box: Any = None) -> dict[str, Tensor]:
        """The same without gradients."""
        return self.get_outputs(camera.to(self.device))

    def get_loss_dict(
        self, outputs: dict[str, Tensor], batch: dict[str, Any], metrics_dict: Any = None
    ) -> dict[str, Tensor]:
        """(1 - w) L1 + w (1 - SSIM)."""
        seen, wanted, weight = outputs["rgb"][None], _target_of(outputs, batch), self.config.ssim_weight
        apart = (1 - weight) * (seen - wanted).abs().mean()
        return {"l1": apart, "ssim": weight * (1 - ssim(seen, wanted).mean())}

    def get_metrics_dict(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """PSNR in dB, and how many splats there are."""
        count = torch.tensor(float(len(self.shape.means)))
        return {"psnr": psnr(outputs["rgb"].detach()[None], _target_of(outputs, batch)).mean(), "splats": count}

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR and SSIM of a whole picture, and both pictures side by side."""
        seen, wanted = outputs["rgb"][None], _target_of(outputs, batch)
        found = {"psnr": float(psnr(seen, wanted).mean()), "ssim": float(ssim(seen, wanted).mean())}
        return found, {"img": torch.cat([wanted[0], seen[0]], dim=1)}

    def load_state_dict(self, state_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """Takes over any number of splats."""
        prefix = "shape."
        own = {name.removeprefix(prefix): v for name, v in state_dict.items() if name.startswith(prefix)}
        self.shape.restore(own, "the checkpoint")
        return super().load_state_dict(state_dict, **kwargs)


def _target_of(outputs: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
    """The true picture (1, H, W, 3), over what is behind the splats where it has an alpha."""
    image = batch["image"].to(outputs["rgb"])
    image = image / 255 if batch["image"].dtype == torch.uint8 else image
    if image.shape[-1] == 4:
        image = image[..., :3] * image[..., 3:] + outputs["background"] * (1 - image[..., 3:])
    return image[None]


def _rates() -> dict[str, Any]:
    """An optimiser for each part of the splats; that of their places falls to a hundredth."""
    c = SplatFitConfig().splats
    rates = (c.mean_lr, c.scale_lr, c.turn_lr, c.opacity_lr, c.color_lr, c.color_lr / 20)
    falling = ExponentialDecaySchedulerConfig(lr_final=c.mean_lr * c.mean_lr_end, max_steps=STEPS)
    return {
        name: {"optimizer": AdamOptimizerConfig(lr=rate, eps=1e-15), "scheduler": falling if name == "means" else None}
        for name, rate in zip(GROWN, rates, strict=True)
    }


method = MethodSpecification(
    config=TrainerConfig(
        method_name="unproject-splats",
        steps_per_eval_batch=0,
        steps_per_eval_image=500,
        steps_per_eval_all_images=STEPS,
        steps_per_save=STEPS,
        max_num_iterations=STEPS,
        mixed_precision=False,
        pipeline=VanillaPipelineConfig(
            datamanager=FullImageDatamanagerConfig(dataparser=UnprojectDataParserConfig(), cache_images_type="uint8"),
            model=UnprojectSplatsConfig(),
        ),
        optimizers=_rates(),
        viewer=ViewerConfig(num_rays_per_chunk=1 << 15),
        vis="viewer",
    ),
    description="3D Gaussian splats on any processor, by the rasteriser of unproject",
)
