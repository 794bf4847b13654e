"""Finding and loading a prior: an embedded name, a folder, an id of configs/priors.yaml, or a hub repository.

The network is used only when such an id or repository is asked for; weights are safetensors; no code is downloaded.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ...utils.configs import load_config
from ...utils.errors import InputError
from ...utils.files import check_named, read_json, weights_root
from . import hub, orbits
from .base import Recommended
from .build import build, class_of, family_of, missing_parts, pipeline_class, precision, quiet, told
from .diffusers import DiffusersPrior, StableDiffusionPrior
from .embedded import EmbeddedPrior, MultiViewPrior
from .image_prompt import add_image_prompt
from .lora import add_loras
from .multiview import FRAMES, MultiViewUNet, base_of, read_manifest
from .mvdream import as_safetensors, is_port, load_mvdream, load_port
from .pickled import PICKLED
from .pixels import MANIFEST, PixelPrior, read_pixels
from .placement import WHOLE, Placement, place
from .quantised import check_weights
from .single_file import MULTI_VIEW, kind_of, load_single_file, shapes_of
from .steering import with_controls
from .variants import pick_variant

EMBEDDED = {
    "toybox": "embedded, 64 px, single images",
    "toybox-mv": "embedded, 64 px, four views",
    "toybox-dit": "embedded, 64 px and other sizes, single images, flow transformer",
}
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
FLOWS = ("StableDiffusion3Pipeline", "FluxPipeline")
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")  # folders of the hub's cache


@dataclass(frozen=True)
class PriorEntry:
    """One backbone of the registry: where it is and what its files do not say."""

    repo: str
    licence: str
    family: str  # pipeline class of diffusers
    size_gb: float
    image_size: int  # px
    prediction_type: str
    mirrors: tuple[str, ...] = ()
    variant: str | None = None  # file variant tried first, e.g. fp16
    revision: str | None = None  # branch, tag or commit; None: the newest
    gated: bool = False  # the licence has to be accepted on the repository's page
    file: str | None = None  # a checkpoint that is loaded instead of a pipeline folder
    base: str | None = None  # the id whose other parts such a checkpoint needs
    half: Literal["float16", "bfloat16"] = "float16"  # the half precision whose range its networks keep within
    frames: int = 1  # views of one object that it draws at once
    parts: dict[str, float] = field(default_factory=dict)  # millions of parameters and buffers: network, vae, text ...
    live: float = 0.0  # numbers per latent pixel and row that live at once in a call of the network, at its own size
    recommended: Recommended = field(default_factory=Recommended)
    controls: dict[str, str] = field(default_factory=dict)  # hub ids of ControlNets by what they look at
    note: str = ""

    @property
    def repos(self) -> tuple[str, ...]:
        """Where it may be had, in the order in which they are tried."""
        return (self.repo, *self.mirrors)

    @property
    def page(self) -> str:
        """The page where the licence stands and is accepted."""
        return f"{hub.PAGE}/{self.repo}"


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
        gate = f" (accept it at {entry.page}, then log in)" if entry.gated else ""
        rows[name] = f"{entry.note}, {entry.image_size} px, {entry.size_gb:g} GB, {entry.licence}{gate}"
    return rows


def entry_of(name_or_path: str | Path) -> tuple[str, PriorEntry] | None:
    """The id and entry of what `load_prior` is given: an id, a full hub id, or a folder that holds such a repository.

    A folder is known by where the hub's cache put it, by the repository that its files name, or by bearing the
    repository's own name; and it has to be of the entry's family.
    """
    name = str(name_or_path)
    if isinstance(name_or_path, str) and name in registry():
        return name, registry()[name]
    owners = {repo.lower(): known for known, entry in registry().items() for repo in entry.repos}
    if isinstance(name_or_path, str) and name.lower() in owners:
        known = owners[name.lower()]
        return known, registry()[known]
    index = Path(name) / "model_index.json"
    values = read_json(index) if index.is_file() else None
    if not isinstance(values, dict):
        return None
    place = Path(name)
    cached = next(
        (found for part in (*place.absolute().parts, *place.resolve().parts) if (found := _CACHED.fullmatch(part))),
        None,
    )
    names = [f"{cached[1]}/{cached[2]}" if cached else "", str(values.get("_name_or_path") or "")]
    bare = {repo.split("/")[1]: known for repo, known in owners.items()}
    chosen = next((owners[repo.lower()] for repo in names if repo.lower() in owners), None)
    chosen = chosen or bare.get(place.resolve().name.lower())
    if chosen is None or registry()[chosen].family != class_of(values):
        return None
    return chosen, registry()[chosen]


def half_of(name_or_path: str | Path) -> Literal["float16", "bfloat16"]:
    """The half precision whose range a prior's networks keep within: its entry's, else that of its kind.

    Flow transformers are trained in bfloat16; of files only the names of tensors are read. What cannot be read is
    float16: loading it says what is wrong.
    """
    found = None if str(name_or_path) in EMBEDDED else entry_of(name_or_path)
    if found is not None:
        return found[1].half
    path, family = Path(name_or_path), ""
    with contextlib.suppress(InputError):
        if path.is_dir() and (path / "model_index.json").is_file():
            family = class_of(read_json(path / "model_index.json"))
        elif path.suffix == ".safetensors" and path.is_file():
            kind = kind_of(shapes_of(path))
            family = kind if isinstance(kind, str) else kind.family
    return "bfloat16" if family in FLOWS else "float16"


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
    lora: str | Path | Sequence[str | Path] = (),
    controlnet: Any = (),
    ip_adapter: str | Path | None = None,
    placement: Placement = WHOLE,
    **options: Any,
) -> DiffusersPrior:
    """A frozen prior.

    Args:
        name_or_path: "toybox", "toybox-mv", "toybox-dit", an id of the registry ("sd15", ...), a folder in diffusers'
            layout, a checkpoint file (Stable Diffusion 1.x, 2.x, SDXL or FLUX in safetensors; MVDream's, also as the
            published .pt), or a hub repository "owner/name". Names and ids of the registry win over a folder of that
            name; write "./sd15" for the folder.
        device: where the networks live.
        dtype: their dtype; files in another are cast.
        lora: adapters added to the weights, each "FILE" or "FILE:SCALE" (`lora.add_loras`).
        controlnet: networks that steer it by pictures, one or several of "FOLDER", "FOLDER:SCALE" or modules
            (`steering.with_controls`).
        ip_adapter: "FILE" or "FILE:SCALE" of an IP-Adapter, which makes it read a picture beside the words.
        placement: what is kept off the device, quantised or compiled.
        options: `base`, the prior that gives a checkpoint file its settings and the parts it lacks; others are passed
            to diffusers' loading (e.g. revision, variant, cache_dir, local_files_only).

    Raises InputError when it is unknown, unreachable, gated or of a family that is not supported.
    """
    check_weights(placement.weights, device)
    whole = placement.offload == "none" and placement.weights == "full"
    prior = _load(name_or_path, device if whole else "cpu", precision(dtype), options)
    loras = [lora] if isinstance(lora, (str, Path)) else list(lora)
    if loras:
        add_loras(prior, loras)
    if ip_adapter is not None:
        add_image_prompt(prior, ip_adapter)
    nets = list(controlnet) if isinstance(controlnet, (list, tuple)) else [controlnet]
    prior = with_controls(prior, nets) if nets else prior
    with told(f"the prior {prior.name}", device):
        place(prior, device, placement)
    return prior


def _load(name_or_path: str | Path, device: Any, dtype: torch.dtype, options: dict[str, Any]) -> DiffusersPrior:
    name = str(name_or_path)
    check_named(name_or_path, "the prior's name", _suggest(name))
    options.pop("trust_remote_code", None)
    if name in EMBEDDED:
        folder = weights_root() / name
        if not folder.is_dir():
            others = " or ".join(repr(other) for other in EMBEDDED if (weights_root() / other).is_dir())
            instead = f", or use the prior {others}" if others else ""
            raise InputError(f"the weights of {name!r} are not in {folder}; reinstall, set UNPROJECT_WEIGHTS{instead}")
        return _load_folder(folder, name, device, dtype, options)
    found = entry_of(name_or_path)
    entry = found[1] if found else None
    if entry is not None and _is_id(name_or_path, entry):
        return _load_entry(name, _repos(name, entry), entry, device, dtype, options)
    if Path(name).is_dir():
        return _load_folder(Path(name), Path(name).resolve().name, device, dtype, options, entry)
    if Path(name).is_file():
        return _load_checkpoint(Path(name), device, dtype, options)
    if _HUB_ID.fullmatch(name):
        return _load_entry(name, [name], entry, device, dtype, options)
    raise InputError(f"prior {name!r} is neither a name nor a folder; {_suggest(name)}")


def _is_id(name_or_path: str | Path, entry: PriorEntry) -> bool:
    """Whether this is an entry's id or full hub id, and not a folder or file that holds its weights."""
    return isinstance(name_or_path, str) and (name_or_path in registry() or name_or_path in entry.repos)


