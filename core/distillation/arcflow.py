"""Two calls along a curved path (ArcFlow, 2026): the student says a velocity law, see `core.sampling.solvers.arc`.

A run of the student from noise is cut into its steps. Within each, states that its own law visits (at first: the
teacher's) are shown to the teacher, whose velocity there the law's mean velocity just behind has to be:
    15 mean |mean v over (a, b - window) - u_teacher(x_a, sigma_a)|^2.
Only a low-rank adapter and the head that says the law are trained.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...utils.errors import InputError
from ..priors.diffusers import DiffusersPrior
from ..priors.rows import Condition
from ..sampling.levels import Level
from ..sampling.sampler import Denoise
from ..sampling.solvers.arc import Policy, flow_sigma
from ..training.checkpoints import copy_into
from ..training.loss import LossOut
from ..training.objectives.base import fixed_init
from .kinds import Kind, Lora, adapter_weights
from .objective import Distillation
from .student import Student
from .teacher import Teacher
from .views import flow_view

FILE = "arc.safetensors"
SLOWEST, FASTEST = 0.2, 4.0  # e^g of the first rates
SPREAD = 0.05  # of the components' biases at first, whose mean is 0: alike components would stay alike
WINDOW = 3 / 128  # of sigma, behind a state that the teacher sees
SHORT = 2 / 128  # intervals below it are one velocity
FACTOR = 15.0


@dataclass(frozen=True)
class Mixture(Kind):
    """A low-rank adapter and a head of K velocities; at first the velocity at the source is the prior's."""

    name: ClassVar[str] = "mixture"
    stock: ClassVar[bool] = False

    components: int = 8
    rank: int = 8
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")

    def __post_init__(self) -> None:
        if self.components < 1:
            raise InputError(f"components={self.components} must be at least 1")

    @property
    def _lora(self) -> Lora:
        return Lora(self.rank, self.rank, self.targets)

    def fitted(self, prior: DiffusersPrior, seed: int) -> DiffusersPrior:
        """See Kind.fitted. Raises InputError for networks other than U-Nets."""
        if not isinstance(prior.network, UNet2DConditionModel):
            raise InputError(f"the velocity law takes the place of a U-Net's last layer, which {prior.name} has not")
        fitted = self._lora.fitted(prior, seed)
        network = cast(Any, fitted.network)
        with fixed_init(seed):
            network.conv_out = widened(network.conv_out, self.components).requires_grad_(True)
        network.conv_norm_out.requires_grad_(True)
        return fitted

    def write(self, prior: DiffusersPrior, folder: Path) -> None:
        """The adapter and the head in one file."""
        save_file({name: value.contiguous() for name, value in learnt(prior.network).items()}, folder / FILE)

    def read(self, prior: DiffusersPrior, folder: Path) -> None:
        """See Kind.read."""
        copy_into(learnt(prior.network), load_file(folder / FILE), str(folder))


def widened(last: nn.Conv2d, count: int) -> nn.Conv2d:
    """The layer for K velocities, K log-weights and K - 1 rates."""
    channels = last.out_channels
    made = nn.Conv2d(last.in_channels, count * (channels + 2) - 1, last.kernel_size, padding=last.padding)  # type: ignore[arg-type]
    made.to(last.weight)
    assert last.bias is not None and made.bias is not None
    noise = SPREAD * torch.randn(count, channels)
    noise = noise - noise.mean(0)
    rates = torch.linspace(math.log(SLOWEST), math.log(FASTEST), count - 1) if count > 1 else torch.zeros(0)
    with torch.no_grad():
        made.weight.zero_()[: count * channels] = last.weight.repeat(count, 1, 1, 1)
        biases = [(last.bias.repeat(count) + noise.flatten().to(last.bias)), torch.zeros(count), rates]
        made.bias.copy_(torch.cat([one.to(made.bias) for one in biases]))
    return made


def learnt(network: Any) -> dict[str, Tensor]:
    """What the kind trains, by name; the tensors themselves."""
    parts = {name: getattr(network, name).state_dict() for name in ("conv_out", "conv_norm_out")}
    head = {f"{name}.{key}": value for name, values in parts.items() for key, value in values.items()}
    return {**adapter_weights(network), **head}


