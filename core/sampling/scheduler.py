"""Our solvers in stock diffusers pipelines.

>>> pipe.scheduler = DPMSolverV3Scheduler.from_config(pipe.scheduler.config, statistics="statistics.safetensors")

A pipeline calls its network at `timesteps` in order and hands every answer to `step`, which sends it to the run of a
Solver. The state stays unscaled (x = alpha x0 + sigma eps). Steps are counted, never looked up by their time, so
repeated times are fine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerOutput
from torch import Tensor

from ...utils.errors import InputError
from ..priors.schedulers import read_scheduler
from .dpm_v3_statistics import ModelStatistics
from .levels import Level, NoiseSchedule
from .prediction import Prediction
from .solvers import Solver, Steps, UnifiedSolver, advanced, make_solver
from .solvers.decisions import SolverSchedule

Generators = torch.Generator | list[torch.Generator] | None


class SolverScheduler(SchedulerMixin, ConfigMixin):
    """Any solver by name ("ddim", "ghvb:2,0.5", "hb:dpm++,0.9", ...) as a diffusers scheduler, VP or flow.

    `from_config` takes the config of the scheduler it replaces: betas, prediction type, spacing, flow shift.
    """

    config_name = "scheduler_config.json"
    ignore_for_config = ["statistics"]
    default_solver = "ddim"
    _x: Tensor  # the state that the run under way asks at
    _compatibles = [e.name for e in KarrasDiffusionSchedulers] + ["FlowMatchEulerDiscreteScheduler"]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        set_alpha_to_one: bool = True,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        snr_shift_scale: float | None = None,
        sigma_spacing: str | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        original_inference_steps: int = 50,
        replaces: str | None = None,
        solver: str | None = None,
        solver_schedule: dict[str, Any] | None = None,
        statistics: ModelStatistics | str | Path | None = None,
    ) -> None:
        """The noise path as diffusers writes it ("flow_prediction" is a rectified flow), and our solver.

        Args:
            num_train_timesteps: train steps N; the betas and what follows them describe a VP path.
            timestep_spacing: "leading", "trailing", "linspace", "logsnr" or "karras" (flows have their own).
            shift: of a flow's sigmas; with use_dynamic_shifting the pipeline's mu replaces it.
            shift_terminal: last sigma of a flow, to which the others are stretched.
            sigma_spacing: "karras", "exponential", "lu" or "beta" sigmas as diffusers spaces them, from sigma_max to
                sigma_min (sigma / alpha, of VP paths) where these are given.
            original_inference_steps: steps that an LCM or TCD model was distilled on.
            replaces: class of diffusers whose levels are laid out; None: DDIMScheduler, or FlowMatchEuler.
            solver: name for `make_solver`; None: this class's own.
            solver_schedule: `SolverSchedule.to_dict()` to run instead.
            statistics: model statistics or their file, where the solver needs them.
        """
        if isinstance(statistics, (str, Path)):
            statistics = ModelStatistics.load(statistics)
        self._statistics: ModelStatistics | None = statistics
        self._prepare()

    def _prepare(self) -> None:
        self.noise_schedule = NoiseSchedule.from_config(self.config)
        self.solver = self._make(self._statistics)
        self.init_noise_sigma = 1.0
        steps = min(50, self.noise_schedule.steps)
        self.set_timesteps(self.solver.schedule.steps if isinstance(self.solver, UnifiedSolver) else steps)

    def _make(self, statistics: ModelStatistics | None) -> Solver:
        if self.config["solver_schedule"] is not None:
            return UnifiedSolver(SolverSchedule.from_dict(self.config["solver_schedule"]), statistics)
        name = self.config["solver"] or self.default_solver
        return make_solver(name, self.noise_schedule.flow, self.config["prediction_type"], statistics=statistics)

    @classmethod
    def from_config(
        cls,
        config: Any = None,
        return_unused_kwargs: bool = False,
        statistics: ModelStatistics | str | Path | None = None,
        **options: Any,
    ) -> Any:
        """From the config of any diffusers scheduler; our own arguments come as keywords.

        Its levels stay as they were, class and untouched defaults included. A `solver` given here replaces a solver
        schedule the config may hold. Raises InputError that names what of the config or the options is not supported.
        """
        theirs = dict(config or {})
        ours = {name: theirs[name] for name in ("solver", "solver_schedule") if name in theirs}
        if options.get("solver") is not None:
            ours["solver_schedule"] = None
        ours |= {name: options.pop(name) for name in ("solver", "solver_schedule") if name in options}
        read = read_scheduler(theirs, **options)
        read.pop("spacing", None)  # a pipeline that wants sigmas of its own hands them over
        known, unused, hidden = cls.extract_init_dict({**read, **ours})
        made = cls(**known, statistics=statistics)
        kept = {name: value for name, value in theirs.items() if name not in made.config and not name.startswith("_")}
        made.register_to_config(**{**kept, **hidden, "_class_name": cls.__name__})
        return (made, {**unused, **hidden}) if return_unused_kwargs else made

    @property
    def step_index(self) -> int | None:
        """Index into `timesteps` of the next answer; None before the first."""
        return None if self._run is None else self._asked

    @property
    def begin_index(self) -> int | None:
        """Index into `timesteps` a run begins at."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Where a partial run (image to image) enters."""
        self._begin_index: int | None = int(begin_index)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Lays out the levels.

        Args:
            num_inference_steps: steps of the config's own spacing, unless levels are given.
            device: of `timesteps`.
            timesteps: falling model times to step through, ending without noise or as the config says.
            sigmas: falling sigmas instead; of flows before the shift, else sigma / alpha.
            mu: logarithm of a flow's shift.
        """
        own = self.solver.own_grid(self.noise_schedule)
        if own is not None and num_inference_steps not in (None, len(own) - 1):
            raise InputError(
                f"num_inference_steps={num_inference_steps}: this solver schedule has {len(own) - 1} steps"
            )
        self._grid = own or self._levels(num_inference_steps, timesteps, sigmas, mu)
        self._asks = self.solver.asks(self._grid)
        if self._asks[0] != 0:
            raise InputError(
                "a solver schedule that skips the first network call cannot run inside a stock pipeline, which makes "
                'that call anyway; use first="none" or the Sampler'
            )
        self.num_inference_steps = len(self._grid) - 1
        times = torch.tensor([float(self._grid[k].model_time) for k in self._asks], dtype=torch.float64)
        whole = not self.noise_schedule.flow and bool((times == times.round()).all())
        self.timesteps = times.to(device, torch.int64 if whole else torch.float32)
        self.sigmas = torch.tensor([self._sigma(level) for level in self._grid])
        self.order = max(Counter(self._asks).values())
        self._run: Steps | None = None
        self._level: Level | None = None  # asked next
        self._begin_index = None
        self._asked = 0

    def _levels(
        self,
        steps: int | None,
        timesteps: Sequence[float] | None,
        sigmas: Sequence[float] | None,
        mu: float | None,
    ) -> list[Level]:
        schedule = self.noise_schedule
        if timesteps is None and sigmas is None and steps is None:
            raise InputError("set_timesteps needs num_inference_steps, timesteps or sigmas")
        if schedule.flow:
            shift = schedule.rule.shift if mu is None else schedule.rule.shift_of(mu)
            if timesteps is None and sigmas is None:
                return [
                    *schedule.flow_grid(shift, schedule.checked(int(steps or 0)), moving=mu is not None),
                    schedule.clean,
                ]
            given = sigmas if sigmas is not None else [float(t) / schedule.steps for t in timesteps or ()]
            return [*schedule.flow_grid(shift, sigmas=[float(s) for s in given if s > 0]), schedule.clean]
        end = schedule.clean if schedule.final == "zero" else schedule.at_index(0)
        if timesteps is not None:
            return [schedule.at_index(float(t)) for t in timesteps] + [end]
        if sigmas is not None:
            logs = torch.as_tensor(sigmas, dtype=torch.float64).log().neg().tolist()
            return [schedule.at_lambda(lam) for lam in logs if lam < float("inf")] + [end]
        return schedule.grid(int(steps or 0))

    def _sigma(self, level: Level) -> float:
        return float(level.sigma) if self.noise_schedule.flow else float(level.sigma) / float(level.alpha)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """The state as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Feeds one network answer; prev_sample is the next state to ask at, or the final one.

        Args:
            model_output: raw answer (B, C, h, w), or packed as the pipeline has it.
            timestep: the time it was asked at; must be the one whose turn it is.
            sample: the state it was asked at; another than `step` returned last continues from there.
            generator: randomness of stochastic solvers.
            return_dict: False returns (prev_sample,).
        """
        state = sample.to(torch.promote_types(sample.dtype, torch.float32))
        if self._run is None:
            self._begin(state, generator)
        elif not torch.equal(sample, self._x.to(sample.dtype)):
            self._x = state
        self._check_turn(timestep)
        assert self._run is not None and self._level is not None
        answer = Prediction(self._x, self._level, model_output, self.config["prediction_type"])
        self._x, self._level = advanced(self._run, answer)
        self._asked += 1
        returned = self._x.to(sample.dtype, copy=True)  # pipelines and callbacks may write into it
        if self._level is None:
            self._run = None
        return SchedulerOutput(prev_sample=returned) if return_dict else (returned,)

    def _begin(self, state: Tensor, generator: Generators) -> None:
        """A run over the levels from `begin_index` on."""
        self._fit(state)
        self._asked = self._begin_index or 0
        first = self._asks[min(self._asked, len(self._asks) - 1)]
        self._run = self.solver(state, self._grid[first:], generator)
        self._x, self._level = advanced(self._run)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along: all but a run under way, which belongs to the original."""
        return {**self.__dict__, "_run": None}

    def _fit(self, state: Tensor) -> None:
        """Pipelines that pack latents (B, tokens, 4 C) need tables packed alike."""
        if state.ndim == 3 and self._statistics is not None and self._statistics.ell[0].numel() > 1:
            self.solver = self._make(self._statistics.packed())

    def _check_turn(self, timestep: Tensor | float) -> None:
        due, given = float(self.timesteps[self._asked]), float(torch.as_tensor(timestep).flatten()[0])
        if abs(due - given) > 0.5 + 1e-3 * abs(due):
            raise InputError(
                f"step got timestep {given:g} where {due:g} is due; call the timesteps in order, set_begin_index for "
                "a late start"
            )

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma eps (B, ...) at model times (B,)."""
        schedule = self.noise_schedule
        level = schedule.at_time(timesteps.flatten().expand(original_samples.shape[0]))
        return schedule.add_noise(original_samples, noise, level)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` under the name and argument order of flow schedulers."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return self.noise_schedule.steps


def _family_solver(config: Any, family: str, default: str) -> str:
    """The config's solver when it is of this family, else the default."""
    name = str(dict(config or {}).get("solver") or "")
    return name if name.partition(":")[0] == family else default


