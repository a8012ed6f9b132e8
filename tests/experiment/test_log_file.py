"""The log file of a run: told once when there is no room, and the run goes on."""

from __future__ import annotations

import logging

from experiment.log_file import LogFile
from tests.full_disk import FullDisk


def logged(path, lines):
    handler = LogFile(str(path))
    log = logging.Logger("it")
    log.addHandler(handler)
    for number in range(lines):
        log.warning("line %d", number)
    handler.close()


def test_lines_are_written(tmp_path):
    logged(tmp_path / "run.log", 3)
    assert (tmp_path / "run.log").read_text().splitlines() == ["line 0", "line 1", "line 2"]


def test_a_file_that_can_not_be_opened_is_told_once(tmp_path, capsys):
    with FullDisk(tmp_path, 0).mounted():
        logged(tmp_path / "run.log", 3)
    assert capsys.readouterr().err == (
        f"no more lines in {tmp_path}/run.log: No space left on device\n"
    )


def test_a_full_disk_between_two_lines_is_told_once(tmp_path, capsys):
    logged("/dev/full", 3)  # opened as any file; writing to it finds no space
    assert capsys.readouterr().err == "no more lines in /dev/full: No space left on device\n"
