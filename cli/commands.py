"""The list of commands and the parser made from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Union, cast

import tyro

from .bench import Bench
from .calibrate import CalibrateSolver, SearchSolver
from .common import Command
from .demo import Demo
from .edit import Edit, Restore
from .files import Convert, Inspect
from .image import MAP_COMMANDS, Pointcloud
from .info import Doctor, Methods, Priors
from .text import TextToImage, TextToMesh
from .train import Train
from .world import Toybox

COMMANDS: tuple[type[Command], ...] = (
    TextToMesh,
    TextToImage,
    *MAP_COMMANDS.values(),
    Pointcloud,
    Edit,
    Restore,
    CalibrateSolver,
    SearchSolver,
    Toybox,
    Convert,
    Inspect,
    Priors,
    Methods,
    Bench,
    Train,
    Doctor,
    Demo,
)
HELP = "Text and images to 3D. `unproject COMMAND --help` explains one command; `unproject doctor` checks this machine."


def parse(words: Sequence[str]) -> Command:
    """The command with its options. Exits with 2 on a wrong line, with 0 after --help."""
    named: list[Any] = [
        Annotated[c, tyro.conf.subcommand(c.name, prefix_name=False, description=c.__doc__)] for c in COMMANDS
    ]
    union: Any = Union[tuple(named)]  # noqa: UP007
    parsed = tyro.cli(
        union,
        prog="unproject",
        description=HELP,
        args=list(words),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    return cast(Command, parsed)
