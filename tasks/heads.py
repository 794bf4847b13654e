"""Finding and loading a geometry head: embedded, a folder, a known id of configs/heads.yaml, a hub repository.

Marigold repositories and folders load through diffusers' own pipeline classes, whose networks we then run; weights
are safetensors and no code is downloaded.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from ..core.priors import StableDiffusionPrior, hub, weights_root
from ..core.priors.build import check_options, precision
from ..utils.configs import load_config
from ..utils.errors import InputError
from ..utils.files import check_named, read_json
from .codecs import CODECS
from .geometry_head import MANIFEST, GeometryHead, HeadConfig
from .published import Loading, fetch_published, layout_of, load_published
from .table import TaskConfig, published_pipelines, published_task, task_table

EMBEDDED = "toybox"
PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")  # of a published pipeline, which loading takes
Start = Literal["zeros", "noise"]
SOLVERS: dict[str, Literal["ddim", "lcm"]] = {"DDIMScheduler": "ddim", "LCMScheduler": "lcm"}


@dataclass(frozen=True)
class HeadEntry:
    """One published head."""

    repo: str
    licence: str
    target: str
    """a task of configs/tasks"""
    start: Start = "noise"
    steps: int = 0
    """0 = the repository's default"""
    layout: str = ""
    """of `published.LAYOUTS`; empty: Marigold's"""

    def __post_init__(self) -> None:
        if self.target not in task_table() and not self.layout:
            raise InputError(f"target={self.target!r} of {self.repo} is no task; have {', '.join(task_table())}")


@dataclass(frozen=True)
class HeadTable:
    """configs/heads.yaml."""

    heads: dict[str, HeadEntry]


@functools.cache
def head_table() -> dict[str, HeadEntry]:
    """The known heads by id."""
    return load_config(HeadTable, "heads").heads


