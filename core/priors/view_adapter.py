"""Maps of the same views as a further input of a multi-view network, learnt as a small adapter (Direct2.5, Lu et al.
2024, where the whole network learns).

    conv_in(x) + entry(c)    c: latents (B F, C, h, w) of the maps; entry is a convolution like conv_in, 0 at first
    W h + B A h              on q, k, v and the output of every attention, B = 0 at first
so that at first the network answers as the prior does. Its weights stay those of the prior, in the same memory.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ...utils.errors import InputError
from .embedded import MultiViewPrior
from .multiview import MultiViewUNet
from .planes import AttentionAdapter, sharing


class WideEntry(nn.Module):
    """The first convolution of a U-Net, and one for the channels of a `concat` row that come before the state's."""

    def __init__(self, first: nn.Conv2d, entry: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.entry = first, entry

    def forward(self, joined: Tensor) -> Tensor:
        """Features of a state (B, C, h, w), with maps before it (B, M + C, h, w) or alone."""
        own = self.first.in_channels
        if joined.shape[1] == own:
            return self.first(joined)
        maps, state = joined.split([self.entry.in_channels, own], 1)
        return self.first(state) + self.entry(maps.to(self.entry.weight.dtype)).to(state.dtype)


class ViewAdapter(nn.Module):
    """What learns: `entry`, and low-rank maps of the attentions in the order of `sites`."""

    def __init__(self, unet: UNet2DConditionModel, channels: int, rank: int) -> None:
        """`channels`: of the maps' latents. Raises InputError for a rank below 1."""
        super().__init__()
        if rank < 1:
            raise InputError(f"adapter: rank={rank} must be at least 1")
        first: Any = unet.conv_in
        self.entry = nn.Conv2d(channels, first.out_channels, first.kernel_size, padding=first.padding, bias=False)
        nn.init.zeros_(self.entry.weight)
        self.sites = [name for name, part in unet.named_modules() if isinstance(part, Attention)]
        attentions: list[Any] = [unet.get_submodule(site) for site in self.sites]
        self.layers = nn.ModuleList([AttentionAdapter(one, rank, planes=False) for one in attentions])

    def attach(self, unet: UNet2DConditionModel) -> None:
        """Hangs it on a U-Net of the layout it was made for."""
        unet.conv_in = WideEntry(unet.conv_in, self.entry)
        for site, layer in zip(self.sites, self.layers, strict=True):
            attention: Any = unet.get_submodule(site)
            layer.attach(attention)  # type: ignore[operator]


def shown_maps(prior: MultiViewPrior, rank: int) -> tuple[ViewAdapter, MultiViewPrior]:
    """(what learns, the prior that reads latents of maps as its row "concat"), on the memory of a prior, which stays
    itself. Raises InputError for priors of single images."""
    if not isinstance(prior, MultiViewPrior):
        raise InputError(f"{prior.name} draws single images; give a prior of several views")
    views: MultiViewUNet = sharing(prior.views)
    adapter = ViewAdapter(views.unet, prior.latent_shape[0], rank).to(prior.device, torch.float32)
    adapter.attach(views.unet)
    return adapter, prior.with_views(views)
