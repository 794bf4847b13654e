"""Measuring the model statistics l, s, b of a prior (DPM-Solver-v3, appendix C), in one resumable pass.

Clean latents are noised to every lambda of a grid, as in the paper, or to the first one only and followed along the
ODE from there: with strong guidance the states a solver meets are no noised samples. Per sample two Jacobian-vector
products of eps(x, lambda) are taken: along a Rademacher v, l = E[v sigma J v], and along the ODE,
eps' = J (a x - sigma eps) + d eps / d lambda. Since f = e^{-lambda} eps - l x / alpha and
f' = e^{-lambda} ((l - 1) eps + eps') - l' x / alpha are linear in (eps, eps', x),
their moments follow from those of (eps, eps', x) once l is known: s = Cov[f, f'] / Var[f], b = E[f'] - s E[f].
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...utils.digests import digest
from ...utils.errors import InputError
from ..priors.base import Prior
from ..priors.rows import Condition
from .calibration import Calibration, Fingerprint, condition_digest, fingerprint, probe_generator
from .denoiser import Denoiser
from .dpm_v3_statistics import ModelStatistics
from .guidance import Guidance
from .levels import NoiseSchedule

MOMENTS_KIND = "model-moments"
FIELDS = ("jacobian", "eps", "deps", "x", "eps_eps", "eps_deps", "eps_x", "deps_x", "x_x")
RIDGE = 1e-9  # of the variance of f's two terms; below it f counts as constant and s is 0
LARGEST_SLOPE = 4.0  # of |s|: a regression on few samples can give anything, and e^{integral of s} would overflow
Derivative = Literal["exact", "difference"]
States = Literal["noised", "trajectory"]


def lambda_rows(schedule: NoiseSchedule, count: int) -> Tensor:
    """count + 1 evenly spaced lambdas (float64, rising) over the train range of a schedule."""
    if count < 1:
        raise InputError(f"count={count} cells of the lambda grid must be at least 1")
    ends = [schedule.at_index(schedule.steps - 1), schedule.at_index(0)]
    if schedule.flow:
        ends[0] = schedule.at_index(schedule.steps - 2)
    return torch.linspace(float(ends[0].lam), float(ends[1].lam), count + 1, dtype=torch.float64)


def eps_derivative(
    denoiser: Denoiser, x: Tensor, lam: Tensor, dx: Tensor, dlam: float, derivative: Derivative = "exact"
) -> tuple[Tensor, Tensor]:
    """(eps, directional derivative of eps along (dx, dlam)) at states x (B, C, h, w) and lambdas (B,) float64.

    "exact" is forward-mode differentiation (attention then runs unfused), "difference" a central difference.
    """

    def eps(state: Tensor, at: Tensor) -> Tensor:
        return denoiser(state, denoiser.schedule.at_lambda(at)).eps

    if derivative == "difference":
        size = float(dx.square().mean().sqrt()) + abs(dlam)
        step = (1e-5 if x.dtype == torch.float64 else 5e-4) / max(size, 1e-12)
        ahead, behind = (eps(x + k * step * dx, lam + k * step * dlam) for k in (1, -1))
        return eps(x, lam), (ahead - behind) / (2 * step)
    with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        state = forward_ad.make_dual(x, dx)
        at = (
            forward_ad.make_dual(lam.clone(), torch.full(lam.shape, dlam, dtype=lam.dtype, device=lam.device))
            if dlam
            else lam
        )
        value, tangent = forward_ad.unpack_dual(eps(state, at))
    return value, torch.zeros_like(value) if tangent is None else tangent


@torch.no_grad()
def estimate_statistics(
    prior: Prior,
    latents: Tensor,
    condition: Condition,
    guidance: Guidance | float = 1.0,
    *,
    count: int = 120,
    chunk: int = 16,
    seed: int = 0,
    derivative: Derivative = "exact",
    states: States = "noised",
    ell: float | None = None,
    resume: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ModelStatistics:
    """Measures l, s, b of a prior.

    Args:
        prior: VP or flow prior.
        latents: clean latents (K, C, h, w) of the training set or the prior's own samples; K matters more than count.
        condition: K rows that belong to them, or one for all.
        guidance: the guidance the solver will be used with.
        count: cells of the lambda grid.
        chunk: samples asked at once; the result does not depend on it beyond rounding.
        seed: of noise and probes, which are independent of what sampling with the same seeds begins from.
        derivative: "exact" or "difference" (for networks without forward-mode derivatives).
        states: where the network is asked: "noised" latents, or points of first-order "trajectory" runs over the grid.
        ell: l is this everywhere instead of measured (1 suits some guided models); s and b follow from it.
        resume: file of the moments so far, written after every lambda; an interrupted run continues there.
        progress: called with (lambdas done, lambdas in all).
    """
    samples, shape = latents.shape[0], tuple(latents.shape[1:])
    if latents.ndim != 4 or samples < 2:
        raise InputError(f"latents have shape {tuple(latents.shape)}, expected (K, C, h, w) with K of at least 2")
    schedule = NoiseSchedule.from_config(prior.scheduler_config)
    lambdas = lambda_rows(schedule, count)
    mark = fingerprint(prior, shape, guidance)
    settings: dict[str, object] = {"samples": samples, "count": count, "seed": seed, "derivative": derivative}
    settings["states"] = states
    settings |= {"latents": digest({"latents": latents}), "conditions": condition_digest(condition)}
    kept = _started(resume, mark, settings, len(lambdas), latents)
    sums, done, path = kept["sums"], kept["done"], kept["path"]
    condition = condition.for_batch(samples)
    for row, lam in enumerate(lambdas.tolist()):
        if not done[row]:
            for start in range(0, samples, chunk):
                part = slice(start, min(start + chunk, samples))
                denoiser = Denoiser(prior, condition.index(part), guidance)
                seeds = range(seed + part.start, seed + part.stop)  # the same at every lambda: l stays smooth in it
                noise, probe = _draws(latents[part], list(seeds))
                # the DDIM step to the next lambda is the last estimate of clean latent and noise, mixed anew
                clean, noise = path[:, part] if row and states == "trajectory" else (latents[part], noise)
                found, path[0, part], path[1, part] = _moments(denoiser, clean, noise, probe, lam, derivative)
                sums[row] += found
            done[row] = 1
            if resume is not None:
                Calibration(MOMENTS_KIND, kept, mark, settings).save(resume)
        if progress is not None:
            progress(row + 1, len(lambdas))
    return _finished(lambdas, sums / samples, schedule.flow, ell, mark, settings)


def _started(
    resume: str | Path | None, mark: Fingerprint, settings: dict[str, object], rows: int, latents: Tensor
) -> dict[str, Tensor]:
    """Sums (rows, fields, C, h, w), which rows are done, and x0 and eps (2, K, C, h, w) at the last of them, from
    the file if there is one."""
    if resume is None or not Path(resume).exists():
        return {
            "sums": torch.zeros(rows, len(FIELDS), *latents.shape[1:], dtype=torch.float64),
            "done": torch.zeros(rows, dtype=torch.int64),
            "path": torch.zeros(2, *latents.shape, dtype=latents.dtype, device=latents.device),
        }
    made = Calibration.load(resume, MOMENTS_KIND, mark)
    if dict(made.settings) != settings:
        raise InputError(f"resume={resume} was begun with {dict(made.settings)}, now {settings}; remove it or match it")
    return {
        name: made.tensors[name].to(latents.device if name == "path" else "cpu").clone()
        for name in ("sums", "done", "path")
    }


def _draws(latents: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor]:
    """Noise and a Rademacher direction for each latent, by its seed."""
    noise, probe = [], []
    for number in seeds:
        own = probe_generator(number)
        noise.append(torch.randn(latents.shape[1:], generator=own, dtype=latents.dtype))
        probe.append(2.0 * torch.randint(0, 2, latents.shape[1:], generator=own).to(latents.dtype) - 1)
    return torch.stack(noise).to(latents.device), torch.stack(probe).to(latents.device)


def _moments(
    denoiser: Denoiser, clean: Tensor, noise: Tensor, along: Tensor, lam: float, derivative: Derivative
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over states of FIELDS, (fields, C, h, w) float64, at one lambda; and x0 and eps there."""
    at = torch.full((clean.shape[0],), lam, dtype=torch.float64)
    level = denoiser.schedule.at_lambda(at)
    alpha, sigma = level.coefficients(clean)
    x = denoiser.schedule.add_noise(clean, noise, level)
    eps, pushed = eps_derivative(denoiser, x, at, along, 0.0, derivative)
    rate = sigma if denoiser.schedule.flow else sigma**2  # d log alpha / d lambda
    deps = eps_derivative(denoiser, x, at, rate * x - sigma * eps, 1.0, derivative)[1]
    jacobian, e, de, state = (value.cpu().double() for value in (along * sigma * pushed, eps, deps, x))
    products = (e * e, e * de, e * state, de * state, state * state)
    return torch.stack([value.sum(0) for value in (jacobian, e, de, state, *products)]), (x - sigma * eps) / alpha, eps


