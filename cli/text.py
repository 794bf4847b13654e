"""`unproject text-to-image` and `unproject text-to-mesh`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import tyro

from ..utils.configs import config_path
from ..utils.errors import InputError
from ..utils.locks import alone_in
from ..utils.runs import RunRecord
from .common import Seeded, check_range
from .jobs import SOME_FAILED, Job, run_jobs, sort_out
from .outputs import Target, check_new, check_places, distinct_slug
from .priors import PriorCommand
from .prompts import check_prompt, chosen_prompts
from .sampling import SamplingCommand
from .showing import Shown
from .steering import ImagePromptCommand, SteeredCommand

if TYPE_CHECKING:
    from ..core.sampling.plan import SamplingPlan


@dataclass(frozen=True, kw_only=True)
class TextCommand(PriorCommand, Seeded):
    """Options of the commands that make something from words."""

    prompt: tyro.conf.Positional[str | None] = None
    """What to make, for example "two red cubes"."""
    prompts: Path | None = None
    """Text file with a prompt on each line, instead of one prompt; each gets files of its own name."""
    overwrite: bool = False
    """Make again what is already there. Of several prompts what is there is kept, an interrupted command goes on."""

    @property
    def many(self) -> bool:
        """Whether the outputs of several prompts share a folder."""
        return self.prompts is not None

    @property
    def several(self) -> str:
        """See Command.several."""
        return "it was given several prompts" if self.many else super().several

    def slug(self) -> str:
        """The base name of the outputs, with the seed: another one makes something else."""
        words = self.prompts.stem if self.prompts is not None else self.prompt or ""
        return distinct_slug(words) if self.many else f"{distinct_slug(words)}-seed{self.seed}"

    def target(self) -> Target:
        """See Command.target; of several prompts the record is named after the command."""
        target = super().target()
        if self.out is None and not self.many:
            return replace(target, folder=target.folder.with_name(distinct_slug(self.prompt or "")))
        return Target(target.folder, self.name) if self.many else target

    def check(self) -> None:
        """The prompts have to be there."""
        for words in chosen_prompts(self.prompt, self.prompts):
            self.check_words(words)
        if self.many and self.out is not None and self.out.suffix and not self.out.is_dir():
            raise InputError(f"--out {self.out} is one file but --prompts {self.prompts} holds several; give a folder")
        super().check()

    def check_words(self, words: str) -> None:
        """Raises InputError for a prompt that says nothing."""
        check_prompt(words)

    def files(self, target: Target) -> list[Path]:
        """What is written for one prompt."""
        raise TypeError(f"{type(self).__name__} defines no files")

    def jobs(self, target: Target) -> list[Job]:
        """One for each prompt."""
        listed = chosen_prompts(self.prompt, self.prompts)
        if not self.many:
            return [Job(listed[0], target, tuple(self.files(target)))]
        targets = [Target(target.folder, f"{distinct_slug(words)}-seed{self.seed}") for words in listed]
        return [Job(words, own, tuple(self.files(own))) for words, own in zip(listed, targets, strict=True)]

    def written(self, target: Target) -> list[Path]:
        """See Command.written."""
        return [path for job in self.jobs(target) for path in job.files]

    def check_places(self, target: Target) -> None:
        """See Command.check_places; of several prompts what is there is kept, that of one has to be new."""
        found = sort_out(self, self.jobs(target), target, self.overwrite)
        if not self.many and not self.overwrite and not found.left:
            check_new(self.written(target))
        check_places([*(path for job in found.left for path in job.files), target.record], self.size_bytes())

    def run(self, record: RunRecord, target: Target) -> Shown:
        """One pipeline for all prompts."""
        found = sort_out(self, self.jobs(target), target, self.overwrite)
        shown = Shown()
        failed, made = run_jobs(
            self, found, record, target, self.load, lambda pipe, job: self.one(pipe, job, record, shown)
        )
        if failed and not made and not found.kept:
            raise InputError(f"none of the {len(failed)} prompts came out: {failed[0]}")
        told = [*failed, *found.kept]
        shown.lines += [f"skipped: {text}" for text in told]
        if self.many:
            shown.data["skipped"] = told
        shown.exit_code = SOME_FAILED if failed else 0
        return shown

    def load(self) -> Any:
        """The pipeline."""
        raise TypeError(f"{type(self).__name__} defines no load")

    def one(self, pipe: Any, job: Job, record: RunRecord, shown: Shown) -> None:
        """Makes and writes what one prompt asks for."""
        raise TypeError(f"{type(self).__name__} defines no one")


@dataclass(frozen=True, kw_only=True)
class TextToImage(TextCommand, SamplingCommand, SteeredCommand):
    """Draw images from a prompt."""

    name: ClassVar[str] = "text-to-image"
    kinds: ClassVar[tuple[str, ...]] = (".png", ".jpg", ".jpeg", ".webp")

    count: int = 1
    """Number of images; image i uses seed + i."""
    grid: int = 0
    """Draw this many images and write them as one sheet."""
    control: str | None = None
    """Keeps several subjects apart: focus[:STRENGTH] or attend-and-excite[:STRENGTH], as in focus:2 (default: none)."""
    subjects: str | None = None
    """Subjects of --control, words of the prompt, as in "red chair; blue dog" (default: read off the prompt)."""

    @property
    def several(self) -> str:
        """See Command.several."""
        return f"--count {self.count} makes several files" if self.count > 1 else super().several

    def check(self) -> None:
        """Ranges."""
        check_range("--count", self.count, 1, 4096)
        check_range("--grid", self.grid, 0, 1024)
        if self.grid and self.count > 1:
            raise InputError(f"give --grid {self.grid} or --count {self.count}, not both")
        if self.boundary is not None and max(self.grid, self.count) > 1:
            images = max(self.grid, self.count)
            raise InputError(f"--boundary starts every image from one noise: all {images} images would be the same")
        super().check()

    def check_words(self, words: str) -> None:
        """An empty prompt is allowed here and means whatever the prior likes."""

    def sampling_plan(self) -> SamplingPlan:
        """See SamplingCommand.sampling_plan; and the control."""
        named = tuple(words.strip() for words in (self.subjects or "").split(";") if words.strip())
        return super().sampling_plan().changed(control=self.control, subjects=named or None)

    def plan(self) -> list[str]:
        """What a dry run says."""
        images = self.grid or self.count
        listed = chosen_prompts(self.prompt, self.prompts)
        return [*super().plan(), *(f"would draw {images} images of {words!r}" for words in listed)]

    def files(self, target: Target) -> list[Path]:
        """The sheet, or the images with their numbers."""
        suffix = target.suffix or ".png"
        if self.grid and not target.suffix:
            return [target.file(f"-grid{self.grid}{suffix}")]
        return [target.file(suffix if self.grid or self.count == 1 else f"-{i}{suffix}") for i in range(self.count)]

    def size_bytes(self) -> int:
        """Of all images, as if nothing could be compressed."""
        return 1_000_000 + 3 * (self.grid or self.count) * (self.size or 512) ** 2

    def load(self) -> Any:
        """The pipeline, and the plan with what it needs loaded."""
        from ..pipelines.text_to_image import TextToImage as Pipeline

        return Pipeline.from_pretrained(self.prior, **self.placement()), self.loaded_plan()

    def one(self, pipe: Any, job: Job, record: RunRecord, shown: Shown) -> None:
        """Draws and writes the images."""
        from ..utils.pictures import grid, save_image

        drawer, plan = pipe
        with record.stage("sample"):
            made: Any = drawer(
                job.source,
                self.negative or None,
                plan,
                num_images_per_prompt=self.grid or self.count,
                height=self.size,
                width=self.size,
                seed=self.seed,
                batch_size=self.batch,
                output_type="np",
                **self.prompt_pictures(),
            )
        record.notes["plan"] = made.plan.to_dict()
        record.notes["seeds"] = made.seeds
        record.count("denoiser", made.nfe)
        images = [grid(made.images, round(self.grid**0.5))] if self.grid else list(made.images)
        for image, path in zip(images, job.files, strict=True):
            record.keep(lambda to, image=image: save_image(to, image), path)  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class TextToMesh(TextCommand, ImagePromptCommand):
    """Make a textured mesh from a prompt, with a sheet of views and a turntable film."""

    name: ClassVar[str] = "text-to-mesh"
    kinds: ClassVar[tuple[str, ...]] = (".glb", ".obj", ".stl", ".ply")

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
    """Folder for checkpoints and preview.png, which stays (default: .NAME.work beside the mesh, removed at the end).
    The same command typed again goes on where an interrupted one was."""
    view_size: int = 256
    """Pixels of the views in the film; those on the sheet are half as large."""
    frames: int = 72
    """Frames of the turntable film (0 = no film)."""

    @property
    def several(self) -> str:
        """See Command.several."""
        return super().several or "it writes pictures beside the mesh"

    def check(self) -> None:
        """Ranges."""
        check_range("--frames", self.frames, 0, 1000)
        check_range("--view-size", self.view_size, 16, 2048)
        if self.steps is not None:
            check_range("--steps", self.steps, 1, 100_000)
        if self.faces is not None:
            check_range("--faces", self.faces, 4, 10_000_000)
        if self.recipe != "default" and not Path(self.recipe).is_file():
            config_path(f"text-to-mesh/{self.recipe}")
        if self.work is not None and self.many:
            raise InputError(f"--work {self.work} is the folder of one mesh and --prompts makes several; leave it out")
        super().check()

    def plan(self) -> list[str]:
        """What a dry run says."""
        listed = chosen_prompts(self.prompt, self.prompts)
        return [*super().plan(), *(f"would make a mesh of {words!r} with recipe {self.recipe}" for words in listed)]

    def files(self, target: Target) -> list[Path]:
        """The mesh and its pictures."""
        films = ("-turntable.gif", "-turntable.mp4") if self.frames else ()
        return [target.file(ending) for ending in (target.suffix or ".glb", ".report.json", *films, "-sheet.png")]

    def size_bytes(self) -> int:
        """Of a mesh, its texture and films; twice, for the checkpoints."""
        return 100_000_000

    def load(self) -> Any:
        """The pipeline."""
        from ..pipelines.text_to_mesh import TextToMesh as Pipeline

        return Pipeline.from_pretrained(self.prior, self.recipe, **self.placement())

    def one(self, pipe: Any, job: Job, record: RunRecord, shown: Shown) -> None:
        """Makes the mesh and its pictures; checkpoints are removed when all of them are written."""
        work = self.work or job.target.work
        with alone_in(work):
            made = pipe(
                job.source,
                self.negative or None,
                seed=self.seed,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                faces=self.faces,
                out=work,
                resume=not self.overwrite,
                **self.prompt_pictures(),
            )
            self._write(made, job, record)
        if self.work is None and not record.rescued:
            shutil.rmtree(work, ignore_errors=True)
        record.count("denoiser", made.nfe)
        record.stages.update(made.seconds)
        record.notes.update(prior=pipe.prior.name, recipe=made.config, history=made.history)
        report = made.report.to_dict()
        closed = "watertight" if report["watertight"] else f"{report['boundary_edges']} open edges"
        shown.lines.append(f"{report['faces']} triangles, {closed}")
        if self.many:
            shown.data.setdefault("meshes", {})[job.source] = report
        else:
            shown.data["mesh"] = report

    def _write(self, made: Any, job: Job, record: RunRecord) -> None:
        from ..generate.finish import write_pictures
        from ..geometry.budget import check_written
        from ..geometry.inspection import write_report

        def pictures(mesh: Path) -> list[Path]:
            stem = job.target.stem
            return write_pictures(made.mesh, lambda n: mesh.with_name(f"{stem}-{n}"), self.frames, self.view_size)

        with record.stage("write"):
            record.keep(made.mesh.save, job.files[0])
            record.keep(lambda mesh: write_report(made.mesh, mesh, made.scale_from), job.files[0])
            record.keep(pictures, job.files[0])
        if not record.rescued:
            check_written(job.files[0], made.config.mesh.faces)
