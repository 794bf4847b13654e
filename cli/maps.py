"""The commands of maps, one for each task in configs/tasks: `unproject depth`, `unproject normals` and what follows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tasks.table import TaskConfig, task_table
from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .choices import HeadChoice, SecondLook
from .image import MapCommand
from .lens import LensOptions
from .metric import load_metres, load_metric, says_metres, seen_in_metres, told_in_metres
from .outputs import Target

if TYPE_CHECKING:
    import numpy as np

    from ..tasks.map_files import Saving


@dataclass(frozen=True, kw_only=True)
class ColouredMapCommand(MapCommand):
    """Of a map whose colours have no meaning of their own."""

    colormap: str | None = None
    """Colours of the pictures, a name of matplotlib's such as magma, turbo or gray (default: Spectral)."""

    def check(self) -> None:
        """The colours have to exist, and be used."""
        if self.colormap is not None:
            from ..tasks.map_files import check_colormap

            check_colormap(self.colormap, "--colormap")
            if not self.draws:
                raise InputError(f"--colormap colours a picture and --format {','.join(self.formats)} makes none")
        super().check()

    def saving(self) -> Saving:
        """See MapCommand.saving."""
        return replace(super().saving(), colormap=self.colormap or "")


@dataclass(frozen=True, kw_only=True)
class MetricMapCommand(ColouredMapCommand, LensOptions):
    """Of a map that has metres once the camera and a scale are known."""

    metric: bool = False
    """Write metres: the shape by the camera and the predicted normals, the scale by --known-distance or
    --camera-height, else that of a camera 1.5 m above the floor; the files say which."""

    def check(self) -> None:
        """Options of the camera belong to metres."""
        self.check_lens(self.many)
        if self.metric and self.other_kind and not self.told_metres:
            raise InputError(f"--metric needs the normals too, which {self.other_kind} does not predict; leave one out")
        given = [n for n in ("fov", "K", "known_distance", "camera_height") if getattr(self, n) is not None]
        if given and not self.metric:
            raise InputError(f"--{given[0].replace('_', '-')} belongs to --metric; give that too, or leave it out")
        super().check()

    def check_weights(self) -> None:
        """See MapCommand.check_weights; a head of metres is of none of these kinds."""
        if not (self.metric and self.told_metres):
            super().check_weights()

    def check_seen(self, path: Path) -> None:
        """See ImageCommand.check_seen."""
        LensOptions.check_seen(self, path)

    @property
    def told_metres(self) -> bool:
        """Whether --head is one of metres."""
        return says_metres(getattr(self, "head", None))

    def load(self) -> Any:
        """See MapCommand.load; metres need all that the head predicts, or a head of metres."""
        if self.metric and self.told_metres:
            return load_metres(self, getattr(self, "head"))  # noqa: B009 (a mixin's)
        return load_metric(self) if self.metric else super().load()

    def one(self, pipe: Any, path: Path, picture: np.ndarray, record: RunRecord, target: Target) -> None:
        """See MapCommand.one."""
        if not self.metric:
            super().one(pipe, path, picture, record, target)
            return
        from ..pipelines.metric_depth import metres_map

        how = self.saving()
        if self.told_metres:
            one = told_in_metres(self, pipe, path, picture, record)
        else:
            made, _, metric = seen_in_metres(self, pipe, path, picture, record, **self.settings())
            one = metres_map(made, metric)
        with record.stage("write"):
            record.keep(lambda base: one.save(base, how), target.file(""))
            if self.preview:
                record.keep(lambda base: one.preview(picture, base, how), target.beside(""))


def map_command(name: str, task: TaskConfig) -> type[MapCommand]:
    """The command `unproject NAME` of a task, with the options that its file gives a meaning to."""
    members = {"name": name, "codec": task.codec, "__doc__": task.summary, "__module__": __name__}
    kind: type[MapCommand] = ColouredMapCommand if task.colormap else MapCommand
    more = [choice for choice, given in ((HeadChoice, task.heads), (SecondLook, task.refiner)) if given]
    bases = (*more, MetricMapCommand if task.metric else kind)
    return dataclass(frozen=True, kw_only=True)(type(name.capitalize(), bases, members))


MAP_COMMANDS = {name: map_command(name, task) for name, task in task_table().items() if task.map}
