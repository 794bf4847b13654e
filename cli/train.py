"""`unproject train`: recipes by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from ..utils.errors import InputError, Stopped
from ..utils.locks import alone_in
from ..utils.runs import RunRecord
from ..utils.threads import pin
from .common import Threaded, pick_device
from .outputs import Target
from .showing import Shown


@dataclass(frozen=True, kw_only=True)
class Train(Threaded):
    """Train from a recipe (a YAML file or the name of a packaged one) and export what it made."""

    name: ClassVar[str] = "train"

    recipe: tyro.conf.Positional[str]
    """YAML file, or the name of a packaged recipe."""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.arg(metavar="KEY=VALUE ..."), tyro.conf.UseAppendAction] = ()
    """Override keys of the recipe, dotted: --set trainer.steps=100 trainer.batch=8."""
    seed: int | None = None
    """Seed of all randomness, for trainer.seed (default: the recipe's)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    resume: bool = False
    """Continue from the newest checkpoint in --out, which happens anyway when the settings are those of that run."""
    overwrite: bool = False
    """Begin anew: remove the checkpoints in --out."""
    export: bool = False
    """Only write export/ from the newest checkpoint."""

    def slug(self) -> str:
        """The base name of the outputs."""
        return Path(self.recipe).stem

    def target(self) -> Target:
        """Trainings live in runs/ unless --out says otherwise."""
        return Target(self.out or Path("runs") / self.slug(), self.name)

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
        if self.overwrite and (self.resume or self.export):
            kept = "resume" if self.resume else "export"
            raise InputError(f"--overwrite removes the checkpoints that --{kept} needs; give one of them")

    def overrides(self) -> list[str]:
        """All KEY=VALUE of --set, in order."""
        return [override for group in self.set for override in group]

    def plan(self) -> list[str]:
        """What a dry run says; networks and data are built for it."""
        self._job()
        return [f"would {'export' if self.export else 'train'} {self.recipe}"]

    def _job(self) -> tuple[Any, dict[str, Any]]:
        """The job, and the recipe's values with all overrides."""
        from ..scripts.train import read_recipe

        seed = [] if self.seed is None else [f"trainer.seed={self.seed}"]
        make, values = read_recipe(self.recipe, [*self.overrides(), *seed])
        pin(self.threads or 1)
        return make(values), values

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Builds the job and trains it, from the newest checkpoint where there is one."""
        from ..core.training.checkpoints import remove_checkpoints
        from ..scripts.train import run as run_training

        job, values = self._job()
        record.notes["recipe"], record.seed = values, job.trainer.seed
        with alone_in(target.folder):
            if self.overwrite:
                remove_checkpoints(target.folder)
            result = run_training(job, target.folder, not self.overwrite, self.export, pick_device(self.device))
        if result is not None and result.reason == "signal":
            raise Stopped(result.step, job.trainer.steps, str(target.folder), result.signal)
        export = target.folder / "export"
        if export.is_dir():
            record.output(export)
        left = "" if result is None or result.reason == "done" else f"step {result.step} of {job.trainer.steps}"
        lines = (
            [f"{left}: the time is up; the same command goes on, --export writes the weights so far"] if left else []
        )
        return Shown(lines, data={"export": str(export) if export.is_dir() else None})
