"""Few-bit networks by selective fine-tuning (QuEST, Wang et al. 2024): no data, a few weights, all steps of inputs.

The full-precision network calibrates and teaches, at states of its own runs. Two stages learn in turn: the projections
of the time embedding, then the layers that suffer most, each with the input scales of all layers:
    sum over those layers of |y_q - y|^2 + w |eps_q - eps|^2.
Here the answer's error counts once (w), not once a layer as in the authors' loop; weights round to the nearest, without
AdaRound; skip connections share the scale of what they join.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...utils.errors import InputError
from ...utils.seeds import sample_noise
from ..priors.diffusers import DiffusersPrior
from ..priors.taps import Taps
from ..sampling.denoiser import Denoiser
from ..sampling.levels import NoiseSchedule
from ..training.checkpoints import copy_into
from ..training.loss import LossOut
from .kinds import Kind
from .objective import Distillation, per_row
from .prune import feature_error
from .quantised import SHRINKS, Clock, QuantLayer, integers, packed, unpacked
from .states import FromData
from .student import Student
from .teacher import Teacher, rollout

FILE = "quantised.safetensors"
OUTER = ("conv_in", "conv_out")  # keep 8 bits
OUTER_BITS = 8
CLOCK = "quantised_clock"


@dataclass(frozen=True)
class Quantised(Kind):
    """Linear maps and convolutions of few bits; which of them learn is the objective's choice."""

    name: ClassVar[str] = "quantised"
    stock: ClassVar[bool] = False

    weight_bits: int = 4
    input_bits: int = 8
    times: int = 20
    """model times with input scales of their own, those of a run of so many steps; 1: one for all"""
    prompts: tuple[str, ...] = ("",)
    """of the run that calibrates"""
    runs: int = 8
    """calibrating runs"""

    def __post_init__(self) -> None:
        if not (2 <= self.weight_bits <= 8 and 2 <= self.input_bits <= 16) or min(self.times, self.runs) < 1:
            raise InputError(
                f"quantised: weight_bits={self.weight_bits} must lie in [2, 8], input_bits={self.input_bits} in [2, 16]"
            )

    def fitted(self, prior: DiffusersPrior, seed: int) -> DiffusersPrior:
        """See Kind.fitted; `seed` is that of the calibrating noise. A network that is quantised already goes on."""
        if any(quant_layers(prior.network)):
            return prior.with_network(copy.deepcopy(prior.network), prior.prediction_type)
        fitted = self._wrapped(prior)
        self._calibrate(fitted, seed)
        return fitted

    def _wrapped(self, prior: DiffusersPrior, shrinks: int = SHRINKS) -> DiffusersPrior:
        """The prior with layers whose input scales are not known yet; `shrinks` as of QuantLayer."""
        network = copy.deepcopy(prior.network).requires_grad_(False)
        levels = NoiseSchedule.from_config(prior.scheduler_config).grid(self.times, "trailing")[:-1]
        clock = Clock(torch.tensor([float(level.model_time) for level in levels])).to(prior.device)
        for name, layer in list(network.named_modules()):
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                bits = (OUTER_BITS, OUTER_BITS) if name in OUTER else (self.weight_bits, self.input_bits)
                parent, _, own = name.rpartition(".")
                setattr(network.get_submodule(parent), own, QuantLayer(layer, *bits, clock, shrinks))
        network.add_module(CLOCK, clock)
        network.register_forward_pre_hook(clock.tell, with_kwargs=True)
        return prior.with_network(network, prior.prediction_type)

    @torch.no_grad()
    def _calibrate(self, prior: DiffusersPrior, seed: int) -> None:
        """Input scales at each time, from runs of the network at full precision."""
        layers = dict(quant_layers(prior.network))
        activate(prior.network, False)
        texts = [self.prompts[i % len(self.prompts)] for i in range(self.runs)]
        levels = NoiseSchedule.from_config(prior.scheduler_config).grid(self.times, "trailing")
        noise = sample_noise(prior.latent_shape, torch.Generator().manual_seed(seed), self.runs, prior.device)
        condition = prior.encode_text(texts)
        denoiser, both = Denoiser(prior, condition), [name for name in ("cond", "null") if name in condition]
        states = rollout(denoiser, noise, levels)
        for number, (x, level) in enumerate(zip(states, levels[:-1])):
            seen: dict[str, Tensor] = {}
            hooks = [layer.register_forward_pre_hook(_keeper(seen, name)) for name, layer in layers.items()]
            denoiser.ask(x, level, both)
            for hook in hooks:
                hook.remove()
            for name, values in seen.items():
                layers[name].calibrate(number, values)
        activate(prior.network, True)

    def write(self, prior: DiffusersPrior, folder: Path) -> None:
        """Packed integers and scales in one file with what is not quantised; and plain/, the network in half
        precision with the same weights, for stock diffusers."""
        save_file(stored(prior.network), folder / FILE)
        plain = plain_network(prior.network).half()
        plain.save_pretrained(folder / "plain" / prior.backbone, safe_serialization=True)  # type: ignore[operator]

    def read(self, prior: DiffusersPrior, folder: Path) -> None:
        """See Kind.read."""
        restore(prior.network, load_file(folder / FILE), str(folder))

    def loaded(self, prior: DiffusersPrior, folder: Path) -> DiffusersPrior:
        """See Kind.loaded; nothing is calibrated."""
        fitted = self._wrapped(prior, 1)
        self.read(fitted, folder)
        return fitted


