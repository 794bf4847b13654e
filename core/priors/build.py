"""A prior from a folder in diffusers' layout: which class, which weights, and a line about what went wrong."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import warnings
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch

from ...utils.errors import InputError, UnprojectError, out_of_memory
from ...utils.files import read_json
from .diffusers import FAMILIES as WITH_TEXT
from .diffusers import DiffusersPrior
from .embedded import EmbeddedFlowPrior, EmbeddedPrior, read_vocabulary
from .hub import first_line
from .variants import incomplete_parts, pick_variant, weight_files
from .video import StableVideoPrior

FAMILIES: dict[str, type[DiffusersPrior]] = {**WITH_TEXT, "StableVideoDiffusionPipeline": StableVideoPrior}

WITH_VOCABULARY: dict[str, type[EmbeddedPrior] | type[EmbeddedFlowPrior]] = {
    "StableDiffusionPipeline": EmbeddedPrior,
    "StableDiffusion3Pipeline": EmbeddedFlowPrior,
}
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LOADING = {  # what diffusers' from_pretrained knows beside the parts of a pipeline; it passes over all else
    *("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "variant", "use_safetensors"),
    *("device_map", "max_memory", "offload_folder", "offload_state_dict", "low_cpu_mem_usage", "quantization_config"),
    *("disable_mmap", "mirror"),
}
OPTIONAL_PARTS = ("text_encoder_3", "tokenizer_3", *UNUSED_PARTS)


def build(
    folder: Path,
    name: str,
    device: torch.device | str,
    dtype: torch.dtype,
    options: dict[str, Any],
    preferred: str | None = None,
) -> DiffusersPrior:
    """Loads the pipeline that a folder's model_index.json describes.

    Args:
        folder: in diffusers' layout.
        name: of the prior.
        device: where the networks live.
        dtype: their dtype; weights stored in another are cast.
        options: passed to diffusers' loading; `variant` names files, else those that are there are found.
        preferred: a variant to take where the folder has it.

    Raises InputError when it is of a family that is not supported or cannot be loaded, UnprojectError when it does
    not fit the memory.
    """
    index = read_json(folder / "model_index.json")
    family = family_of(index, str(folder))
    missing = missing_parts(family, index)
    check_options(options, inspect.signature(pipeline_class(family).__init__).parameters)
    lacking = incomplete_parts(folder, index, {*missing, *options})
    if lacking:
        raise InputError(
            f"the prior in {folder} is not whole: it has no safetensors of {', '.join(lacking)}, as after an "
            "interrupted download or copy; fetch it again online, or convert weights of another kind to safetensors"
        )
    given = options.get("variant")
    variant = pick_variant(weight_files(folder), given, preferred, missing)
    with told(f"the prior in {folder}", device), quiet():
        pipe = pipeline_class(family).from_pretrained(
            str(folder),
            **{"local_files_only": True, **missing, **options, "variant": variant},
            torch_dtype=dtype,
            use_safetensors=True,
        )
        pipe.to(device)
    return as_prior(pipe, family, name, read_vocabulary(folder))


def check_options(options: Iterable[str], parts: Collection[str] = ()) -> None:
    """Raises InputError for options that are neither of diffusers' loading nor `parts` of the pipeline."""
    for name in options:
        if name not in LOADING and name not in parts:
            near = difflib.get_close_matches(name, [*LOADING, *parts], n=1)
            hint = f"; did you mean {near[0]}=?" if near else "; leave it out"
            raise InputError(f"{name}= is no option of loading this prior{hint}")


def precision(dtype: Any) -> torch.dtype:
    """A dtype of weights, also by its name. Raises InputError for others: diffusers would take float32 instead."""
    found = PRECISIONS.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if found not in PRECISIONS.values():
        raise InputError(f"dtype={dtype!r} must be torch.float32, float16 or bfloat16")
    return cast(torch.dtype, found)


def as_prior(pipe: Any, family: str, name: str, vocabulary: tuple[str, ...] = ()) -> DiffusersPrior:
    """The prior of a pipeline; with a vocabulary that of a closed world, where its family has one."""
    if vocabulary and family in WITH_VOCABULARY:
        return WITH_VOCABULARY[family](pipe, name, vocabulary)
    return FAMILIES[family](pipe, name)


def from_pipeline(pipe: Any) -> DiffusersPrior:
    """The prior of a stock pipeline, whose networks it shares and freezes. Raises InputError for other classes."""
    family = type(pipe).__name__
    if family not in FAMILIES:
        raise InputError(f"a {family} is no pipeline that is known; have {', '.join(FAMILIES)}")
    return as_prior(pipe, family, str(getattr(pipe, "name_or_path", "") or family))


def family_of(index: Any, source: str) -> str:
    """The pipeline class of a model_index.json. Raises InputError for one that is not supported."""
    family = class_of(index)
    if family not in FAMILIES:
        what = f"a {family}" if family else "no pipeline of diffusers"
        raise InputError(f"{source} is {what}; supported are {', '.join(FAMILIES)}")
    return family


def class_of(index: Any) -> str:
    """The class that a model_index.json names; community pipelines write [module, class]. Empty for none."""
    named = index.get("_class_name") if isinstance(index, dict) else None
    if isinstance(named, (list, tuple)) and named:
        named = named[-1]
    return named if isinstance(named, str) else ""


def pipeline_class(family: str) -> Any:
    """The class of diffusers."""
    import diffusers

    return getattr(diffusers, family)


def missing_parts(family: str, index: dict[str, Any]) -> dict[str, None]:
    """Parts that we never use, and parts the model comes without, as arguments of the loading."""
    accepted = inspect.signature(pipeline_class(family).__init__).parameters
    unused = [part for part in UNUSED_PARTS if part not in FAMILIES[family].uses]
    absent = {part for part in OPTIONAL_PARTS if part in unused or not any(index.get(part) or [None])}
    return {part: None for part in OPTIONAL_PARTS if part in accepted and part in absent}


@contextlib.contextmanager
def told(what: str, device: torch.device | str) -> Iterator[None]:
    """Errors of loading `what` as those of a user: InputError, or UnprojectError where memory ran out."""
    try:
        yield
    except UnprojectError:
        raise
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, MemoryError) as error:
        if out_of_memory(error):
            raise UnprojectError(
                f"{what} does not fit the memory of {device}: {first_line(error)}. Use a half precision (--dtype "
                "float16 or bfloat16), --offload model, --weights float8, a smaller prior, or another device"
            ) from error
        raise InputError(f"{what} cannot be loaded: {first_line(error)}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the libraries' notes and bars while a model loads; errors still raise."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity_error()
            library.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
