"""Text to mesh without optimisation: a trained generator draws the shape, which score distillation may refine."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from ..core.priors import Prior, load_prior, multi_view_sibling
from ..generate.finish import textured_mesh
from ..generate.shape_generator import ShapeGenerator
from ..geometry.representation import MeshConfig
from ..geometry.shapes import ShapeConfig
from ..utils.errors import InputError
from ..utils.files import beside_weights, check_named
from .base import PriorPipeline, placed
from .prompts import check_prompt, warn_about
from .sampling_parts import whole_number
from .text_to_mesh import TextToMesh, TextToMeshOutput
from .text_to_shape import REAL_BACKBONES, TEXTURE, MeshRecipe, StepEnd, chosen_seed, load_recipe

FINISH = MeshConfig(resolution=65, faces=5000, texture=512, visibility_views=0)
D = TypeVar("D", bound="DrawnTextToMesh")


@dataclass(frozen=True)
class DrawnMeshConfig:
    """How a mesh was made."""

    generator: Any  # the config of what drew the shape
    mesh: MeshConfig = FINISH
    refined: MeshRecipe | None = None  # the recipe of score distillation that went on from the shape


class DrawnTextToMesh(PriorPipeline):
    """Base of pipelines whose shapes a generator draws."""

    made_by: ClassVar[type[ShapeGenerator]]
    option: ClassVar[str]  # of the command line that names weights
    step_memory_gb: float = TextToMesh.step_memory_gb

    def __init__(self, generator: ShapeGenerator, mesh: MeshConfig = FINISH, guide: Prior | None = None) -> None:
        """`guide`: who refines; None: the multi-view sibling of the prior, loaded when it is needed, or the prior."""
        super().__init__(generator.prior)
        self.generator, self.mesh, self.guide = generator, mesh, guide

    @classmethod
    def from_pretrained(
        cls: type[D],
        name: str | Path = "toybox",
        weights: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> D:
        """Loads a 2-D prior and what was trained on it.

        weights: export/ of a training, or a file that `loaded` reads; None: those that come with the prior. Raises
        InputError, with the command that trains, where there are none.
        """
        found = cls.find_weights(name, weights)
        return cls(cls.loaded(found, load_prior(name, device, dtype, **options)))

    @classmethod
    def loaded(cls, weights: Path, prior: Prior) -> ShapeGenerator:
        """The generator of a folder of weights."""
        return cls.made_by.load(weights, prior)

    @classmethod
    def find_weights(cls, name: str | Path, weights: str | Path | None) -> Path:
        """The folder or file of weights for a prior. Raises InputError, with the command that makes some, without."""
        stem, training = cls.made_by.stem, cls.made_by.training
        if weights is not None:
            check_named(weights, f"the name of the {stem} weights", f"give the export/ of a training of {training}")
            path = Path(weights)
            if not path.exists():
                raise InputError(f"{stem} weights {path} do not exist; give the export/ of a training of {training}")
            return path
        path = beside_weights(name, stem)
        if (path / f"{stem}.json").is_file():
            return path
        raise InputError(
            f"no weights of {stem} come with the prior {str(name)!r} yet; train some with\n"
            f"  unproject train {training} --out runs/{training}\n"
            f"and give {cls.option} runs/{training}/export, or use --method optimise"
        )

    def __call__(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        faces: int | None = None,
        texture: int | None = None,
        refine: int = 0,
        out: str | Path | None = None,
        resume: bool = True,
        callback_on_step_end: StepEnd | None = None,
    ) -> TextToMeshOutput:
        """Makes one mesh.

        Args:
            prompt: what to make.
            negative_prompt: what refining moves away from; shapes are drawn without guidance.
            seed: of everything random; None: 0.
            generator: the seed is drawn from it (and reported) instead.
            faces: triangles at most.
            texture: texels along an edge of the texture.
            refine: steps of score distillation that go on from the drawn shape; 0: none.
            out: folder for checkpoints of refining.
            resume: continue from a checkpoint in `out`.
            callback_on_step_end: of refining, as of TextToMesh.
        """
        check_prompt(prompt)
        whole_number("refine", refine, 0)
        if negative_prompt and not refine:
            raise InputError("negative_prompt is for refining alone: shapes are drawn without guidance; give refine")
        warn_about(self.prior, prompt, REAL_BACKBONES)
        started, seed = datetime.now(timezone.utc), chosen_seed(seed, generator)
        mesh = self.mesh if faces is None else replace(self.mesh, faces=faces)
        if texture is not None:
            whole_number("texture", texture, *TEXTURE)
            mesh = replace(mesh, texture=texture)
        began, spent = time.perf_counter(), self.generator.nfe
        shape = self.generator.made(prompt, seed)
        drawn = time.perf_counter()
        if refine:
            pipe = self._refining(refine, mesh)
            made = pipe(
                prompt,
                negative_prompt,
                seed=seed,
                out=out,
                resume=resume,
                callback_on_step_end=callback_on_step_end,
                start=shape,
            )
            made.seconds["draw"] = drawn - began
            made.nfe += self.generator.nfe - spent
            made.config = DrawnMeshConfig(self.generator.config, mesh, pipe.recipe)
            return made
        finished = textured_mesh(shape, mesh)
        return TextToMeshOutput(
            mesh=finished,
            shape=shape,
            report=finished.check(),
            prompt=prompt,
            negative_prompt=None,
            prior=self.prior.name,
            seed=seed,
            nfe=self.generator.nfe - spent,
            started=started,
            seconds={"draw": drawn - began, "mesh": time.perf_counter() - drawn},
            history=[],
            config=DrawnMeshConfig(self.generator.config, mesh),
        )

    def to(self: D, *where: torch.device | str | int | torch.dtype | None, **named: Any) -> D:
        """See PriorPipeline.to; what was trained stays in float32."""
        self.generator.to(*placed(*where, **named))
        if self.guide is not None:
            self.guide.to(*placed(*where, **named))
        return self

    def _refining(self, steps: int, mesh: MeshConfig) -> TextToMesh:
        """Score distillation of the shapes that this makes."""
        if self.guide is None:
            sibling = multi_view_sibling(self.prior.name)
            self.guide = load_prior(sibling, self.device, self.dtype) if sibling else self.prior
        recipe = load_recipe("default", self.guide, None, TextToMesh.recipes)
        kind = self.generator.shape.kind
        shape = ShapeConfig(kind, **{kind: self.generator.shape_config})  # type: ignore[arg-type]
        optimise = replace(recipe.optimise, steps=steps, shape=shape)
        pipe = TextToMesh(self.guide, replace(recipe, optimise=optimise, mesh=mesh))
        pipe.step_memory_gb = self.step_memory_gb
        return pipe
