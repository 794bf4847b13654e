"""`unproject completion`: what makes a shell complete commands and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import tyro

from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import Command
from .outputs import Target
from .showing import Shown


@dataclass(frozen=True, kw_only=True)
class Completion(Command):
    """Print what a shell needs to complete commands and options: source <(unproject completion bash)."""

    name: ClassVar[str] = "completion"

    shell: tyro.conf.Positional[Literal["bash", "zsh", "tcsh"]] = "bash"
    """The shell."""

    @property
    def leaves_files(self) -> bool:
        """It only tells something."""
        return False

    def check(self) -> None:
        """What it prints goes nowhere else."""
        if self.out is not None:
            raise InputError(
                f"--out {self.out}: completion writes to standard output alone; send that to a file with >"
            )

    @property
    def looks_at_out(self) -> bool:
        """It writes to standard output alone."""
        return True

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Prints the script."""
        from .commands import completion_script

        script = completion_script(self.shell)
        return Shown(script.rstrip().splitlines(), data={"script": script})
