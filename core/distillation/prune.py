"""U-Nets with fewer layers, from a larger one's weights, and learning from its features (KOALA, Lee et al. 2023).

A stage keeps its first residual layers, of its way up also the last, which carries the change of channels; a
transformer keeps its first blocks. The student learns the task, the teacher's answer and its features (Kim et al. 2023,
BK-SDM), of which the outputs of self-attention say most; a stage without attention gives its last feature:
    L = |eps - eps_S|^2 + w_out |eps_T - eps_S|^2 + w_feat sum_l mean (F_T^m(l) - F_S^l)^2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ...utils.errors import InputError
from ..priors.diffusers import DiffusersPrior
from ..priors.taps import Taps
from ..training.checkpoints import copy_into
from ..training.loss import LossOut
from ..training.objectives.base import fixed_init
from .guided import without_text
from .kinds import Kind, told
from .objective import Distillation, per_row
from .states import FromData
from .student import Student
from .teacher import Teacher

Choice = Literal["none", "self-attn", "cross-attn", "ff", "resnet", "last"]
Matching = Literal["bottom", "top", "interleave"]
ENDS: dict[Choice, str] = {"self-attn": ".attn1", "cross-attn": ".attn2", "ff": ".ff"}
_STAGE = re.compile(r"(down|up)_blocks\.\d+")
_UP = re.compile(r"(up_blocks\.\d+\.(?:resnets|attentions)\.)(\d+)")
_DEPTH = re.compile(r"(.*transformer_blocks\.)(\d+)")


@dataclass(frozen=True)
class Pruned(Kind):
    """A U-Net with fewer layers, which begins with the weights of those that stay; all of it learns."""

    name: ClassVar[str] = "pruned"

    layers: int | None = None
    """residual layers of a stage on the way down (one more on the way up); None: all"""
    depth: tuple[int, ...] | None = None
    """transformer blocks at each level, from the finest; None: all"""
    mid: bool = True
    """with a middle block"""
    fresh: bool = False
    """random weights instead: the control"""

    def config(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The config of the smaller U-Net. Raises InputError for more layers than there are."""
        levels = len(given["block_out_channels"])
        layers, depths = layers_of(given), depths_of(given)
        wanted, depth = self.layers or layers, tuple(self.depth or depths)
        if not 1 <= wanted <= layers or len(depth) != levels or any(not 1 <= d <= t for d, t in zip(depth, depths)):
            raise InputError(
                f"pruned: layers={self.layers}, depth={self.depth} must lie between 1 and {layers}, {depths}"
            )
        mid = given["mid_block_type"] if self.mid else None
        return {
            **told(given),
            "layers_per_block": wanted,
            "transformer_layers_per_block": list(depth),
            "mid_block_type": mid,
        }

    def check(self, prior: DiffusersPrior) -> None:
        """See Kind.check: there are so many layers."""
        self.config(unet_of(prior).config)

    def fitted(self, prior: DiffusersPrior, seed: int) -> DiffusersPrior:
        """See Kind.fitted. Raises InputError for networks that are no U-Nets."""
        made = pruned(unet_of(prior), self, seed)
        return prior.with_network(made.requires_grad_(True), prior.prediction_type)


def unet_of(prior: DiffusersPrior) -> UNet2DConditionModel:
    """The network of a prior. Raises InputError where it is no U-Net."""
    if not isinstance(prior.network, UNet2DConditionModel):
        raise InputError(f"only U-Nets are pruned by layers; the network of {prior.name} is none")
    return prior.network


def pruned(network: UNet2DConditionModel, kind: Pruned, seed: int = 0) -> UNet2DConditionModel:
    """The smaller U-Net, with the weights of the layers that stay."""
    with fixed_init(seed):
        made = cast(UNet2DConditionModel, UNet2DConditionModel.from_config(kind.config(network.config)))
    made.to(network.device, network.dtype).train(network.training)
    if not kind.fresh:
        given, layers = network.state_dict(), layers_of(network.config)
        names = {name: origin(name, layers_of(made.config), layers) for name in made.state_dict()}
        copy_into(made.state_dict(), {name: given[source] for name, source in names.items()}, "the pruned network")
    return made


def layers_of(config: Mapping[str, Any]) -> int:
    """Residual layers of a stage on the way down. Raises InputError where stages differ."""
    layers = config["layers_per_block"]
    counts = {layers} if isinstance(layers, int) else set(layers)
    if len(counts) != 1 or config.get("reverse_transformer_layers_per_block"):
        raise InputError(f"U-Nets whose stages differ (layers_per_block={layers}) are not pruned by layers")
    return int(counts.pop())