@dataclass(frozen=True)
class Arcing:
    """Settings."""

    scale: float = 3.0
    """guidance of the teacher"""
    steps: int = 2
    """of the student"""
    states: int = 4
    """shown to the teacher in each step"""
    mixed: int = 500
    """training steps over which the states go over from the teacher's path to the student's"""
    dropout: float = 0.1
    """of components, while the student's law makes states"""

    def __post_init__(self) -> None:
        if min(self.steps, self.states) < 1 or not 0 <= self.dropout < 1:
            raise InputError(f"steps={self.steps}, states={self.states} must be at least 1, dropout={self.dropout} < 1")


class ArcObjective(Distillation):
    """Runs from noise; of a batch the captions and the form of the latents are used."""

    method: Arcing

    def __init__(self, student: Student, teacher: Teacher, method: Arcing) -> None:
        super().__init__(student, teacher, method)
        self.levels = teacher.schedule.grid(method.steps, "trailing", "zero")
        prior = teacher.prior
        self.flow = teacher if teacher.schedule.flow else Teacher(flow_view(prior), teacher.guidance)

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss."""
        noise, condition = self.latents(batch, "noise"), self.described(batch["captions"])
        teach = self.flow.denoiser_at(condition, torch.full((len(noise),), self.method.scale))
        ratio = max(0.0, 1 - step / self.method.mixed) if self.method.mixed else 0.0
        first = self.levels[0]
        x = noise / (float(first.alpha) + float(first.sigma))
        total = noise.new_zeros(())
        for level, after in zip(self.levels[:-1], self.levels[1:], strict=True):
            policy = self.policy(x, level, condition)
            start, end = flow_sigma(level), flow_sigma(after)
            total = total + (start - end) * self._within(policy, x, start, end, ratio, teach, rng)
            x = policy.detached().step(x, start, end)
        return LossOut(total, {"loss": total.detach(), "teacher_ratio": ratio})

    def policy(self, x: Tensor, level: Level, condition: Condition) -> Policy:
        """The student's law at a state in flow coordinates."""
        z = x * (float(level.alpha) + float(level.sigma))
        return Policy.of(self.student.ask(z, level, condition))

    def _within(
        self, policy: Policy, x: Tensor, start: float, end: float, ratio: float, teach: Denoise, rng: torch.Generator
    ) -> Tensor:
        """The mean loss over the states of one step."""
        method, room = self.method, max(start - end - WINDOW, 0.0)
        own, theirs = (shares(method.states, rng) for _ in range(2))
        blind, at, losses = policy.detached(dropped(policy, method.dropout, rng)), start, []
        for mine, given in zip(own, theirs, strict=True):
            before, at = at, at - (1 - ratio) * room * mine
            x = blind.step(x, before, at)
            with torch.no_grad():
                wanted = teach(x, self._flow_level(at)).u
            behind = at - ratio * room * given
            stop = max(behind - WINDOW, end)
            found = policy.moved(at, stop) / (at - stop) if at - stop > SHORT else policy.at(at)
            losses.append(FACTOR * (found - wanted).square().mean())
            x, at = x + wanted * (behind - at), behind
        return torch.stack(losses).mean()

    def _flow_level(self, sigma: float) -> Level:
        return self.flow.schedule.path.at_sigma(torch.tensor(sigma, dtype=torch.float64)).item()


def shares(count: int, rng: torch.Generator) -> list[float]:
    """`count` parts of 1 at sorted random cuts."""
    cuts = torch.rand(count, generator=rng).sort().values
    return torch.diff(cuts, prepend=torch.zeros(1)).tolist()


def dropped(policy: Policy, share: float, rng: torch.Generator) -> Tensor:
    """A mask (K,) of components to leave out; never all."""
    count = policy.weights.shape[1]
    mask = torch.rand(count, generator=rng) < share
    keep = int(torch.randint(count, (), generator=rng))
    mask[keep] = False
    return mask


def folded(network: nn.Module) -> nn.Module:
    """A network of one component as a plain one of the prior's form (Euler's method in flow coordinates).

    Raises InputError where there are several.
    """
    made = copy.deepcopy(network)
    last = cast(Any, made).conv_out
    channels = int(cast(Any, made).config.out_channels)
    if last.out_channels != channels + 1:
        raise InputError(f"a law of {(last.out_channels + 1) // (channels + 2)} components is no plain network")
    plain = nn.Conv2d(last.in_channels, channels, last.kernel_size, padding=last.padding).to(last.weight)
    with torch.no_grad():
        plain.weight.copy_(last.weight[:channels])
        plain.bias.copy_(last.bias[:channels])  # type: ignore[union-attr]
    cast(Any, made).conv_out = plain
    return made
