"""Text to mesh in one pass of a small network that learnt a library of prompts."""

from __future__ import annotations

from typing import ClassVar

from ..generate.amortised import Amortised
from ..generate.shape_generator import ShapeGenerator
from .drawn_mesh import DrawnTextToMesh


class AmortisedTextToMesh(DrawnTextToMesh):
    """Textured meshes from prompts by amortised score distillation (Ma et al. 2024).

    >>> pipe = AmortisedTextToMesh.from_pretrained("toybox", "runs/amortised/export")
    >>> pipe("a red chair", seed=0).mesh.save("chair.glb")
    """

    made_by: ClassVar[type[ShapeGenerator]] = Amortised
    option: ClassVar[str] = "--amortised"
