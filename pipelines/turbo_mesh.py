"""Text to mesh in a few network calls: planes that a prior draws."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ..core.priors import Prior
from ..generate.shape_generator import ShapeGenerator
from ..generate.turbo import TriplaneTurbo
from ..generate.turbo_published import load_published
from .drawn_mesh import DrawnTextToMesh


class TurboTextToMesh(DrawnTextToMesh):
    """Textured meshes from prompts by planes (Ma et al. 2025).

    >>> pipe = TurboTextToMesh.from_pretrained("toybox", "runs/triplane-turbo/export")
    >>> pipe("a red chair", seed=0).mesh.save("chair.glb")
    """

    made_by: ClassVar[type[ShapeGenerator]] = TriplaneTurbo
    option: ClassVar[str] = "--turbo"

    @classmethod
    def loaded(cls, weights: Path, prior: Prior) -> ShapeGenerator:
        """See DrawnTextToMesh; a file is the published triplane_turbo_sd_v1.pth (with sd21-base)."""
        return load_published(weights, prior) if weights.is_file() else super().loaded(weights, prior)
