"""Options of the commands whose map heads of other kinds predict too; a task's file says which (configs/tasks)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import InputError

USUAL = "toybox"  # the default of --prior


class OneKind:
    """Of a command that knows plain heads alone."""

    @property
    def other_kind(self) -> str:
        """The option that asks for a head of another kind; empty where none does."""
        return ""

    def check_other(self, prior: str) -> None:
        """Raises InputError for options of other kinds that are at odds, with each other or with --prior."""

    def check_steps(self, steps: int) -> None:
        """Raises InputError for --steps of a head of another kind, which has its own."""

    def name_of_other(self) -> str:
        """The name or folder of the head of another kind."""
        raise TypeError(f"{type(self).__name__} knows no head of another kind")

    def load_other(self, codec: str, prior: str, options: dict[str, Any]) -> Any:
        """The pipeline of the head of another kind; `options` say where it lives."""
        raise TypeError(f"{type(self).__name__} knows no head of another kind")


@dataclass(frozen=True, kw_only=True)
class HeadChoice(OneKind):
    """For tasks with `heads`."""

    head: str | None = None
    """A head of another kind, by its name or folder: primedepth (reads a frozen prior in one call) for depth, one-step
    (told the picture beside the network) for normals; or one as published, primedepth-sd21 and yoso-normal."""

    @property
    def other_kind(self) -> str:
        """See OneKind.other_kind."""
        return super().other_kind if self.head is None else f"--head {self.head}"

    def check_other(self, prior: str) -> None:
        """See OneKind.check_other."""
        super().check_other(prior)
        if self.head is not None and super().other_kind:
            raise InputError(f"--head {self.head} and {super().other_kind} are two heads; give one of them")
        if self.head is not None and prior != USUAL:
            raise InputError(f"--head {self.head} names its own prior; leave --prior {prior} out")

    def check_steps(self, steps: int) -> None:
        """See OneKind.check_steps; they answer in one call."""
        super().check_steps(steps)
        if self.head is not None and steps != 1:
            raise InputError(f"--steps {steps}: the steps of --head {self.head} are its own; leave --steps out")

    def name_of_other(self) -> str:
        """See OneKind.name_of_other."""
        return super().name_of_other() if self.head is None else self.head

    def load_other(self, codec: str, prior: str, options: dict[str, Any]) -> Any:
        """See OneKind.load_other."""
        if self.head is None:
            return super().load_other(codec, prior, options)
        return loaded(self.head, codec, **options)


@dataclass(frozen=True, kw_only=True)
class SecondLook(OneKind):
    """For tasks with a `refiner`."""

    refine: bool = False
    """Refine the prediction of a one-step head in a few steps at low noise: sharper edges, no ensemble."""
    refiner: Path | None = None
    """With --refine, the folder of a refiner (default: that of the embedded head)."""

    @property
    def other_kind(self) -> str:
        """See OneKind.other_kind."""
        return "--refine" if self.refine else ""

    def check_other(self, prior: str) -> None:
        """See OneKind.check_other."""
        if self.refiner is not None and not self.refine:
            raise InputError(f"--refiner {self.refiner} is of --refine; give that too, or leave it out")

    def check_steps(self, steps: int) -> None:
        """See OneKind.check_steps."""
        super().check_steps(steps)
        if self.refine:
            raise InputError(f"--steps {steps}: the steps of --refine are the refiner's own; leave --steps out")

    def name_of_other(self) -> str:
        """See OneKind.name_of_other."""
        return "refiner" if self.refiner is None else str(self.refiner)

    def load_other(self, codec: str, prior: str, options: dict[str, Any]) -> Any:
        """See OneKind.load_other."""
        first = "" if prior == USUAL else prior
        return loaded(self.name_of_other(), codec, first=first, **options)


def loaded(name: str, codec: str, **options: Any) -> Any:
    """The pipeline of a head of another kind."""
    from ..pipelines.image_to_geometry import ImageToMap
    from ..tasks.alternatives import load_alternative

    return ImageToMap(load_alternative(name, codec, **options), codec)
