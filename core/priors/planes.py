"""A 2-D denoising network and its codec as a generator of six feature planes (Ma et al. 2025, "Progressive Rendering
Distillation": TriplaneTurbo).

Six rows of a batch are the planes of one object: xy, xz and yz of the geometry, then of the texture; the plane is the
fast batch axis. Self-attention reads the tokens of all six at once, text is told to each of them alone. What learns:
    self-attention   one low-rank map a plane on q, k, v and the output, the last of them on what the frozen projection
                     gave: h' = W h + B A (W h), as in the published weights;
    cross-attention  one low-rank map for all planes, W x + B A x;
    convolutions     of residual blocks and samplers: W * x + B (A * x), A of the kernel's size, B of 1 x 1;
    the decoder      the same, and a last convolution of its own, of which planes of the geometry keep the first half of
                     the channels and those of the texture the second.
The frozen weights are those of the prior, in the same memory. Adapters hang on modules that `sites` names one by one,
in the order of the published checkpoint (`layers.N`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ...utils.errors import InputError
from .diffusers import StableDiffusionPrior
from .multiview import JointAttention
from .rows import COND, Condition, Rows

PLANES = ("xy_geo", "xz_geo", "yz_geo", "xy_tex", "xz_tex", "yz_tex")
COUNT = len(PLANES)
PARTS = ("q", "k", "v", "out")


class Site(NamedTuple):
    """A place where an adapter hangs."""

    owner: Literal["unet", "decoder"]
    path: str  # of the module in it
    kind: Literal["planes", "text", "attention", "conv", "last"]


class LowRank(nn.Module):
    """B A x, which is 0 at first."""

    def __init__(self, inside: int, outside: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(inside, rank, bias=False), nn.Linear(rank, outside, bias=False)
        _begin(self.down.weight, self.up.weight, rank)

    def forward(self, x: Tensor) -> Tensor:
        """(..., outside) of (..., inside); in the precision of the maps, which stay whole where a prior is halved."""
        return self.up(self.down(x.to(self.down.weight.dtype))).to(x.dtype)


class LowRankConv(nn.Module):
    """B (A * x), which is 0 at first."""

    def __init__(self, conv: nn.Conv2d, rank: int) -> None:
        super().__init__()
        settings: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "bias": False}
        self.down = nn.Conv2d(conv.in_channels, rank, conv.kernel_size, **settings)  # type: ignore[arg-type]
        self.up = nn.Conv2d(rank, conv.out_channels, 1, bias=False)
        _begin(self.down.weight, self.up.weight, rank)

    def forward(self, x: Tensor) -> Tensor:
        """What is added to the convolution's output; precision as of LowRank."""
        return self.up(self.down(x.to(self.down.weight.dtype))).to(x.dtype)


class AttentionAdapter(nn.Module):
    """Low-rank maps of an attention's four projections, one of each or one for each plane."""

    def __init__(self, attention: Attention, rank: int, planes: bool) -> None:
        super().__init__()
        self.planes = planes
        linears = projections(attention)
        for part in PARTS:
            outside = linears[part].out_features
            inside = outside if planes and part == "out" else linears[part].in_features
            for name in self.names(part):
                self.add_module(name, LowRank(inside, outside, rank))

    def names(self, part: str) -> list[str]:
        """Of the low-rank maps of a projection, as published."""
        if not self.planes:
            return [f"to_{part}_lora"]
        return [f"to_{part}_{axes}_lora_{what}" for axes, what in (plane.split("_") for plane in PLANES)]

    def added(self, part: str, x: Tensor) -> Tensor:
        """What a projection adds for x (B, L, C); with maps for each plane L holds six planes one after the other."""
        maps = [self.get_submodule(name) for name in self.names(part)]
        if not self.planes:
            return maps[0](x)
        rows = x.unflatten(1, (COUNT, -1)).unbind(1)
        return torch.cat([one(row) for one, row in zip(maps, rows, strict=True)], dim=1)

    def attach(self, attention: Attention, when: Callable[[], bool] = lambda: True) -> None:
        """Hangs the maps on the projections; they are silent while `when` says no."""
        for part, linear in projections(attention).items():
            after = self.planes and part == "out"  # on the output of the frozen projection

            def hook(module: nn.Module, args: Any, out: Tensor, part: str = part, after: bool = after) -> Tensor:
                return out + self.added(part, out if after else args[0]) if when() else out

            linear.register_forward_hook(hook)


