"""Options of the commands that sample images: solver, start, time table, cache and a second model, and their checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..utils.errors import InputError
from .common import check_range
from .priors import PriorCommand, QualityCommand

if TYPE_CHECKING:
    from ..pipelines.text_to_image import TextToImage

FROM_FILES = ("dpm-v3", "usf")  # families of solvers that belong to one network


@dataclass(frozen=True, kw_only=True)
class SamplingCommand(QualityCommand):
    """Options of commands that sample images."""

    steps: int | None = None
    """Solver steps (default: those of --quality)."""
    guidance: float | None = None
    """Classifier-free guidance, 1 is none (default: what suits the prior)."""
    negative: str = ""
    """What to avoid."""
    solver: str | None = None
    """ddim, dpm++, dpm++3m, unipc, euler, heun, ghvb, hb, or one of the patterns dpm-v3[:ORDER], ghvb:R,BETA,
    ghvb:NUMBER, hb:R,BETA, hb:SOLVER,BETA, usf:FILE, edict[:MIXING] (default: that of --quality)."""
    spacing: Literal["trailing", "leading", "linspace", "logsnr", "karras"] | None = None
    """Where the steps are: as diffusers spaces them, even in lambda, by Karras' rule (default: that of --quality)."""
    eta: float = 0.0
    """Randomness of ddim, 0 to 1."""
    statistics: Path | None = None
    """Model statistics for dpm-v3 and usf:FILE, from `unproject calibrate-solver --what statistics`."""
    teleport: float | None = None
    """Share of the steps replaced by the exact flow of --gaussian, 0 to below 1; 0.15 to 0.3 is common."""
    gaussian: Path | None = None
    """The Gaussian of --teleport, from `unproject calibrate-solver --what gaussian`."""
    boundary: Path | None = None
    """A chosen starting noise, from `unproject calibrate-solver --what boundary`."""
    time_remap: Path | None = None
    """Times told to the network at this --size, from `unproject calibrate-solver --what time-remap`."""
    cache: str | None = None
    """deep:INTERVAL,BRANCH,MODE, inherit:INTERVAL,DEPTH or regions:RATIO, as in deep:3 (default: none)."""
    model_schedule: str | None = None
    """NAME:SHARE, a second prior that takes the noisy share of the steps, as in toybox:0.4."""
    size: int | None = None
    """Pixels of a side (default: the prior's own)."""
    batch: int = 16
    """Images drawn at once."""

    def check(self) -> None:
        """Ranges, files that are not there, and options that do not go together."""
        check_range("--batch", self.batch, 1, 1024)
        if self.steps is not None:
            check_range("--steps", self.steps, 1, 1000)
        self._check_files()
        self._check_together()
        if self.cache is not None:
            from ..core.sampling.caches import parse_cache

            parse_cache(self.cache)
        super().check()

    def _check_files(self) -> None:
        files = {
            "--statistics": self.statistics,
            "--gaussian": self.gaussian,
            "--boundary": self.boundary,
            "--time-remap": self.time_remap,
        }
        for option, path in files.items():
            if path is not None and not path.is_file():
                kind = option.removeprefix("--")
                raise InputError(f"{option} {path} does not exist; make it: unproject calibrate-solver --what {kind}")
        schedule = (self.solver or "").partition("usf:")
        if schedule[1] and not schedule[0] and not Path(schedule[2]).is_file():
            raise InputError(f"--solver {self.solver}: {schedule[2]} does not exist; make it: unproject search-solver")

    def _check_together(self) -> None:
        family = (self.solver or "").partition(":")[0]
        if family == "dpm-v3" and self.statistics is None:
            raise InputError(f"--solver {self.solver} needs --statistics FILE, measured for this prior and guidance")
        if self.statistics is not None and family not in FROM_FILES:
            raise InputError(f"--statistics serves --solver dpm-v3 or usf:FILE, not {self.solver or 'the default'}")
        if (self.teleport is None) != (self.gaussian is None):
            given, lacks = (
                ("--teleport", "--gaussian FILE") if self.gaussian is None else ("--gaussian", "--teleport F")
            )
            raise InputError(f"{given} needs {lacks} too")
        if self.teleport is not None and not 0 <= self.teleport < 1:
            raise InputError(f"--teleport {self.teleport:g} must lie in [0, 1): the share of the steps to skip")
        if self.boundary is not None and self.eta:
            raise InputError(f"--boundary chooses all randomness of a run, --eta {self.eta:g} adds some; leave one out")
        if self.model_schedule is not None:
            self._check_models(family)

    def _check_models(self, family: str) -> None:
        name, _ = self.second_model()
        try:
            PriorCommand.check(self.at(name))
        except InputError as error:
            raise InputError(
                f"--model-schedule {self.model_schedule}: {str(error).removeprefix('--prior ')}"
            ) from error
        if self.cache not in (None, "none"):
            raise InputError("--model-schedule and --cache do not go together: there is no single network to cache")
        files = (self.statistics, self.gaussian, self.boundary, self.time_remap)
        if any(file is not None for file in files) or family in FROM_FILES:
            raise InputError("--model-schedule takes no calibrated files: each of them belongs to one network")

    def at(self, prior: str) -> SamplingCommand:
        """The same options on another prior; --base goes along to a checkpoint file only."""
        return replace(self, prior=prior, base=self.base if Path(prior).is_file() else None)

    def second_model(self) -> tuple[str, float]:
        """(name, share) of --model-schedule."""
        name, colon, share = (self.model_schedule or "").rpartition(":")
        try:
            value = float(share)
        except ValueError:
            value = -1.0
        if not (colon and name and 0 <= value <= 1):
            raise InputError(f"--model-schedule {self.model_schedule!r} must be NAME:SHARE with a share in [0, 1]")
        return name, value

    def sampling(self, pipe: TextToImage) -> tuple[TextToImage, dict[str, Any]]:
        """The pipeline that draws, and the arguments of its call; every file is checked against what is in force."""
        from ..pipelines.sampling_files import calibrated, with_first_model

        options: dict[str, Any] = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "height": self.size,
            "width": self.size,
            "solver": self.solver,
            "spacing": self.spacing,
            "eta": self.eta,
            "batch_size": self.batch,
        }
        options |= {key: value for key in ("statistics", "cache") if (value := getattr(self, key)) is not None}
        if self.model_schedule is not None:
            from ..core.priors import load_prior

            name, share = self.second_model()
            first = load_prior(name, **PriorCommand.placement(self.at(name)))
            grid: dict[str, Any] = {
                "steps": self.steps,
                "solver": self.solver,
                "spacing": self.spacing,
                "size": self.size,
            }
            return with_first_model(pipe, first, share, **grid), options
        options |= calibrated(
            pipe,
            guidance=self.guidance,
            size=self.size,
            solver=self.solver,
            boundary=self.boundary,
            gaussian=self.gaussian,
            teleport=self.teleport or 0.0,
            time_remap=self.time_remap,
            negative=self.negative or None,
        )
        return pipe, options
