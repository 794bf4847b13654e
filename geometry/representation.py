"""What can be optimised from its renders and end as a mesh, whatever it is made of.

A representation is a torch module of everything that changes: parameters, and buffers for the rest of its state, so
that saving, resuming and moving it never forgets a part. `shapes` holds those there are and makes them from configs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..utils.configs import to_dict
from ..utils.errors import InputError
from ..utils.files import atomic_path, write_json
from ..utils.ramps import Moment
from ..utils.regrown import Regrown
from .meshes import Mesh
from .outputs import Rays, RenderOutput

CHANNELS = ("rgb", "alpha", "depth", "normal")


@dataclass(frozen=True)
class MeshConfig:
    """How a mesh is taken from a representation."""

    resolution: int = 128  # lattice points along an edge
    smooth: float = 0.7  # lattice cells, standard deviation of a blur before extraction
    keep: float = 0.02  # pieces below this share of the area are dropped
    faces: int = 12_000  # at most
    texture: int = 1024  # texels along an edge
    visibility_views: int = 48  # directions from which empty space must be seen, else it is filled; 0: no filling
    depth_samples: int = 8  # of the short ray through the surface that finds the colour of a texel

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.faces < 4 or self.texture < 4 or self.depth_samples < 1:
            raise InputError("mesh: resolution >= 8, faces >= 4, texture >= 4 and depth_samples >= 1 needed")


class Representation(nn.Module, ABC):
    """Base of all representations."""

    kind: ClassVar[str]  # in files and recipes
    terms: ClassVar[tuple[str, ...]] = ()  # names of its own regularisers
    grows: ClassVar[bool] = False  # the rows of parameters may change in `after_step`
    config: Any  # the frozen dataclass it was made from
    rays_at_once: int | None = None  # whose samples may be in memory together, where rays have samples; None: all

    @property
    @abstractmethod
    def bounds(self) -> float:
        """Radius in metres of the ball around the origin outside which nothing is rendered."""

    @abstractmethod
    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameters with learning rates, as for torch's optimisers; `lr` scales all of them."""

    def rates(self, now: Moment) -> Sequence[float]:
        """Factors on the rates of the groups of `param_groups` at a moment of a run; empty: they stay as they are."""
        return ()

    @abstractmethod
    def render(
        self,
        cameras: Rays,
        channels: Sequence[str] = CHANNELS,
        background: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
    ) -> RenderOutput:
        """Renders B views of a camera, or any rays (B, H, W); differentiable in the parameters.

        channels: those that matter; the others may be zero, which saves time. background: grey, (3,), (B, 3) or
        (B, H, W, 3) sRGB. generator: of jitter; None: none.
        """

    def ray_bytes(self, channels: Sequence[str] = CHANNELS) -> int:
        """About how much autograd keeps of a rendered ray; 0 where that is nothing to speak of."""
        return 0

    def regularisers(
        self, seen: RenderOutput, wanted: Collection[str], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Those of its own `terms` that are wanted and have a meaning for it, as scalars of order one.

        seen: what `render` gave for the present parameters.
        """
        return {}

    def on_step(self, now: Moment, generator: torch.Generator) -> None:
        """Called before each step of a run and once at its end: schedules, and state that follows the parameters."""

    def after_backward(self, now: Moment) -> None:
        """Called when the gradients of a step are there."""

    def after_step(self, now: Moment) -> Regrown | None:
        """Called after the optimiser; what became of the rows of parameters, if that changed."""
        return None

    @abstractmethod
    def to_mesh(self, config: MeshConfig) -> Mesh:
        """Its surface, closed and outward, with smooth vertex normals.

        Raises EmptySurfaceError when there is none, InputError when it holds values that are not finite.
        """

    @abstractmethod
    def surface_color(self, points: Tensor, normals: Tensor, config: MeshConfig) -> Tensor:
        """sRGB (N, 3) in [0, 1] that a viewer against the unit normals (N, 3) sees at surface points (N, 3)."""

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    def save(self, folder: str | Path) -> Path:
        """Writes representation.safetensors and representation.json (its kind and config); shapes.load reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / "representation.safetensors") as temporary:
            save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, temporary)
        write_json(folder / "representation.json", {"kind": self.kind, "config": to_dict(self.config)})
        return folder

    def restore(self, values: dict[str, Tensor], where: str) -> None:
        """Takes over a state. Raises InputError naming `where` when it is one of something else."""
        own = self.state_dict()
        if own.keys() != values.keys():
            odd = sorted(own.keys() ^ values.keys())
            raise InputError(f"{where} is no {self.kind} of this config: {len(odd)} names differ, first {odd[0]!r}")
        for name, value in values.items():
            if own[name].shape != value.shape:
                raise InputError(
                    f"{where}: {name} is {tuple(value.shape)}, this {self.kind} has {tuple(own[name].shape)}"
                )
        self.load_state_dict(values)
