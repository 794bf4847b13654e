"""Calibration of the sampling core for one prior, size and guidance, on the prior's own samples of given prompts.

Statistics, a Gaussian, a starting noise, a time table, an error curve, a searched solver: the core measures, this file
provides what it measures on. Interrupted work that left files in `Sizes.work` goes on from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.priors import Condition
from ..core.sampling import Denoiser, GaussianPrior, Guidance, NoiseSchedule, Sampler, TimeRemap
from ..core.sampling.calibration import Calibration, Fingerprint, fingerprint
from ..core.sampling.dpm_v3_estimation import Derivative, States, estimate_statistics
from ..core.sampling.dpm_v3_statistics import STRONG_GUIDANCE, ModelStatistics
from ..core.sampling.drawing import Drawing
from ..core.sampling.flair import ErrorCurve, error_curve
from ..core.sampling.grids import SPACINGS, Spacing
from ..core.sampling.guidance import guided
from ..core.sampling.noiseshift import RemapSearch, calibrate_time_remap
from ..core.sampling.optimal_boundary import (
    BoundaryNoise,
    BoundarySearch,
    candidates,
    grid_lambdas,
    search_boundary,
)
from ..core.sampling.paired_error import PairedError
from ..core.sampling.plan import SamplingPlan
from ..core.sampling.solvers import SolverSchedule
from ..core.sampling.solvers.decisions import times_of
from ..core.sampling.usf_search import SearchResult, SearchSpace, baselines, search_schedule
from ..utils.errors import InputError
from ..utils.progress import Progress
from ..utils.seeds import generator, sample_noise
from .sampling_parts import latent_shape
from .text_to_image import TextToImage

SAMPLES_KIND = "own-samples"
FINE: Spacing = "logsnr"  # where second-order DPM-Solver++ keeps the spread of the distribution best
REMAP_SEARCH = RemapSearch()
CANDIDATE_SEED = 200_000  # candidate noises are far from those of the samples


@dataclass(frozen=True)
class Sizes:
    """What is measured on."""

    guidance: float | None = None  # None: what suits the prior
    size: int | None = None  # px of a side; None: the prior's own
    steps: int = 30  # of the prior's own samples (second-order DPM-Solver++)
    batch: int = 16  # rows asked at once
    seed: int = 0
    work: Path | None = None  # folder of what an interrupted run goes on from; None: nothing is kept
    negative: str | None = None  # negative prompt of every sample


class Setting(NamedTuple):
    """A prior at a guidance and latent shape, asked with some prompts."""

    scale: float
    shape: tuple[int, int, int]
    guidance: Guidance
    condition: Condition
    fingerprint: Fingerprint


def setting(pipe: TextToImage, prompts: Sequence[str], sizes: Sizes) -> Setting:
    """What `sizes` means for this prior. Raises InputError without prompts and for sizes it cannot draw."""
    if not prompts:
        raise InputError("prompts is empty; calibrate on prompts like those that will be drawn")
    scale = pipe.prior.recommended.guidance if sizes.guidance is None else sizes.guidance
    shape = latent_shape(pipe.prior, sizes.size, sizes.size)
    guidance, condition = guided(pipe.prior, pipe.prior.encode_text(list(prompts), sizes.negative), scale)
    return Setting(scale, shape, guidance, condition, fingerprint(pipe.prior, shape, scale, sizes.negative))


def _kept(name: str, found: Setting, sizes: Sizes) -> Path | None:
    """A file of the work folder, of its own for other prompts, guidance, size, steps and seed."""
    if sizes.work is None:
        return None
    told = (*found.condition.prompts, sizes.negative or "", f"{found.scale:g}", found.shape, sizes.steps, sizes.seed)
    sizes.work.mkdir(parents=True, exist_ok=True)
    return sizes.work / f"{name}-{hashlib.blake2b(repr(told).encode(), digest_size=6).hexdigest()}.safetensors"


def own_samples(pipe: TextToImage, prompts: Sequence[str], sizes: Sizes) -> Tensor:
    """The prior's own samples, scaled latents (N, C, h, w); sample i uses seed + i. Kept in the work folder."""
    found = setting(pipe, prompts, sizes)
    path = _kept("samples", found, sizes)
    if path is not None and path.is_file():
        return Calibration.load(path, SAMPLES_KIND, found.fingerprint).tensors["latents"].to(pipe.prior.device)
    drawn = pipe(
        list(prompts),
        sizes.negative,
        num_inference_steps=sizes.steps,
        guidance_scale=found.scale,
        height=sizes.size,
        width=sizes.size,
        solver="dpm++",
        spacing=FINE,
        seed=sizes.seed,
        batch_size=sizes.batch,
        output_type="latent",
        return_dict=False,
    )
    latents: Tensor = drawn[0]
    if path is not None:
        Calibration(SAMPLES_KIND, {"latents": latents}, found.fingerprint).save(path)
    return latents


