"""The network of the judge: a residual net of three-by-three convolutions with one linear head for each question."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..utils.errors import InputError


@dataclass(frozen=True)
class JudgeShape:
    """Shape of the network for square pictures of `image_size` px."""

    widths: tuple[int, ...] = (24, 64, 128, 192)
    """channels per stage; the first works at half the picture's size, each further one at half of the one before"""
    blocks: tuple[int, ...] = (1, 3, 4, 3)
    """residual blocks per stage"""
    features: int = 192
    """length of the feature vector"""
    image_size: int = 64


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), normalised, with a projected and pooled shortcut when the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.first_norm: nn.Module = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.second_norm: nn.Module = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) to (B, outputs, h / stride, w / stride)."""
        short = self.shortcut(F.avg_pool2d(x, self.stride) if self.stride > 1 else x)
        hidden = F.relu(self.first_norm(self.first(x)))
        return F.relu(short + self.second_norm(self.second(hidden)))


class JudgeNet(nn.Module):
    """Pictures (B, 3, S, S) in [0, 1] to a feature vector and the logits of every question."""

    def __init__(self, shape: JudgeShape, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.shape = shape
        width = shape.widths[0]
        self.stem = nn.Conv2d(12, width, 3, 1, 1)
        stages: list[nn.Module] = []
        for number, (outputs, count) in enumerate(zip(shape.widths, shape.blocks, strict=True)):
            for block in range(count):
                stages.append(ResidualBlock(width, outputs, 2 if number and not block else 1))
                width = outputs
        self.stages = nn.Sequential(*stages)
        last = shape.image_size >> len(shape.widths)
        self.places = nn.Conv2d(width, 16, 1)  # keeps where things are, which the mean over the picture forgets
        self.feature = nn.Linear(width + 16 * last * last, shape.features)
        self.heads = nn.ModuleDict({name: nn.Linear(shape.features, size) for name, size in heads.items()})

    def features(self, images: Tensor) -> Tensor:
        """The feature vector (B, features), which the heads read."""
        return summary(self.stages(self.begun(images)), self.places, self.feature)

    def early(self, images: Tensor) -> Tensor:
        """The map (B, widths[-2], S / 8, S / 8) before the last stage."""
        return self.stages[: -self.shape.blocks[-1]](self.begun(images))

    def late_part(self) -> LatePart:
        """A copy of what comes after `early`: `features(images)` is `late_part()(early(images))`."""
        return LatePart(self.stages[-self.shape.blocks[-1] :], self.places, self.feature)

    def begun(self, images: Tensor) -> Tensor:
        """The map (B, widths[0], S / 2, S / 2) before the first stage, of pictures in [0, 1]."""
        return F.relu(self.stem(F.pixel_unshuffle(2.0 * images - 1.0, 2)))

    def answers(self, features: Tensor) -> dict[str, Tensor]:
        """Logits (B, answers) of each head."""
        return {name: head(features) for name, head in self.heads.items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of each head for pictures (B, 3, S, S)."""
        return self.answers(self.features(images))