def _repos(name: str, entry: PriorEntry) -> list[str]:
    """The repositories of an entry; of a full id that one alone."""
    return [name] if name in entry.repos else list(entry.repos)


def _suggest(name: str) -> str:
    known = [*EMBEDDED, *registry()]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{hint}have {', '.join(known)}, a folder with model_index.json, or a hub id owner/name"


def _load_folder(
    folder: Path, name: str, device: Any, dtype: torch.dtype, options: dict[str, Any], entry: PriorEntry | None = None
) -> DiffusersPrior:
    if (folder / "mv.json").is_file():
        return _load_multiview(folder, name, device, dtype, options)
    if (folder / MANIFEST).is_file():
        return _load_pixels(folder, name, device, dtype, options)
    if (folder / orbits.MANIFEST).is_file():
        return orbits.load_orbits(folder, _sd_base(orbits.base_of(folder), folder, device, dtype, options), name)
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} holds no model_index.json; a prior is a folder in diffusers' layout")
    if is_port(read_json(folder / "model_index.json")):
        return load_port(folder, name, device, dtype)
    half = dtype in (torch.float16, torch.bfloat16)
    prior = build(folder, name, device, dtype, options, entry.variant if entry and half else None)
    if entry is not None:
        prior.recommended = entry.recommended
    return prior


