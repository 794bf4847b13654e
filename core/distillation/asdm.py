"""Slim U-Nets by model assembly (A-SDM, Wang et al. 2023, 2024): find what is redundant, cut it, learn cut by cut.

A unit's redundancy is what its absence costs, S = E |eps_T - eps_T without it|^2 / parameters: the smallest go first.
Incubation: each cut learns alone in the otherwise whole teacher,
    |eps_{T, one stage slim} - eps_T|^2 + mu |B'(h) - B(h)|^2,
before all stand in one network, which then learns as a whole (`prune.FeatureObjective`). Two networks along one run,
the papers' other half, is the plan's `model_schedule`. The semantic loss of the papers is left out.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...utils.errors import InputError
from ..priors.diffusers import DiffusersPrior
from ..priors.rows import Condition
from ..priors.taps import Taps
from ..training.checkpoints import copy_into
from ..training.loss import LossOut
from .cuts import (
    Bypass,
    CondConv2d,
    RegionalAttention,
    check_units,
    cuts_of,
    kept_names,
    only,
    own_names,
    put,
    units_of,
    without,
)
from .kinds import Kind
from .objective import Distillation, per_row
from .states import FromData, State
from .student import Student
from .teacher import Teacher

FILE = "slim.safetensors"
_PLACE = re.compile(r"(.*)\.resnets\.\d+")


@dataclass(frozen=True)
class Slim(Kind):
    """A U-Net without some units, with kernels that those leave behind, and with attention by regions."""

    name: ClassVar[str] = "slim"
    stock: ClassVar[bool] = False

    removed: tuple[str, ...] = ()
    """units, as in up_blocks.1.resnets.1 or mid_block.attentions.0"""
    experts: bool = True
    """kept units of the same stage mix in the second kernels of removed ones"""
    regional: tuple[str, ...] = ()
    """ends of the names of self-attentions that see windows and pooled tokens"""
    window: int = 8
    pool: int = 8

    def check(self, prior: DiffusersPrior) -> None:
        """See Kind.check: the names are those of units."""
        if not cuts_of(prior.network):
            check_units(prior.network, self.removed)

    def fitted(self, prior: DiffusersPrior, seed: int) -> DiffusersPrior:
        """See Kind.fitted; a slim network goes on. Raises InputError for names of no unit."""
        network = copy.deepcopy(prior.network)
        if not cuts_of(network):
            self._cut(network)
        kept = kept_names(network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name not in kept)
        return prior.with_network(network, prior.prediction_type)

    def _cut(self, network: nn.Module) -> None:
        check_units(network, self.removed)
        if self.experts:
            self._mix(network)
        for name in self.removed:
            put(network, name, Bypass(network.get_submodule(name)))
        for name, module in list(network.named_modules()):
            if self.regional and name.endswith(self.regional) and isinstance(module, Attention):
                module.set_processor(RegionalAttention(module, self.window, self.pool))

    def _mix(self, network: nn.Module) -> None:
        """Second kernels of removed units become further ones of the first kept unit of their stage that fits."""
        for name in self.removed:
            place = _PLACE.fullmatch(name)
            if place is None:
                continue
            gone: Any = network.get_submodule(name)
            stage: Any = network.get_submodule(f"{place[1]}.resnets")
            for number, unit in enumerate(stage):
                fits = f"{place[1]}.resnets.{number}" not in self.removed and isinstance(unit.conv2, nn.Conv2d)
                if fits and unit.conv2.weight.shape == gone.conv2.weight.shape:
                    unit.conv2 = CondConv2d([unit.conv2, gone.conv2])
                    break

    def write(self, prior: DiffusersPrior, folder: Path) -> None:
        """What the slim network asks; what it was cut from is the prior's."""
        save_file({name: value.contiguous() for name, value in asked_weights(prior.network).items()}, folder / FILE)

    def read(self, prior: DiffusersPrior, folder: Path) -> None:
        """See Kind.read."""
        copy_into(asked_weights(prior.network), load_file(folder / FILE), str(folder))


def asked_weights(network: nn.Module) -> dict[str, Tensor]:
    """Weights of all that is asked, by name; the tensors themselves."""
    kept = kept_names(network)
    return {name: value for name, value in network.state_dict().items() if name not in kept}


@torch.no_grad()
def redundancy(teacher: Teacher, state: State, condition: Condition) -> dict[str, float]:
    """Cost of leaving out each unit: mean squared change of the answer, for each million of its parameters."""
    network = teacher.prior.network
    if network is None:
        raise InputError("a prior without a network has no units")
    whole, found = teacher.predict(state.x, state.level, condition).raw, {}
    for name in units_of(network):
        with without(network, name):
            change = (teacher.predict(state.x, state.level, condition).raw - whole).square().mean()
        found[name] = float(change) / (sum(p.numel() for p in network.get_submodule(name).parameters()) / 1e6)
    return found


@dataclass(frozen=True)
class Incubating:
    """Settings."""

    block: float = 0.1
    """mu, weight of the error of the stage's own output"""


class IncubateObjective(Distillation):
    """One stage's cuts at a time, in the otherwise whole network."""

    method: Incubating

    def __init__(self, student: Student, teacher: Teacher, method: Incubating) -> None:
        """Raises InputError for a student without cuts that could learn."""
        super().__init__(student, teacher, method)
        own = own_names(student.network)
        self.stages = [stage for stage in cuts_of(student.network) if any(name.startswith(f"{stage}.") for name in own)]
        if not self.stages:
            raise InputError("incubation is of cuts that learn, which this student has none of; make one of kind slim")
        for name, parameter in student.network.named_parameters():
            parameter.requires_grad_(name in own)

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss."""
        z0, condition = self.latents(batch), self.described(batch["captions"])
        stage = self.stages[int(torch.randint(len(self.stages), (), generator=rng))]
        state = FromData(self.teacher.schedule)(z0, condition, rng)
        network = self.teacher.prior.network
        assert network is not None
        with Taps(network, [stage]) as seen:
            answer = self.teacher.predict(state.x, state.level, condition)
            wanted = seen[stage]
        with only(self.student.network, stage), Taps(self.student.network, [stage]) as seen:
            found = self.student.ask(state.x, state.level, condition)
            own = seen[stage]
        near = per_row((own - wanted).float().square()).mean()
        whole = per_row((found.raw - answer.raw).square()).mean()
        loss = whole + self.method.block * near
        return LossOut(loss, {"loss": loss.detach(), "answer": whole.detach(), "block": near.detach()})
