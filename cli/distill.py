"""`unproject distill`: few-step, small and cheap students of a prior, by recipes of the literature."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from ..utils.errors import InputError, Stopped
from ..utils.locks import alone_in
from ..utils.runs import RunRecord
from ..utils.threads import pin
from .common import check_file
from .outputs import Target
from .priors import PriorCommand
from .showing import Shown

if TYPE_CHECKING:
    from ..core.distillation.distil import DistillRecipe


@dataclass(frozen=True, kw_only=True)
class Distill(PriorCommand):
    """Distill a prior by a method (a packaged recipe or a YAML file); text-to-image --student takes what comes out."""

    name: ClassVar[str] = "distill"

    method: tyro.conf.Positional[str]
    """Name of a recipe in configs/distill, or a YAML file."""
    prompts: Path | None = None
    """Text file with a prompt on each line, for what the teacher draws (default for toybox priors: their own world)."""
    set: Annotated[tuple[tuple[str, ...], ...], tyro.conf.arg(metavar="KEY=VALUE ..."), tyro.conf.UseAppendAction] = ()
    """Override keys of the recipe, dotted: --set pairs.count=256 stages.student.trainer.steps=100."""
    pairs: Path | None = None
    """Folder of what the teacher draws, shared by methods (default: in the user's cache folder)."""
    overwrite: bool = False
    """Begin anew: remove the checkpoints in --out. Otherwise an interrupted run goes on."""

    def slug(self) -> str:
        """The base name of the outputs."""
        return f"{Path(self.prior).name}-{Path(self.method).stem}"

    def target(self) -> Target:
        """Distillations live in runs/ unless --out says otherwise."""
        return Target(self.out or Path("runs") / self.slug(), self.name)

    def check(self) -> None:
        """The recipe has to be there, and the overrides have to be known to it."""
        self._recipe()
        if self.prompts is not None:
            check_file("--prompts", self.prompts, "give a text file with a prompt on each line")
        super().check()

    def plan(self) -> list[str]:
        """What a dry run says."""
        return [*super().plan(), f"would distill {self.prior} by {self.method} into {self.target().folder}"]

    def _recipe(self) -> DistillRecipe:
        """The recipe with what --set says of it."""
        from ..core.distillation.distil import DistillRecipe
        from ..utils.configs import load_config

        return load_config(DistillRecipe, self._source(), **self._overrides())

    def _source(self) -> Path:
        """The recipe's file."""
        from ..utils.configs import config_path

        return Path(self.method) if Path(self.method).is_file() else config_path(f"distill/{self.method}")

    def _overrides(self) -> dict[str, Any]:
        """What --set says. Raises InputError for what does not look like KEY=VALUE."""
        import yaml

        found: dict[str, Any] = {}
        for override in (override for group in self.set for override in group):
            key, equals, text = override.partition("=")
            if not equals:
                raise InputError(f"--set {override!r} must look like KEY=VALUE")
            found[key] = yaml.safe_load(text)
        return found

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Draws pairs, trains the stages one after the other and exports the last student."""
        from ..core.distillation.distil import distil
        from ..core.priors import load_prior
        from ..core.training.checkpoints import remove_checkpoints
        from ..utils.configs import to_dict
        from ..utils.files import cache_root

        recipe = self._recipe()
        pin(self.threads or 1)
        given = self.placement()
        prior = load_prior(self.prior, **given)
        record.notes["recipe"] = to_dict(recipe)
        with alone_in(target.folder):
            if self.overwrite:
                for stage in recipe.stages:
                    remove_checkpoints(target.folder / stage)
            ended = distil(
                recipe,
                prior,
                self._prompts(prior, recipe.pairs.count),
                target.folder,
                Path(self.method).stem,
                resume=not self.overwrite,
                device="cpu" if given["device"] == "cpu" else "auto",
                pairs_root=self.pairs or cache_root() / "pairs",
            )
        total = recipe.stages[ended.stage].trainer.steps
        if ended.result.reason == "signal":
            raise Stopped(ended.result.step, total, str(target.folder), ended.result.signal)
        if ended.folder is None:
            left = f"{ended.stage}: step {ended.result.step} of {total}: the time is up; the same command goes on"
            return Shown([left], data={"export": None})
        record.output(ended.folder)
        line = f'unproject text-to-image "a red chair" --student {ended.folder}'
        return Shown([line], data={"export": str(ended.folder)})

    def _prompts(self, prior: Any, count: int) -> list[str]:
        """The lines of the file, or sentences of the prior's own world. Raises InputError where there are none."""
        if self.prompts is not None:
            from .prompts import chosen_prompts

            return chosen_prompts(None, self.prompts)
        if not getattr(prior, "vocabulary", ()):
            raise InputError(f"--prior {self.prior} needs --prompts FILE: texts of what it is to draw and to keep")
        from ..toybox.samples import object_prompts

        return object_prompts("train", count)