def usual_states(guidance: float) -> States:
    """Where statistics for this guidance are measured unless one says otherwise."""
    return "trajectory" if guidance > STRONG_GUIDANCE else "noised"


def measure_statistics(
    pipe: TextToImage,
    prompts: Sequence[str],
    sizes: Sizes,
    cells: int = 80,
    derivative: Derivative = "exact",
    states: States | None = None,
) -> ModelStatistics:
    """Model statistics for DPM-Solver-v3; every lambda done is kept in the work folder.

    Without `states` they are those of `usual_states`.
    """
    found, latents = setting(pipe, prompts, sizes), own_samples(pipe, prompts, sizes)
    with Progress(cells + 1, "statistics") as bar:
        made = estimate_statistics(
            pipe.prior,
            latents,
            found.condition,
            found.guidance,
            count=cells,
            chunk=sizes.batch,
            seed=sizes.seed,
            derivative=derivative,
            states=states or usual_states(found.scale),
            resume=_kept("moments", found, sizes),
            progress=lambda *_: bar.advance(),
        )
    return replace(made, fingerprint=found.fingerprint)


def fit_gaussian(pipe: TextToImage, prompts: Sequence[str], sizes: Sizes) -> GaussianPrior:
    """The Gaussian of the prior's own samples at this guidance, for `TeleportInit`."""
    return GaussianPrior.fit(own_samples(pipe, prompts, sizes).split(256))


def choose_boundary(
    pipe: TextToImage,
    prompts: Sequence[str],
    sizes: Sizes,
    solver: str | None = None,
    steps: int | None = None,
    count: int = 32,
) -> tuple[BoundaryNoise, BoundarySearch]:
    """The noise, of `count`, whose run of few steps ends nearest its own long run, mean over the prompts.

    Without pictures to restore the truth is what the prior itself makes of a noise when the steps are many.

    Args:
        pipe: its prior is measured.
        prompts: the references, one each.
        sizes: `steps` is that of the long run.
        solver: of the runs to come, deterministic; None: that of the pipeline's quality.
        steps: of the runs to come; None: those of the pipeline's quality.
        count: candidate noises.
    """
    found, prior = setting(pipe, prompts, sizes), pipe.prior
    runs = SamplingPlan(solver, steps, guidance=found.scale), SamplingPlan("dpm++", sizes.steps, FINE, found.scale)
    few, many = (pipe.drawing(plan, found.shape, sizes.negative) for plan in runs)
    noises = candidates(found.shape, range(sizes.seed + CANDIDATE_SEED, sizes.seed + CANDIDATE_SEED + count))

    def ends(draw: Drawing, noise: Tensor, rows: list[int]) -> Tensor:
        denoiser = Denoiser(prior, found.condition.index(rows), found.guidance)
        return Sampler(draw.solver).run(denoiser, noise.to(prior.device), draw.levels)

    with torch.no_grad(), Progress(count * len(prompts), "boundary") as bar:

        def loss(noise: Tensor, rows: list[int]) -> Tensor:
            apart = ends(few, noise, rows) - ends(many, noise, rows)
            bar.advance(len(rows))
            return apart.square().mean((1, 2, 3))

        search = search_boundary(loss, noises, len(prompts), sizes.batch)
    best = search.best
    seed = sizes.seed + CANDIDATE_SEED + best
    return BoundaryNoise(
        noises[best], str(few.plan.solver), grid_lambdas(few.levels), seed, float(search.means[best])
    ), search


