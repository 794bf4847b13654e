"""Text to splats: 3D Gaussians are optimised until a frozen prior likes their pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.utils import BaseOutput

from ..core.distillation.score import DivergedError
from ..core.priors import Prior
from ..generate.diagnostics import Diagnostics
from ..generate.finish import textured_mesh, write_views
from ..generate.views import views_around
from ..geometry.meshes import Mesh
from ..geometry.shapes import Gaussians
from ..geometry.splats import GaussianCloud, save_splats
from ..geometry.splats.drawing import SplatView
from ..geometry.splats.facts import facts_of
from ..utils.companions import report_of
from ..utils.errors import InputError
from ..utils.files import write_json
from ..utils.runs import RunRecord
from .picture_inputs import PictureLike
from .text_to_shape import MeshRecipe, StepEnd, TextToShape, chosen_seed


@dataclass
class TextToSplatsOutput(BaseOutput):
    """Splats, and what made them."""

    splats: GaussianCloud  # those that are drawn, z up, the front to +x; colours in sRGB
    shape: Gaussians  # what was optimised
    report: dict[str, Any]  # number, sizes, opacities, bounds
    prompt: str
    negative_prompt: str | None
    prior: str  # name
    seed: int
    nfe: int  # network rows spent, before and after a resumption
    started: datetime
    seconds: dict[str, float]  # "optimise", before and after a resumption
    history: list[dict[str, float]]  # the log of each step
    config: MeshRecipe

    def mesh(self, texture: int | None = None) -> Mesh:
        """A textured solid, as the recipe's `mesh` says, fused from what is seen from all around; `texture`: texels
        along an edge, where they are others."""
        config = self.config.mesh if texture is None else replace(self.config.mesh, texture=texture)
        return textured_mesh(self.shape, config, views_around(self.config.optimise.views))

    def write_report(self, path: str | Path) -> Path:
        """Writes NAME.report.json beside a file of the splats; where that is another's, NAME.ply.report.json."""
        path = Path(path)
        return write_json(report_of(path), {"file": path.name, **self.report})

    def save(self, folder: str | Path, name: str = "splats.ply", frames: int = 36, size: int = 256) -> list[Path]:
        """Writes the splats (.ply, .compressed.ply, .splat, .spz or .glb), their .report.json, turntable.gif and .mp4,
        sheet.png and run.json; returns their paths."""
        folder = Path(folder)
        record = RunRecord("text-to-splats", self.config, self.seed, sum(self.seconds.values()))
        record.started = self.started
        record.count("denoiser", self.nfe)
        record.stages.update(self.seconds)
        record.notes.update(prompt=self.prompt, negative_prompt=self.negative_prompt, prior=self.prior)
        record.notes.update(splats=self.report, history=self.history)
        with record.stage("write"):
            paths = [save_splats(self.splats, folder / name)]
            paths.append(self.write_report(paths[0]))
            paths += write_views(SplatView(self.splats), folder.joinpath, frames, size)
        for path in paths:
            record.output(path)
        return [*paths, record.write(folder / "run.json")]


class TextToSplats(TextToShape):
    """Gaussian splats from prompts with any prior.

    >>> pipe = TextToSplats.from_pretrained("toybox")
    >>> pipe("a red chair", seed=0).save("outputs/chair")
    """

    recipes: ClassVar[str] = "text-to-splats"

    def __init__(
        self, prior: Prior, recipe: MeshRecipe | str | Path | None = None, rule: str | Path | None = None
    ) -> None:
        """See TextToShape. Raises InputError for a recipe that optimises something else."""
        super().__init__(prior, recipe, rule)
        kind = self.recipe.optimise.shape.kind
        if kind != Gaussians.kind:
            raise InputError(f"optimise.shape.kind={kind!r}: text-to-splats optimises gaussians; text-to-mesh takes it")

    def __call__(
        self,
        prompt: str,
        negative_prompt: str | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        ip_adapter_image: PictureLike | None = None,
        out: str | Path | None = None,
        resume: bool = True,
        callback_on_step_end: StepEnd | None = None,
        diagnostics: str | Path | Diagnostics | None = None,
    ) -> TextToSplatsOutput:
        """Makes splats of one object; the arguments are those of `TextToMesh`."""
        recipe, seed = self._adjusted(num_inference_steps, guidance_scale), chosen_seed(seed, generator)
        watch = (callback_on_step_end, diagnostics, ip_adapter_image)
        made = self._made(prompt, negative_prompt, recipe, seed, out, resume, *watch)
        work = made.work
        assert isinstance(work.shape, Gaussians)
        cloud = work.shape.shown.detached()
        if not len(cloud):
            raise DivergedError("no splat is left that could be seen; try more steps, another seed or a lower lr")
        return TextToSplatsOutput(
            splats=cloud,
            shape=work.shape,
            report=facts_of(cloud),
            prompt=prompt,
            negative_prompt=negative_prompt,
            prior=self.prior.name,
            seed=seed,
            nfe=work.nfe,
            started=made.started,
            seconds={"optimise": work.seconds},
            history=work.history,
            config=recipe,
        )
