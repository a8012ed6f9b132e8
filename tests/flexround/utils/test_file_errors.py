"""Errors of the file system: told, tried again, never taken for damage."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from experiment.content import Contents
from flexround.utils import file_errors
from flexround.utils.atomic_files import check_writable, sync_folder, write_whole, written_folder
from flexround.utils.file_errors import (
    StorageError,
    files_below,
    number_of,
    read_bytes,
    storage_errors,
    told,
)
from tasks.language import webnlg_data
from tasks.language.corpora import TextFiles


def failing(monkeypatch, number, times):
    """Have reading fail so many times."""
    real, left = Path.read_bytes, [times]

    def read(path):
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr(file_errors, "WAITS", (0.0, 0.0, 0.0))


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EMFILE, errno.ETIMEDOUT])
def test_an_error_that_may_pass_is_told_and_tried_again(tmp_path, monkeypatch, caplog, number):
    (tmp_path / "it").write_bytes(b"whole")
    failing(monkeypatch, number, 3)
    assert read_bytes(tmp_path / "it") == b"whole"
    assert caplog.text.count("tried again") == 3
    failing(monkeypatch, number, 4)
    with pytest.raises(OSError, match=os.strerror(number)):
        read_bytes(tmp_path / "it")


def test_what_does_not_pass_is_not_tried_again(tmp_path, monkeypatch, caplog):
    failing(monkeypatch, errno.EACCES, 1)
    with pytest.raises(PermissionError):
        read_bytes(tmp_path / "it")
    assert caplog.text == ""


def test_the_file_systems_errors_are_told_from_others():
    full = OSError(errno.ENOSPC, "No space left on device")
    wrapped = ValueError("spill_dir=x: No space left on device")
    wrapped.__cause__ = full
    assert number_of(full) == number_of(wrapped) == errno.ENOSPC
    assert number_of(SafetensorError("I/O error: No space left (os error 28)")) == errno.ENOSPC
    for other in (ValueError("bits=9"), OSError("x is no model"), FileNotFoundError(2, "no", "x")):
        assert number_of(other) is None
    assert number_of(RuntimeError("No space left (os error 28)")) is None


def test_an_error_is_one_line_with_the_way_out():
    line = told(OSError(errno.ENOSPC, "No space left on device", "/a/b"))
    assert line.startswith("/a/b: No space left on device; ")
    assert "make room" in line
    assert "rights" in told(PermissionError(errno.EACCES, "Permission denied", "/a"))
    with (
        pytest.raises(ValueError, match=r"/a: Read-only file system.*say where"),
        storage_errors("these say where"),
    ):
        raise OSError(errno.EROFS, "Read-only file system", "/a")
    with pytest.raises(FileNotFoundError), storage_errors():
        raise FileNotFoundError(errno.ENOENT, "no such file", "x")


def test_writing_names_the_file_that_finds_no_room(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for act in (lambda: write_whole(tmp_path / "it", b"x"), lambda: check_writable(tmp_path)):
        with pytest.raises(OSError, match=str(tmp_path)):
            act()
    assert list(tmp_path.iterdir()) == []


def test_a_librarys_error_of_writing_is_the_systems(tmp_path):
    with pytest.raises(OSError, match="place") as raised, written_folder(tmp_path / "place"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    assert raised.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_synced_after_a_rename_where_it_can_be(tmp_path, monkeypatch):
    synced, real = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")), real(file))
    )
    write_whole(tmp_path / "it", b"x")
    assert synced[-1] == str(tmp_path)
    with written_folder(tmp_path / "folder") as part:
        (part / "file").write_bytes(b"x")
    assert synced[-1] == str(tmp_path)

    def unsupported(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unsupported)
    sync_folder(tmp_path)


def closed(monkeypatch, folder):
    """Have folder be one that can't be read, also for root."""
    scan = os.scandir

    def refuse(path):
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_files_below_a_folder_are_all_of_them(tmp_path, monkeypatch):
    for name in ("b/c/3", "a/1", "2"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path)]
    assert found == ["2", "a/1", "b/c/3"]
    closed(monkeypatch, tmp_path / "b")
    with pytest.raises(StorageError, match=r"b can't be read .*; give rights to read it") as told:
        files_below(tmp_path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("reads", [
    lambda folder: TextFiles(str(folder)).rows("train"),
    lambda folder: Contents(folder.parent / "digests").data(folder, {}, ""),
    lambda folder: webnlg_data.read(folder, "train"),
])  # fmt: skip
def test_no_part_of_a_users_data_is_passed_over(tmp_path, monkeypatch, reads):
    part = tmp_path / "data" / "train" / "part"
    part.mkdir(parents=True)
    (tmp_path / "data" / "train" / "whole.txt").write_text("line\n" * 100)
    closed(monkeypatch, part)
    with pytest.raises(StorageError, match="part can't be read"):
        reads(tmp_path / "data")