class PlaneAdapters(nn.Module):
    """All that learns of the two networks, as `layers` in the published order; `sites` says where each hangs."""

    def __init__(self, unet: UNet2DConditionModel, decoder: nn.Module, rank: int, channels: int) -> None:
        """`channels`: of a plane after its half of them was chosen."""
        super().__init__()
        if rank < 1 or channels < 1:
            raise InputError(f"planes: rank={rank} and channels={channels} must be at least 1")
        self.sites = sites(unet, decoder)
        owners = {"unet": unet, "decoder": decoder}
        self.layers = nn.ModuleList([_made(site, owners[site.owner], rank, channels) for site in self.sites])

    def attach(self, unet: UNet2DConditionModel, decoder: nn.Module) -> None:
        """Hangs them on networks of the layout they were made for; the decoder's last convolution is replaced."""
        owners = {"unet": unet, "decoder": decoder}
        for site, layer in zip(self.sites, self.layers, strict=True):
            module = owners[site.owner].get_submodule(site.path)
            if isinstance(layer, AttentionAdapter):
                assert isinstance(module, Attention)
                layer.attach(module)
            elif site.kind == "last":
                setattr(owners[site.owner], site.path, layer)
                layer.register_forward_pre_hook(lambda own, args: (args[0].to(own.weight.dtype),))
            else:
                module.register_forward_hook(lambda _, args, out, layer=layer: out + layer(args[0]))


class PlaneUNet(nn.Module):
    """A U-Net whose self-attention reads six planes at once."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        unet.set_attn_processor({name: JointAttention("attn1." in name) for name in unet.attn_processors})
        self.unet = unet

    @property
    def config(self) -> Any:
        """That of the U-Net."""
        return self.unet.config

    def forward(self, x: Tensor, time: Tensor, text: Tensor, **more: Any) -> Any:
        """As a U-Net, of rows (6 B, C, h, w)."""
        return self.unet(x, time, text, cross_attention_kwargs={"frames": COUNT}, **more)


class PlaneDecoder(nn.Module):
    """Latents (6 B, C, h, w) as the network draws them, not divided by the codec's scale, to planes."""

    def __init__(self, vae: Any, decoder: Any, channels: int) -> None:
        super().__init__()
        self.first, self.decoder, self.channels = vae.post_quant_conv, decoder, channels

    def forward(self, latents: Tensor) -> Tensor:
        """(6 B, channels, S, S); every row for itself, in whole objects."""
        latents = latents.to(self.decoder.conv_in.weight.dtype)
        both = self.decoder(latents if self.first is None else self.first(latents))
        planes = both.unflatten(0, (-1, COUNT))
        half = COUNT // 2
        return torch.cat([planes[:, :half, : self.channels], planes[:, half:, self.channels :]], dim=1).flatten(0, 1)


