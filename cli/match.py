"""`unproject match` and `unproject transfer`: which points of two pictures belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import tyro

from ..utils.errors import InputError
from ..utils.runs import RunRecord
from .common import Writer, check_file, check_picture, check_range
from .outputs import Target, check_apart
from .priors import PriorCommand
from .showing import Shown

if TYPE_CHECKING:
    from ..pipelines.match_images import MatchImages
    from ..tasks.matches import Matches

JUDGE, NONE = "judge", "none"


@dataclass(frozen=True, kw_only=True)
class PairCommand(PriorCommand, Writer):
    """Options of the commands that look at two pictures."""

    kinds: ClassVar[tuple[str, ...]] = (".npz", ".json", ".png")

    a: tyro.conf.Positional[Path]
    """The first picture."""
    b: tyro.conf.Positional[Path]
    """The second picture."""
    encoder: str = JUDGE
    """The second encoder: judge (the toybox's own), none, or a folder of DINOv2 in transformers' layout."""
    alpha: float = 0.5
    """Weight of the prior's features against the encoder's, 0 to 1."""
    time: float = 100.0
    """Train index of the noise that the prior looks through, 0 to 999."""
    size: int | None = None
    """Pixels of the square that both pictures are fitted into (default: 15/8 of the prior's own size)."""
    prompt: str = ""
    """What both pictures show."""
    format: str | None = None
    """Files to write, of npz, json and png, as in json,png (default: what --out names, else all)."""
    lines: int = 60
    """Lines of the picture."""

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats in force."""
        from ..tasks.matches import FORMATS

        if self.format is None:
            named = "" if self.out is None or self.out.is_dir() else self.out.suffix.lower().removeprefix(".")
            return (named,) if named else FORMATS
        asked = tuple(dict.fromkeys(word.strip().lower() for word in self.format.split(",")))
        if odd := [word for word in asked if word not in FORMATS]:
            raise InputError(f"--format {odd[0]!r} is unknown; have {', '.join(FORMATS)}")
        return asked

    @property
    def several(self) -> str:
        """See Command.several."""
        return "" if len(self.formats) == 1 else "it writes several files; --format npz, json or png alone is one"

    @property
    def streamed(self) -> str:
        """See Command.streamed."""
        return f".{self.formats[0]}"

    def slug(self) -> str:
        """a.jpg and b.jpg become a-b-match."""
        return f"{self.a.stem}-{self.b.stem}-{self.name}"

    def written(self, target: Target) -> list[Path]:
        """See Command.written."""
        return [target.file(f".{kind}") for kind in self.formats]

    def check(self) -> None:
        """Paths and ranges."""
        for option, path in (("a", self.a), ("b", self.b)):
            check_picture(option, path)
        target = self.target()
        named = target.suffix.removeprefix(".")
        if named and named not in self.formats:
            raise InputError(f"--out {self.out} is none of --format {self.format}; name it after one, or give a folder")
        check_apart(self.out or target.folder, self.written(target), [self.a, self.b])
        check_range("--alpha", self.alpha, 0, 1)
        check_range("--time", self.time, 0, 999)
        check_range("--lines", self.lines, 0, 10_000)
        if self.size is not None:
            check_range("--size", self.size, 16, 4096)
        if self.encoder not in (JUDGE, NONE) and not Path(self.encoder).is_dir():
            raise InputError(f"--encoder {self.encoder} is no folder; have {JUDGE}, {NONE}, or a folder of DINOv2")
        if self.encoder == NONE and self.alpha != PairCommand.alpha:
            raise InputError(f"--alpha {self.alpha:g} weighs two encoders and --encoder {NONE} leaves one")
        super().check()

    def plan(self) -> list[str]:
        """What a dry run says; both pictures are read for it."""
        from ..utils.pictures import load_image

        sizes = [(path, *load_image(path).shape[1::-1]) for path in (self.a, self.b)]
        return [*super().plan(), *(f"would read {path} ({w} x {h} px)" for path, w, h in sizes)]

    def load(self) -> MatchImages:
        """The pipeline."""
        from ..core.sampling.features import Look
        from ..pipelines.match_images import MatchImages
        from ..tasks.correspondence import MatchConfig

        config = MatchConfig(Look(self.time, prompt=self.prompt), alpha=self.alpha, size=self.size or 0)
        return MatchImages.from_pretrained(
            self.prior, encoder=second_encoder(self.encoder), config=config, **self.placement()
        )

    def found(self, pipe: MatchImages, valid: Sequence[Any]) -> Matches:
        """What is looked for."""
        raise TypeError(f"{type(self).__name__} defines no found")

    def run(self, record: RunRecord, target: Target) -> Shown:
        """Looks at both pictures once."""
        from ..pipelines.validity import file_valid
        from ..utils.pictures import load_image

        shown = [load_image(path) for path in (self.a, self.b)]
        with record.stage("load"):
            pipe = self.load()
        with record.stage("match"):
            valid = [file_valid(path, one) for path, one in zip((self.a, self.b), shown, strict=True)]
            made = self.found(pipe, valid)
        record.count("denoiser", made.nfe)
        return self.finish(made, shown, record, target)

    def finish(self, made: Matches, shown: Sequence[Any], record: RunRecord, target: Target) -> Shown:
        """Writes the files and tells what they hold."""
        with record.stage("write"):
            for kind in self.formats:
                record.keep(lambda path: self._saved(made, shown, path), target.file(f".{kind}"))
        agree = int(made.agrees.sum())
        told = f"{len(made)} points, of {agree} of them the way there and back ends within 1.5 cells"
        return Shown([told], data={"points": len(made), "agree": agree, "made_by": made.made_by})

    def _saved(self, made: Matches, shown: Sequence[Any], path: Path) -> Path:
        """One file, of the kind of its suffix."""
        (written,) = made.save(path.with_suffix(""), shown, (path.suffix.removeprefix("."),), self.lines)
        return written


@dataclass(frozen=True, kw_only=True)
class Match(PairCommand):
    """Find points of two pictures that belong together: NPZ, JSON and a picture with lines."""

    name: ClassVar[str] = "match"

    count: int = 0
    """Keep the best so many (0: all)."""
    sift: bool = False
    """Match with SIFT instead of networks, to compare."""

    def check(self) -> None:
        """Ranges, and options that would change nothing."""
        check_range("--count", self.count, 0, 1_000_000)
        if self.sift:
            for option in ("prior", "encoder", "alpha", "time", "size", "prompt"):
                if getattr(self, option) != getattr(PairCommand, option):
                    raise InputError(f"--{option} is of the networks, which --sift leaves out; give one of both")
        super().check()

    def run(self, record: RunRecord, target: Target) -> Shown:
        """See PairCommand.run; no network is loaded for SIFT."""
        if not self.sift:
            return super().run(record, target)
        from ..pipelines.match_images import sift
        from ..utils.pictures import load_image

        shown = [load_image(path) for path in (self.a, self.b)]
        with record.stage("match"):
            made = sift(*shown)
        return self.finish(made.chosen(slice(self.count or None)), shown, record, target)  # type: ignore[arg-type]

    def found(self, pipe: MatchImages, valid: Sequence[Any]) -> Matches:
        """See PairCommand.found."""
        return pipe(self.a, self.b, valid=valid, count=self.count)


@dataclass(frozen=True, kw_only=True)
class Transfer(PairCommand):
    """Carry key points from one picture to another, also of another object of its kind."""

    name: ClassVar[str] = "transfer"

    points: Path
    """JSON file of points in px of the first picture, pixel centres at +0.5: [[x, y], ...], {"name": [x, y], ...}, or
    one of them under "points", as this command writes them."""

    def check(self) -> None:
        """The points have to be there."""
        from ..tasks.matches import read_points

        check_file("--points", self.points, "give a JSON file of points")
        read_points(self.points)
        super().check()

    def found(self, pipe: MatchImages, valid: Sequence[Any]) -> Matches:
        """See PairCommand.found."""
        from ..tasks.matches import read_points

        names, points = read_points(self.points)
        return pipe.transfer(self.a, self.b, points, names=names, valid=valid)


def second_encoder(name: str) -> Any:
    """The encoder of --encoder: None for none, the judge's levels, or the folder itself."""
    if name == NONE:
        return None
    if name != JUDGE:
        return Path(name)
    from ..tasks.encoders import Joined
    from ..toybox.judge import Judge
    from ..toybox.judge_net import FeatureMaps

    return Joined(FeatureMaps(Judge.from_pretrained().net))
