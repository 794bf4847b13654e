from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from unproject.utils.errors import InputError, NotWrittenError, UnprojectError
from unproject.utils.files import (
    atomic_path,
    beside_weights,
    read_json,
    student_folder,
    views_come_with,
    write_json,
    write_text,
)


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


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path):
    """Also when the library that wrote it made it private, and whatever the mask is when it is written."""
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "a.bin") as temporary:
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
        (tmp_path / "b.bin").touch()
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.bin", "b.bin")] == [0o640, 0o640]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "b.bin"]


def test_importing_never_sets_the_mask_of_the_process():
    code = (
        f"import os, sys; sys.path[:0] = {sys.path!r}; asked = []; umask = os.umask; "
        "os.umask = lambda mask: (asked.append(mask), umask(mask))[1]; import unproject.utils.files; print(asked)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_full_disk_is_told_as_such_by_safetensors_too(tmp_path: Path) -> None:
    class SafetensorError(Exception):
        """As the library's."""

    told = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(NotWrittenError, match="No space left on device"), atomic_path(tmp_path / "a.safetensors"):
        raise SafetensorError(told)
    with pytest.raises(SafetensorError, match="other"), atomic_path(tmp_path / "a.safetensors"):
        raise SafetensorError("other")
    assert not list(tmp_path.iterdir())


def test_weights_lie_beside_their_prior_and_names_mean_the_embedded_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path / "shipped"))
    monkeypatch.chdir(tmp_path)
    shipped = tmp_path / "shipped/toybox-orbit"
    assert beside_weights("toybox", "orbit") == beside_weights("toybox-mv", "orbit") == shipped
    assert beside_weights("a/mine-mv", "orbit") == Path("a/mine-orbit")
    (tmp_path / "toybox-orbit").mkdir()
    assert beside_weights("toybox", "orbit") == Path("toybox-orbit")  # of a folder of one's own
    shipped.mkdir(parents=True)
    assert beside_weights("toybox", "orbit") == shipped
    assert beside_weights("./toybox", "orbit") == Path("toybox-orbit")


def test_weights_for_several_views_come_with_priors_that_draw_them(tmp_path, monkeypatch):
    """Beside a folder of single images they belong to its sibling, which only a name brings along."""
    monkeypatch.setenv("UNPROJECT_WEIGHTS", str(tmp_path / "shipped"))
    monkeypatch.chdir(tmp_path)
    for folder in ("shipped/toybox", "shipped/toybox-mv", "shipped/toybox-direct25", "mine", "mine-direct25"):
        (tmp_path / folder).mkdir(parents=True)
    assert not views_come_with("toybox", "direct25")
    for folder in ("shipped/toybox-direct25", "mine-direct25"):
        (tmp_path / folder / "direct25.json").write_text("{}")
    assert not views_come_with("toybox", "direct25") and not views_come_with("mine", "direct25")
    for folder in ("shipped/toybox-mv", "mine"):
        (tmp_path / folder / "mv.json").write_text("{}")
    for prior in ("toybox", "toybox-mv", "shipped/toybox-mv", "mine", "./mine"):
        assert views_come_with(prior, "direct25") and not views_come_with(prior, "orbit"), prior
    assert not views_come_with("shipped/toybox", "direct25")


@pytest.mark.parametrize(
    "told",
    ["{}", "[1]", '"lora"', '{"kind": "lora"}', '{"kind": 4, "settings": {}}', '{"kind": "lora", "settings": 1}'],
)
def test_a_student_says_of_what_kind_it_is(tmp_path: Path, told: str) -> None:
    (tmp_path / "distill.json").write_text(told)
    with pytest.raises(InputError, match=r"distill\.json does not say of what kind its student is; export it again"):
        student_folder(tmp_path)
    (tmp_path / "distill.json").write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        student_folder(tmp_path)
    (tmp_path / "distill.json").write_text('{"kind": "lora", "settings": {}}')
    assert student_folder(tmp_path) == tmp_path