def plane_networks(
    prior: StableDiffusionPrior, rank: int, channels: int, checkpointing: bool = False
) -> tuple[PlaneAdapters, StableDiffusionPrior, PlaneDecoder]:
    """(what learns, the prior asked for planes, the decoder to planes), on the memory of a prior, which stays itself.

    checkpointing: activations of the U-Net are computed again in the backward pass. Raises InputError for networks that
    are no 2-D U-Net with text.
    """
    if not isinstance(prior, StableDiffusionPrior) or not isinstance(prior.network, UNet2DConditionModel):
        raise InputError(f"planes are drawn by a 2-D Stable Diffusion U-Net, which {prior.name} has not")
    if prior.multiview:
        raise InputError(f"{prior.name} sees several views at once; use the 2-D prior it was made from")
    unet, decoder = sharing(prior.network), sharing(prior.vae.decoder)
    adapters = PlaneAdapters(unet, decoder, rank, channels).to(prior.device)
    adapters.attach(unet, decoder)
    if checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()  # diffusers computes again in this mode alone; there is no dropout
    asked = prior.with_network(PlaneUNet(unet), prior.prediction_type)
    return adapters, asked, PlaneDecoder(prior.vae, decoder, channels)


def told_planes(condition: Condition) -> Condition:
    """The conditional branch of B objects, told to each of their planes (6 B rows)."""
    rows = condition[COND].repeat(COUNT)
    return Condition({COND: Rows(rows.tensors, COUNT)})


def projections(attention: Attention) -> dict[str, nn.Linear]:
    """The four linear maps of an attention."""
    found = {part: getattr(attention, f"to_{part}") for part in ("q", "k", "v")}
    return {**found, "out": attention.to_out[0]}  # type: ignore[index]


def sites(unet: UNet2DConditionModel, decoder: nn.Module) -> list[Site]:
    """Where adapters hang, in the published order: attentions of the U-Net, that of the decoder, convolutions of both
    (down, up, middle; of the decoder up, middle), the decoder's last one."""
    found: list[Site] = []
    order = ("down_blocks", "up_blocks", "mid_block")
    for path in _attentions(unet, order):
        found += [Site("unet", f"{path}.attn1", "planes"), Site("unet", f"{path}.attn2", "text")]
    found += [
        Site("decoder", f"mid_block.attentions.{i}", "attention")
        for i, one in enumerate(decoder.mid_block.attentions)  # type: ignore[arg-type, union-attr]
        if one is not None
    ]
    found += [Site("unet", path, "conv") for path in _convs(unet, order)]
    found += [Site("decoder", path, "conv") for path in _convs(decoder, ("up_blocks", "mid_block"))]
    return [*found, Site("decoder", "conv_out", "last")]


def _blocks(network: nn.Module, order: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for part in order:
        held = getattr(network, part)
        if isinstance(held, nn.ModuleList):
            yield from ((f"{part}.{i}", block) for i, block in enumerate(held))
        else:
            yield part, held


def _attentions(unet: nn.Module, order: tuple[str, ...]) -> Iterator[str]:
    for path, block in _blocks(unet, order):
        for i, transformer in enumerate(getattr(block, "attentions", None) or ()):
            for j in range(len(transformer.transformer_blocks)):
                yield f"{path}.attentions.{i}.transformer_blocks.{j}"


def _convs(network: nn.Module, order: tuple[str, ...]) -> Iterator[str]:
    for path, block in _blocks(network, order):
        for i, resnet in enumerate(block.resnets):
            names = ("conv1", "conv2", "conv_shortcut")
            yield from (f"{path}.resnets.{i}.{name}" for name in names if getattr(resnet, name, None) is not None)
        for name in ("downsamplers", "upsamplers"):
            yield from (f"{path}.{name}.{i}.conv" for i, _ in enumerate(getattr(block, name, None) or ()))


def _made(site: Site, owner: nn.Module, rank: int, channels: int) -> nn.Module:
    module: Any = owner.get_submodule(site.path)
    if site.kind == "last":
        return nn.Conv2d(module.in_channels, 2 * channels, module.kernel_size, padding=module.padding)
    if site.kind == "conv":
        return LowRankConv(module, rank)
    return AttentionAdapter(module, rank, site.kind == "planes")


def _begin(down: Tensor, up: Tensor, rank: int) -> None:
    nn.init.normal_(down, std=1 / rank)
    nn.init.zeros_(up)


def sharing(module: Any) -> Any:
    """A copy of a network on the same parameters, to hang something on."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
