"""Students as files that others load, and back as priors that know how they want to be asked.

Besides its weights every folder has distill.json: method, kind, prior, hashes of teacher and base, and how to draw.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from ...utils.configs import load_config, to_dict
from ...utils.errors import InputError
from ...utils.files import STUDENT, read_json, student_folder
from ..priors import load_prior
from ..priors.base import Recommended
from ..priors.diffusers import DiffusersPrior
from .arcflow import Mixture
from .asdm import Slim
from .integer import Kernels, with_kernels
from .kinds import Full, Kind, Lora, Told
from .prune import Pruned
from .pruned_adapter import PrunedLora
from .quest import Quantised
from .speedupnet import NegativeAdapter
from .student import Student
from .teacher import prior_hash

KINDS: dict[str, type[Kind]] = {
    kind.name: kind for kind in (Full, Told, Lora, NegativeAdapter, Mixture, Pruned, PrunedLora, Slim, Quantised)
}


@dataclass(frozen=True)
class About:
    """What distill.json says beside the kind."""

    method: str
    prior: str
    """name or folder of the prior that it was made of"""
    teacher: str
    """hash"""
    sampling: Recommended
    trained_share: float = 1.0
    """parameters that learned, of all of the network's"""
    metrics: Mapping[str, float] | None = None


def export(student: Student, folder: str | Path, about: About, scheduler: Mapping[str, Any] | None = None) -> Path:
    """Writes a student that is done. `scheduler`: what of its scheduler's config is other than the prior's, for stock
    pipelines: class, spacing, end."""
    told = to_dict(replace(about, trained_share=round(student.trained_share, 6)))
    given = student.prior
    try:
        if scheduler:
            student.prior = given.on_path({**given.scheduler_config, **scheduler})
        return student.save(folder, told)
    finally:
        student.prior = given


def kind_of(name: str, settings: Mapping[str, Any]) -> Kind:
    """A kind from plain values. Raises InputError for unknown names and settings."""
    if name not in KINDS:
        raise InputError(f"student kind {name!r} is unknown; have {', '.join(KINDS)}")
    return cast(Kind, load_config(cast(Any, KINDS[name]), dict(settings)))


def load_student(
    name: str | Path,
    prior: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    kernels: Kernels = "reference",
    **options: Any,
) -> DiffusersPrior:
    """A student as a frozen prior whose recommended settings are those of its distill.json.

    Args:
        name: its folder, or the name of an embedded one.
        prior: what an adapter is put on; None: the prior that it was made of.
        device: where the networks live.
        dtype: their dtype.
        kernels: how a student of few bits computes: rounded values in floating point, or integers (`integer`).
        options: as of `load_prior`.

    Raises InputError for folders that are no students, priors that an adapter does not fit, and kernels that the
    student or the device has no use for. Warns of an adapter on another network than it was made for.
    """
    folder = student_folder(name)
    values = read_json(folder / STUDENT)
    kind = kind_of(values["kind"], values["settings"])
    about = load_config(About, {key: values[key] for key in values if key not in ("kind", "settings", "base")})
    if kind.stock:
        if prior is not None and str(prior) != about.prior:
            raise InputError(f"the student {name} is a whole network of {about.prior}; leave the prior {prior} out")
        made = load_prior(folder, device, dtype, **options)
    else:
        base = load_prior(prior or about.prior, device, dtype, **options)
        _warn_of_another(base, name, (values.get("base"), about.teacher))
        made = kind.loaded(base, folder)
    made.name = f"{about.prior if prior is None else prior}/{folder.name}"
    made.recommended = about.sampling
    made.freeze()
    if kernels != "reference":
        with_kernels(made, kernels)
    return made


def _warn_of_another(base: DiffusersPrior, student: str | Path, known: tuple[str | None, str]) -> None:
    """Warns where a student goes on a network with none of the hashes (of its base, of its prior) in its distill.json:
    a fine-tune of it, which often does, or a stranger of the same sizes. Half precisions other than the one that hashes
    round to are not compared."""
    if base.dtype not in (torch.float32, torch.float16):
        return
    if (found := prior_hash(base)) not in known:
        warnings.warn(
            f"the student {student} was made for another network than {base.name} (hash {known[1]}, not {found}): "
            f"unless that is a fine-tune of the same one, its pictures are noise; distill one of {base.name}",
            UserWarning,
            stacklevel=3,
        )