def _load_multiview(
    folder: Path, name: str, device: Any, dtype: torch.dtype, options: dict[str, Any]
) -> DiffusersPrior:
    source = base_of(folder)
    with told(f"the multi-view prior in {folder}", device), quiet():
        views = MultiViewUNet.load(folder, dtype).to(device)
    base = _sd_base(source, folder, device, dtype, {"unet": views.unet, **options})
    vocabulary = base.vocabulary if isinstance(base, EmbeddedPrior) else ()
    manifest = read_manifest(folder)
    prior = MultiViewPrior(base.pipe, views, name, vocabulary, int(str(manifest.get("frames", FRAMES))))
    return prior.learnt_at(int(str(manifest.get("image_size", prior.image_size))))


def _load_pixels(folder: Path, name: str, device: Any, dtype: torch.dtype, options: dict[str, Any]) -> DiffusersPrior:
    with told(f"the prior of pixels in {folder}", device), quiet():
        unet, source, factor = read_pixels(folder, dtype)
        unet.to(device)
    return PixelPrior(_sd_base(source, folder, device, dtype, options), unet, factor, name)


def _sd_base(
    source: str | Path, folder: Path, device: Any, dtype: torch.dtype, options: dict[str, Any]
) -> StableDiffusionPrior:
    """The prior on which the one in `folder` stands."""
    base = load_prior(source, device, dtype, **options)
    if not isinstance(base, StableDiffusionPrior):
        raise InputError(f"the base {source} of the prior {folder} is not a Stable Diffusion prior")
    return base


