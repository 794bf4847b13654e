"""What commands that make something from words share, and `unproject text-to-image`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import tyro

from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import Seeded, check_range
from .estimates import Estimate, of_drawing
from .jobs import SOME_FAILED, Job, run_jobs, sort_out
from .outputs import Target, check_new, check_places, distinct_slug
from .priors import PriorCommand
from .prompts import check_prompt, chosen_prompts, forewarn
from .sampling import SamplingCommand
from .showing import Shown
from .steering import SteeredCommand
from .students import FEW_BITS, NO_STUDENT, about, check_student, few_steps, of_another, warn_of_settings

if TYPE_CHECKING:
    from ..core.sampling.plan import SamplingPlan


@dataclass(frozen=True, kw_only=True)
class TextCommand(PriorCommand, Seeded):
    """Options of the commands that make something from words."""

    splits: ClassVar[bool] = True

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

    def forewarn(self) -> None:
        """See Command.forewarn."""
        words = chosen_prompts(self.prompt, self.prompts)
        forewarn(self.prior, words, getattr(self, "negative", ""), getattr(self, "size", None), self.backbones())

    def backbones(self) -> str:
        """The priors that are suggested where words are unknown; empty: those that draw pictures."""
        return ""

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
    student: str | None = None
    """A distilled student: a folder that `unproject distill` wrote, or the name of an embedded one (toybox-lcm,
    toybox-1step, toybox-small, toybox-w4); none is the prior itself. Steps, solver and guidance come from its
    distill.json; an adapter goes on --prior where that is given."""
    kernels: Literal["reference", "int8"] = "reference"
    """How a student of few bits computes: rounded values in floating point, or 8-bit integers where torch multiplies
    such, which is quicker for large layers (docs/students.md)."""
    quality: Literal["fast", "balanced", "best", "native", "turbo"] = "balanced"  # type: ignore[assignment]  # one more
    """Solver and steps: few, some or many; native is what the prior's makers recommend; turbo draws with the prior's
    student of few steps (docs/students.md)."""
    subjects: str | None = None
    """Subjects of --control, words of the prompt, as in "red chair; blue dog" (default: read off the prompt)."""

    @property
    def several(self) -> str:
        """See Command.several."""
        return f"--count {self.count} makes several files" if self.count > 1 else super().several

    def check(self) -> None:
        """Ranges."""
        check_range("--count", self.count, 1, 4096)
        if self.chosen_student is not None:
            self._check_student(self.chosen_student)
        elif self.kernels != "reference":
            raise InputError(f"--kernels {self.kernels} belongs to --student of few bits; add that, or leave it out")
        check_range("--grid", self.grid, 0, 1024)
        if self.grid and self.count > 1:
            raise InputError(f"give --grid {self.grid} or --count {self.count}, not both")
        if self.boundary is not None and max(self.grid, self.count) > 1:
            images = max(self.grid, self.count)
            raise InputError(f"--boundary starts every image from one noise: all {images} images would be the same")
        super().check()

    @property
    def chosen_student(self) -> str | None:
        """The student that draws: that of --student, or of --quality turbo. Raises InputError where both are given, and
        for priors without a student for turbo."""
        if self.quality != "turbo":
            return None if self.student == NO_STUDENT else self.student
        if self.student is not None:
            raise InputError(f"--student {self.student} and --quality turbo both say who draws; give one")
        from ..pipelines.quality import turbo_student

        return str(turbo_student(self.prior))

    def _check_student(self, name: str) -> None:
        check_student(name, self.steps, self.dtype)
        if self.lora or self.model_schedule:
            other = "--lora" if self.lora else "--model-schedule"
            raise InputError(f"a student ({name}) and {other} change the network both; give one")
        if self.cache not in (None, "none") and few_steps(name):
            raise InputError(f"--cache {self.cache}: a student of few steps has nothing to reuse; leave it out")

    def forewarn(self) -> None:
        """See Command.forewarn; and of what a student does not heed."""
        super().forewarn()
        self._warn_of_student()

    def _warn_of_student(self) -> None:
        if self.chosen_student is not None:
            quality = "native" if self.student is None else self.quality
            warn_of_settings(self.chosen_student, self.guidance, self.solver, self.negative, quality)

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

    def estimate(self) -> Estimate | None:
        """See Command.estimate."""
        if not self.known_cost:
            return None
        images = len(chosen_prompts(self.prompt, self.prompts)) * (self.grid or self.count)
        return of_drawing(images, self.size, self.steps, self.guidance != 1, self.batch)

    def load(self) -> Any:
        """The pipeline, and the plan with what it needs loaded."""
        from ..pipelines.text_to_image import TextToImage as Pipeline

        if self.chosen_student is None:
            return Pipeline.from_pretrained(self.prior, **self.placement()), self.loaded_plan()
        import torch

        from ..core.distillation.export import load_student

        given = {name: value for name, value in self.placement().items() if name != "quality"}
        base = None if self.prior == "toybox" else self.prior
        self._warn_of_student()
        if about(self.chosen_student).get("kind") == FEW_BITS:
            given["dtype"] = torch.float32
        try:
            student = load_student(self.chosen_student, base, kernels=self.kernels, **given)
        except InputError as error:
            raise of_another(error, self.chosen_student, self.prior) from None
        asked = self.quality if self.quality in ("fast", "best") and not few_steps(self.chosen_student) else "native"
        return Pipeline(student, asked), self.loaded_plan()

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
