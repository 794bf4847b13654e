"""`unproject bench` and `unproject train`: experiments and recipes by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import Command, Shown, Table, Target


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train from a recipe (a YAML file or the name of a packaged one) and export what it made."""

    name: ClassVar[str] = "train"

    recipe: tyro.conf.Positional[str]
    """YAML file, or the name of a packaged recipe."""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.arg(metavar="KEY=VALUE ..."), tyro.conf.UseAppendAction] = ()
    """Override keys of the recipe, dotted: --set trainer.steps=100 trainer.batch=8."""
    seed: int | None = None  # type: ignore[assignment]
    """Seed of all randomness, for trainer.seed (default: the recipe's)."""
    resume: bool = False
    """Continue from the newest checkpoint in --out."""
    export: bool = False
    """Only write export/ from the newest checkpoint."""

    def slug(self) -> str:
        """The base name of the outputs."""
        return Path(self.recipe).stem

    def target(self) -> Target:
        """Trainings live in runs/ unless --out says otherwise."""
        return Target(self.out or Path("runs") / self.slug(), self.slug())

    def check(self) -> None:
        """The recipe has to be there, and the overrides have to look like KEY=VALUE."""
        from ..utils.configs import config_path

        if not Path(self.recipe).is_file():
            config_path(f"train/{self.recipe}")
        for override in self.overrides():
            key, equals, _ = override.partition("=")
            if not equals:
                raise InputError(f"--set {override!r} must look like KEY=VALUE")
            if key == "trainer.seed" and self.seed is not None:
                raise InputError(f"give --seed {self.seed} or --set {override}, not both")

    def overrides(self) -> list[str]:
        """All KEY=VALUE of --set, in order."""
        return [override for group in self.set for override in group]

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [f"would {'export' if self.export else 'train'} {self.recipe}"]

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Builds the job and trains it."""
        from ..scripts.train import read_recipe
        from ..scripts.train import run as run_training
        from .common import pick_device

        seed = [] if self.seed is None else [f"trainer.seed={self.seed}"]
        make, values = read_recipe(self.recipe, [*self.overrides(), *seed])
        job = make(values)
        record.notes["recipe"], record.seed = values, job.trainer.seed
        run_training(job, target.folder, self.resume, self.export, pick_device(self.device))
        export = target.folder / "export"
        if export.is_dir():
            record.output(export)
        return Shown(data={"export": str(export) if export.is_dir() else None})


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Run experiments that measure a method against its baseline; without a name, list them."""

    name: ClassVar[str] = "bench"

    experiments: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of experiments."""
    all: bool = False
    """Run every experiment."""
    quick: bool = False
    """Few samples and one seed: shows that it runs, measures nothing."""
    prior: str | None = None
    """The prior to measure on (default: each experiment's own)."""

    def target(self) -> Target:
        """One folder for the JSON of all experiments."""
        return Target(self.out or Path("outputs") / "bench", "bench")

    @property
    def leaves_files(self) -> bool:
        """The list of experiments is only told."""
        return bool(self._names())

    def check(self) -> None:
        """The names have to exist."""
        from ..bench.runner import EXPERIMENTS

        if self.device not in ("auto", "cpu"):
            raise InputError(f"--device {self.device}: experiments run on the cpu; leave it out")
        unknown = [name for name in self.experiments if name not in EXPERIMENTS]
        if unknown:
            raise InputError(f"unknown experiment {unknown[0]!r}; have {', '.join(EXPERIMENTS)}")
        if self.all and self.experiments:
            raise InputError("give names of experiments or --all, not both")

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [f"would run {name}" for name in self._names()]

    def _names(self) -> list[str]:
        from ..bench.runner import EXPERIMENTS

        return list(EXPERIMENTS) if self.all else list(self.experiments)

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Runs the experiments one after another."""
        from ..bench.runner import EXPERIMENTS, run_experiment

        if not self._names():
            rows = [(name, _first_line(made)) for name, made in EXPERIMENTS.items()]
            return Shown(tables=[Table(("experiment", "measures"), rows)], data={"experiments": list(EXPERIMENTS)})
        for name in self._names():
            with record.stage(name):
                run_experiment(name, out=target.folder, prior=self.prior, seed=self.seed, quick=self.quick)
            record.output(target.folder / f"{name}.json")
        return Shown()


def _first_line(thing: Any) -> str:
    return (getattr(thing, "title", None) or thing.__doc__ or "").strip().splitlines()[0]