def load_head(
    name: str | Path,
    targets: Sequence[str] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> GeometryHead:
    """A frozen head.

    Args:
        name: "toybox", a folder that `GeometryHead.save` or a Marigold pipeline wrote, an id of the table, or a hub
            repository "owner/name"; or DM-Calib's camera head or Stable Material, as published.
        targets: what it has to predict; empty: anything.
        device: where the networks live.
        dtype: their dtype.
        options: passed to diffusers' loading (e.g. revision, variant, cache_dir, local_files_only), `start` ("zeros"
            or "noise") for repositories that the table does not know, and `base`, the prior that a published head
            lacks.

    Raises InputError when it is unknown, unreachable or does not predict the targets.
    """
    text, dtype = str(name), precision(dtype)
    check_named(name, "the head's name", "give toybox, an id, a folder or owner/name")
    options.pop("trust_remote_code", None)
    check_options(options, ("start", *PARTS))
    own = {task.weights: task for task in task_table().values()}
    if text == EMBEDDED or text in own:
        folder = embedded_folder(own[text] if text in own else _task_of(targets))
        head = GeometryHead.load(folder, device, dtype)
    elif (place := published_place(name, options)) is not None:
        head = _plain(load_published(place, Loading(device, dtype, options.pop("base", None))), text)
    elif isinstance(name, str) and (entry := _entry_of(text)) is not None:  # a folder of that name is "./NAME"
        head = _from_entry(entry, device, dtype, options)
    elif Path(text).is_dir():
        head = _from_folder(Path(text), device, dtype, options)
    elif "/" in text and not text.startswith((".", "/")):
        head = _from_hub(text, device, dtype, options)
    else:
        raise InputError(
            f"head {text!r} is neither a name nor a folder; have toybox, {', '.join(head_table())}, "
            "a folder with head.json, or a hub repository owner/name"
        )
    missing = [target for target in targets if target not in head.config.targets]
    if missing:
        raise InputError(f"head {text!r} predicts {', '.join(head.config.targets)}, not {', '.join(missing)}")
    return head


def layout_entry(name: str | Path) -> HeadEntry | None:
    """The entry of an id of the table whose layout is not Marigold's; None: it is none."""
    entry = _entry_of(name) if isinstance(name, str) else None
    return entry if entry is not None and entry.layout else None


def published_place(name: str | Path, options: Mapping[str, Any]) -> Path | None:
    """Where a head of another layout than Marigold's lies, fetched where it is named by its id; None: it is none."""
    entry = _entry_of(name) if isinstance(name, str) else None
    if entry is not None:
        return fetch_published(entry.repo, entry.layout, options) if entry.layout else None
    path = Path(name)
    return path if path.exists() and not (path / MANIFEST).is_file() and layout_of(path) else None


def _plain(head: Any, name: str) -> GeometryHead:
    if isinstance(head, GeometryHead):
        return head
    raise InputError(f"{name} is a head of another kind ({head.kind}); give it as --head {name}")


def _task_of(targets: Sequence[str]) -> TaskConfig:
    """The task that the first target belongs to; without targets that of depth and normals."""
    tasks = list(task_table().values())
    usual = next(task for task in tasks if task.weights == TaskConfig.weights)
    return next((task for task in tasks if task.codec in targets[:1]), usual)


def embedded_folder(task: TaskConfig) -> Path:
    """Where the embedded head of a task lies. Raises InputError, with the command that trains one, without."""
    folder = weights_root() / task.weights
    if not (folder / MANIFEST).is_file():
        raise InputError(
            f"the weights of the embedded {task.codec} head are not in {folder}; give another head, train one with "
            f"`unproject train {task.recipe} --out {folder.name}`, or set UNPROJECT_WEIGHTS"
        )
    return folder


def known_start(name: str) -> Start | None:
    """What a head begins with, told without loading it; None where only files elsewhere or no files tell."""
    own = {task.weights for task in task_table().values()}
    embedded = TaskConfig.weights if name == EMBEDDED else name
    folder = weights_root() / embedded if embedded in own else Path(name)
    if embedded not in own and (entry := _entry_of(name)) is not None:
        return entry.start
    beside = folder.resolve().parent / f"{folder.resolve().name}-geometry"
    about = next((read_json(place / MANIFEST) for place in (folder, beside) if (place / MANIFEST).is_file()), None)
    config = about.get("config") if isinstance(about, dict) else None
    start = config.get("start") if isinstance(config, dict) else None
    return next((known for known in get_args(Start) if known == start), None)


def _entry_of(name: str) -> HeadEntry | None:
    """The entry of an id of the table, or of the full id of one."""
    known = next((entry for entry in head_table().values() if entry.repo == name), None)
    return head_table().get(name, known)


def _from_folder(folder: Path, device: Any, dtype: torch.dtype, options: dict[str, Any]) -> GeometryHead:
    index = folder / "model_index.json"
    family = read_json(index).get("_class_name") if index.is_file() else None
    if family not in published_pipelines() and (folder / MANIFEST).is_file():
        return GeometryHead.load(folder, device, dtype)
    beside = folder.resolve().parent / f"{folder.resolve().name}-geometry"
    if family not in published_pipelines() and (beside / MANIFEST).is_file():
        return GeometryHead.load(beside, device, dtype)
    if family not in published_pipelines():
        raise InputError(
            f"{folder} holds no geometry head: it needs {MANIFEST} or a Marigold pipeline "
            f"({', '.join(published_pipelines())}); train one with `unproject train geometry-head`"
        )
    start = options.pop("start", None)
    pipe = _load_pipeline(family, str(folder), dtype, {"local_files_only": True, **options})
    head = marigold_head(pipe, start, device)
    if start is None and (folder / MANIFEST).is_file():  # as `GeometryHead.save` found it
        config = HeadConfig.read(read_json(folder / MANIFEST)["config"], alignment=head.config.alignment)
        return GeometryHead(head.prior, head.unet, config)
    return head


def _from_entry(entry: HeadEntry, device: Any, dtype: torch.dtype, options: dict[str, Any]) -> GeometryHead:
    options = {"start": entry.start, **options}
    head = _from_hub(entry.repo, device, dtype, options)
    return head.with_config(steps=entry.steps) if entry.steps else head


def _from_hub(repo: str, device: Any, dtype: torch.dtype, options: dict[str, Any]) -> GeometryHead:
    """Fetches a repository. Raises InputError naming what failed and the ways out."""
    start = options.pop("start", None)
    where = {name: value for name, value in options.items() if name in hub.WHERE}
    where["local_files_only"] = where.get("local_files_only") or not hub.reachable()
    known = [entry.repo for entry in head_table().values()]
    try:
        family = read_json(hub.fetch_file(repo, "model_index.json", where, known)).get("_class_name")
        target = next((entry.target for entry in head_table().values() if entry.repo == repo), None)
        if family not in published_pipelines() and target is not None:
            family = task_table()[target].pipeline
        if family not in published_pipelines():
            raise InputError(f"{repo} is a {family}; supported are {', '.join(published_pipelines())}")
        pipe = _load_pipeline(family, repo, dtype, {**options, **where})
    except InputError:
        raise
    except Exception as error:  # the hub client raises many kinds: offline, gated, vanished, time-out
        why = (
            str(error) if isinstance(error, hub.Unfetched) else hub.reason(error, repo, "weights in safetensors files")
        )
        raise InputError(
            f"head {repo!r} could not be fetched ({why}). Give a local folder instead, or use the embedded head: toybox"
        ) from error
    return marigold_head(pipe, start, device)


def _load_pipeline(family: str, source: str, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, family).from_pretrained(source, torch_dtype=dtype, use_safetensors=True, **options)


def marigold_head(pipe: Any, start: Start | None = None, device: torch.device | str = "cpu") -> GeometryHead:
    """A head out of a diffusers Marigold pipeline of a task; the weights are shared.

    Ensembles of its samples are aligned as published. A regressor (`start` "zeros") has no published ensemble: its
    members are mirrored and rescaled copies, brought together by consensus.
    """
    family = type(pipe).__name__
    scheduler = type(pipe.scheduler).__name__
    task = published_task(family)
    if task is None:
        raise InputError(f"{family} is no geometry pipeline; have {', '.join(published_pipelines())}")
    if scheduler not in SOLVERS:
        raise InputError(
            f"the scheduler {scheduler} of this head is not supported; use a checkpoint with {' or '.join(SOLVERS)}"
        )
    settings, prior = pipe.config, StableDiffusionPrior(pipe.to(device), family)
    start, few = start or task.schedule.start, SOLVERS[scheduler] == "lcm"
    config = HeadConfig(
        targets=(task.codec,),
        kind=pipe.scheduler.config.prediction_type,
        start=start,
        steps=1 if start == "zeros" else settings.get("default_denoising_steps") or task.schedule.steps,
        solver="ddim" if start == "zeros" else SOLVERS[scheduler],
        spacing="trailing" if start == "zeros" else None if few else pipe.scheduler.config.timestep_spacing,
        final="zero" if start == "zeros" or pipe.scheduler.config.set_alpha_to_one else "index0",
        processing_resolution=settings.get("default_processing_resolution") or 0,
        prompt_padding="do_not_pad",
        alignment="published" if start == "noise" else "consensus",
        codecs={task.codec: CODECS[task.codec].published(settings)},
    )
    return GeometryHead(prior, pipe.unet, config)
