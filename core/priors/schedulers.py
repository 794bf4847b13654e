"""What a diffusers scheduler config says about the noise path and the grid of a prior; nothing in it is passed over.

Every field is honoured, harmless, or refused by its name unless it has a value that changes nothing. A scheduler class
that is not in the table below is refused by its name. Fields that a class does not read are left over from another
class (diffusers keeps them in the config) and count for nothing, as in the stock pipeline.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...utils.errors import InputError


@dataclass(frozen=True)
class Layout:
    """How a scheduler class lays out its levels, beyond what its config says."""

    end: Literal["config", "zero", "index0"] = "config"
    spare: bool = False  # "leading" and "linspace" lay out one point more than there are steps and drop the last
    whole: bool = True  # "linspace" rounds to train steps
    edges: Literal["table", "grid"] = "table"  # between what Karras' and such sigmas run: the table, or spaced times
    spacing: str = "leading"  # of a class without a timestep_spacing
    flow: str = "linspace"  # spacing of a flow: see `flow_spaced`
    thinned: bool = False  # takes steps out of the `original_inference_steps` it was distilled on, whatever the spacing


_EULER = Layout("zero", whole=False, edges="grid")
SCHEDULERS: dict[str, Layout] = {
    "DDIMScheduler": Layout(),
    "DDIMParallelScheduler": Layout(),
    "CogVideoXDDIMScheduler": Layout(),
    "CogVideoXDPMScheduler": Layout(),
    "PNDMScheduler": Layout(),
    "DDPMScheduler": Layout("zero"),
    "DDPMParallelScheduler": Layout("zero"),
    "LCMScheduler": Layout(thinned=True),
    "TCDScheduler": Layout(thinned=True),
    "EulerDiscreteScheduler": Layout(whole=False, edges="grid"),
    "EulerAncestralDiscreteScheduler": _EULER,
    "HeunDiscreteScheduler": _EULER,
    "LMSDiscreteScheduler": _EULER,
    "KDPM2DiscreteScheduler": _EULER,
    "KDPM2AncestralDiscreteScheduler": _EULER,
    "DPMSolverMultistepScheduler": Layout(spare=True, flow="short"),
    "DPMSolverSinglestepScheduler": Layout(spare=True, spacing="linspace", flow="short"),
    "UniPCMultistepScheduler": Layout(spare=True, flow="full"),
    "DEISMultistepScheduler": Layout("index0", spare=True),
    "SASolverScheduler": Layout("index0", spare=True),
    "FlowMatchEulerDiscreteScheduler": Layout("zero"),
    "FlowMatchHeunDiscreteScheduler": Layout("zero"),
    "FlowMatchLCMScheduler": Layout("zero"),
}
OWN = ("SolverScheduler", "DPMSolverV3Scheduler", "GHVBScheduler", "USFScheduler")  # of core/sampling/scheduler.py

PATH = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "snr_shift_scale",
    "prediction_type",
    "timestep_type",
)
GRID = (
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
    "sigma_min",
    "sigma_max",
    "original_inference_steps",
    "shift",
    "shift_terminal",
    "use_dynamic_shifting",
    "time_shift_type",
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
)
SIGMA_OPTIONS = {  # in the order in which diffusers looks at them
    "use_karras_sigmas": "karras",
    "use_lu_lambdas": "lu",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
}
TRANSLATED = ("final_sigmas_type", "use_flow_sigmas", "flow_shift", *SIGMA_OPTIONS)  # into the fields above
OURS = (
    "sigma_spacing",  # a value of SIGMA_OPTIONS
    "replaces",  # the class of diffusers whose layout is kept
    "spacing",  # what the pipeline of a family asks for, whatever its scheduler's config says
)
HONOURED = frozenset((*PATH, *GRID, *TRANSLATED, *OURS))

_SOLVER = "is about the scheduler's own solver, in whose place ours stands"
HARMLESS: dict[str, str] = {
    **dict.fromkeys(
        (
            "algorithm_type",
            "corrector_order",
            "disable_corrector",
            "euler_at_final",
            "lower_order_final",
            "predict_x0",
            "predictor_order",
            "skip_prk_steps",
            "solver_order",
            "solver_p",
            "solver_type",
            "tau_func",
        ),
        _SOLVER,
    ),
    "clip_sample_range": "is read with clip_sample only",
    "dynamic_thresholding_ratio": "is read with thresholding only",
    "sample_max_value": "is read with thresholding only",
    "upscale_mode": "is read with scale_factors only",
    "timestep_scaling": "changes the clean estimate by less than 1e-5 at any step a model was distilled on",
    "tensor_format": "chose between numpy and torch in early versions",
    "solver": "is ours",
    "solver_schedule": "is ours",
    "statistics": "is ours",
}
REFUSED: dict[str, tuple[Any, ...]] = {  # and the values that change nothing
    "clip_sample": (False,),
    "interpolation_type": ("linear",),
    "invert_sigmas": (False,),
    "lambda_min_clipped": (float("-inf"), "-inf"),
    "latents_mean": (),
    "latents_std": (),
    "predict_epsilon": (True,),
    "scale_factors": (),
    "stochastic_sampling": (False,),
    "thresholding": (False,),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
_VALUES: dict[str, tuple[str, ...]] = {
    "prediction_type": ("epsilon", "sample", "v_prediction", "flow_prediction"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "time_shift_type": ("exponential", "linear"),
    "timestep_type": ("discrete", "continuous"),
    "sigma_spacing": tuple(SIGMA_OPTIONS.values()),
}
_WAY_OUT = "take it out of scheduler_config.json, or give the prior another scheduler"


def layout_of(config: Mapping[str, Any]) -> Layout:
    """The layout of the class that an answer of `read_scheduler` stands for."""
    return SCHEDULERS.get(str(config.get("replaces") or ""), Layout())


def read_scheduler(config: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """The fields PATH, GRID and OURS that a config, changed by `options`, means; reading the answer changes nothing.

    Ends are told by `set_alpha_to_one`, flows by `prediction_type` and `shift`, sigmas by `sigma_spacing`. Raises
    InputError that names what is not supported.
    """
    name = str(config.get("_class_name") or _class_with(config))
    read = name in OWN or (not name and "replaces" in config)
    fields = None if read or not name else _fields(name)
    if read:
        given = {key: config[key] for key in (*PATH, *GRID, *OURS) if key in config}
    elif fields is not None:
        given = {key: v for key, v in config.items() if key in fields or key in OURS or key not in _read_anywhere()}
    else:
        given = dict(config)
    given |= options
    check_fields(name, given)
    values = {**{key: value for key, value in (fields or {}).items() if key in HONOURED}, **given}
    if "FlowMatch" in name:
        values["prediction_type"] = "flow_prediction"
    elif values.get("use_flow_sigmas"):
        _check_flow(name, values)
        values["shift"] = values.get("flow_shift", 1.0)
    elif fields is not None and values.get("prediction_type") == "flow_prediction":
        raise InputError(
            f"prediction_type='flow_prediction' of {name} needs use_flow_sigmas=True; set it or {_WAY_OUT}"
        )
    if values.get("timestep_type") == "continuous" and values.get("prediction_type") != "v_prediction":
        raise InputError(
            f"timestep_type='continuous' with prediction_type={values.get('prediction_type')!r} is not supported: "
            f"diffusers tells the network such times for v_prediction only; {_WAY_OUT}"
        )
    if values.get("timestep_type") == "discrete":  # as every other class
        del values["timestep_type"]
    if fields is not None:
        values["replaces"] = name
        values.setdefault("timestep_spacing", SCHEDULERS[name].spacing)
    values["set_alpha_to_one"] = _ends_clean(SCHEDULERS.get(name, Layout()), values, options)
    chosen = [kind for option, kind in SIGMA_OPTIONS.items() if values.get(option)]
    if chosen or any(option in options for option in SIGMA_OPTIONS):
        values["sigma_spacing"] = chosen[0] if chosen else None
    return {key: values[key] for key in (*PATH, *GRID, *OURS) if key in values}


def _ends_clean(layout: Layout, values: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Whether the last level is without noise; what is asked for wins over what the class would do."""
    if "set_alpha_to_one" in options:
        return bool(options["set_alpha_to_one"])
    if layout.end != "config" and "final_sigmas_type" not in options:
        return layout.end == "zero"
    if values.get("final_sigmas_type") is not None:
        return bool(values["final_sigmas_type"] == "zero")
    return bool(values.get("set_alpha_to_one", True))