def quant_layers(network: nn.Module) -> Iterator[tuple[str, QuantLayer]]:
    """The quantised layers by name."""
    for name, layer in network.named_modules():
        if isinstance(layer, QuantLayer):
            yield name, layer


def activate(network: nn.Module, active: bool) -> None:
    """Switches all quantisers."""
    for _, layer in quant_layers(network):
        layer.active = active


def _keeper(seen: dict[str, Tensor], name: str) -> Any:
    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[name] = args[0].detach()

    return keep


def stored(network: nn.Module) -> dict[str, Tensor]:
    """All that a quantised network is made of, weights as packed integers."""
    values = {name: value.detach().contiguous() for name, value in network.state_dict().items()}
    for name, layer in quant_layers(network):
        scales = (layer.weight_delta, layer.weight_zero)
        whole = integers(layer.layer.weight, *scales, layer.weight_bits)
        values[f"{name}.layer.weight"] = packed(whole, layer.weight_bits).contiguous()
    return values


def restore(network: nn.Module, values: dict[str, Tensor], what: str) -> None:
    """The inverse of `stored`; weights come back on their grid."""
    found = dict(values)
    for name, layer in quant_layers(network):
        key = f"{name}.layer.weight"
        if key in found:
            whole = unpacked(found[key], layer.weight_bits, layer.layer.weight.shape).float()
            found[key] = (whole - found[f"{name}.weight_zero"]) * found[f"{name}.weight_delta"]
    copy_into(network.state_dict(), found, what)


def plain_network(network: nn.Module) -> nn.Module:
    """A network of plain layers with the rounded weights; its inputs are not rounded."""
    made = copy.deepcopy(network)
    with torch.no_grad():
        for name, layer in list(quant_layers(made)):
            layer.layer.weight.copy_(layer.rounded_weight())
            parent, _, own = name.rpartition(".")
            setattr(made.get_submodule(parent), own, layer.layer)
    delattr(made, CLOCK)
    made._forward_pre_hooks.clear()
    made._forward_pre_hooks_with_kwargs.clear()
    return made


@dataclass(frozen=True)
class Selective:
    """Settings of a stage."""

    weights: Literal["time", "sensitive", "all", "none"] = "time"
    """whose weights learn: projections of the time embedding, the layers named below, all, or none"""
    sensitive: tuple[str, ...] = (".ff.net.0.proj", ".ff.net.2", ".attn1.to_q", ".attn1.to_k", ".attn1.to_v")
    """ends of the names of the layers that suffer most"""
    answer: float = 1.0
    """weight of the error of the whole answer"""


TIME = (".time_emb_proj", "time_embedding.linear_1", "time_embedding.linear_2")


class SelectiveObjective(Distillation):
    """A stage."""

    method: Selective

    def __init__(self, student: Student, teacher: Teacher, method: Selective) -> None:
        """Raises InputError for a student that is not quantised, and where no layer has the names."""
        super().__init__(student, teacher, method)
        layers = dict(quant_layers(student.network))
        ends = {"time": TIME, "sensitive": method.sensitive, "all": ("",), "none": ()}[method.weights]
        self.local = [name for name in layers if name.endswith(tuple(ends))] if ends else []
        if not layers or (ends and not self.local):
            raise InputError(f"weights={method.weights!r} name no quantised layer of the student")
        student.network.requires_grad_(False)
        for name, layer in layers.items():
            layer.input_delta.requires_grad_(True)
            layer.layer.weight.requires_grad_(name in self.local)

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss."""
        z0, condition = self.latents(batch), self.described(batch["captions"])
        state = FromData(self.teacher.schedule)(z0, condition, rng)
        network = self.teacher.prior.network
        assert network is not None
        with Taps(network, self.local) as seen:
            answer = self.teacher.predict(state.x, state.level, condition)
            wanted = [seen[name] for name in self.local]
        with Taps(self.student.network, self.local) as seen:
            found = self.student.ask(state.x, state.level, condition)
            outputs = [seen[name] for name in self.local]
        near = feature_error(outputs, wanted, z0)
        whole = per_row((found.raw - answer.raw).square()).mean()
        loss = near + self.method.answer * whole
        return LossOut(loss, {"loss": loss.detach(), "layers": near.detach(), "answer": whole.detach()})
