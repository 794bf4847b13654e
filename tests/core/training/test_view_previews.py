"""Previews of a multi-view training: the loop written out by hand, and networks that stay as they were."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from unproject.core.training.objectives.diffusion import NoiseLossConfig
from unproject.core.training.objectives.multiview import FRAMES, MultiViewConfig, MultiViewObjective
from unproject.geometry.cameras import Camera, to_mvdream


@torch.no_grad()
def by_hand(objective: MultiViewObjective, prompts: list[str], steps: int, guidance: float) -> torch.Tensor:
    """Both branches with their cameras through diffusers' own scheduler."""
    orbit = Camera.orbit([0.0, 90.0, 180.0, 270.0], objective.config.preview_elevation_deg, 3.0, 40.0, 8, 8)
    cameras = to_mvdream(orbit.c2w).repeat(2 * len(prompts), 1)
    rows = [text for text in prompts for _ in range(FRAMES)]
    embeds = objective._embed([""] * len(rows) + rows)
    x = torch.randn((len(rows), 4, 8, 8), generator=torch.Generator().manual_seed(5))
    scheduler = DDIMScheduler.from_config(objective.scheduler.config)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        without, with_text = objective.unet(torch.cat([x, x]), t, embeds, cameras, FRAMES).chunk(2)
        x = scheduler.step(without + guidance * (with_text - without), t, x).prev_sample
    return (objective.vae.decode(x / objective.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


def test_views_of_a_training_are_drawn_by_the_denoiser_as_by_hand(tiny_folders):
    base = StableDiffusionPipeline.from_pretrained(tiny_folders["toybox"], safety_checker=None)
    config = MultiViewConfig(NoiseLossConfig(prediction="v_prediction"), preview_elevation_deg=35.0)
    objective = MultiViewObjective(config, base)
    torch.nn.init.normal_(objective.unet.camera_embedding[2].weight, generator=torch.Generator().manual_seed(1))
    objective.unet.requires_grad_(True)
    prompts = ["a red chair", "a dog"]
    drawn = objective.sample(prompts, 4, 3.0, seed=5)
    torch.testing.assert_close(drawn, by_hand(objective, prompts, 4, 3.0), rtol=1e-3, atol=1e-3)
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3
    assert all(p.requires_grad for p in objective.unet.parameters())
