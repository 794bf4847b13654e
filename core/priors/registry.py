"""Finding and loading a prior: an embedded name, a folder, an id of configs/priors.yaml, or a hub repository.

The network is used only when such an id or repository is asked for; weights are safetensors; no code is downloaded.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ...utils.configs import load_config
from ...utils.errors import InputError
from ...utils.files import read_json, weights_root
from .base import Prior, Recommended
from .diffusers import FAMILIES, StableDiffusionPrior
from .embedded import (
    VOCABULARY_FILE,
    EmbeddedFlowPrior,
    EmbeddedPrior,
    MultiViewPrior,
    read_vocabulary,
)
from .multiview import FRAMES, MultiViewUNet, base_of, read_manifest
from .mvdream import load_mvdream

EMBEDDED = {
    "toybox": "embedded, 64 px, single images",
    "toybox-mv": "embedded, 64 px, four views",
    "toybox-dit": "embedded, 64 px and other sizes, single images, flow transformer",
}
WITH_VOCABULARY: dict[str, type[EmbeddedPrior] | type[EmbeddedFlowPrior]] = {
    "StableDiffusionPipeline": EmbeddedPrior,
    "StableDiffusion3Pipeline": EmbeddedFlowPrior,
}
UNUSED_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
OPTIONAL_PARTS = ("text_encoder_3", "tokenizer_3", *UNUSED_PARTS)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class PriorEntry:
    """One backbone of the registry."""

    repo: str
    licence: str
    size_gb: float
    image_size: int  # px
    prediction_type: str
    mirrors: tuple[str, ...] = ()
    variant: str | None = None  # file variant tried first, e.g. fp16
    half: Literal["float16", "bfloat16"] = "float16"  # the half precision whose range its networks keep within
    recommended: Recommended = field(default_factory=Recommended)
    note: str = ""


@dataclass(frozen=True)
class Registry:
    """configs/priors.yaml."""

    priors: dict[str, PriorEntry]


@functools.cache
def registry() -> dict[str, PriorEntry]:
    """The known backbones by id."""
    return load_config(Registry, "priors").priors


def available() -> dict[str, str]:
    """Every name `load_prior` knows with one line about it."""
    rows = dict(EMBEDDED)
    for name, entry in registry().items():
        rows[name] = f"{entry.note}, {entry.image_size} px, {entry.size_gb:g} GB, {entry.licence}"
    return rows


def multi_view_sibling(name: str) -> str | None:
    """The installed embedded prior that draws several views and shares the other parts of the embedded prior `name`."""
    for other in EMBEDDED:
        folder = weights_root() / other
        if name in EMBEDDED and (folder / "mv.json").is_file() and read_manifest(folder)["base"] == name:
            return other
    return None


def load_prior(
    name_or_path: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Prior:
    """A frozen prior.

    Args:
        name_or_path: "toybox", "toybox-mv", "toybox-dit", a folder in diffusers' layout, a multi-view checkpoint in
            MVDream's layout (.safetensors, with the option `base`), an id of the registry ("sd15", ...), or a hub
            repository "owner/name".
        device: where the networks live.
        dtype: their dtype.
        options: passed to diffusers' loading (e.g. revision, variant, cache_dir, local_files_only).

    Raises InputError when it is unknown, unreachable, gated or of a family that is not supported.
    """
    name = str(name_or_path)
    options.pop("trust_remote_code", None)
    if name in EMBEDDED:
        folder = weights_root() / name
        if not folder.is_dir():
            others = " or ".join(repr(other) for other in EMBEDDED if (weights_root() / other).is_dir())
            instead = f", or use the prior {others}" if others else ""
            raise InputError(f"the weights of {name!r} are not in {folder}; reinstall, set UNPROJECT_WEIGHTS{instead}")
        return _load_folder(folder, name, device, dtype, options)
    if Path(name).is_dir():
        return _load_folder(Path(name), Path(name).resolve().name, device, dtype, options)
    if Path(name).is_file():
        return _load_checkpoint(Path(name), device, dtype, options)
    if name in registry():
        return _load_entry(name, registry()[name], device, dtype, options)
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        return _load_hub(name, [name], device, dtype, options)
    raise InputError(f"prior {name!r} is neither a name nor a folder; {_suggest(name)}")


def _suggest(name: str) -> str:
    known = [*EMBEDDED, *registry()]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}have {', '.join(known)}, a folder with model_index.json, or a hub id owner/name"


def _load_folder(folder: Path, name: str, device: Any, dtype: torch.dtype, options: dict[str, Any]) -> Prior:
    if (folder / "mv.json").is_file():
        return _load_multiview(folder, name, device, dtype, options)
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(f"{folder} holds no model_index.json; a prior is a folder in diffusers' layout")
    try:
        prior = _build(read_json(index), str(folder), name, device, dtype, options, folder)
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the prior in {folder} cannot be loaded: {_first_line(error)}") from error
    return prior


def _load_multiview(folder: Path, name: str, device: Any, dtype: torch.dtype, options: dict[str, Any]) -> Prior:
    source = base_of(folder)
    with _quiet():
        views = MultiViewUNet.load(folder, dtype)
    parts = {"unet": views.unet, **options} if isinstance(source, Path) else options
    base = load_prior(source, device, dtype, **parts)
    if not isinstance(base, StableDiffusionPrior):
        raise InputError(f"the base {source} of the multi-view prior {folder} is not a Stable Diffusion prior")
    vocabulary = base.vocabulary if isinstance(base, EmbeddedPrior) else ()
    frames = int(str(read_manifest(folder).get("frames", FRAMES)))
    return MultiViewPrior(base.pipe, views.to(device), name, vocabulary, frames)


def _load_checkpoint(path: Path, device: Any, dtype: torch.dtype, options: dict[str, Any]) -> Prior:
    """A multi-view checkpoint in LDM layout, on the Stable Diffusion prior named by the option `base`."""
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is not a safetensors file; convert it first, pickled weights are never loaded")
    base = load_prior(options.pop("base", "sd21-base"), device, dtype, **options)
    if not isinstance(base, StableDiffusionPrior):
        raise InputError(f"base={base.name!r} is not a Stable Diffusion prior")
    return load_mvdream(path, base, device, dtype)


def _build(
    index: Any, source: str, name: str, device: Any, dtype: torch.dtype, options: dict[str, Any], folder: Path | None
) -> Prior:
    """Loads the pipeline that a model_index.json describes, from a folder or a repository."""
    family = index.get("_class_name") if isinstance(index, dict) else None
    if family not in FAMILIES:
        raise InputError(f"{source} is a {family}; supported are {', '.join(FAMILIES)}")
    kind, recommended = FAMILIES[family]
    with _quiet():
        import diffusers

        pipeline = getattr(diffusers, family)
        accepted = inspect.signature(pipeline.__init__).parameters
        missing = {part: None for part in OPTIONAL_PARTS if part in accepted and _absent(part, index)}
        local = {"local_files_only": True} if folder is not None else {}
        pipe = pipeline.from_pretrained(
            source, torch_dtype=dtype, use_safetensors=True, **{**local, **missing, **options}
        )
    pipe.to(device)
    if folder is not None and (folder / VOCABULARY_FILE).is_file() and family in WITH_VOCABULARY:
        return WITH_VOCABULARY[family](pipe, name, read_vocabulary(folder))
    prior = kind(pipe, name)
    prior.recommended = recommended
    return prior


def _absent(part: str, index: dict[str, Any]) -> bool:
    """Parts that we never use, and parts the model comes without."""
    return part in UNUSED_PARTS or not any(index.get(part) or [None])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


def _load_entry(name: str, entry: PriorEntry, device: Any, dtype: torch.dtype, options: dict[str, Any]) -> Prior:
    if entry.variant and dtype in (torch.float16, torch.bfloat16):
        options = {"variant": entry.variant, **options}
    prior = _load_hub(name, [entry.repo, *entry.mirrors], device, dtype, options)
    prior.recommended = entry.recommended
    return prior


def _load_hub(name: str, repos: Iterable[str], device: Any, dtype: torch.dtype, options: dict[str, Any]) -> Prior:
    """Tries the repositories in order. Raises InputError naming what failed and the ways out."""
    from huggingface_hub import hf_hub_download

    failures = []
    keep = {k: v for k, v in options.items() if k in ("revision", "cache_dir", "local_files_only", "token")}
    for repo in repos:
        try:
            index = read_json(hf_hub_download(repo, "model_index.json", **keep))
            return _build(index, repo, name, device, dtype, options, None)
        except InputError:
            raise
        except Exception as error:  # the hub client raises many kinds: offline, gated, vanished, time-out
            failures.append(f"{repo}: {type(error).__name__}: {_first_line(error)}")
    raise InputError(
        f"prior {name!r} could not be fetched ({'; '.join(failures)}). Check the network and HF_TOKEN, give a local "
        f"folder instead, or use the embedded prior: --prior toybox"
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
