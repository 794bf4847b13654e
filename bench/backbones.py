"""Which backbone can do what: every family and verb on networks of random weights, run and looked at.

Tiny networks on the CPU say whether the code fits the classes; the same on a pretended accelerator whether it fits
devices and half precision; on a GPU, where there is one, whether it runs there, tiny and in the published size.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..core.priors import MultiViewPrior, inflate
from ..core.priors.build import from_pipeline
from ..core.priors.diffusers import DiffusersPrior
from ..scripts.random_backbones import FULL, TINY
from ..utils.errors import InputError
from .backbone_verbs import VERBS, suits
from .runner import Context

NAMES = {"sd15": "Stable Diffusion 1.x", "sd21": "Stable Diffusion 2.x", "sdxl": "SDXL", "sd3": "SD3", "flux": "FLUX.1"}
MULTI_VIEW = "MVDream"
PRETEND = Path(__file__).resolve().parents[1] / "tests" / "pretend_device.py"
YES, REFUSED, FAILS, UNRUN = "yes", "refused", "fails", "not run"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def run(context: Context) -> dict[str, Any]:
    """The table; a quick run looks at one family in one precision."""
    families = [*NAMES, MULTI_VIEW][: 1 if context.quick else None]
    dtypes = DTYPES[:1] if context.quick else DTYPES
    table, failures = [], []
    for family in families:
        for verb in VERBS:
            row: dict[str, Any] = {"backbone": NAMES.get(family, family), "verb": verb}
            for where, tried in places(family, dtypes).items():
                row[where], told = tried(verb)
                failures += [f"{row['backbone']}, {verb}, {where}: {line}" for line in told]
            table.append(row)
    return {"config": {"dtypes": [str(d) for d in dtypes]}, "seeds": [0], "table": table, "failures": failures}


Tried = Callable[[str], tuple[str, list[str]]]


def places(family: str, dtypes: tuple[torch.dtype, ...]) -> dict[str, Tried]:
    """Where a verb is tried, in the order of the table's columns."""
    gpu = torch.cuda.is_available()
    large = gpu and family in FULL
    unrun: Tried = lambda verb: (UNRUN, [])  # noqa: E731 (a column of its own)
    cuda = torch.device("cuda")
    return {
        "tiny": lambda verb: tried(family, verb, "cpu", dtypes[:1]),
        "pretended_accelerator": lambda verb: _pretended(family, verb, dtypes),
        "gpu": (lambda verb: tried(family, verb, cuda, dtypes)) if gpu else unrun,
        "gpu_full_size": (lambda verb: tried(family, verb, cuda, DTYPES[2:], True)) if large else unrun,
    }


def tried(
    family: str, verb: str, device: torch.device | str, dtypes: tuple[torch.dtype, ...], full: bool = False
) -> tuple[str, list[str]]:
    """("yes", "refused" or "fails", lines about failures) of a verb in some precisions."""
    states, told = [], []
    for dtype in dtypes:
        prior = random_prior(family, device, dtype, full)
        meant, state, why = suits(verb, prior), YES, "it was not refused"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                VERBS[verb](prior)
        except Exception as error:  # a table of what works has to say what does not
            state = REFUSED if isinstance(error, InputError) else FAILS
            why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        right = state == (YES if meant else REFUSED)
        states.append(state if right else FAILS)
        told += [] if right else [f"{dtype}: {why}"]
    return next(state for state in (FAILS, REFUSED, YES) if state in states), told


def random_prior(family: str, device: torch.device | str, dtype: torch.dtype, full: bool = False) -> DiffusersPrior:
    """A prior of random weights."""
    pipe = (FULL if full else TINY)["sd15" if family == MULTI_VIEW else family]()
    pipe.set_progress_bar_config(disable=True)
    prior = from_pipeline(pipe)
    if family == MULTI_VIEW:
        prior = MultiViewPrior(pipe, inflate(pipe.unet), "tiny-mv")
    return prior.to(device, dtype)


def _pretended(family: str, verb: str, dtypes: tuple[torch.dtype, ...]) -> tuple[str, list[str]]:
    if not PRETEND.is_file():  # an installed package has no tests
        return UNRUN, []
    module = _module()
    with module.Pretend(double=False):
        return tried(family, verb, module.DEVICE, dtypes)


def _module() -> Any:
    name = "unproject_pretend_device"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, PRETEND)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
