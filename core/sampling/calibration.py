"""Calibration artefacts: what was measured once for a prior, kept with what it was measured on.

One file format for all of them: safetensors whose metadata hold {kind, version, fingerprint, settings} as JSON. The
fingerprint names the network weights, the noise path, the latent shape and the guidance; using an artefact with
anything else is an error that says what differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...utils.errors import InputError
from ...utils.files import atomic_path
from ..priors.base import Prior
from ..priors.noise import is_flow, lambda_table
from .guidance import Guidance

VERSION = 1
_NOT_THE_DENOISER = ("vae", "text_encoder", "safety_checker", "image_encoder")


@dataclass(frozen=True)
class Fingerprint:
    """What an artefact was measured on."""

    network: str  # digest of the denoising network's weights, rounded to half precision
    path: str  # "flow", or "vp-" and a digest of the lambda table
    latent_shape: tuple[int, ...]  # (C, h, w)
    guidance: str  # scale, and rescale and interval where they are used

    def differences(self, other: Fingerprint, ignore: Iterable[str] = ()) -> list[str]:
        """One line for each field in which `other` differs."""
        mine, theirs = asdict(self), asdict(other)
        names = {"network": "network weights", "path": "noise path", "latent_shape": "latent shape"}
        return [
            f"{names.get(key, key)} {mine[key]} (now {theirs[key]})"
            for key in mine
            if key not in ignore and mine[key] != theirs[key]
        ]


def fingerprint(
    prior: Prior, latent_shape: tuple[int, ...] | None = None, guidance: Guidance | float = 1.0
) -> Fingerprint:
    """The fingerprint of a prior at a latent shape (C, h, w) (None: its own) and guidance."""
    shape = tuple(int(side) for side in latent_shape or prior.latent_shape)
    if len(shape) != 3:
        raise InputError(f"latent_shape={shape} must be (channels, height, width) without the batch")
    chosen = guidance if isinstance(guidance, Guidance) else Guidance(float(guidance))
    text = f"{chosen.scale:g}"
    if chosen.rescale:
        text += f" rescale {chosen.rescale:g}"
    if chosen.interval != (0.0, 1.0):
        text += f" interval {chosen.interval[0]:g}-{chosen.interval[1]:g}"
    config = prior.scheduler_config
    path = "flow" if is_flow(config) else "vp-" + _digest({"lambda": lambda_table(config).float()}, torch.float32)
    return Fingerprint(_digest(_weights(prior), torch.float16), path, shape, text)


def _weights(prior: Prior) -> dict[str, Tensor]:
    """Tensors that decide what the prior predicts: its denoising networks, or its own tensors if it has none."""
    found = {
        f"{name}.{key}": value
        for name, module in prior.modules().items()
        if not name.startswith(_NOT_THE_DENOISER)
        for key, value in module.state_dict().items()
    }
    return found or {name: value for name, value in vars(prior).items() if isinstance(value, Tensor)}


def _digest(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    """16 hex digits of the values in `dtype`, in the order of their names."""
    made = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu", dtype).contiguous()
        made.update(f"{name}{tuple(value.shape)}".encode())
        made.update(value.view(torch.uint8).numpy().tobytes() if value.ndim else value.numpy().tobytes())
    return made.hexdigest()


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
            raise InputError(f"calibration {path} is not a safetensors file: {error}") from error
        if metadata.get("version") != str(VERSION):
            raise InputError(
                f"{path} has calibration version {metadata.get('version', 'none')}, expected {VERSION}; calibrate again"
            )
        try:
            values = json.loads(metadata["fingerprint"])
            values["latent_shape"] = tuple(values["latent_shape"])
            return cls(metadata["kind"], tensors, Fingerprint(**values), json.loads(metadata["settings"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"calibration {path} has damaged metadata ({error!r}); calibrate again") from error

    def check(self, expected: Fingerprint, ignore: Iterable[str] = (), name: str = "") -> None:
        """Raises InputError that lists every difference between this artefact's fingerprint and `expected`."""
        found = self.fingerprint.differences(expected, tuple(ignore))
        if found:
            raise InputError(
                f"{name or f'this {self.kind} calibration'} was made for {'; '.join(found)}: calibrate again"
            )
