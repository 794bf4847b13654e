"""Negative prompts in one call, and few steps, by an adapter of the cross-attention (SpeedUpNet, Chai et al. 2023).

In every cross-attention a second branch attends to the negative prompt C- and a third once more to the prompt C+:
    A = A0 - (a- |A0| / |A-| A- + b-) + (a+ |A0| / |A+| A+ + b+),
A0 the frozen attention, a and b one number a channel, norms over each sample. They begin at 0, so that the adapter
begins as the conditional model; K and V of both branches begin as the frozen ones. The teacher is guided with the same
negative prompt, in more and shorter steps. What the paper does not tell of the training (weights, horizon) is ours.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...utils.errors import InputError
from ..priors.diffusers import DiffusersPrior, StableDiffusionPrior
from ..sampling.prediction import Prediction
from ..training.checkpoints import copy_into
from ..training.loss import LossOut
from .guided import solved
from .kinds import Kind
from .objective import Distillation, distance, step_to
from .teacher import rollout

FILE = "negative_adapter.safetensors"
SMALLEST = 1e-12  # norm of an attention that something is divided by


class Branch(nn.Module):
    """a |A0| / |A| A + b of an attention A with keys and values of its own."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.to_k, self.to_v = (copy.deepcopy(part) for part in (attention.to_k, attention.to_v))
        width = attention.to_v.out_features
        self.alpha, self.beta = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, query: Tensor, text: Tensor, plain: Tensor, whole: bool) -> Tensor:
        """(B, N, width) for queries (B, heads, N, d), text (B, L, D) and the frozen attention (B, N, width)."""
        own = attended(query, self.to_k(text), self.to_v(text))
        axes = None if whole else (1, 2)
        ratio = plain.norm(dim=axes, keepdim=True) / own.norm(dim=axes, keepdim=True).clamp_min(SMALLEST)
        return self.alpha * ratio.to(own.dtype) * own + self.beta


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention (B, N, heads d) of queries (B, heads, N, d) to keys and values (B, L, heads d)."""
    batch, heads, _, depth = query.shape
    key, value = (one.view(batch, -1, heads, depth).transpose(1, 2) for one in (key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class NegativeOffset(nn.Module):
    """The processor of a cross-attention whose text is [C+ ; C-] along the tokens, equally long; of a plain text, the
    attention as it was."""

    def __init__(self, attention: Attention, positive: bool = True, whole: bool = False) -> None:
        """`positive`: with the third branch; `whole`: norms over the whole batch, as in the published adapter."""
        super().__init__()
        self.negative = Branch(attention)
        self.positive = Branch(attention) if positive else None
        self.whole = whole

    def forward(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """See the top of this file; (B, N, channels). Raises InputError for texts that cannot be halved."""
        if encoder_hidden_states is None or encoder_hidden_states.shape[1] % 2:
            raise InputError("this adapter reads a prompt and a negative prompt of as many tokens; give both")
        text, against = encoder_hidden_states.chunk(2, dim=1)
        query = attn.to_q(hidden_states)
        query = query.view(*query.shape[:2], attn.heads, -1).transpose(1, 2)
        plain = attended(query, attn.to_k(text), attn.to_v(text))
        changed = plain - self.negative(query, against, plain, self.whole)
        if self.positive is not None:
            changed = changed + self.positive(query, text, plain, self.whole)
        return attn.to_out[1](attn.to_out[0](changed))


@dataclass(frozen=True)
class NegativeAdapter(Kind):
    """Branches for the negative prompt in every cross-attention; the network itself is frozen."""

    name: ClassVar[str] = "negative"
    stock: ClassVar[bool] = False

    positive: bool = True
    """with a branch for the prompt, too"""
    whole_batch_norm: bool = False
    """as the published adapter has it; its answers depend on what else is in the batch"""

    def fitted(self, prior: DiffusersPrior, seed: int) -> DiffusersPrior:
        """See Kind.fitted. Raises InputError for networks without cross-attention layers of Stable Diffusion's kind."""
        network = copy.deepcopy(prior.network).requires_grad_(False)
        layers = [
            part for name, part in network.named_modules() if name.endswith("attn2") and isinstance(part, Attention)
        ]
        if not layers or not isinstance(prior, StableDiffusionPrior):
            raise InputError(f"the network of {prior.name} has no cross-attention that could read a negative prompt")
        for layer in layers:
            layer.set_processor(NegativeOffset(layer, self.positive, self.whole_batch_norm).requires_grad_(True))
        fitted = prior.with_network(network, prior.prediction_type)
        fitted.negative_embedded = True
        return fitted

    def write(self, prior: DiffusersPrior, folder: Path) -> None:
        """The branches by the names of their processors."""
        save_file({name: value.contiguous() for name, value in branches(prior.network).items()}, folder / FILE)

    def read(self, prior: DiffusersPrior, folder: Path) -> None:
        """See Kind.read."""
        copy_into(branches(prior.network), load_file(folder / FILE), str(folder))


