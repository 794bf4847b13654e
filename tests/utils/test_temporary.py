"""What a killed process left goes when the same file is written again; what a living one holds stays."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from unproject.core.training.export import folder_path
from unproject.utils.files import atomic_path, check_writable, write_json, write_text
from unproject.utils.temporary import held_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_writer_leaves_nothing_for_long(tmp_path: Path) -> None:
    script = (
        "import time\nfrom unproject.utils.files import atomic_path\n"
        f"with atomic_path({str(tmp_path / 'a.txt')!r}) as path:\n"
        "    path.write_text('half')\n    print('begun', flush=True)\n    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert writer.stdout is not None and writer.stdout.readline() == b"begun\n"
    with atomic_path(tmp_path / "a.txt") as path:  # beside the other, which lives
        path.write_text("whole")
    assert len(names(tmp_path)) == 2
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    again = "from unproject.utils.files import write_text; write_text({!r}, 'again')".format(str(tmp_path / "a.txt"))
    subprocess.run([sys.executable, "-c", again], env=environment, check=True)
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "again"


def test_only_leftovers_of_the_same_file_go(tmp_path: Path) -> None:
    mine, other, foreign = ".a-0123abcd.tmp.json", ".b-0123abcd.tmp.json", ".a-notes.tmp.json"
    for name in (mine, other, foreign, ".a-0123abcd.tmp.png"):
        (tmp_path / name).write_text("half")
    write_json(tmp_path / "a.json", 1)
    assert names(tmp_path) == sorted([".a-0123abcd.tmp.png", foreign, other, "a.json"])
    check_writable(tmp_path / "b.json")
    assert other not in names(tmp_path)


def test_what_is_held_stays(tmp_path: Path) -> None:
    temporary, handle = held_file(tmp_path / "a.txt")
    write_text(tmp_path / "a.txt", "whole")
    assert temporary.exists()
    os.close(handle)
    write_text(tmp_path / "a.txt", "whole")  # it was there when this process first looked
    assert names(tmp_path) == ["a.txt"]


def test_a_file_that_is_swept_before_it_is_locked_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, swept = fcntl.flock, []

    def late(handle: int, how: int) -> None:
        if not swept:
            swept.append(next(tmp_path.iterdir()))
            swept[0].unlink()
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    temporary, handle = held_file(tmp_path / "a.txt")
    assert swept and temporary != swept[0] and names(tmp_path) == [temporary.name]
    os.close(handle)


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "a.txt") as path:
            path.write_text("x")
            path.chmod(0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_a_folder_comes_back_after_a_kill_between_its_two_renamings(tmp_path: Path) -> None:
    (tmp_path / ".export.previous").mkdir()
    (tmp_path / ".export.previous" / "old.txt").write_text("old")
    (tmp_path / ".export-0123abcd.tmp").mkdir()
    with pytest.raises(ZeroDivisionError), folder_path(tmp_path / "export") as temporary:
        (temporary / "new.txt").write_text("new")
        raise ZeroDivisionError
    assert names(tmp_path) == ["export"] and names(tmp_path / "export") == ["old.txt"]
    with folder_path(tmp_path / "export") as temporary:
        (temporary / "new.txt").write_text("new")
    assert names(tmp_path) == ["export"] and names(tmp_path / "export") == ["new.txt"]
