"""Text to mesh in a few network calls: a trained generator of planes, refined by score distillation where wanted."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..core.priors import Prior, load_prior, multi_view_sibling
from ..core.priors.registry import weights_root
from ..generate.finish import textured_mesh
from ..generate.turbo import ABOUT, TriplaneTurbo, TurboConfig
from ..generate.turbo_published import load_published
from ..geometry.representation import MeshConfig
from ..geometry.shapes import ShapeConfig
from ..utils.errors import InputError
from ..utils.files import check_named
from .base import PriorPipeline, placed
from .prompts import warn_about
from .sampling_parts import whole_number
from .text_to_mesh import TextToMesh, TextToMeshOutput
from .text_to_shape import REAL_BACKBONES, MeshRecipe, StepEnd, chosen_seed, load_recipe

FINISH = MeshConfig(resolution=65, faces=5000, texture=512, visibility_views=0)


@dataclass(frozen=True)
class TurboMeshConfig:
    """How a mesh was made."""

    turbo: TurboConfig = field(default_factory=TurboConfig)
    mesh: MeshConfig = FINISH
    refined: MeshRecipe | None = None  # the recipe of score distillation that went on from the planes


class TurboTextToMesh(PriorPipeline):
    """Textured meshes from prompts by planes (Ma et al. 2025).

    >>> pipe = TurboTextToMesh.from_pretrained("toybox", "runs/triplane-turbo/export")
    >>> pipe("a red chair", seed=0).mesh.save("chair.glb")
    """

    step_memory_gb: float = TextToMesh.step_memory_gb

    def __init__(self, turbo: TriplaneTurbo, mesh: MeshConfig = FINISH, guide: Prior | None = None) -> None:
        """`guide`: who refines; None: the multi-view sibling of the prior, loaded when it is needed, or the prior."""
        super().__init__(turbo.prior)
        self.turbo, self.mesh, self.guide = turbo, mesh, guide

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "toybox",
        weights: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> TurboTextToMesh:
        """Loads a 2-D prior and what was trained on it.

        weights: export/ of a training, or the published triplane_turbo_sd_v1.pth (with sd21-base); None: those that
        come with the prior. Raises InputError, with the command that trains, where there are none.
        """
        found = find_weights(name, weights)
        prior = load_prior(name, device, dtype, **options)
        return cls(load_published(found, prior) if found.is_file() else TriplaneTurbo.load(found, prior))

    def __call__(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        faces: int | None = None,
        refine: int = 0,
        out: str | Path | None = None,
        resume: bool = True,
        callback_on_step_end: StepEnd | None = None,
    ) -> TextToMeshOutput:
        """Makes one mesh.

        Args:
            prompt: what to make.
            negative_prompt: what refining moves away from; planes are drawn without guidance.
            seed: of everything random; None: 0.
            generator: the seed is drawn from it (and reported) instead.
            faces: triangles at most.
            refine: steps of score distillation that go on from the planes; 0: none.
            out: folder for checkpoints of refining.
            resume: continue from a checkpoint in `out`.
            callback_on_step_end: of refining, as of TextToMesh.
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError("the prompt is empty; say what to make, for example 'a red chair'")
        whole_number("refine", refine, 0)
        if negative_prompt and not refine:
            raise InputError("negative_prompt is for refining alone: planes are drawn without guidance; give refine")
        warn_about(self.prior, prompt, REAL_BACKBONES)
        started, seed = datetime.now(timezone.utc), chosen_seed(seed, generator)
        mesh = self.mesh if faces is None else replace(self.mesh, faces=faces)
        began, spent = time.perf_counter(), self.turbo.asked.nfe
        shape = self.turbo.filled(self.turbo.draw([prompt], [seed])[0])
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
            made.seconds["planes"] = drawn - began
            made.nfe += self.turbo.asked.nfe - spent
            made.config = TurboMeshConfig(self.turbo.config, mesh, pipe.recipe)
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
            nfe=self.turbo.asked.nfe - spent,
            started=started,
            seconds={"planes": drawn - began, "mesh": time.perf_counter() - drawn},
            history=[],
            config=TurboMeshConfig(self.turbo.config, mesh),
        )

    def to(self, *where: torch.device | str | int | torch.dtype | None, **named: Any) -> TurboTextToMesh:
        """See PriorPipeline.to; adapters and heads stay in float32."""
        self.turbo.to(*placed(*where, **named))
        if self.guide is not None:
            self.guide.to(*placed(*where, **named))
        return self

    def _refining(self, steps: int, mesh: MeshConfig) -> TextToMesh:
        """Score distillation of the shapes that this makes."""
        if self.guide is None:
            sibling = multi_view_sibling(self.prior.name)
            self.guide = load_prior(sibling, self.device, self.dtype) if sibling else self.prior
        recipe = load_recipe("default", self.guide, None, TextToMesh.recipes)
        shape = ShapeConfig("dual", dual=self.turbo.shape_config)
        optimise = replace(recipe.optimise, steps=steps, shape=shape)
        pipe = TextToMesh(self.guide, replace(recipe, optimise=optimise, mesh=mesh))
        pipe.step_memory_gb = self.step_memory_gb
        return pipe


def find_weights(name: str | Path, weights: str | Path | None) -> Path:
    """The folder or file of weights for a prior. Raises InputError, with the command that makes some, without any."""
    if weights is not None:
        check_named(weights, "the name of the turbo weights", "give the export/ of a triplane-turbo training")
        path = Path(weights)
        if not path.exists():
            raise InputError(f"turbo weights {path} do not exist; give the export/ of a triplane-turbo training")
        return path
    path = weights_root() / f"{Path(name).name}-turbo"
    if (path / ABOUT).is_file():
        return path
    raise InputError(
        f"no weights of planes come with the prior {str(name)!r} yet; train some with\n"
        "  unproject train triplane-turbo --out runs/triplane-turbo\n"
        "and give --turbo runs/triplane-turbo/export, or use --method optimise"
    )
