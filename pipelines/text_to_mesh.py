"""Text to mesh: a field is optimised until a frozen prior likes its renders, then turned into a textured mesh."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.utils import BaseOutput

from ..generate.diagnostics import Diagnostics
from ..generate.finish import textured_mesh, write_pictures
from ..generate.views import views_around
from ..geometry.inspection import write_report
from ..geometry.meshes import Mesh
from ..geometry.report import MeshReport
from ..geometry.representation import Representation
from ..utils.progress import under_way
from ..utils.runs import RunRecord
from .mesh_quality import MeshQuality, at_quality
from .picture_inputs import PictureLike
from .text_to_shape import MeshRecipe, StepEnd, TextToShape, chosen_seed, load_recipe

__all__ = ["MadeMesh", "MeshRecipe", "TextToMesh", "TextToMeshOutput", "chosen_seed", "load_recipe"]


@dataclass
class MadeMesh(BaseOutput):
    """A mesh of a prompt, and what every method tells of its making."""

    mesh: Mesh  # closed, UV-mapped, base_color texture in sRGB with the shading the prior paints
    report: MeshReport
    prompt: str
    negative_prompt: str | None
    prior: str  # name
    seed: int
    nfe: int  # network rows spent, before and after a resumption
    started: datetime
    seconds: dict[str, float]  # by stage; "optimise" counts what came before and after a resumption
    history: list[dict[str, float]]  # the log of each step
    config: Any  # MeshRecipe, or what another method was told

    @property
    def notes(self) -> dict[str, Any]:
        """What else its record says."""
        return {}

    @property
    def radius(self) -> float:
        """Metres from the origin within which it was made."""
        raise TypeError(f"{type(self).__name__} defines no radius")

    @property
    def scale_from(self) -> str:
        """Where the size of the mesh comes from."""
        return f"prompts name no size; the shape was made in a ball of radius {self.radius:g} m"

    def save(self, folder: str | Path, name: str = "mesh.glb", frames: int = 36, size: int = 256) -> list[Path]:
        """Writes the mesh, its .report.json, turntable.gif and .mp4, sheet.png and run.json; returns their paths."""
        folder = Path(folder)
        record = RunRecord("text-to-mesh", self.config, self.seed, sum(self.seconds.values()))
        record.started = self.started
        record.count("denoiser", self.nfe)
        record.stages.update(self.seconds)
        record.notes.update(prompt=self.prompt, negative_prompt=self.negative_prompt, prior=self.prior)
        record.notes.update(mesh=self.report.to_dict(), history=self.history, **self.notes)
        with record.stage("write"):
            paths = [self.mesh.save(folder / name)]
            paths.append(write_report(self.mesh, paths[0], self.scale_from))
            paths += write_pictures(self.mesh, folder.joinpath, frames, size)
        for path in paths:
            record.output(path)
        return [*paths, record.write(folder / "run.json")]


@dataclass
class TextToMeshOutput(MadeMesh):
    """A mesh of a representation."""

    shape: Representation  # what was optimised

    @property
    def radius(self) -> float:
        """See MadeMesh.radius."""
        return self.shape.bounds


class TextToMesh(TextToShape):
    """Textured meshes from prompts with any prior.

    >>> pipe = TextToMesh.from_pretrained("toybox")
    >>> pipe("a red chair", seed=0).mesh.save("chair.glb")
    """

    recipes: ClassVar[str] = "text-to-mesh"

    @classmethod
    def from_pretrained(cls, *given: Any, quality: MeshQuality = "balanced", **named: Any) -> TextToMesh:
        """See TextToShape; `quality` changes what the recipe spends (`mesh_quality`)."""
        made = super().from_pretrained(*given, **named)
        made.recipe = at_quality(made.recipe, quality)
        return made

    def __call__(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        faces: int | None = None,
        texture: int | None = None,
        ip_adapter_image: PictureLike | None = None,
        out: str | Path | None = None,
        resume: bool = True,
        callback_on_step_end: StepEnd | None = None,
        diagnostics: str | Path | Diagnostics | None = None,
        start: Representation | None = None,
    ) -> TextToMeshOutput:
        """Makes one mesh.

        Args:
            prompt: what to make; words the prior has never seen raise a warning that names them.
            negative_prompt: what to move away from.
            seed: of everything random; the same seed gives the same mesh on the same machine; None: 0.
            generator: the seed is drawn from it (and reported) instead.
            num_inference_steps: optimisation steps; the schedules of the recipe keep their shares.
            guidance_scale: classifier-free guidance; None: the recipe's.
            faces: triangles at most; None: the recipe's.
            texture: texels along an edge of the texture; None: the recipe's.
            ip_adapter_image: what the prior's IP-Adapter looks at; every view is shown the same.
            out: folder for checkpoints and preview.png; None: nothing is written. With it Ctrl-C and SIGTERM finish
                the step, save it and raise Stopped, a KeyboardInterrupt; the same call goes on from there.
            resume: continue from a checkpoint in `out`, which has to be of the same prompts, prior, recipe and seed;
                False removes the checkpoints that are there.
            callback_on_step_end: called with (pipe, step, log, {"optimisation": ...}).
            diagnostics: folder for strips of what the prior saw and answered, and numbers of every look.
            start: a shape of the recipe's kind and settings to go on from, instead of a fresh one.
        """
        recipe = self._adjusted(num_inference_steps, guidance_scale, faces, texture)
        seed = chosen_seed(seed, generator)
        watch = (callback_on_step_end, diagnostics, ip_adapter_image)
        made = self._made(prompt, negative_prompt, recipe, seed, out, resume, *watch, start)
        work, optimised = made.work, time.perf_counter()
        with under_way("mesh and texture"):
            mesh = textured_mesh(work.shape, recipe.mesh, views_around(recipe.optimise.views))
        seconds = {"optimise": work.seconds, "mesh": time.perf_counter() - optimised}
        return TextToMeshOutput(
            mesh=mesh,
            shape=work.shape,
            report=mesh.check(),
            prompt=prompt,
            negative_prompt=negative_prompt,
            prior=self.prior.name,
            seed=seed,
            nfe=work.nfe,
            started=made.started,
            seconds=seconds,
            history=work.history,
            config=recipe,
        )
