"""Places are tried before the work, finished work goes elsewhere when they refuse, and two runs do not share a name."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unproject.utils import rescue
from unproject.utils.errors import InputError, NotWritableError, NotWrittenError
from unproject.utils.files import atomic_path, check_writable, read_json, write_json, write_text
from unproject.utils.locks import alone_in
from unproject.utils.rescue import rescued
from unproject.utils.runs import RunRecord


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def refuse(monkeypatch: pytest.MonkeyPatch, place: Path, number: int = errno.ENOSPC) -> None:
    """Nothing can be renamed into a folder."""
    replace = os.replace

    def refusing(source: str, target: str) -> None:
        if Path(target).parent == place:
            raise OSError(number, os.strerror(number), str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refusing)


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "folder" / "a.glb", 1000)
    assert files(tmp_path) == []


def test_places_that_cannot_be_written_are_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a.glb", tmp_path / ("n." + "g" * 300), tmp_path):
        with pytest.raises(NotWritableError, match=r"cannot write .*choose another --out"):
            check_writable(path)
    with pytest.raises(NotWrittenError, match=r"needs about 1000000.0 GB and .* are free"):
        check_writable(tmp_path / "a.glb", 10**15)
    monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, os.strerror(errno.EROFS))))
    with pytest.raises(NotWritableError, match="Read-only file system"):
        check_writable(tmp_path / "a.glb")


def test_a_deleted_working_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(NotWritableError, match="the working folder was deleted"):
        check_writable(Path("a.png"))
    check_writable(tmp_path / "a.png")


def test_errors_of_other_files_are_not_those_of_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="texture"), atomic_path(tmp_path / "a.glb"):
        (tmp_path / "elsewhere" / "texture.png").read_bytes()
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "elsewhere" / "secret.png"))
    with pytest.raises(PermissionError, match="secret"), atomic_path(tmp_path / "a.glb"):
        raise error
    assert files(tmp_path) == []


def test_what_cannot_be_written_goes_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, other = tmp_path / "full", tmp_path / "other"
    for folder in (place, other):
        folder.mkdir()
    refuse(monkeypatch, place)
    monkeypatch.chdir(other)
    with pytest.warns(
        UserWarning, match=r"writing .*a\.txt failed: No space left on device; the result is in .*a\.txt"
    ):
        made, elsewhere = rescued(lambda path: write_text(path, "all of it"), place / "a.txt")
    assert elsewhere and made.read_text() == "all of it" and made.is_relative_to(other)
    assert files(place) == []
    assert rescued(lambda path: write_text(path, "x"), other / "b.txt") == (other / "b.txt", False)


def test_a_result_that_no_place_takes_is_the_first_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rescue, "_places", lambda: iter([]))
    refuse(monkeypatch, tmp_path)
    with pytest.raises(NotWrittenError, match="No space left"):
        rescued(lambda path: write_text(path, "x"), tmp_path / "a.txt")


def test_a_record_knows_of_what_went_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    refuse(monkeypatch, tmp_path / "full")
    monkeypatch.chdir(tmp_path)
    record = RunRecord("draw")
    with pytest.warns(UserWarning, match="the result is in"):
        made = record.keep(lambda path: write_text(path, "x"), tmp_path / "full" / "a.txt")
    assert record.rescued and record.outputs == [str(made)] and Path(made).is_file()


def test_two_runs_do_not_share_a_folder_of_work(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; from unproject.utils.locks import Path, alone_in\n"
        f"with alone_in(Path({str(tmp_path)!r})): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"in\n"
        with pytest.raises(InputError, match="another run is at work in"), alone_in(tmp_path):
            pass
        other.kill()
    with alone_in(tmp_path):  # the lock goes with its process
        pass


def test_an_empty_folder_of_failed_work_goes_again(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "a" / "new"
    old.mkdir()
    for folder, left in ((new, False), (new, True), (old, False)):

        def work(folder: Path = folder, left: bool = left) -> None:
            if left:
                (folder / "ckpt").write_text("")
            raise ValueError("over")

        with pytest.raises(ValueError, match="over"), alone_in(folder):
            work()
        assert folder.is_dir() == (left or folder == old)
    with alone_in(tmp_path / "done"):
        pass
    assert (tmp_path / "done").is_dir()  # what went well stays


def test_a_record_is_written_as_it_goes_and_two_keep_apart(tmp_path: Path) -> None:
    first = RunRecord("depth")
    assert first.begin(tmp_path / "depth.run.json").name == "depth.run.json"
    first.output("a.png")
    first.update()
    record = read_json(tmp_path / "depth.run.json")
    assert (record["status"], record["outputs"], record["process"]["pid"]) == ("running", ["a.png"], os.getpid())
    parent = {**record, "process": {**record["process"], "pid": os.getppid()}}  # a process that runs and is not ours
    write_json(tmp_path / "depth.run.json", parent)
    assert RunRecord("depth").begin(tmp_path / "depth.run.json").name == "depth-2.run.json"
    for change in ({"status": "done"}, {"process": {"pid": 2**22 + 1, "host": record["process"]["host"]}}):
        write_json(tmp_path / "depth.run.json", {**parent, **change})  # done, or killed
        assert RunRecord("depth").begin(tmp_path / "depth.run.json").name == "depth.run.json"


def test_names_that_are_no_text_are_kept_in_records(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    assert json.loads(write_json(tmp_path / "a.json", {"file": name}).read_text())["file"] == name
