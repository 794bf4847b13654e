"""Text to mesh: a field is optimised until a frozen prior likes its renders, then turned into a textured mesh."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import BaseOutput

from ..core.distillation.score import ScoreConfig
from ..core.priors import Prior, load_prior, multi_view_sibling
from ..core.sampling.calibration import fingerprint
from ..core.training.checkpoints import remove_checkpoints
from ..generate.finish import textured_mesh, write_pictures
from ..generate.guides import make_guide
from ..generate.optimise import Optimisation, OptimiseConfig
from ..generate.views import turntable_cameras
from ..geometry.inspection import write_report
from ..geometry.meshes import Mesh
from ..geometry.report import MeshReport
from ..geometry.representation import MeshConfig, Representation
from ..utils.configs import load_config, to_dict
from ..utils.digests import digest
from ..utils.errors import InputError
from ..utils.pictures import grid, save_image
from ..utils.progress import Progress, under_way
from ..utils.runs import RunRecord
from .base import PriorPipeline
from .picture_conditions import read_picture
from .picture_inputs import PictureLike
from .prompts import check_guidance, warn_about, warn_about_negatives
from .sampling_parts import whole_number

REAL_BACKBONES = "sd15, sd21-base or an MVDream checkpoint"
StepEnd = Callable[["TextToMesh", int, dict[str, float], dict[str, Any]], None]


@dataclass(frozen=True)
class MeshRecipe:
    """configs/text-to-mesh/*.yaml: what pulls, what is optimised, how it becomes a mesh."""

    score: ScoreConfig = field(default_factory=ScoreConfig)
    optimise: OptimiseConfig = field(default_factory=OptimiseConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    preview_every: int = 25  # steps between updates of preview.png; 0: never


@dataclass
class TextToMeshOutput(BaseOutput):
    """A mesh, and what made it."""

    mesh: Mesh  # closed, UV-mapped, base_color texture in sRGB with the shading the prior paints
    shape: Representation  # what was optimised
    report: MeshReport
    prompt: str
    negative_prompt: str | None
    prior: str  # name
    seed: int
    nfe: int  # network rows spent, before and after a resumption
    started: datetime
    seconds: dict[str, float]  # "optimise" (before and after a resumption), "mesh"
    history: list[dict[str, float]]  # the log of each step
    config: MeshRecipe

    @property
    def scale_from(self) -> str:
        """Where the size of the mesh comes from."""
        return f"prompts name no size; the shape was made in a ball of radius {self.shape.bounds:g} m"

    def save(self, folder: str | Path, name: str = "mesh.glb", frames: int = 36, size: int = 256) -> list[Path]:
        """Writes the mesh, its .report.json, turntable.gif and .mp4, sheet.png and run.json; returns their paths."""
        folder = Path(folder)
        record = RunRecord("text-to-mesh", self.config, self.seed, sum(self.seconds.values()))
        record.started = self.started
        record.count("denoiser", self.nfe)
        record.stages.update(self.seconds)
        record.notes.update(prompt=self.prompt, negative_prompt=self.negative_prompt, prior=self.prior)
        record.notes.update(mesh=self.report.to_dict(), history=self.history)
        with record.stage("write"):
            paths = [self.mesh.save(folder / name)]
            paths.append(write_report(self.mesh, paths[0], self.scale_from))
            paths += write_pictures(self.mesh, folder.joinpath, frames, size)
        for path in paths:
            record.output(path)
        return [*paths, record.write(folder / "run.json")]


class TextToMesh(PriorPipeline):
    """Textured meshes from prompts with any prior.

    >>> pipe = TextToMesh.from_pretrained("toybox")
    >>> pipe("a red chair", seed=0).mesh.save("chair.glb")
    """

    def __init__(self, prior: Prior, recipe: MeshRecipe | str | Path | None = None) -> None:
        """`recipe`: None or "default" is what suits the prior; else a packaged name, a YAML file or a MeshRecipe."""
        super().__init__(prior)
        self.recipe = recipe if isinstance(recipe, MeshRecipe) else load_recipe(recipe, prior)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = "toybox",
        recipe: MeshRecipe | str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        torch_dtype: torch.dtype | None = None,
        **options: Any,
    ) -> TextToMesh:
        """Loads a prior by name, folder, registry id or hub repository; `torch_dtype` is diffusers' name of `dtype`.

        "toybox" loads its multi-view sibling when that is installed; "toybox" as a folder stays single-view.
        """
        chosen = multi_view_sibling(str(name)) or str(name)
        return cls(load_prior(chosen, device, torch_dtype or dtype, **options), recipe)

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
        ip_adapter_image: PictureLike | None = None,
        out: str | Path | None = None,
        resume: bool = True,
        callback_on_step_end: StepEnd | None = None,
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
            ip_adapter_image: what the prior's IP-Adapter looks at; every view is shown the same.
            out: folder for checkpoints and preview.png; None: nothing is written. With it Ctrl-C and SIGTERM finish
                the step, save it and raise Stopped, a KeyboardInterrupt; the same call goes on from there.
            resume: continue from a checkpoint in `out`, which has to be of the same prompts, prior, recipe and seed;
                False removes the checkpoints that are there.
            callback_on_step_end: called with (pipe, step, log, {"optimisation": ...}).
        """
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError("the prompt is empty; say what to make, for example 'a red chair'")
        if guidance_scale is not None:
            check_guidance(self.prior, guidance_scale)
        recipe, seed = self._adjusted(num_inference_steps, guidance_scale, faces), chosen_seed(seed, generator)
        warn_about(self.prior, prompt, REAL_BACKBONES)
        warn_about_negatives(self.prior, negative_prompt, REAL_BACKBONES)
        started = datetime.now(timezone.utc)
        folder = None if out is None else Path(out)
        work = self._begun(recipe, seed, prompt, negative_prompt, folder, resume, ip_adapter_image)
        self._optimise(work, recipe, folder, prompt, callback_on_step_end)
        optimised = time.perf_counter()
        with under_way("mesh and texture"):
            mesh = textured_mesh(work.shape, recipe.mesh)
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
            started=started,
            seconds=seconds,
            history=work.history,
            config=recipe,
        )

    def _begun(
        self,
        recipe: MeshRecipe,
        seed: int,
        prompt: str,
        negative: str | None,
        folder: Path | None,
        resume: bool,
        picture: PictureLike | None = None,
    ) -> Optimisation:
        """The optimisation at its start, or where the newest checkpoint in `folder` was written."""
        seen = read_picture(self.prior, picture)
        guide = make_guide(recipe.score, self.prior, prompt, negative, recipe.optimise.views.views, seen)
        if folder is None:
            return Optimisation(recipe.optimise, guide, seed, self.prior.device)
        prior = fingerprint(self.prior)
        guided_by = {"prompt": prompt, "negative_prompt": negative, "prior": prior, "score": recipe.score}
        if seen is not None:
            guided_by["ip_adapter_image"] = digest({"picture": seen})
        work = Optimisation(recipe.optimise, guide, seed, self.prior.device, guided_by)
        folder.mkdir(parents=True, exist_ok=True)
        if resume:
            work.resume(folder)
        else:
            remove_checkpoints(folder)
        return work

    def _adjusted(self, steps: int | None, guidance: float | None, faces: int | None) -> MeshRecipe:
        changes: dict[str, Any] = {}
        if steps is not None:
            whole_number("num_inference_steps", steps)
            changes["optimise.steps"] = steps
        if guidance is not None:
            changes["score.guidance"] = guidance
        if faces is not None:
            whole_number("faces", faces, 4)
            changes["mesh.faces"] = faces
        return load_config(MeshRecipe, to_dict(self.recipe), **changes) if changes else self.recipe

    def _optimise(
        self, work: Optimisation, recipe: MeshRecipe, folder: Path | None, prompt: str, callback: StepEnd | None
    ) -> None:
        with Progress(recipe.optimise.steps, prompt, done=work.step) as bar:

            def on_step(work: Optimisation, step: int, log: dict[str, float]) -> None:
                bar.advance(1, t=f"{log.get('t', 0):.2f}", opacity=f"{log['alpha']:.2f}")
                if folder is not None and recipe.preview_every and step % recipe.preview_every == 0:
                    write_preview(work, folder / "preview.png")
                if callback is not None:
                    callback(self, step, log, {"optimisation": work})

            work.run(folder, on_step)


def chosen_seed(seed: int | None, generator: torch.Generator | None) -> int:
    """The seed of a call: given, drawn from a generator, or 0."""
    if generator is None:
        if seed is not None:
            whole_number("seed", seed, 0)
        return seed or 0
    if seed is not None:
        raise InputError("give either seed or generator, not both")
    return int(torch.randint(2**32, (), generator=generator, device=generator.device))


def load_recipe(recipe: str | Path | None, prior: Prior) -> MeshRecipe:
    """A recipe by packaged name or file; None and "default" choose by the prior, which is shown its own size."""
    if recipe is None or recipe == "default":
        if not prior.multiview:
            own = {"optimise.guided_px": prior.image_size}
            return load_config(MeshRecipe, f"text-to-mesh/{prior.recipe}-single-view", **own)
        recipe = prior.recipe
    known = isinstance(recipe, str) and not recipe.endswith((".yaml", ".yml"))
    return load_config(MeshRecipe, f"text-to-mesh/{recipe}" if known else recipe)


def write_preview(work: Optimisation, path: Path, views: int = 4, size: int = 96) -> Path:
    """A strip of views of what is there: colours above normals."""
    seen = work.picture(turntable_cameras(views, size))
    return save_image(path, grid([*seen.rgb.cpu(), *(0.5 * seen.normal + 0.5).cpu()], views))