def _finished(
    lambdas: Tensor, means: Tensor, flow: bool, ell: float | None, mark: Fingerprint, settings: dict[str, object]
) -> ModelStatistics:
    """l, s, b from the means of FIELDS."""
    m = {name: means[:, place] for place, name in enumerate(FIELDS)}
    table = m["jacobian"] if ell is None else torch.full_like(m["jacobian"], ell)
    slope = torch.gradient(table, spacing=(lambdas,), dim=0)[0]
    lam = lambdas.reshape(-1, 1, 1, 1)
    alpha = torch.sigmoid(lam) if flow else torch.sigmoid(2 * lam).sqrt()
    decay = torch.exp(-lam)

    def covariance(a: str, b: str) -> Tensor:
        return m[f"{a}_{b}"] - m[a] * m[b]

    pp, pq, py = covariance("eps", "eps"), covariance("eps", "deps"), covariance("eps", "x")
    qy, yy = covariance("deps", "x"), covariance("x", "x")
    # f = p eps + y x and f' = c eps + p eps' + d x, coefficient by coefficient
    p, y = decay, -table / alpha
    c, d = decay * (table - 1), -slope / alpha
    variance = (p * p * pp + 2 * p * y * py + y * y * yy).clamp(min=0)
    joint = p * (c * pp + p * pq + d * py) + y * (c * py + p * qy + d * yy)
    mean = p * m["eps"] + y * m["x"]
    mean_rate = c * m["eps"] + p * m["deps"] + d * m["x"]
    floor = RIDGE * (p * p * m["eps_eps"] + y * y * m["x_x"])
    s = torch.where(variance > floor, joint / (variance + floor), torch.zeros_like(joint))
    s = s.clamp(-LARGEST_SLOPE, LARGEST_SLOPE)
    made = {**settings, "l": "measured" if ell is None else ell}
    return ModelStatistics(lambdas, table, s, mean_rate - s * mean, mark, made)
