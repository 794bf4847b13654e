"""Where results go: names, and the checks that they can be written and overwrite nothing."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..utils.companions import RECORD, REPORT, companion, record_of_set
from ..utils.errors import InputError
from ..utils.files import check_writable, in_words, is_there


@dataclass(frozen=True)
class Target:
    """Where a command writes: `folder/stem.suffix`, or only a folder when the user named no file."""

    folder: Path
    stem: str
    suffix: str = ""
    formats: tuple[str, ...] = ()  # of what is written, in order, where another set of them may come to lie beside it
    mark: str = ""  # tells apart what lies beside one of several outputs, as that of their record

    @property
    def record(self) -> Path:
        """NAME.run.json beside what is written under that name, or NAME.glb.run.json (`utils.companions`)."""
        if self.formats and not self.suffix:
            return record_of_set(self.folder, self.stem, self.formats)
        return companion(self.folder, self.stem, self.suffix)

    @property
    def own_mark(self) -> str:
        """What stands in the name of its record behind the stem: nothing, or .glb where another one has the name."""
        return self.mark or self.record.name.removesuffix(RECORD).removeprefix(self.stem)

    @property
    def work(self) -> Path:
        """The folder of what an interrupted run goes on from, beside the output; removed when it is done."""
        return self.folder / f".{self.own_stem}.work"

    @property
    def own_stem(self) -> str:
        """How the names of what lies beside the output begin: as that of its record."""
        return f"{self.stem}{self.own_mark}"

    def beside(self, ending: str) -> Path:
        """What lies beside the output, as its pictures and camera do: folder/own_stem plus "-sheet.png"."""
        return self.folder / f"{self.own_stem}{ending}"

    def report(self, suffix: str) -> Path:
        """NAME.report.json of folder/stem.suffix, or NAME.glb.report.json (`utils.companions`)."""
        return companion(self.folder, self.stem, suffix, REPORT)

    def file(self, ending: str) -> Path:
        """folder/stem plus an ending such as ".glb" or "-sheet.png"."""
        return self.folder / f"{self.stem}{ending}"


def slugify(text: str, longest: int = 48) -> str:
    """A file name from a prompt: its letters and digits of any script in lower case, joined by hyphens."""
    words = re.findall(r"[^\W_]+", text.lower())
    return "-".join(words)[:longest].strip("-") or "result"


def distinct_slug(text: str) -> str:
    """A slug that another text does not have: with six digits of its hash where the slug leaves something out."""
    slug = slugify(text)
    if slug.split("-") == text.split():
        return slug
    return f"{slug}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"


def check_apart(out: Path, written: Iterable[Path], given: Iterable[Path], what: str = "picture") -> None:
    """Raises InputError when a file to be written is a given picture, under another spelling or by a link too; `what`
    says what else is given."""
    pictures = {_identity(path): path for path in given if path.exists()}
    for path in filter(os.path.exists, written):
        if _identity(path) in pictures:
            raise InputError(
                f"--out {out} would overwrite {pictures[_identity(path)]}, the {what} itself; choose another name"
            )


def check_new(written: Iterable[Path], textured: bool = True, name: str = "--out") -> None:
    """Raises InputError when a file to be written is already there.

    Args:
        textured: whether an OBJ or USD among them is a mesh, with pictures beside it (`taken_beside`).
        name: what the user can choose instead.
    """
    listed = list(written)
    there = [path for path in listed if os.path.isfile(path)] or (taken_beside(listed) if textured else [])
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise InputError(f"{there[0]}{more} is already there; choose another {name}, or --overwrite it")


def taken_beside(written: Iterable[Path]) -> list[Path]:
    """Files of others that a mesh in OBJ or USD would overwrite with its library or pictures, whose names follow from
    its own; those of an OBJ are what a stopped run left where the library is ours and the OBJ missing
    (`geometry.files`)."""
    found: list[Path] = []
    for path, beside in _beside(written):
        from ..geometry.files import OBJ_MATERIAL

        library = beside[0].suffix == ".mtl" and beside[0].read_bytes()
        if not library or not library.startswith(OBJ_MATERIAL.encode()) or is_there(path):
            found += beside
    return found


def made_beside(written: Iterable[Path]) -> list[Path]:
    """The libraries and pictures that lie beside meshes in OBJ and USD that were just written."""
    return [one for _, beside in _beside(written) for one in beside]


def _beside(written: Iterable[Path]) -> Iterator[tuple[Path, list[Path]]]:
    """(a mesh in OBJ or USD, what is there under the names of its library and pictures), where anything is."""
    for path in (one for one in written if one.suffix.lower() in (".obj", ".usd", ".usda", ".usdc")):
        from ..geometry.files import written_beside

        beside = [one for one in written_beside(path) if is_there(one)]
        if beside:
            yield path, beside


def check_places(written: Iterable[Path], needs_bytes: int = 0) -> None:
    """Raises NotWrittenError (exit code 1 or 2) when one of the folders of these files cannot take them, InputError
    when two of them are one file."""
    first, listed = dict[Path, Path](), set[str]()
    for path in written:
        if os.path.realpath(path) in listed:
            raise InputError(f"{path} would be written twice; give each of the outputs a name of its own")
        listed.add(os.path.realpath(path))
        if os.path.isdir(path):
            check_writable(path)
        first.setdefault(path.parent, path)
    for path in first.values():
        check_writable(path, needs_bytes)


def need_format(path: Path) -> None:
    """Raises MissingExtraError for a format of meshes or points whose package is not there, before any work."""
    if path.suffix.lower().startswith(".usd"):
        from ..geometry.formats.usd import need_usd

        need_usd()


def size_text(path: Path) -> str:
    """The size of a file for people."""
    return in_words(path.stat().st_size)


def _identity(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_dev, facts.st_ino
