"""One config, any representation; and representations from files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from ...utils.configs import load_config
from ...utils.errors import InputError
from ...utils.files import check_named, read_json
from ..fields import FieldConfig
from ..representation import Representation
from .dual import DualVolume
from .gaussians import GaussianConfig, Gaussians
from .tetrahedra import Tetrahedra, TetrahedraConfig
from .triangles import TriangleConfig, Triangles
from .volume import Volume, VolumeShapeConfig

SHAPES: dict[str, tuple[type[Representation], type[Any]]] = {
    Volume.kind: (Volume, VolumeShapeConfig),
    DualVolume.kind: (DualVolume, VolumeShapeConfig),
    Triangles.kind: (Triangles, TriangleConfig),
    Gaussians.kind: (Gaussians, GaussianConfig),
    Tetrahedra.kind: (Tetrahedra, TetrahedraConfig),
}


@dataclass(frozen=True)
class ShapeConfig:
    """`kind` chooses the representation; the parts of the others are ignored."""

    kind: Literal["volume", "triangles", "gaussians", "tetrahedra", "dual"] = "volume"
    volume: VolumeShapeConfig = field(default_factory=VolumeShapeConfig)
    triangles: TriangleConfig = field(default_factory=TriangleConfig)
    gaussians: GaussianConfig = field(default_factory=GaussianConfig)
    tetrahedra: TetrahedraConfig = field(default_factory=TetrahedraConfig)
    dual: VolumeShapeConfig = field(default_factory=lambda: VolumeShapeConfig(FieldConfig("dual")))


def make_shape(config: ShapeConfig, generator: torch.Generator | None = None) -> Representation:
    """A fresh representation; random initial values come from the generator."""
    made: Any = SHAPES[config.kind][0]
    shape: Representation = made(getattr(config, config.kind), generator)
    return shape


def load_shape(folder: str | Path) -> Representation:
    """What `Representation.save` wrote. Raises InputError when the files are missing, damaged or of an unknown kind."""
    check_named(folder, "the folder of a representation", "name one that Representation.save wrote")
    folder = Path(folder)
    document = read_json(folder / "representation.json")
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind not in SHAPES:
        raise InputError(f"{folder} holds a representation of kind {kind!r}; have {', '.join(SHAPES)}")
    made: Any
    made, configured = SHAPES[kind]
    shape: Representation = made(load_config(configured, document["config"]))
    path = folder / "representation.safetensors"
    try:
        values = load_file(path)
    except Exception as error:
        raise InputError(f"{path} is missing or damaged ({error})") from error
    shape.restore(values, str(path))
    return shape