def branches(network: nn.Module) -> dict[str, Tensor]:
    """The adapter's weights by name; the tensors themselves."""
    return {name: value for name, value in network.state_dict().items() if ".processor." in name}


@dataclass(frozen=True)
class SpeedingUp:
    """Settings."""

    scale: float = 5.0
    """guidance of the teacher"""
    steps: int = 4
    """of the student"""
    substeps: int = 4
    """of the teacher to one of the student"""
    horizon: int = 2
    """steps of its own that the student takes for the consistency of several steps; 1: that term is left out"""
    empty: float = 0.3
    """share of rows whose negative prompt is empty"""
    weights: tuple[float, float, float] = (1.0, 1.0, 0.5)
    """of the guided answer, the step and the consistency of several steps"""

    def __post_init__(self) -> None:
        if min(self.steps, self.substeps, self.horizon) < 1 or not 0 <= self.empty <= 1:
            raise InputError(f"steps={self.steps}, substeps={self.substeps}, horizon={self.horizon} must be at least 1")


class SpeedUpObjective(Distillation):
    """What the teacher does, guided by random negative prompts, in one call and in fewer steps."""

    method: SpeedingUp

    def loss(self, batch: dict[str, Any], rng: torch.Generator, step: int) -> LossOut:
        """See Objective.loss."""
        method, schedule = self.method, self.teacher.schedule
        x0 = self.latents(batch)
        condition = self.teacher.prior.encode_text(batch["captions"], negatives(batch["captions"], method.empty, rng))
        levels = schedule.grid(method.steps * method.substeps, "trailing", "zero")
        own = levels[:: method.substeps]
        first = int(torch.randint(method.steps, (), generator=rng))
        steps = min(method.horizon, method.steps - first)
        z, _ = schedule.noised(x0, own[first], rng)
        teach = self.teacher.denoiser_at(condition, torch.full((len(x0),), method.scale))
        begin = first * method.substeps
        run = rollout(teach, z, levels[begin : begin + steps * method.substeps + 1])[:: method.substeps]
        with torch.no_grad():
            aim = teach(z, own[first])
        found = self.student.ask(z, own[first], condition)
        near = distance(found, aim, "raw").mean()
        jump = Prediction(z, own[first], solved(z, run[1], own[first], own[first + 1]), "sample")
        far = distance(found, jump, "truncated").mean()
        drift, state = z.new_zeros(()), step_to(found, own[first + 1])
        for k in range(1, steps):
            state = step_to(self.student.ask(state, own[first + k], condition), own[first + k + 1])
            drift = drift + (state - run[k + 1]).square().mean()
        parts = {"guided": near, "jump": far, "drift": drift}
        loss = torch.stack([weight * part for weight, part in zip(method.weights, parts.values(), strict=True)]).sum()
        return LossOut(loss, {"loss": loss.detach(), **{name: part.detach() for name, part in parts.items()}})


def negatives(texts: list[str], empty: float, rng: torch.Generator) -> list[str]:
    """Negative prompts for texts: those of other rows, or nothing in a share of them."""
    order = torch.randperm(len(texts), generator=rng).tolist()
    gone = (torch.rand(len(texts), generator=rng) < empty).tolist()
    return ["" if none or other == i else texts[other] for i, (other, none) in enumerate(zip(order, gone, strict=True))]
