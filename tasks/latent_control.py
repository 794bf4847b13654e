"""A control of a U-Net by latents: a copy of its encoder reads the hint, its features are added to the skips.

Stable-Sim2Real (2025) and StableNormal (2024): c_0 .. c_n and the middle's come from the copy without zero
convolutions, so that at first the skips are about doubled; the encoder that reads the state stays frozen, the copy and
the decoder learn. A hint of other channels than the network's goes through a 3 x 3 convolution and SiLU first.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ..core.training.checkpoints import copy_into
from ..core.training.objectives.base import fixed_init

ENCODER = ("down_blocks", "mid_block")
DECODER = ("up_blocks", "conv_norm_out", "conv_out")
CONTROL_ENDS = ("body.conv_in", "merge")  # of a control: what reads the hint
SKIPPED = ("controlnet_cond_embedding.", "controlnet_down_blocks.", "controlnet_mid_block.")  # of published weights


class LatentControl(nn.Module):
    """The network of a `PictureControl` whose picture is a hint of latents (B, c, h, w)."""

    def __init__(self, unet: UNet2DConditionModel, hint_channels: int, seed: int = 0) -> None:
        super().__init__()
        self.body = copy.deepcopy(unet)
        self.body.up_blocks, self.body.conv_norm_out, self.body.conv_out = nn.ModuleList(), None, None
        own = unet.config.in_channels
        self.merge: nn.Module = nn.Identity()
        if hint_channels != own:
            with fixed_init(seed):
                self.merge = nn.Sequential(nn.Conv2d(hint_channels, own, 3, padding=1), nn.SiLU())
        self.merge.to(next(unet.parameters()))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: float = 1.0,
        added_cond_kwargs: dict[str, Any] | None = None,
        return_dict: bool = False,
    ) -> tuple[list[Tensor], Tensor]:
        """(features for the skips, feature for the middle); called as a ControlNet, the state is not looked at."""
        body, text = self.body, encoder_hidden_states
        emb = body.time_embedding(body.get_time_embed(sample, timestep))
        more = body.get_aug_embed(emb, text, added_cond_kwargs or {})
        emb = emb if more is None else emb + more
        x = body.conv_in(self.merge(controlnet_cond))
        skips = [x]
        for block in body.down_blocks:
            told = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
            x, found = block(hidden_states=x, temb=emb, **told)
            skips += found
        if body.mid_block is not None:
            told = {"encoder_hidden_states": text} if getattr(body.mid_block, "has_cross_attention", False) else {}
            x = body.mid_block(x, emb, **told)
        return [conditioning_scale * skip for skip in skips], conditioning_scale * x


def take_controlnet(control: LatentControl, state: Mapping[str, Tensor], where: str) -> None:
    """Weights of a published ControlNet (diffusers' names) into the copy of the encoder that reads latents.

    StableNormal's ("ControlNetVAE") has an embedding of pictures and zero convolutions that are never asked: the clean
    latents go through conv_in, the blocks' own outputs are added. Raises InputError for other names that have no place
    here, or are missing.
    """
    given = {name: value for name, value in state.items() if not name.startswith(SKIPPED)}
    copy_into(control.body.state_dict(), given, where)


def grown_unet(unet: UNet2DConditionModel, channels: int, seed: int = 0) -> UNet2DConditionModel:
    """A copy for states of `channels`: as many as the prior has get its kernels, further ones new kernels."""
    own = unet.config.in_channels
    if channels == own:
        return copy.deepcopy(unet)
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    with fixed_init(seed):
        grown = UNet2DConditionModel.from_config({**config, "in_channels": channels, "out_channels": channels})
    state, fresh = unet.state_dict(), grown.state_dict()
    for name, axis in (("conv_in.weight", 1), ("conv_out.weight", 0), ("conv_out.bias", 0)):
        kept = state[name].float().cpu().narrow(axis, 0, min(own, channels))
        rest = fresh[name].narrow(axis, kept.shape[axis], channels - kept.shape[axis])
        state[name] = torch.cat([kept, rest], axis)
    grown.load_state_dict({name: value.float() for name, value in state.items()})
    return grown.to(unet.device, unet.dtype)
