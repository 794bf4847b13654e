from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from unproject.utils.errors import InputError, UnprojectError
from unproject.utils.files import atomic_path, read_json, write_json, write_text


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_written_file_is_whole(tmp_path):
    path = write_json(tmp_path / "new" / "a.json", {"a": [1, 2]})
    assert read_json(path) == {"a": [1, 2]}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch, call):
    path = write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(UnprojectError, match=r"a\.txt failed: No space left on device; nothing was left behind"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("reason", [KeyboardInterrupt, RuntimeError])
def test_whatever_interrupts_a_write_leaves_nothing(tmp_path, reason):
    with pytest.raises(reason), atomic_path(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"half")
        raise reason
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*choose another --out"):
        write_text(tmp_path / "file" / "a.txt", "x")


@pytest.mark.parametrize(("content", "message"), [(None, "does not exist"), ("{", "not valid JSON")])
def test_json_that_cannot_be_read_is_named(tmp_path, content, message):
    path = Path(tmp_path / "a.json")
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_json(path)
