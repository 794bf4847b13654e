"""Calibration artefacts: what was measured once for a prior, kept with what it was measured on.

One file format for all of them: safetensors whose metadata hold {kind, version, fingerprint, settings} as JSON. The
fingerprint names the weights of network and text encoders, what hooks change, the noise path, the latent shape and the
guidance; using an artefact with anything else is an error that says what differs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...utils.digests import digest
from ...utils.errors import InputError, damage
from ...utils.files import atomic_path
from ...utils.seeds import generator
from ..priors.base import Prior
from ..priors.noise import NoisePath
from ..priors.rows import Condition
from .guidance import Conditional, Guidance, as_guidance

VERSION = 2
PROBES = 0x9E3779B9  # apart from the seeds of samples in the 32 bits that torch's generator keeps of a seed
_TEXT = "text_encoder"
_NOT_ASKED = ("vae", "safety_checker", "image_encoder")


def probe_generator(seed: int) -> torch.Generator:
    """Randomness of a measurement on the sample of this seed, independent of the noise that sample was drawn from."""
    return generator(seed ^ PROBES)


@dataclass(frozen=True)
class Fingerprint:
    """What an artefact was measured on."""

    network: str  # digest of the denoising network's weights, rounded to half precision
    text: str  # likewise of the text encoders; "none" without any
    changes: str  # what hooks do to the network's answers (rounded inputs, remapped times); "none" without any
    path: str  # "flow", or "vp-" and a digest of the lambda table
    latent_shape: tuple[int, ...]  # (C, h, w)
    guidance: str  # scale, and rescale, interval and negative prompts where they are used

    @property
    def guidance_scale(self) -> float:
        """The scale alone."""
        return float(self.guidance.split()[0])

    def differences(self, other: Fingerprint, ignore: Iterable[str] = ()) -> list[str]:
        """One line for each field in which `other` differs."""
        mine, theirs = asdict(self), asdict(other)
        names = {
            "network": "network weights",
            "text": "text encoder weights",
            "changes": "changes of the network:",
            "path": "noise path",
            "latent_shape": "latent shape",
        }
        return [
            f"{names.get(key, key)} {mine[key]} (now {theirs[key]})"
            for key in mine
            if key not in ignore and mine[key] != theirs[key]
        ]


def fingerprint(
    prior: Prior,
    latent_shape: tuple[int, ...] | None = None,
    guidance: Guidance | float = 1.0,
    negative: str | Sequence[str] | None = None,
) -> Fingerprint:
    """The fingerprint of a prior at a latent shape (C, h, w) (None: its own), guidance and negative prompts."""
    shape = tuple(int(side) for side in latent_shape or prior.latent_shape)
    if len(shape) != 3:
        raise InputError(f"latent_shape={shape} must be (channels, height, width) without the batch")
    against = () if prior.guidance_embedded else [negative] if isinstance(negative, str) else negative or ()
    lambdas = NoisePath.from_config(prior.scheduler_config).lambdas
    path = "flow" if lambdas is None else "vp-" + digest({"lambda": lambdas})
    asked = {name: part for name, part in prior.modules().items() if not _part(name).startswith(_NOT_ASKED)}
    texts = {name: part for name, part in asked.items() if _part(name).startswith(_TEXT)}
    network = _weights({name: part for name, part in asked.items() if name not in texts})
    own = {name: value for name, value in vars(prior).items() if isinstance(value, Tensor)}
    text = digest(_weights(texts), torch.float16) if texts else "none"
    marks = digest(network or own, torch.float16), text, _changes(asked.values())
    return Fingerprint(*marks, path, shape, _guided(as_guidance(guidance), against))


def condition_digest(condition: Condition) -> str:
    """Digest of all that the network is told beside state and time."""
    told = {f"{name}.{key}": value for name, rows in condition.branches.items() for key, value in rows.tensors.items()}
    return digest({**told, "frames": torch.tensor(condition.frames)})


def _guided(guidance: Guidance, against: Sequence[str]) -> str:
    """Guidance and distinct negative prompts in a line."""
    told = str(guidance)
    if told != str(Conditional()) and any(against):
        told += f" against {' | '.join(sorted(set(against)))!r}"
    return told


def _part(name: str) -> str:
    """What a module is, for one of several models too ("1.vae")."""
    return name.rpartition(".")[2]


def _weights(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, part in modules.items() for key, value in part.state_dict().items()}


def _changes(modules: Iterable[nn.Module]) -> str:
    """What the hooks on some modules say they change (`changes`), with their number."""
    found: Counter[str] = Counter()
    for part in (inner for module in modules for inner in module.modules()):
        registry = getattr(part, "_diffusers_hook", None)
        hooks = () if registry is None else registry.hooks.values()
        found.update(hook.changes for hook in hooks if hasattr(hook, "changes"))
    return ", ".join(f"{count} x {change}" for change, count in sorted(found.items())) or "none"


@dataclass(frozen=True)
class Calibration:
    """One artefact: named tensors of some kind, what they were measured on, and plain values about the making."""

    kind: str
    tensors: Mapping[str, Tensor]
    fingerprint: Fingerprint
    settings: Mapping[str, Any] = field(default_factory=dict)  # anything JSON can hold

    def save(self, path: str | Path) -> Path:
        """Writes the artefact, whole or not at all."""
        try:
            settings = json.dumps(dict(self.settings), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"settings of a {self.kind} calibration must be plain finite values: {error}") from error
        metadata = {
            "kind": self.kind,
            "version": str(VERSION),
            "fingerprint": json.dumps(asdict(self.fingerprint)),
            "settings": settings,
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.tensors.items()}
        with atomic_path(path) as temporary:
            save_file(tensors, str(temporary), metadata=metadata)
        return Path(path)

    @classmethod
    def load(
        cls, path: str | Path, kind: str, expected: Fingerprint | None = None, ignore: Iterable[str] = ()
    ) -> Calibration:
        """Reads an artefact.

        Args:
            path: file written by `save`.
            kind: what it must be.
            expected: `fingerprint` of the present prior, shape and guidance; None: not compared.
            ignore: fields of the fingerprint that do not matter to this kind.

        Raises InputError for a missing or damaged file, another kind or version, or another fingerprint.
        """
        made = cls._read(Path(path))
        if made.kind != kind:
            raise InputError(f"{path} holds a {made.kind} calibration, expected {kind}")
        if expected is not None:
            made.check(expected, ignore, str(path))
        return made

    @classmethod
    def _read(cls, path: Path) -> Calibration:
        if not path.is_file():
            raise InputError(f"calibration {path} does not exist; make it first")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"calibration {path} is not a safetensors file: {damage(error)}") from error
        version = metadata.get("version", "none")[:40]
        if version != str(VERSION):
            raise InputError(f"{path} has calibration version {version}, expected {VERSION}; calibrate again")
        try:
            values = json.loads(metadata["fingerprint"])
            unknown = sorted(set(values) - {field.name for field in fields(Fingerprint)})
            if unknown:
                raise InputError(f"{path} was measured on {', '.join(unknown)}, which is unknown here; calibrate again")
            values["latent_shape"] = tuple(values["latent_shape"])
            return cls(metadata["kind"], tensors, Fingerprint(**values), json.loads(metadata["settings"]))
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise InputError(f"calibration {path} has damaged metadata: {damage(error)}; calibrate again") from error

    def check(self, expected: Fingerprint, ignore: Iterable[str] = (), name: str = "") -> None:
        """Raises InputError that lists every difference between this artefact's fingerprint and `expected`."""
        found = self.fingerprint.differences(expected, tuple(ignore))
        if found:
            raise InputError(
                f"{name or f'this {self.kind} calibration'} was made for {'; '.join(found)}: calibrate again"
            )
