"""`unproject text-to-image` and `unproject text-to-mesh`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import tyro

from ..utils.configs import config_path
from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import Shown, Target, check_prompt, check_range, slugify
from .priors import PriorCommand
from .sampling import SamplingCommand

if TYPE_CHECKING:
    from ..core.sampling.plan import SamplingPlan


@dataclass(frozen=True, kw_only=True)
class TextToImage(SamplingCommand):
    """Draw images from a prompt."""

    name: ClassVar[str] = "text-to-image"
    kinds: ClassVar[tuple[str, ...]] = (".png", ".jpg", ".jpeg", ".webp")

    prompt: tyro.conf.Positional[str]
    """What to draw, for example "two red cubes"."""
    count: int = 1
    """Number of images; image i uses seed + i."""
    grid: int = 0
    """Draw this many images and write them as one sheet."""
    control: str | None = None
    """Keeps several subjects apart: focus[:STRENGTH] or attend-and-excite[:STRENGTH], as in focus:2 (default: none)."""
    subjects: str | None = None
    """Subjects of --control, words of the prompt, as in "red chair; blue dog" (default: read off the prompt)."""

    def slug(self) -> str:
        """The base name of the outputs."""
        return slugify(self.prompt)

    def check(self) -> None:
        """Ranges; an empty prompt is allowed here and means whatever the prior likes."""
        check_range("--count", self.count, 1, 4096)
        check_range("--grid", self.grid, 0, 1024)
        if self.grid and self.count > 1:
            raise InputError(f"give --grid {self.grid} or --count {self.count}, not both")
        if self.boundary is not None and max(self.grid, self.count) > 1:
            images = max(self.grid, self.count)
            raise InputError(f"--boundary starts every image from one noise: all {images} images would be the same")
        super().check()

    def sampling_plan(self) -> SamplingPlan:
        """See SamplingCommand.sampling_plan; and the control."""
        named = tuple(words.strip() for words in (self.subjects or "").split(";") if words.strip())
        return super().sampling_plan().changed(control=self.control, subjects=named or None)

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [*super().plan(), f"would draw {self.grid or self.count} images of {self.prompt!r}"]

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Draws and writes the images."""
        from ..pipelines.text_to_image import TextToImage as Pipeline
        from ..utils.pictures import grid, save_image

        with record.stage("load"):
            pipe, plan = Pipeline.from_pretrained(self.prior, **self.placement()), self.loaded_plan()
        with record.stage("sample"):
            made: Any = pipe(
                self.prompt,
                self.negative or None,
                plan,
                num_images_per_prompt=self.grid or self.count,
                height=self.size,
                width=self.size,
                seed=self.seed,
                batch_size=self.batch,
                output_type="np",
            )
        record.notes["plan"] = made.plan.to_dict()
        record.count("denoiser", made.nfe)
        suffix = target.suffix or ".png"
        if self.grid:
            columns = round(self.grid**0.5)
            record.output(save_image(target.file(suffix), grid(made.images, columns)))
        else:
            for i, image in enumerate(made.images):
                ending = suffix if self.count == 1 else f"-{i}{suffix}"
                record.output(save_image(target.file(ending), image))
        record.notes["seeds"] = made.seeds
        return Shown()


@dataclass(frozen=True, kw_only=True)
class TextToMesh(PriorCommand):
    """Make a textured mesh from a prompt, with a sheet of views and a turntable film."""

    name: ClassVar[str] = "text-to-mesh"
    kinds: ClassVar[tuple[str, ...]] = (".glb", ".obj", ".stl", ".ply")

    prompt: tyro.conf.Positional[str]
    """What to make, for example "a red chair"."""
    negative: str = ""
    """What to avoid."""
    recipe: str = "default"
    """Packaged recipe in configs/text-to-mesh, or a YAML file; default is what suits the prior."""
    steps: int | None = None
    """Optimisation steps; all schedules keep their shares of the run (default: the recipe's)."""
    guidance: float | None = None
    """Classifier-free guidance (default: the recipe's)."""
    faces: int | None = None
    """Triangles of the mesh at most (default: the recipe's)."""
    work: Path | None = None
    """Folder for checkpoints and preview.png; an interrupted run continues there."""
    view_size: int = 256
    """Pixels of the views in the film; those on the sheet are half as large."""
    frames: int = 72
    """Frames of the turntable film (0 = no film)."""

    def slug(self) -> str:
        """The base name of the outputs."""
        return slugify(self.prompt)

    def check(self) -> None:
        """Prompt and ranges."""
        check_prompt(self.prompt)
        check_range("--frames", self.frames, 0, 1000)
        check_range("--view-size", self.view_size, 16, 2048)
        if self.steps is not None:
            check_range("--steps", self.steps, 1, 100_000)
        if self.faces is not None:
            check_range("--faces", self.faces, 4, 10_000_000)
        if self.recipe != "default" and not Path(self.recipe).is_file():
            config_path(f"text-to-mesh/{self.recipe}")
        super().check()

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [*super().plan(), f"would make a mesh of {self.prompt!r} with recipe {self.recipe}"]

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Makes the mesh and its pictures."""
        from ..generate.finish import write_pictures
        from ..geometry.inspection import write_report
        from ..pipelines.text_to_mesh import TextToMesh as Pipeline

        with record.stage("load"):
            pipe = Pipeline.from_pretrained(self.prior, self.recipe, **self.placement())
        made = pipe(
            self.prompt,
            self.negative or None,
            seed=self.seed,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            faces=self.faces,
            out=self.work,
        )
        record.count("denoiser", made.nfe)
        record.stages.update(made.seconds)
        record.notes.update(prior=pipe.prior.name, recipe=made.config, history=made.history)
        with record.stage("write"):
            record.output(made.mesh.save(target.file(target.suffix or ".glb")))
            record.output(write_report(made.mesh, record.outputs[-1], made.scale_from))
            for path in write_pictures(made.mesh, lambda name: target.file(f"-{name}"), self.frames, self.view_size):
                record.output(path)
        report = made.report.to_dict()
        closed = "watertight" if report["watertight"] else f"{report['boundary_edges']} open edges"
        return Shown([f"{report['faces']} triangles, {closed}"], data={"mesh": report})
