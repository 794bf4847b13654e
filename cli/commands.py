"""The list of commands and the parser made from it."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Union, cast

import tyro

from ..utils.errors import InputError
from .bench import Bench
from .calibrate import CalibrateSolver, SearchSolver
from .camera import Calibrate
from .common import Command
from .completion import Completion
from .demo import Demo
from .distill import Distill
from .edit import Edit, Restore
from .files import Convert, Inspect
from .fit import Fit
from .geometry import Geometry
from .info import Doctor, Methods, Priors
from .maps import MAP_COMMANDS
from .match import Match, Transfer
from .materials import Materials
from .points import Pointcloud
from .relight import InverseRender, Relight
from .render import Render
from .replay import replayed
from .shapes import TextToMesh
from .sim2real import Sim2real
from .splat_shapes import TextToSplats
from .text import TextToImage
from .train import Train
from .views import ImageToMesh, ImageToViews
from .world import Toybox

COMMANDS: tuple[type[Command], ...] = (
    TextToMesh,
    TextToSplats,
    TextToImage,
    ImageToMesh,
    ImageToViews,
    *MAP_COMMANDS.values(),
    Materials,
    Sim2real,
    Calibrate,
    Geometry,
    Pointcloud,
    Match,
    Transfer,
    Edit,
    Restore,
    CalibrateSolver,
    SearchSolver,
    Fit,
    InverseRender,
    Relight,
    Render,
    Toybox,
    Convert,
    Inspect,
    Priors,
    Methods,
    Bench,
    Train,
    Distill,
    Doctor,
    Demo,
    Completion,
)
HELP = (
    "Text and images to 3D. `unproject COMMAND --help` explains one command; `unproject doctor` checks this machine. "
    "`unproject --config FILE` runs what a run.json or --print-config says; options behind it replace its own."
)
FLAGS = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
EMPTY_NAME = "an empty name of a file or folder; give one, or . for the working folder"
MAY_BE_EMPTY = ("--", "--negative", "--prompt", "--source", "--target", "--format")  # or say themselves what they need
VALUES = tyro.constructors.ConstructorRegistry()


@VALUES.primitive_rule
def _paths(info: Any) -> Any:
    """A path is never empty: that would silently be the working folder."""
    if info.type is not Path:
        return None

    def read(words: list[str]) -> Path:
        if not words[0]:
            raise ValueError(EMPTY_NAME)
        return Path(words[0])

    return tyro.constructors.PrimitiveConstructorSpec(
        1, "PATH", read, lambda value: isinstance(value, Path), lambda value: [str(value)]
    )


@VALUES.primitive_rule
def _finite(info: Any) -> Any:
    """A number is finite."""
    if info.type is not float:
        return None

    def read(words: list[str]) -> float:
        value = float(words[0])
        if not math.isfinite(value):
            raise ValueError(f"{words[0]} is no finite number")
        return value

    return tyro.constructors.PrimitiveConstructorSpec(
        1, "FLOAT", read, lambda value: isinstance(value, (int, float)), lambda value: [str(value)]
    )


def parse(words: Sequence[str]) -> Command:
    """The command with its options. Exits with 2 on a wrong line, with 0 after --help."""
    _check_names(words)
    command, rest = replayed(words, COMMANDS)
    if command is None:
        return cast(Command, tyro.cli(_union(), prog="unproject", description=HELP, args=rest, **_how()))
    prog = f"unproject {command.name}"
    return tyro.cli(type(command), prog=prog, default=command, args=rest, **_how())


def _check_names(words: Sequence[str]) -> None:
    """Raises InputError for an empty word where a command takes files: in a list of them the parser cannot say why; and
    behind an option, where it would silently be the working folder or no option at all."""
    takes_files = {
        c.name
        for c in COMMANDS
        for f in fields(c)
        if "Positional[" in str(f.type) and ("Path" in str(f.type) or f.name == "source")
    }
    for at, word in enumerate(words):
        option = word[:-1] if word.endswith("=") else words[at - 1] if at and not word else ""
        if option.startswith("--") and option not in MAY_BE_EMPTY:
            raise InputError(f"the word behind {option} is empty; give it a value or leave it out")
    alone = [before for before, word in pairwise(words) if not word and not before.startswith("-")]
    if alone and words[0] in takes_files:
        raise InputError(EMPTY_NAME)


def completion_script(shell: str) -> str:
    """The completion script of a shell."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        tyro.cli(_union(), prog="unproject", description=HELP, args=["--tyro-print-completion", shell], **_how())
    return out.getvalue()


def _union() -> Any:
    named: list[Any] = [
        Annotated[c, tyro.conf.subcommand(c.name, prefix_name=False, description=c.__doc__)] for c in COMMANDS
    ]
    return Union[tuple(named)]  # noqa: UP007


def _how() -> dict[str, Any]:
    return {"config": FLAGS, "registry": VALUES}
