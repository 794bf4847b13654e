"""Options of the commands that sample images: solver, start, time table, cache and a second model, and their checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..utils.errors import InputError
from .common import Seeded, check_file, check_range, check_size
from .priors import PriorCommand, QualityCommand

if TYPE_CHECKING:
    from ..core.sampling.plan import SamplingPlan

PLANNED = (  # options that are settings of a sampling plan
    *("solver", "steps", "spacing", "guidance", "eta", "statistics", "cache", "gaussian", "teleport", "boundary"),
    *("time_remap", "model_schedule"),
)


@dataclass(frozen=True, kw_only=True)
class SamplingCommand(QualityCommand, Seeded):
    """Options of commands that sample images."""

    steps: int | None = None
    """Solver steps (default: those of --quality)."""
    guidance: float | None = None
    """Classifier-free guidance, 1 is none (default: what suits the prior)."""
    negative: str = ""
    """What to avoid."""
    solver: str | None = None
    """ddim, dpm++, dpm++3m, unipc, euler, heun, ghvb, hb, or one of the patterns dpm-v3[:ORDER], ghvb:R,BETA,
    ghvb:NUMBER, hb:R,BETA, hb:SOLVER,BETA, usf:FILE, edict[:MIXING], lcm, arc (default: that of --quality)."""
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
    """Images drawn at once, at most: fewer where memory is short."""

    def check(self) -> None:
        """Ranges, files that are not there, and options that do not go together."""
        check_range("--batch", self.batch, 1, 1024)
        check_size(self.size)
        if self.steps is not None:
            check_range("--steps", self.steps, 1, 1000)
        self._check_files()
        self.sampling_plan().check(option)
        self._check_solver()
        if self.model_schedule is not None:
            self._check_model()
        super().check()

    def _check_files(self) -> None:
        files = {
            "--statistics": self.statistics,
            "--gaussian": self.gaussian,
            "--boundary": self.boundary,
            "--time-remap": self.time_remap,
        }
        for option, path in files.items():
            if path is not None:
                kind = option.removeprefix("--")
                check_file(option, path, f"make it: unproject calibrate-solver --what {kind}")
        schedule = (self.solver or "").partition("usf:")
        if schedule[1] and not schedule[0] and not Path(schedule[2]).is_file():
            raise InputError(f"--solver {self.solver}: {schedule[2]} does not exist; make it: unproject search-solver")

    def _check_solver(self) -> None:
        """A solver that no file and no prior completes is made once, to see whether there is one."""
        from ..core.sampling.solvers import CALIBRATED, SOLVERS, make_solver

        name = self.solver or ""
        if name and name not in SOLVERS and name.partition(":")[0] not in CALIBRATED:
            try:
                make_solver(name)
            except InputError as error:
                told = str(error).removeprefix(f"solver {name!r}").lstrip(" :")
                raise InputError(f"--solver {name}: {told}") from error

    def _check_model(self) -> None:
        name = str(self.sampling_plan().model_share[0])
        try:
            PriorCommand.check(self.at(name))
        except InputError as error:
            raise InputError(
                f"--model-schedule {self.model_schedule}: {str(error).removeprefix('--prior ')}"
            ) from error

    def at(self, prior: str) -> SamplingCommand:
        """The same options on another prior; --base goes along to a checkpoint file only, what names files of --prior
        to no other prior."""
        other = replace(self, prior=prior, base=self.base if Path(prior).is_file() else None)
        return other if prior == self.prior else replace(other, variant=None, revision=None, lora=())

    def sampling_plan(self) -> SamplingPlan:
        """What the options say about the way to draw."""
        from ..core.sampling.plan import SamplingPlan

        return SamplingPlan().changed(**{name: getattr(self, name) for name in PLANNED})

    def loaded_plan(self) -> SamplingPlan:
        """The same with a second prior loaded."""
        plan = self.sampling_plan()
        if plan.model_schedule is None:
            return plan
        from ..core.priors import load_prior

        name, share = plan.model_share
        first = load_prior(str(name), **PriorCommand.placement(self.at(str(name))))
        return plan.changed(model_schedule=(first, share))


def option(name: str, value: Any = None) -> str:
    """A setting of a plan as the command line calls it."""
    flag = "--" + name.replace("_", "-")
    return flag if value is None else f"{flag} {value}"
