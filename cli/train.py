"""`unproject train`: recipes by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from ..utils.errors import InputError
from ..utils.runs import RunRecord
from ..utils.threads import pin
from .common import Command, Shown, Target


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
        pin(self.threads or 1)
        job = make(values)
        record.notes["recipe"], record.seed = values, job.trainer.seed
        run_training(job, target.folder, self.resume, self.export, pick_device(self.device))
        export = target.folder / "export"
        if export.is_dir():
            record.output(export)
        return Shown(data={"export": str(export) if export.is_dir() else None})
