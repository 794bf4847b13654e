"""Train from a recipe: python -m unproject.scripts.train RECIPE [--set trainer.steps=100] [--out runs/NAME] [--resume].

RECIPE is a YAML file or the name of a packaged one (configs/train/NAME.yaml). The folder given to --out holds the
checkpoints, metrics.jsonl, previews and, when the training is done, export/: what the next stage or a user loads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..utils.configs import CONFIGS, read_yaml
from ..utils.errors import InputError, UnprojectError
from ..utils.threads import pin
from .recipes import RECIPES, Job

if TYPE_CHECKING:
    from ..core.training.trainer import TrainResult


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="train", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", help=f"a YAML file, or one of {', '.join(RECIPES)}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key, dotted")
    parser.add_argument("--out", type=Path, default=None, help="folder of the run (default runs/RECIPE)")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in --out")
    parser.add_argument("--export", action="store_true", help="only write export/ from the newest checkpoint")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu"))
    parser.add_argument("--threads", type=int, default=1, help="processor threads of each process (default 1)")
    options = parser.parse_args(arguments)
    try:
        pin(options.threads)
        make, values = read_recipe(options.recipe, options.set)
        out = options.out or Path("runs") / Path(options.recipe).stem
        result = run(make(values), out, options.resume, options.export, options.device)
        if result is not None and result.reason != "done":
            _tell(f"not finished: continue with --resume --out {out}, or write the weights so far with --export")
    except UnprojectError as error:
        print(f"train: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def read_recipe(name: str, overrides: list[str]) -> tuple[Callable[[dict[str, Any]], Job], dict[str, Any]]:
    """(what builds the job, the recipe's values with overrides merged). Raises InputError for what it cannot read."""
    packaged = CONFIGS / "train" / f"{name}.yaml"
    values = read_yaml(packaged if packaged.is_file() else name)
    if not isinstance(values, dict) or values.get("objective") not in RECIPES:
        raise InputError(f"recipe {name} needs the key 'objective' with one of {', '.join(RECIPES)}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"--set {override!r} must look like key=value")
        _put(values, key.split("."), yaml.safe_load(text))
    make = RECIPES[values.pop("objective")]

    def named(values: dict[str, Any]) -> Job:
        try:
            return make(values)
        except InputError as error:
            raise InputError(f"recipe {name}: {error}") from error

    return named, values


def run(job: Job, out: Path, resume: bool, export_only: bool, device: str) -> TrainResult | None:
    """Trains (unless only the export is wanted) and exports the averaged weights of a run that is done.

    Returns how the training ended, None when only the export was wanted.

    Raises UnprojectError, and exports nothing, when the run diverged.
    """
    from ..core.training.checkpoints import latest_checkpoint
    from ..core.training.trainer import Trainer

    trainer, result = Trainer(job.trainer, job.objective, job.data, out, device), None
    if export_only:
        found = latest_checkpoint(out)
        if found is None:
            raise InputError(f"--export: {out} holds no checkpoint; train first")
        trainer.load(found, goes_on=False)
        trainer.check_sound()
    else:
        result = trainer.run(resume)
        numbers = "".join(f", {k} {v:.4g}" for k, v in result.validation.items())
        _tell(f"{out}: step {result.step} ({result.reason}){numbers}")
        if result.reason != "done":
            return result
    if trainer.engine.main:
        with trainer.averaged():
            _tell(str(job.export(out / "export")))
    return result


def _tell(text: str) -> None:
    """Prints on standard error: standard output belongs to the command that trains."""
    print(text, file=sys.stderr, flush=True)


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        inner = values.get(part)
        values[part] = inner = dict(inner) if isinstance(inner, dict) else {}
        values = inner
    values[path[-1]] = value


if __name__ == "__main__":
    sys.exit(main())