def is_known(field: str) -> bool:
    """Whether the tables above say what becomes of a field."""
    return field in HONOURED or field in HARMLESS or field in REFUSED


def check_fields(name: str, fields: Mapping[str, Any]) -> None:
    """Raises InputError for a field of the scheduler `name` that would have to be passed over."""
    for field, value in fields.items():
        if value is None or field.startswith("_") or field in HARMLESS:
            continue
        if field in REFUSED:
            wrong = not any(value == allowed for allowed in REFUSED[field])
        elif field in _VALUES:
            wrong = value not in _VALUES[field]
        else:
            wrong = field not in HONOURED and value is not False
        if wrong:
            instead = REFUSED.get(field) or _VALUES.get(field, ())
            have = f" (can be {', '.join(map(repr, instead))})" if instead else ""
            raise InputError(
                f"the option {field}={value!r} of {name or 'a scheduler'} is not supported{have}; {_WAY_OUT}"
            )


def _class_with(config: Mapping[str, Any]) -> str:
    """The class that a config without a name belongs to: the first that reads just these fields, else none."""
    given = {key for key in config if not key.startswith("_")}
    return next((name for name in SCHEDULERS if given and given == _fields(name).keys()), "")


@functools.cache
def _read_anywhere() -> frozenset[str]:
    """The fields that one of the classes reads."""
    return frozenset(field for name in SCHEDULERS for field in _fields(name))


@functools.cache
def _fields(name: str) -> dict[str, Any]:
    """The fields that a class of diffusers reads, with their defaults."""
    if name not in SCHEDULERS:
        raise InputError(
            f"the scheduler {name} is not supported: our solvers cannot follow its noise levels; have "
            f"{', '.join(SCHEDULERS)}"
        )
    import diffusers  # heavy

    parameters = list(inspect.signature(getattr(diffusers, name).__init__).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}


def _check_flow(name: str, values: Mapping[str, Any]) -> None:
    """A flow in a scheduler that also knows diffusion: what it cannot be combined with."""
    kind, stray = values.get("prediction_type", "epsilon"), [option for option in SIGMA_OPTIONS if values.get(option)]
    if kind != "flow_prediction":
        stray.append(f"prediction_type={kind!r}")
    if not _ends_clean(SCHEDULERS.get(name, Layout()), values, {}):
        stray.append("an end that keeps noise")
    if stray:
        raise InputError(f"use_flow_sigmas with {stray[0]} ({name or 'a scheduler'}) is not supported; {_WAY_OUT}")
