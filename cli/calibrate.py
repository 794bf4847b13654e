"""`unproject calibrate-solver` and `unproject search-solver`: what sampling can learn about a prior once."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import Seeded, Writer, check_file, check_range, check_size
from .outputs import Target
from .priors import PriorCommand
from .prompts import read_prompts
from .showing import Shown, Table

if TYPE_CHECKING:
    from ..pipelines.calibrations import Sizes
    from ..pipelines.text_to_image import TextToImage

What = Literal["statistics", "gaussian", "boundary", "time-remap", "error-curve"]
SAMPLES = {"statistics": 128, "gaussian": 512, "boundary": 16, "time-remap": 128, "error-curve": 64}
USE = {
    "statistics": "--solver dpm-v3 --statistics {}",
    "gaussian": "--teleport 0.25 --gaussian {}",
    "boundary": "--boundary {}",
    "time-remap": "--time-remap {}",
    "error-curve": "unproject restore ... --curve {}",
}


@dataclass(frozen=True, kw_only=True)
class MeasureCommand(PriorCommand, Seeded, Writer):
    """Options of the commands that measure a prior on its own samples."""

    kinds: ClassVar[tuple[str, ...]] = (".safetensors",)

    guidance: float | None = None
    """Classifier-free guidance the file will be used with (default: what suits the prior; error-curve: restore's)."""
    size: int | None = None
    """Pixels of a side the file will be used at (default: the prior's own)."""
    prompts: Path | None = None
    """Text file with a prompt on each line (default: the toybox's own grammar, for priors that know its words)."""
    negative: str = ""
    """Negative prompt the file will be used with."""
    batch: int = 16
    """Rows asked at once."""

    def check(self) -> None:
        """The prompts have to come from somewhere."""
        check_range("--batch", self.batch, 1, 1024)
        check_size(self.size)
        if self.prompts is not None:
            check_file("--prompts", self.prompts, "give a text file with a prompt on each line")
        super().check()
        if self.prompts is None and not self._knows_toybox():
            raise InputError(f"--prior {self.prior} has no grammar to draw prompts from; give --prompts FILE")

    def _knows_toybox(self) -> bool:
        folder = Path(self.prior)
        return self.prior.startswith("toybox") or (folder.is_dir() and (folder / "vocabulary.json").is_file())

    def chosen_prompts(self, count: int) -> list[str]:
        """`count` prompts, those of the file in turn. Raises InputError for a file without any."""
        if self.prompts is None:
            from ..toybox.samples import object_prompts

            return object_prompts("train", count)
        lines = read_prompts(self.prompts)
        return [lines[i % len(lines)] for i in range(count)]

    def load(self, record: RunRecord) -> TextToImage:
        """The pipeline."""
        from ..pipelines.text_to_image import TextToImage

        with record.stage("load"):
            return TextToImage.from_pretrained(self.prior, **self.placement())

    def sizes(self, target: Target, steps: int) -> Sizes:
        """What is measured on; the work folder lies beside the file."""
        from ..pipelines.calibrations import Sizes

        return Sizes(self.guidance, self.size, steps, self.batch, self.seed, target.work, self.negative or None)

    def use_line(self, options: str, path: Path, **also: object) -> str:
        """How the file is used; what it was made with and is no default has to be given again."""
        prior = None if self.prior == MeasureCommand.prior else self.prior
        made_with = {"prior": prior, "base": self.base, "guidance": self.guidance, "size": self.size, **also}
        made_with["negative"] = self.negative or None
        told = [f"--{name} {shlex.quote(str(value))}" for name, value in made_with.items() if value is not None]
        return " ".join(["use it:", options.format(shlex.quote(str(path))), *told])

    def written(self, target: Target) -> list[Path]:
        """See Command.written."""
        return [target.file(target.suffix or ".safetensors")]

    def finish(self, pipe: TextToImage, path: Path, sizes: Sizes, record: RunRecord) -> None:
        """Notes the file and the cost, and removes what an interrupted run would have gone on from."""
        record.output(path)
        record.count("denoiser", pipe.prior.nfe)
        if sizes.work is not None:
            shutil.rmtree(sizes.work, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class CalibrateSolver(MeasureCommand):
    """Measure a prior once for faster or better sampling; an interrupted measurement goes on where it was."""

    name: ClassVar[str] = "calibrate-solver"

    what: What
    """statistics for --solver dpm-v3, gaussian for --teleport, boundary for a starting noise, time-remap for a size
    below the trained one, error-curve for `unproject restore`."""
    samples: int | None = None
    """Prompts measured on, a picture each (default: 128, 512, 16, 128 and 64, in the order above)."""
    sample_steps: int = 30
    """Solver steps of the prior's own samples."""
    steps: int | None = None
    """boundary: solver steps of the runs to come (default: what suits the prior)."""
    solver: str | None = None
    """boundary: solver of the runs to come, deterministic (default: what suits the prior)."""
    candidates: int = 32
    """boundary: noises to choose from."""
    cells: int = 80
    """statistics: cells of the lambda grid."""
    derivative: Literal["exact", "difference"] = "exact"
    """statistics: difference for networks without forward-mode derivatives."""
    states: Literal["noised", "trajectory"] | None = None
    """statistics: measured on noised samples, as in the paper, or on trajectories (default: those above guidance 3)."""

    def slug(self) -> str:
        """The base name of the outputs."""
        return self.what

    def sizes(self, target: Target, steps: int) -> Sizes:
        """See MeasureCommand.sizes; an error curve is measured at the guidance of restoring."""
        from ..core.sampling import RestoreConfig

        sizes = super().sizes(target, steps)
        if self.what == "error-curve" and sizes.guidance is None:
            return replace(sizes, guidance=RestoreConfig().guidance)
        return sizes

    def count(self) -> int:
        """Prompts measured on."""
        return SAMPLES[self.what] if self.samples is None else self.samples

    def check(self) -> None:
        """Ranges, and options that another measurement would need."""
        check_range("--samples", self.count(), 2, 1_000_000)
        check_range("--sample-steps", self.sample_steps, 1, 1000)
        check_range("--candidates", self.candidates, 1, 100_000)
        check_range("--cells", self.cells, 1, 1000)
        if self.what == "error-curve" and self.negative:
            raise InputError(f"--negative {self.negative!r} cannot be used when restoring; leave it out")
        if self.what == "time-remap" and self.size is None:
            raise InputError("--what time-remap needs --size PX, a size below the prior's own")
        if self.what != "boundary" and (self.steps is not None or self.solver is not None):
            raise InputError(f"--steps and --solver belong to --what boundary, not to {self.what}; see --sample-steps")
        super().check()

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [*super().plan(), f"would measure {self.what} on {self.count()} samples"]

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Measures and writes the file."""
        pipe = self.load(record)
        sizes, prompts = self.sizes(target, self.sample_steps), self.chosen_prompts(self.count())
        path = target.file(target.suffix or ".safetensors")
        with record.stage("measure"):
            lines, data = self._measured(pipe, prompts, sizes, path)
        self.finish(pipe, path, sizes, record)
        record.notes["prompts"] = len(set(prompts))
        use = self.use_line(USE[self.what], path, steps=self.steps, solver=self.solver)
        return Shown([*lines, use], data={"what": self.what, **data})

    def _measured(
        self, pipe: TextToImage, prompts: list[str], sizes: Sizes, path: Path
    ) -> tuple[list[str], dict[str, Any]]:
        """Writes the file; lines and data about it."""
        from ..core.sampling.optimal_boundary import variance_shares
        from ..pipelines import calibrations as recipes

        mark = recipes.setting(pipe, prompts[:1], sizes).fingerprint
        if self.what == "statistics":
            recipes.measure_statistics(pipe, prompts, sizes, self.cells, self.derivative, self.states).save(path)
            return [], {}
        if self.what == "gaussian":
            gaussian = recipes.fit_gaussian(pipe, prompts, sizes)
            gaussian.save(path, mark)
            return [f"{len(gaussian.variances)} directions"], {"directions": len(gaussian.variances)}
        if self.what == "boundary":
            noise, search = recipes.choose_boundary(pipe, prompts, sizes, self.solver, self.steps, self.candidates)
            noise.save(path, mark)
            spread = float(search.means.mean())
            data = {"loss": noise.loss, "mean_loss": spread}
            if self.candidates > 1:
                data["transfer"] = variance_shares(search.losses).transfer
            return [f"loss {noise.loss:.4g}, mean of all candidates {spread:.4g}"], data
        if self.what == "time-remap":
            remap = recipes.fit_time_remap(pipe, prompts, sizes)
            remap.save(path, mark)
            return [f"mean shift {remap.shift:+.4f} of the time range"], {"shift": remap.shift}
        recipes.measure_error_curve(pipe, prompts, sizes).save(path, mark)
        return [], {}


@dataclass(frozen=True, kw_only=True)
class SearchSolver(MeasureCommand):
    """Search the solver of a few network calls that ends nearest to a long run, for --solver usf:FILE."""

    name: ClassVar[str] = "search-solver"

    nfe: int = 5
    """Network calls of a run."""
    budget: int = 150
    """Solvers tried, the known ones on every spacing (about 30) among them."""
    images: int = 48
    """Prompts and noises they are tried on."""
    reference_steps: int = 200
    """Steps of the long run."""

    def slug(self) -> str:
        """The base name of the outputs."""
        return f"solver-{self.nfe}"

    def check(self) -> None:
        """Ranges."""
        check_range("--nfe", self.nfe, 2, 50)
        check_range("--budget", self.budget, 1, 100_000)
        check_range("--images", self.images, 1, 100_000)
        check_range("--reference-steps", self.reference_steps, 2, 1000)
        super().check()

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [*super().plan(), f"would try {self.budget} solvers of {self.nfe} calls on {self.images} images"]

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Searches and writes the file."""
        from ..pipelines.calibrations import search_solver, setting

        pipe = self.load(record)
        sizes, prompts = self.sizes(target, self.reference_steps), self.chosen_prompts(self.images)
        with record.stage("search"):
            found = search_solver(pipe, prompts, sizes, self.nfe, self.budget, self.reference_steps)
        best, score = found.result.best, found.result.score
        path = target.file(target.suffix or ".safetensors")
        facts = {"score": score, "nfe": self.nfe, "fixed": found.fixed, "fixed_score": found.fixed_score}
        best.save(path, setting(pipe, prompts[:1], sizes).fingerprint, facts)
        self.finish(pipe, path, sizes, record)
        rows = [("searched", f"{score:.5g}"), (found.fixed, f"{found.fixed_score:.5g}")]
        table = Table(("solver", "squared distance to the long run"), rows)
        use = self.use_line("--solver usf:{}", path)
        return Shown([use], [table], {**facts, "schedule": best.to_dict()})