def depths_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Transformer blocks at each level."""
    depth = config["transformer_layers_per_block"]
    return (int(depth),) * len(config["block_out_channels"]) if isinstance(depth, int) else tuple(depth)


def origin(name: str, mine: int, layers: int, depths: tuple[int, int] | None = None, how: Matching = "bottom") -> str:
    """The name in a U-Net of `layers` of a parameter or module of one pruned to `mine`.

    depths: blocks of this transformer here and there; with them blocks are matched as `how` says, else by number.
    """
    found = _UP.match(name)
    if found and int(found[2]) == mine:  # the last layer on the way up
        name = f"{found[1]}{layers}{name[found.end() :]}"
    block = _DEPTH.match(name)
    if block and depths is not None:
        name = f"{block[1]}{matched(int(block[2]), *depths, how)}{name[block.end() :]}"
    return name


def matched(number: int, mine: int, theirs: int, how: Matching) -> int:
    """The block of `theirs` that block `number` of `mine` learns from."""
    if how == "top":
        return theirs - mine + number
    if how == "interleave" and mine > 1:
        return round(number * (theirs - 1) / (mine - 1))
    return number


@dataclass(frozen=True)
class FeatureMatching:
    """Settings."""

    features: Choice = "self-attn"
    matching: Matching = "bottom"
    """which blocks of the teacher's transformers are matched: the first, the last, or some along the way"""
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """of the task, of the teacher's answer, of its features"""
    window: tuple[float, float] = (0.0, 1.0)
    """fractions of the train indices that states are drawn from: a few-step teacher knows its own alone"""
    drop: float = 0.1
    """share of rows without text"""


class FeatureObjective(Distillation):
    """Task, answer and features of a larger network."""

    method: FeatureMatching

    def __init__(self, student: Student, teacher: Teacher, method: FeatureMatching) -> None:
        super().__init__(student, teacher, method)
        network = teacher.prior.network
        assert network is not None
        self.pairs = feature_pairs(student.network, network, method)

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss."""
        z0, condition = self.latents(batch), self.described(batch["captions"])
        if self.method.drop:
            condition = without_text(condition, torch.rand(len(z0), generator=rng) < self.method.drop)
        state = FromData(self.teacher.schedule, self.method.window)(z0, condition, rng)
        network = self.teacher.prior.network
        assert network is not None and state.noise is not None
        with Taps(network, [theirs for _, theirs in self.pairs]) as seen:
            answer = self.teacher.predict(state.x, state.level, condition)
            wanted = [seen[theirs] for _, theirs in self.pairs]
        with Taps(self.student.network, [mine for mine, _ in self.pairs]) as seen:
            found = self.student.ask(state.x, state.level, condition)
            features = [seen[mine] for mine, _ in self.pairs]
        target = self.teacher.schedule.target(found.kind, z0, state.noise, state.level)
        parts = {
            "task": per_row((found.raw - target).square()).mean(),
            "output": per_row((found.raw - answer.raw).square()).mean(),
            "features": feature_error(features, wanted, z0),
        }
        loss = torch.stack([w * part for w, part in zip(self.method.weights, parts.values(), strict=True)]).sum()
        return LossOut(loss, {"loss": loss.detach(), **{name: part.detach() for name, part in parts.items()}})


def feature_error(found: Sequence[Tensor], wanted: Sequence[Tensor], like: Tensor) -> Tensor:
    """The sum over layers of the mean squared difference."""
    errors = [(a - b.detach()).float().square().mean() for a, b in zip(found, wanted, strict=True)]
    return torch.stack(errors).sum() if errors else like.new_zeros(())


def feature_pairs(student: nn.Module, teacher: nn.Module, method: FeatureMatching) -> list[tuple[str, str]]:
    """(module of the student, module of the teacher) whose outputs are matched.

    Raises InputError for a choice that the student has no module of.
    """
    if method.features == "none":
        return []
    mine, theirs = (cast(Any, network).config for network in (student, teacher))
    names = [name for name, _ in student.named_modules()]
    stages = [name for name in names if _STAGE.fullmatch(name)]
    if method.features in ENDS:
        ending = ENDS[method.features]
        chosen = [name for name in names if name.endswith(ending)]
        chosen += [stage for stage in stages if not any(name.startswith(f"{stage}.") for name in chosen)]
    else:
        chosen = stages if method.features == "last" else [n for n in names if re.search(r"\.resnets\.\d+$", n)]
    pairs = []
    for name in chosen:
        block = _DEPTH.match(name)
        depths = None
        if block is not None:
            place = block[1].removesuffix(".")
            there = origin(place, layers_of(mine), layers_of(theirs))
            depths = len(student.get_submodule(place)), len(teacher.get_submodule(there))  # type: ignore[arg-type]
        pairs.append((name, origin(name, layers_of(mine), layers_of(theirs), depths, method.matching)))
    return pairs