def _load_checkpoint(path: Path, device: Any, dtype: torch.dtype, options: dict[str, Any]) -> DiffusersPrior:
    """A checkpoint in one file: MVDream's, on the prior named by the option `base`, or a whole pipeline."""
    base = options.pop("base", None)
    path = as_safetensors(path) if path.suffix in PICKLED else path
    if kind_of(shapes_of(path)) != MULTI_VIEW:
        return load_single_file(path, device, dtype, base, lambda prior, whole: _folder_of(prior, whole, options))
    prior = load_prior(base or "sd21-base", device, dtype, **options)
    if not isinstance(prior, StableDiffusionPrior):
        raise InputError(f"base={prior.name!r} is not a Stable Diffusion prior")
    return load_mvdream(path, prior, device, dtype)


def _load_entry(
    name: str, repos: Iterable[str], entry: PriorEntry | None, device: Any, dtype: torch.dtype, options: dict[str, Any]
) -> DiffusersPrior:
    """A prior on the hub, of the first repository that can be had."""
    if entry is not None and entry.revision is not None:
        options = {"revision": entry.revision, **options}
    if entry is not None and entry.file is not None:
        where, file = _where(options), entry.file
        path = _first(name, repos, lambda repo: hub.fetch_file(repo, file, where))
        others = {key: value for key, value in options.items() if key != "revision"}
        prior = _load_checkpoint(path, device, dtype, {"base": entry.base, **others})
        prior.name = name
        return prior
    preferred = entry.variant if entry and dtype in (torch.float16, torch.bfloat16) else None
    where = _where(options)
    folder = _first(name, repos, lambda repo: _fetch(repo, options, where, preferred))
    return _load_folder(folder, name, device, dtype, {**options, **where}, entry)


def _folder_of(name: str | Path, whole: bool, options: dict[str, Any]) -> Path:
    """The folder of a prior's files, in diffusers' layout; with its weights or with its settings only."""
    check_named(name, "the prior's name", _suggest(str(name)))
    if str(name) in EMBEDDED:
        return weights_root() / str(name)
    found = entry_of(name)
    if Path(name).is_dir() and not (found and _is_id(name, found[1])):
        return Path(name)
    where = _where(options)
    repos = _repos(str(name), found[1]) if found else [str(name)]
    if not found and not _HUB_ID.fullmatch(str(name)):
        raise InputError(f"{str(name)!r} is neither a name nor a folder; {_suggest(str(name))}")
    return _first(
        str(name), repos, lambda repo: _fetch(repo, options, where, None) if whole else hub.fetch_settings(repo, where)
    )


def _where(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that say where files come from; the cache alone where the hub is not there."""
    where = {key: value for key, value in options.items() if key in hub.WHERE}
    return {**where, "local_files_only": where.get("local_files_only") or not hub.reachable()}


def _first(name: str, repos: Iterable[str], fetch: Callable[[str], Path]) -> Path:
    """What the first repository that can be had gives. Raises InputError naming what failed and the ways out."""
    failures = []
    for repo in repos:
        try:
            return fetch(repo)
        except hub.Unfetched as error:
            failures.append(str(error))
    raise hub.unfetched(name, failures)


def _fetch(repo: str, options: Mapping[str, Any], where: dict[str, Any], preferred: str | None) -> Path:
    """The folder of a repository's pipeline in the hub's cache, downloaded where it is not there. Raises Unfetched."""
    known = [each for entry in registry().values() for each in entry.repos]
    index = hub.fetch_file(repo, "model_index.json", where, known)
    if where["local_files_only"]:
        return index.parent
    values = read_json(index)
    if is_port(values):
        return hub.fetch_settings(repo, where, weights=True)
    family = family_of(values, repo)
    missing = missing_parts(family, values)
    variant = pick_variant(hub.list_files(repo, where), options.get("variant"), preferred, missing)
    parts = {**missing, **{key: value for key, value in options.items() if key not in hub.WHERE}, "variant": variant}
    try:
        with quiet():
            return Path(pipeline_class(family).download(repo, **where, **parts, use_safetensors=True))
    except Exception as error:
        raise hub.Unfetched(hub.reason(error, repo, "weights in safetensors files")) from error