class DPMSolverV3Scheduler(SolverScheduler):
    """DPM-Solver-v3: `from_config(config, statistics=..., order=2)`."""

    default_solver = "dpm-v3:2"

    @classmethod
    def from_config(
        cls,
        config: Any = None,
        return_unused_kwargs: bool = False,
        statistics: ModelStatistics | str | Path | None = None,
        *,
        order: int | None = None,
        **options: Any,
    ) -> Any:
        """See SolverScheduler.from_config; `statistics` are required, `order` is 1 to 3."""
        chosen = _family_solver(config, "dpm-v3", cls.default_solver) if order is None else f"dpm-v3:{order}"
        options.setdefault("solver", chosen)
        return super().from_config(config, return_unused_kwargs, statistics, **options)


class GHVBScheduler(SolverScheduler):
    """Generalised heavy ball: `from_config(config, order=1.8)` takes the momentum number, order 2 with beta 0.8."""

    default_solver = "ghvb:3.8"

    @classmethod
    def from_config(
        cls,
        config: Any = None,
        return_unused_kwargs: bool = False,
        statistics: ModelStatistics | str | Path | None = None,
        *,
        order: float | None = None,
        **options: Any,
    ) -> Any:
        """See SolverScheduler.from_config."""
        chosen = _family_solver(config, "ghvb", cls.default_solver) if order is None else f"ghvb:{order:g}"
        options.setdefault("solver", chosen)
        return super().from_config(config, return_unused_kwargs, statistics, **options)


class USFScheduler(SolverScheduler):
    """A solver schedule: `from_config(config, schedule=SolverSchedule or its file, statistics=...)`."""

    default_solver = "usf"

    @classmethod
    def from_config(
        cls,
        config: Any = None,
        return_unused_kwargs: bool = False,
        statistics: ModelStatistics | str | Path | None = None,
        *,
        schedule: SolverSchedule | str | Path | None = None,
        **options: Any,
    ) -> Any:
        """See SolverScheduler.from_config; the schedule becomes part of the config."""
        if schedule is not None:
            chosen = schedule if isinstance(schedule, SolverSchedule) else SolverSchedule.load(schedule)
            options["solver_schedule"] = chosen.to_dict()
        return super().from_config(config, return_unused_kwargs, statistics, **options)
