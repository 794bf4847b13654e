"""A trained one-step head on another codec: its first and last layer fitted anew, everything between as it was.

What a head has learnt of scenes lies between its ends; those only read and write latents. On a codec whose latents tell
about the same, both are linear regressions: the first layer is asked for what it made of the former latents, the last
one for the new latents of the truth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor

from ..core.priors import StableDiffusionPrior
from ..utils.errors import InputError
from .geometry_head import GeometryHead, HeadConfig
from .train import latent_mask

RIDGE = 1e-4  # of the mean square of the regressors

Batch = tuple[Tensor, dict[str, Tensor], Tensor]  # images (B, 3, H, W) in [0, 1], targets by name, valid (B, 1, H, W)


@dataclass
class Regression:
    """Ridge regression of a 3x3 convolution with a bias, from batches of what enters and what should leave it."""

    inside: int
    outside: int
    squares: Tensor = field(init=False)
    products: Tensor = field(init=False)

    def __post_init__(self) -> None:
        count = 9 * self.inside + 1
        self.squares = torch.zeros(count, count, dtype=torch.float64)
        self.products = torch.zeros(count, self.outside, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor, keep: Tensor | None = None) -> None:
        """x (B, inside, h, w), y (B, outside, h, w); keep (B, 1, h, w): which places count, None: all."""
        columns = F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)  # (B h w, 9 inside)
        columns = torch.cat([columns, columns.new_ones(len(columns), 1)], 1).double()
        wanted = y.flatten(2).transpose(1, 2).flatten(0, 1).double()
        if keep is not None:
            columns, wanted = columns[keep.flatten()], wanted[keep.flatten()]
        self.squares += columns.T @ columns
        self.products += columns.T @ wanted

    def layer(self) -> tuple[Tensor, Tensor]:
        """(weight (outside, inside, 3, 3), bias (outside,)). Raises InputError where nothing was seen."""
        if not self.squares[-1, -1]:
            raise InputError("no picture to fit a head's first and last layer with has a valid block of pixels")
        diagonal = RIDGE * self.squares[:-1, :-1].trace() / (len(self.squares) - 1)
        damped = self.squares.clone()
        damped[:-1, :-1] += diagonal * torch.eye(len(damped) - 1, dtype=damped.dtype)
        found = torch.linalg.solve(damped, self.products).float()
        return found[:-1].T.reshape(self.outside, self.inside, 3, 3), found[-1]


@torch.no_grad()
def on_codec(given: GeometryHead, prior: StableDiffusionPrior, batches: Iterable[Batch]) -> GeometryHead:
    """`given` with the codec of `prior`: a new head whose layers but the first and the last are those of `given`, which
    also keeps its prompt.

    Raises InputError for heads that start from noise, whose first layer reads more than the picture, and for adapters,
    which are of one prior.
    """
    if given.config.start != "zeros" or given.config.rank:
        kind = "are adapters of one prior" if given.config.rank else 'start from noise, not from "zeros"'
        raise InputError(f"a head of another codec serves as a beginning unless its weights {kind}")
    head = GeometryHead(prior, _resized(given, prior.vae.config.latent_channels), given.config)
    head._empty = given.empty_prompt()
    channels, kept = head.latent_channels, list(batches)
    first, last = given.unet.conv_in, head.unet.conv_out
    read = Regression(channels, first.out_channels)
    for images, _, _ in kept:
        old, rest = given.encode_image(images), first.in_channels - given.latent_channels
        read.add(head.encode_image(images), first(F.pad(old, (0, 0, 0, 0, 0, rest))))
    weight, bias = read.layer()
    head.unet.conv_in.weight.zero_()
    head.unet.conv_in.weight[:, :channels] = weight
    head.unet.conv_in.bias.copy_(bias)
    wrote = Regression(last.in_channels, last.out_channels)
    for images, targets, valid in kept:
        wanted, _ = head.encode_targets(targets, valid)
        wrote.add(_before_last(head, images), wanted, latent_mask(valid, prior.vae_factor))
    for mine, found in zip((last.weight, last.bias), wrote.layer(), strict=True):
        mine.copy_(found)
    return head


def begun_with(
    given: GeometryHead, prior: StableDiffusionPrior, config: HeadConfig, batches: Iterable[Batch], what: str
) -> GeometryHead:
    """A head of the prior that goes on where `given` was, in a network of its widths; on another codec `on_codec`.

    Raises InputError when it predicts other things than the config asks for.
    """
    if given.config.targets != config.targets:
        theirs, mine = ", ".join(given.config.targets), ", ".join(config.targets)
        raise InputError(f"start_from={what} predicts {theirs}, not {mine}")
    if not same_codec(prior, given.prior):
        given = on_codec(given, prior, batches)
    head = GeometryHead(prior, given.unet, config)
    head._empty = given.empty_prompt()
    return head


def same_codec(a: StableDiffusionPrior, b: StableDiffusionPrior) -> bool:
    """Whether two priors have the same codec, up to the half precision of what was saved."""
    mine, theirs = a.vae.state_dict(), b.vae.state_dict()
    shapes = [{name: value.shape for name, value in state.items()} for state in (mine, theirs)]
    return shapes[0] == shapes[1] and all(torch.allclose(mine[k], theirs[k], rtol=2e-3, atol=1e-4) for k in mine)


def _resized(given: GeometryHead, channels: int) -> UNet2DConditionModel:
    """The network with fresh ends for latents of so many channels."""
    config = {name: value for name, value in given.unet.config.items() if not name.startswith("_")}
    config |= {"in_channels": channels * (1 + given.groups), "out_channels": channels * given.groups}
    unet = UNet2DConditionModel.from_config(config).to(given.device)
    state = unet.state_dict()
    for name, value in given.unet.state_dict().items():
        if state[name].shape == value.shape:
            state[name].copy_(value)
    return unet.eval().requires_grad_(False)


def _before_last(head: GeometryHead, images: Tensor) -> Tensor:
    """What enters the last layer."""
    seen: list[Tensor] = []
    hook = head.unet.conv_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    condition = head.encode_image(images)
    try:
        head.predict(condition, condition.new_zeros((len(condition), *head.shape(condition))))
    finally:
        hook.remove()
    return seen[0]
