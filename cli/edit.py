"""`unproject edit` and `unproject restore`: a given picture changed by its words, or brought back from damage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import Seeded, Writer, check_file, check_picture, check_range, check_size
from .outputs import Target, check_apart
from .priors import QualityCommand
from .prompts import check_prompt, forewarn
from .showing import Shown


@dataclass(frozen=True, kw_only=True)
class PictureCommand(QualityCommand, Writer):
    """Options of the commands that make a picture from a picture."""

    kinds: ClassVar[tuple[str, ...]] = (".png", ".jpg", ".jpeg", ".webp")

    image: tyro.conf.Positional[Path]
    """The picture."""
    steps: int | None = None
    """Steps of the whole way between noise and picture (default: those of --quality)."""
    guidance: float = 3.0
    """Classifier-free guidance, 1 is none."""
    size: int | None = None
    """Pixels of the result's longer side (default: the prior's own)."""

    def slug(self) -> str:
        """The base name of the outputs; no command overwrites another's file or the picture itself."""
        return f"{self.image.stem}-{self.name}"

    def check(self) -> None:
        """Paths and ranges."""
        check_picture("image", self.image)
        target = self.target()
        check_apart(self.out or target.folder, [self.result(target)], self.given())
        if self.steps is not None:
            check_range("--steps", self.steps, 1, 1000)
        check_size(self.size)
        super().check()

    def given(self) -> list[Path]:
        """The pictures that are read."""
        return [self.image]

    def written(self, target: Target) -> list[Path]:
        """See Command.written."""
        return [self.result(target)]

    def plan(self) -> list[str]:
        """What a dry run says; every picture is read for it."""
        from ..utils.pictures import load_image

        sizes = {path: load_image(path).shape[1::-1] for path in self.given()}
        return [*super().plan(), *(f"would read {path} ({w} x {h} px)" for path, (w, h) in sizes.items())]

    def result(self, target: Target) -> Path:
        """The picture that is written."""
        return target.file(target.suffix or ".png")

    def finish(self, made: Any, record: RunRecord, target: Target) -> None:
        """Writes the picture and counts its cost."""
        from ..utils.pictures import save_image

        record.count("denoiser", made.nfe)
        record.keep(lambda to: save_image(to, made.images[0]), self.result(target))


@dataclass(frozen=True, kw_only=True)
class Edit(PictureCommand):
    """Change a picture by its words: it is inverted exactly under one prompt and drawn again under another."""

    name: ClassVar[str] = "edit"

    source: str
    """What the picture shows, for example "a red chair"."""
    wanted: Annotated[str, tyro.conf.arg(name="target")]
    """What it shall show, for example "a blue chair"."""
    strength: float = 0.8
    """Share of the steps that is walked, above 0 to 1; less keeps more of the picture."""
    mixing: float = 0.93
    """How far the two copies of the state stay apart, above 0 to 1 (1: they never mix)."""

    def check(self) -> None:
        """Prompts and ranges."""
        check_prompt(self.source)
        check_prompt(self.wanted)
        for option, value in (("--strength", self.strength), ("--mixing", self.mixing)):
            if not 0 < value <= 1:
                raise InputError(f"{option} must lie above 0 and up to 1, got {value:g}")
        super().check()

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [*super().plan(), f"would edit {self.image} from {self.source!r} to {self.wanted!r}"]

    def forewarn(self) -> None:
        """See Command.forewarn."""
        forewarn(self.prior, [self.source, self.wanted])

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Inverts and draws again."""
        from ..pipelines.edit_image import EditImage

        with record.stage("load"):
            pipe = EditImage.from_pretrained(self.prior, **self.placement())
        with record.stage("edit"):
            made = pipe(
                self.image,
                self.source,
                self.wanted,
                num_inference_steps=self.steps,
                strength=self.strength,
                guidance_scale=self.guidance,
                mixing=self.mixing,
                size=self.size,
            )
        self.finish(made, record, target)
        return Shown()


@dataclass(frozen=True, kw_only=True)
class Restore(PictureCommand, Seeded):
    """Bring a damaged picture back with a frozen prior: super-resolution, inpainting or deblurring."""

    name: ClassVar[str] = "restore"

    task: str
    """super-resolution:FACTOR, inpaint (with --mask) or deblur:STD (pixels of the picture)."""
    mask: Path | None = None
    """For inpaint: a picture of the same size that marks what is to be filled in: white on black, drawn on
    transparency, or the picture itself with parts erased."""
    prompt: str = ""
    """What the picture shows, where it is known."""
    noise: float = 0.005
    """Standard deviation of the noise in the picture, where white is 1."""
    curve: Path | None = None
    """Errors of the prior, from `unproject calibrate-solver --what error-curve` at the same --guidance."""
    guidance: float = 2.0
    """Classifier-free guidance, 1 is none."""

    def check(self) -> None:
        """The task, its mask and the files."""
        from ..pipelines.restore_image import check_factor, parse_task

        task = parse_task(self.task)
        kind = task.kind
        if kind == "super-resolution":
            own = self._own_px()
            if own is not None:
                check_factor(int(task.value), own)
        if (kind == "inpaint") != (self.mask is not None):
            raise InputError("--mask is what --task inpaint fills in: give both, or neither")
        if self.mask is not None:
            check_picture("--mask", self.mask)
        if self.curve is not None:
            check_file("--curve", self.curve, "make it: unproject calibrate-solver --what error-curve")
        check_range("--noise", self.noise, 0, 1)
        super().check()

    def _own_px(self) -> int | None:
        """The longer side of the result, None where only the loaded prior tells it."""
        from ..core.priors.facts import prior_facts

        facts = prior_facts(self.prior) if self.size is None else None
        return self.size if facts is None else facts.own_px

    def given(self) -> list[Path]:
        """The picture and its mask."""
        return [self.image] if self.mask is None else [self.image, self.mask]

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [*super().plan(), f"would restore {self.image}: {self.task}"]

    def forewarn(self) -> None:
        """See Command.forewarn."""
        forewarn(self.prior, [self.prompt] if self.prompt else [])

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Restores; tells how well the result explains the picture."""
        from ..core.sampling import RestoreConfig
        from ..pipelines.quality import own_steps
        from ..pipelines.restore_image import RestoreImage

        steps = own_steps(self.quality) if self.steps is None else self.steps

        with record.stage("load"):
            pipe = RestoreImage.from_pretrained(self.prior, **self.placement())
        with record.stage("restore"):
            made: Any = pipe(
                self.image,
                self.task,
                self.prompt,
                mask=self.mask,
                curve=self.curve,
                noise_std=self.noise,
                config=RestoreConfig(steps=steps, guidance=self.guidance),
                size=self.size,
                seed=self.seed,
            )
        self.finish(made, record, target)
        residual = made.residual[0]
        return Shown(
            [f"damaged again, the result differs from the picture by {residual:.4f} (noise {self.noise:g})"],
            data={"residual": residual},
        )