def fit_time_remap(
    pipe: TextToImage, prompts: Sequence[str], sizes: Sizes, search: RemapSearch = REMAP_SEARCH
) -> TimeRemap:
    """The time table of `sizes.size` px, on the prior's own samples of its own size, reduced with antialiasing."""
    own_px = pipe.prior.latent_shape[1] * pipe.prior.vae_factor
    size = sizes.size or own_px
    if size > own_px:
        raise InputError(f"size={size} is above the prior's own {own_px} px: enlarged samples would lack detail")
    latents = own_samples(pipe, prompts, replace(sizes, size=None))
    condition = setting(pipe, prompts, sizes).condition
    with torch.no_grad():
        latents = torch.cat([_resized(pipe, part, size) for part in latents.split(sizes.batch)])
    return calibrate_time_remap(pipe.prior, latents, condition, search, sizes.seed, sizes.batch).remap


def _resized(pipe: TextToImage, latents: Tensor, size: int) -> Tensor:
    images = pipe.prior.decode(latents)
    if size != images.shape[-1]:
        images = F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return pipe.prior.encode(images)


def measure_error_curve(pipe: TextToImage, prompts: Sequence[str], sizes: Sizes) -> ErrorCurve:
    """How far to trust the prior at each level, for `RestoreImage`."""
    found, latents = setting(pipe, prompts, sizes), own_samples(pipe, prompts, sizes)
    return error_curve(pipe.prior, latents, found.condition, found.guidance, seed=sizes.seed, batch=sizes.batch)


class FoundSolver(NamedTuple):
    """A searched solver, and the best fixed one it began with."""

    result: SearchResult
    fixed: str
    fixed_score: float


def search_solver(
    pipe: TextToImage,
    prompts: Sequence[str],
    sizes: Sizes,
    nfe: int = 5,
    budget: int = 150,
    reference_steps: int = 200,
) -> FoundSolver:
    """The solver schedule of `nfe` calls nearest to a long run from the same noise, over these prompts.

    It needs neither statistics nor a mean, so its file is used alone. The known solvers on every spacing are tried
    first and count towards the budget. The long run is kept in the work folder.
    """
    found = setting(pipe, prompts, sizes)
    noise = sample_noise(found.shape, [generator(sizes.seed + i) for i in range(len(prompts))], len(prompts))
    error = PairedError(
        pipe.prior,
        found.condition,
        noise.to(pipe.prior.device),
        found.guidance,
        steps=reference_steps,
        final="index0",
        batch=sizes.batch,
        cache=_kept("reference", found, sizes),
    )
    space = SearchSpace(nfe, predictions=("noise", "data"), first_steps=("none", "zero_x0"))
    known = known_solvers(space, error.schedule)
    if budget < len(known):
        raise InputError(f"budget={budget} must be at least {len(known)}, the known solvers that are tried first")
    with Progress(budget, "search") as bar:
        result = search_schedule(
            error,
            space,
            list(known.values()),
            budget=budget,
            seed=sizes.seed,
            progress=lambda _, best: bar.advance(best=best),
        )
    fixed, (_, score) = min(zip(known, result.history), key=lambda item: item[1][1])
    return FoundSolver(result, fixed, score)


def known_solvers(space: SearchSpace, schedule: NoiseSchedule) -> dict[str, SolverSchedule]:
    """The known solvers of `space.nfe` calls on every spacing that has as many levels, by name and spacing."""
    found: dict[str, SolverSchedule] = {}
    for spacing in SPACINGS:
        times = times_of(schedule.grid(space.nfe, spacing, "index0"), schedule)
        try:
            made = baselines(space, lambda _, times=times: times)  # type: ignore[misc]
        except InputError:  # a spacing that visits its last level twice
            continue
        found |= {f"{name}, {spacing}": solver for name, solver in made.items()}
    first = {solver: name for name, solver in reversed(found.items())}  # some are the same at so few steps
    return {name: solver for name, solver in found.items() if first[solver] == name}
