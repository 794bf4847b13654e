"""A sampling plan: all that decides how a picture is drawn, beside its words, its size and its randomness.

One object for Python, the command line, the presets and run.json. What goes together is checked here, once;
`core.sampling.drawing` puts a plan on a prior.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol, get_args

from ...utils.errors import InputError
from ..priors.base import Prior, Recommended
from .caches import CacheConfig, parse_cache
from .denoiser import Control, Remap
from .dpm_v3_statistics import ModelStatistics
from .focus import AttentionCost, parse_control
from .grids import SPACINGS, Spacing
from .guidance import Guidance
from .init import Init
from .optimal_boundary import BoundaryNoise
from .solvers import CALIBRATED, Solver
from .teleport import GaussianPrior

ALIASES = {"num_inference_steps": "steps", "guidance_scale": "guidance", "controls": "control"}  # diffusers' names


_WANTED = {  # what a setting is, for messages
    "solver": "name of a solver and no Solver",
    "cache": "text such as deep:3 and no config of a cache",
    "statistics": "file and no ModelStatistics",
    "gaussian": "file and no GaussianPrior",
    "boundary": "file and no BoundaryNoise",
    "init": "start, which is called with noise and levels",
    "time_remap": "file and no map of times",
    "control": "text such as focus:2, no control and no list of controls",
    "subjects": "list of words",
}


class Tell(Protocol):
    """How a setting is called where it was given: "eta", "eta=0.5" in Python, "--eta 0.5" on the command line."""

    def __call__(self, name: str, value: Any = None) -> str: ...


def keyword(name: str, value: Any = None) -> str:
    """A setting as Python calls it."""
    return name if value is None else f"{name}={value}"


@dataclass(frozen=True)
class SamplingPlan:
    """Settings of a run; None is what suits the prior, or nothing at all."""

    solver: str | Solver | None = None
    """a name of `core.sampling.SOLVERS` (ddim, dpm++, unipc, euler, heun, ghvb:2,0.5 ...), "dpm-v3:2", "usf:FILE"
    or a Solver"""
    steps: int | None = None
    """solver steps"""
    spacing: Spacing | None = None
    """trailing, leading, linspace, logsnr or karras"""
    guidance: float | Guidance | None = None
    """classifier-free scale, 1 switches it off; or a `Guidance`, such as `ClassifierFree(5, interval=(0.2, 0.8))`"""
    guidance_rescale: float = 0.0
    """[0, 1], against over-saturation at high classifier-free scales"""
    eta: float = 0.0
    """randomness of ddim, [0, 1]"""
    statistics: ModelStatistics | str | Path | None = None
    """model statistics, or their file, for dpm-v3 and for schedules with v3 steps"""
    cache: CacheConfig | str | None = None
    """what is not computed anew at every step: a config or "deep:3", "inherit", "regions:0.5"."""
    control: str | Control | Sequence[Control] = ()
    """changes each guided prediction: `VelocityControl`s, or "focus:2", "attend-and-excite" for one prompt"""
    subjects: tuple[str, ...] = ()
    """of a control given as text, words of the prompt; empty: read off it"""
    gaussian: GaussianPrior | str | Path | None = None
    """the Gaussian, or its file, whose exact flow replaces the first steps"""
    teleport: float | None = None
    """share of the steps it replaces, [0, 1)"""
    boundary: BoundaryNoise | str | Path | None = None
    """one chosen starting noise, or its file, for every image"""
    init: Init | None = None
    """another start, after those above"""
    time_remap: Remap | str | Path | None = None
    """what the network is told instead of its own times (`TimeRemap`), or its file"""
    model_schedule: str | tuple[Prior, float] | None = None
    """a second prior that takes the noisy share of the steps: "NAME:SHARE" or (prior, share)"""

    @classmethod
    def of(cls, recommended: Recommended) -> SamplingPlan:
        """What a prior's makers recommend."""
        return cls(recommended.solver, recommended.steps, recommended.spacing, recommended.guidance)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingPlan:
        """A plan of plain values, as in YAML and run.json. Raises InputError for unknown names and told objects."""
        objects = [name for name, value in values.items() if _holds_object(value)]
        if objects:
            raise InputError(
                f"plan: {objects[0]} was an object in memory, {values[objects[0]]}, which a file cannot bring back; "
                "save it and name its file"
            )
        lists = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls().changed(**lists)

    def to_dict(self) -> dict[str, Any]:
        """Plain values of what is set; objects in memory are named by their type."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {name: _plain(value) for name, value in values.items()}

    def changed(self, **settings: Any) -> SamplingPlan:
        """With other settings, also by diffusers' names; None leaves one as it is. Refuses other names."""
        names = [f.name for f in fields(self)]
        given: dict[str, Any] = {}
        for name, value in settings.items():
            field = ALIASES.get(name, name)
            if field not in names:
                near = difflib.get_close_matches(name, [*names, *ALIASES], 1)
                hint = f"; did you mean {near[0]}?" if near else f"; have {', '.join(names)}"
                raise InputError(f"{name}= is no setting of a sampling plan{hint}")
            if field in given:
                other = next(other for other in settings if ALIASES.get(other, other) == field and other != name)
                raise InputError(f"{other}= and {name}= are the same setting; give one")
            if value is not None:
                given[field] = value
        return replace(self, **given)

    def over(self, defaults: SamplingPlan) -> SamplingPlan:
        """This plan, where it says nothing else with the settings of another one."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return replace(defaults, **own)

    @property
    def family(self) -> str:
        """The solver's name without its argument; empty for an object and where none is named."""
        return self.solver.partition(":")[0] if isinstance(self.solver, str) else ""

    @property
    def controls(self) -> tuple[Control, ...]:
        """Controls given as objects."""
        if isinstance(self.control, str):
            return ()
        return (self.control,) if callable(self.control) else tuple(self.control)

    @property
    def model_share(self) -> tuple[str | Prior, float]:
        """(prior or its name, share) of `model_schedule`. Raises InputError for anything else."""
        if isinstance(self.model_schedule, tuple) and len(self.model_schedule) == 2:
            first, share = self.model_schedule
            if isinstance(first, (str, Prior)) and _is_number(share) and 0 <= share <= 1:
                return first, float(share)
        name, colon, told = str(self.model_schedule or "").rpartition(":")
        try:
            value = float(told)
        except ValueError:
            value = -1.0
        if not (isinstance(self.model_schedule, str) and colon and name and 0 <= value <= 1):
            raise InputError(f"{self.model_schedule!r} must be NAME:SHARE with a share in [0, 1]")
        return name, value

    def check(self, tell: Tell = keyword) -> None:
        """Raises InputError for values out of range and settings that do not go together, before anything is loaded."""
        self.check_types(tell)
        self._check_values(tell)
        self._check_objects(tell)
        self._check_solver(tell)
        self._check_start(tell)
        self._check_control(tell)
        if isinstance(self.cache, str):
            parse_cache(self.cache)
        if self.model_schedule is not None:
            self._check_models(tell)

    def check_types(self, tell: Tell = keyword) -> None:
        """Raises InputError for numbers that are none."""
        if self.steps is not None and (isinstance(self.steps, bool) or not isinstance(self.steps, Integral)):
            raise InputError(f"{tell('steps', repr(self.steps))} must be a whole number")
        for name in ("guidance", "guidance_rescale", "eta", "teleport"):
            value = getattr(self, name)
            if value is None or (name == "guidance" and callable(value)):
                continue
            if not _is_number(value) or not math.isfinite(value):
                shown = value if isinstance(value, Real) else repr(value)
                raise InputError(f"{tell(name, shown)} must be a finite number")

    def _check_values(self, tell: Tell) -> None:
        if self.steps is not None and self.steps < 1:
            raise InputError(f"{tell('steps', self.steps)} must be at least 1")
        for name in ("guidance_rescale", "eta"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise InputError(f"{tell(name, repr(value))} must lie in [0, 1]")
        if self.teleport is not None and not 0 <= self.teleport < 1:
            raise InputError(f"{tell('teleport', f'{self.teleport:g}')} must lie in [0, 1): the share of steps to skip")
        if callable(self.guidance) and self.guidance_rescale:
            told = tell("guidance_rescale", self.guidance_rescale)
            raise InputError(f"{told} belongs to a guidance scale; give it to the Guidance itself")
        if self.spacing is not None and self.spacing not in SPACINGS:
            raise InputError(f"{tell('spacing', repr(self.spacing))} is unknown; have {', '.join(SPACINGS)}")

    def _check_objects(self, tell: Tell) -> None:
        file, texts = (str, Path), self.subjects
        fits = {
            "solver": isinstance(self.solver, (str, Solver)),
            "cache": isinstance(self.cache, (str, *get_args(CacheConfig))),
            "statistics": isinstance(self.statistics, (ModelStatistics, *file)),
            "gaussian": isinstance(self.gaussian, (GaussianPrior, *file)),
            "boundary": isinstance(self.boundary, (BoundaryNoise, *file)),
            "init": callable(self.init),
            "time_remap": callable(self.time_remap) or isinstance(self.time_remap, file),
            "control": isinstance(self.control, str)
            or callable(self.control)
            or (isinstance(self.control, Sequence) and all(callable(control) for control in self.control)),
            "subjects": not isinstance(texts, str) and all(isinstance(text, str) for text in texts),
        }
        for name, fit in fits.items():
            if getattr(self, name) is not None and not fit:
                given = repr(getattr(self, name))[:80]
                raise InputError(f"{tell(name, given)} is no {_WANTED[name]}")

    def _check_solver(self, tell: Tell) -> None:
        if self.family == "dpm-v3" and self.statistics is None:
            needs = tell("statistics", "FILE")
            raise InputError(f"{tell('solver', self.solver)} needs {needs}, measured for this prior and guidance")
        if self.statistics is not None and self.family not in CALIBRATED:
            name = "the default" if self.solver is None else self.solver
            raise InputError(f"{tell('statistics')} serves {tell('solver', 'dpm-v3')} or usf:FILE, not {name}")

    def _check_start(self, tell: Tell) -> None:
        if (self.teleport is None) != (self.gaussian is None):
            given, lacks = (
                ("teleport", ("gaussian", "FILE")) if self.gaussian is None else ("gaussian", ("teleport", "F"))
            )
            raise InputError(f"{tell(given)} needs {tell(*lacks)} too")
        if self.boundary is not None and self.eta:
            raise InputError(
                f"{tell('boundary')} chooses all randomness of a run, {tell('eta', f'{self.eta:g}')} adds "
                "some; leave one out"
            )

    def _check_control(self, tell: Tell) -> None:
        if self.subjects and not isinstance(self.control, str):
            told = "; ".join(self.subjects)
            raise InputError(f"{tell('subjects', repr(told))} are those of {tell('control', 'focus')}; give it too")
        asks = any(isinstance(getattr(control, "cost", None), AttentionCost) for control in self.controls)
        if isinstance(self.control, str) and self.control:
            parse_control(self.control)
            asks = True
        if not asks:
            return
        control = self.control if isinstance(self.control, str) else "of attention"
        for name in ("cache", "model_schedule"):
            if (value := getattr(self, name)) not in (None, "none"):
                raise InputError(
                    f"{tell('control', control)} does not go with {tell(name, value)}: it asks the network itself, "
                    "once more at every step"
                )

    def _check_models(self, tell: Tell) -> None:
        try:
            self.model_share  # noqa: B018
        except InputError as error:
            raise InputError(f"{tell('model_schedule')} {error}") from error
        if self.cache not in (None, "none"):
            raise InputError(
                f"{tell('model_schedule')} and {tell('cache')} do not go together: there is no single network to cache"
            )
        files = (self.statistics, self.gaussian, self.boundary, self.time_remap)
        if any(isinstance(file, (str, Path)) for file in files) or self.family in CALIBRATED:
            raise InputError(f"{tell('model_schedule')} takes no calibrated files: each of them belongs to one network")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _holds_object(value: Any) -> bool:
    """Whether a plain value tells of an object that was in memory."""
    return isinstance(value, Mapping) or (isinstance(value, list) and any(map(_holds_object, value)))


def _plain(value: Any) -> Any:
    """A setting as JSON holds it."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"object": type(value).__name__, "settings": str(value)[:200]}
    return {"object": type(value).__name__}