class FeatureMaps(nn.Module):
    """What a judge sees of pictures (B, 3, H, W) in [-1, 1] of any even size: the output of each of its stages."""

    def __init__(self, net: JudgeNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps (B, C, H / 2, W / 2), the further ones at half the size of the one before."""
        x, maps, place = self.net.begun(0.5 * images + 0.5), [], 0
        for count in self.net.shape.blocks:
            x = self.net.stages[place : place + count](x)
            place += count
            maps.append(x)
        return maps


class LatePart(nn.Module):
    """The last stage of a judge and its feature vector."""

    def __init__(self, stage: nn.Module, places: nn.Conv2d, feature: nn.Linear) -> None:
        super().__init__()
        self.stage, self.places, self.feature = (copy.deepcopy(part) for part in (stage, places, feature))

    def forward(self, early: Tensor) -> Tensor:
        """The feature vector (B, features) of maps that `JudgeNet.early` gave."""
        return summary(self.stage(early), self.places, self.feature)


def summary(x: Tensor, places: nn.Module, feature: nn.Module) -> Tensor:
    """The feature vector (B, features) of the last stage's map: means over the picture, and what is where."""
    together = torch.cat([x.mean(dim=(2, 3)), F.relu(places(x)).flatten(1)], dim=1)
    return F.silu(feature(together))


def build_net(shape: JudgeShape, heads: Mapping[str, int], seed: int = 0) -> JudgeNet:
    """A fresh network whose initial weights depend on the seed only; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        return JudgeNet(shape, heads)


def folded(net: JudgeNet) -> JudgeNet:
    """A copy in eval mode whose normalisations are part of the convolutions."""
    net = copy.deepcopy(net).eval()
    for block in net.stages:
        assert isinstance(block, ResidualBlock)
        for name in ("first", "second"):
            norm = getattr(block, f"{name}_norm")
            if isinstance(norm, nn.BatchNorm2d):
                setattr(block, name, fuse_conv_bn_eval(getattr(block, name), norm))
                setattr(block, f"{name}_norm", nn.Identity())
    return net


def without_norms(shape: JudgeShape, heads: Mapping[str, int]) -> JudgeNet:
    """The network in the form `folded` gives, ready to load its weights."""
    net = JudgeNet(shape, heads).eval()
    for block in net.stages:
        assert isinstance(block, ResidualBlock)
        block.first_norm = block.second_norm = nn.Identity()
    return net


@torch.no_grad()
def continue_from(net: JudgeNet, given: JudgeNet, images: Iterable[Tensor]) -> None:
    """Makes a trainable `net` compute what the folded network `given` does; `net` may have more blocks a stage.

    Its normalisations undo themselves: their scale and shift are the deviation and mean of the convolution before
    them, measured on `images` (batches (B, 3, S, S)). Blocks that `given` lacks end a stage and add nothing at first.
    Raises InputError when widths, features or picture sizes differ or `given` has more blocks.
    """
    mine, theirs = net.shape, given.shape
    same = (mine.widths, mine.features, mine.image_size) == (theirs.widths, theirs.features, theirs.image_size)
    if not same or any(b < a for a, b in zip(theirs.blocks, mine.blocks, strict=True)):
        raise InputError(f"a judge of shape {mine} cannot begin with one of shape {theirs}: only blocks may be added")
    moments = _moments(given, images)
    state = {key: value for key, value in given.state_dict().items() if not key.startswith("stages.")}
    net.load_state_dict({**net.state_dict(), **state})
    for place, block in _blocks(net).items():
        source = _blocks(given).get(place)
        if source is None:
            block.second_norm.weight.zero_()  # type: ignore[operator]
            continue
        block.load_state_dict({**block.state_dict(), **source.state_dict()})
        for name in ("first", "second"):
            norm, (mean, variance) = getattr(block, f"{name}_norm"), moments[getattr(source, name)]
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.bias.copy_(mean)
            norm.weight.copy_((variance + norm.eps).sqrt())


def _blocks(net: JudgeNet) -> dict[tuple[int, int], ResidualBlock]:
    """The blocks by stage and place in it."""
    places = [(stage, place) for stage, count in enumerate(net.shape.blocks) for place in range(count)]
    return dict(zip(places, net.stages, strict=True))  # type: ignore[arg-type]


def _moments(net: JudgeNet, images: Iterable[Tensor]) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """Mean and variance of each channel that a block's convolutions put out, over all images and places."""
    sums: dict[nn.Module, list[Tensor]] = {}

    def note(layer: nn.Module, _: object, out: Tensor) -> None:
        values = out.double()
        part = torch.stack([values.mean(dim=(0, 2, 3)), values.square().mean(dim=(0, 2, 3))])
        sums.setdefault(layer, []).append(part)

    layers = [layer for block in _blocks(net).values() for layer in (block.first, block.second)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    for batch in images:
        net.features(batch)
    for hook in hooks:
        hook.remove()
    means = {layer: torch.stack(parts).mean(0) for layer, parts in sums.items()}
    return {
        layer: (first.float(), (second - first**2).clamp_min(0).float()) for layer, (first, second) in means.items()
    }
