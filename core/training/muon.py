"""Muon with AdamW (Jordan et al. 2024): momentum, orthogonalised, for weight matrices; AdamW for the rest.

A convolution (O, I, h, w) is the matrix (O, I h w) of a patch. The update is scaled to the root mean square of AdamW's
(Liu et al. 2025: 0.2 sqrt(max(rows, columns))), so both kinds share one learning rate.

`torch.optim.Muon` takes matrices only (no convolutions, nothing for the rest), iterates in bfloat16 whatever the
machine, a matrix at a time, and every process of a run does all of them; here equal shapes go together and processes
share the work. On a matrix in bfloat16 with match_rms_adamw both take the same step (a test compares them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adamw import adamw

from .players import Group, trainable

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic whose iteration lifts small singular values fastest
RMS = 0.2  # of AdamW's updates


def orthogonalise(matrices: Tensor, iterations: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """The nearest matrices (B, R, C) with all singular values near one (0.7 to 1.2), without decomposing them.

    `dtype` is what the iteration runs in, bfloat16 with Jordan et al.; None: that of the matrices.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)).to(dtype or matrices.dtype)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def orthogonalised(matrices: list[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Each matrix (R, C) orthogonalised; processes of a distributed run, whose matrices are equal, share the work."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, matrix in enumerate(matrices):
        by_shape.setdefault(tuple(matrix.shape), []).append(i)
    ordered = [i for members in by_shape.values() for i in members]  # neighbours have one shape
    owned = [ordered[r::world] for r in range(world)]
    done: dict[int, Tensor] = {}
    for members in by_shape.values():
        mine = [i for i in members if i in owned[rank]]
        if mine:
            done |= dict(zip(mine, orthogonalise(torch.stack([matrices[i] for i in mine]), dtype=dtype), strict=True))
    if world > 1:
        for owner, theirs in enumerate(owned):
            done |= _from_owner(owner, rank, theirs, matrices, done)
    return [done[i] for i in range(len(matrices))]


def _from_owner(
    owner: int, rank: int, theirs: list[int], matrices: list[Tensor], done: dict[int, Tensor]
) -> dict[int, Tensor]:
    """The results of one process, the same for all."""
    if not theirs:
        return {}
    shapes = [matrices[i].shape for i in theirs]
    if owner == rank:
        flat = torch.cat([done[i].reshape(-1) for i in theirs])
    else:
        flat = matrices[0].new_empty(sum(shape.numel() for shape in shapes))
    dist.broadcast(flat, owner)
    parts = flat.split([shape.numel() for shape in shapes])
    return {i: part.view(shape) for i, part, shape in zip(theirs, parts, shapes, strict=True)}


class Muon(torch.optim.Optimizer):
    """Groups with "matrix": True (`matrix_groups`) by Muon, everything else by AdamW. `dtype`: see orthogonalise."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.dtype = dtype
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], {**defaults, "matrix": False})
        for group in self.param_groups:
            if group["matrix"] and any(p.ndim < 2 for p in group["params"]):
                raise ValueError("matrices need two dimensions or more")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            (self._matrices if group["matrix"] else self._plain)(group, given)
        return loss

    def _matrices(self, group: dict[str, Any], given: list[nn.Parameter]) -> None:
        torch._foreach_mul_(list[Tensor](given), 1 - group["lr"] * group["weight_decay"])
        ahead = []
        for p in given:
            state, grad = self.state[p], _grad(p)
            velocity = state["velocity"] = state["velocity"] if state else torch.zeros_like(p)
            velocity.lerp_(grad, 1 - group["momentum"])
            ahead.append(grad.lerp(velocity, group["momentum"]).flatten(1))  # Nesterov
        for p, update in zip(given, orthogonalised(ahead, self.dtype), strict=True):
            p.sub_(update.view(p.shape), alpha=group["lr"] * RMS * max(update.shape) ** 0.5)

    def _plain(self, group: dict[str, Any], given: list[nn.Parameter]) -> None:
        for p in given:
            if not self.state[p]:
                fresh = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                self.state[p].update(step=torch.zeros((), device=p.device), **fresh)
        states = [self.state[p] for p in given]
        adamw(
            list[Tensor](given),
            [_grad(p) for p in given],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            fused=True,
        )


def _grad(p: nn.Parameter) -> Tensor:
    assert p.grad is not None
    return p.grad


def matrix_groups(module: nn.Module, smallest: int = 16) -> list[Group]:
    """Named groups of the trainable parameters, matrices first: tables of embeddings and thin matrices, which first
    and last layers are, belong to AdamW."""
    tables = {id(p) for part in module.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
    matrices: dict[str, nn.Parameter] = {}
    plain: dict[str, nn.Parameter] = {}
    for name, p in trainable(module)["params"].items():
        thin = p.ndim < 2 or min(p.shape[0], p[0].numel()) < smallest
        (plain if thin or id(p) in tables else matrices)[name] = p
    return [g for g in ({"params": matrices, "matrix": True}, {"params": plain, "matrix": False}) if g["params"]]
