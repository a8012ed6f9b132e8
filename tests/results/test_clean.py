"""What killed runs leave is listed and removed; what lives or can be gone on from is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from flexround.utils.atomic_files import written_folder
from flexround.utils.processes import mark
from results.__main__ import main
from results.records import leftovers
from results.records.claim import Claim
from results.records.store import Store
from tests.results.records.test_store import record

RUN = "0" * 16
STARTED = record().started


@pytest.fixture(scope="module")
def dead():
    """The mark of a process that has died."""
    command = "from flexround.utils.processes import mark; print(mark())"
    return subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def folders(tmp_path):
    """A folder of records with a finished run, a cache, and a folder of fine-tuned networks."""
    results, cache, networks = (tmp_path / name for name in ("results", "cache", "networks"))
    (networks / "task").mkdir(parents=True)
    for name in ("running", "outcomes", "artifacts", "unfinished"):
        (results / name).mkdir(parents=True)
    for name in ("shared", "checkpoints", "digests", "spill"):
        (cache / name).mkdir(parents=True)
    Store(results).write(record(RUN))
    return results, cache, networks


@pytest.fixture
def clean(folders, capsys):
    """Return a function that cleans and returns (status, stdout, stderr)."""

    def call(*args):
        names = ("--results-dir", "--cache-dir", "--checkpoints-dir")
        options = [str(word) for pair in zip(names, folders, strict=True) for word in pair]
        status = main(["clean", *options, *args])
        return status, *capsys.readouterr()

    return call


def files(folders):
    return sorted(p for folder in folders for p in folder.rglob("*") if not p.is_dir())


def parts(folders, token):
    """Write all that a process may be cut off in and return the paths."""
    results, cache, networks = folders
    made = [
        results / f".{RUN}.json.{token}.part",
        results / f".probe-{token}",
        results / "running" / f".{RUN}.json.{token}.part",
        results / "running" / f".{RUN}.json.{token}.dead",
        results / "running" / f".now.{token}",
        results / "outcomes" / f".{RUN}.npz.{token}.part",
        cache / "shared" / f".key.entry.{token}.part",
        cache / "checkpoints" / f".digits-net.safetensors.{token}.part",
        cache / "digests" / f".file.json.{token}.part",
        networks / f".probe.{token}.part",
        networks / "task" / f".probe.{token}.part",
    ]
    for path in made:
        path.write_bytes(b"1" * 1000)
    folder = results / "artifacts" / f".{RUN}.{token}.part"
    folder.mkdir()
    (folder / "flexround.safetensors").write_bytes(b"1" * 1000)
    unit = results / "unfinished" / "another"
    unit.mkdir()
    (unit / f".0000.safetensors.{token}.part").write_bytes(b"1" * 1000)
    return [*made, folder, unit / f".0000.safetensors.{token}.part"]


def test_parts_of_the_dead_are_listed_with_sizes_and_then_removed(folders, clean, dead):
    kept = files(folders)
    made = parts(folders, dead)
    status, out, _ = clean()
    assert status == 0
    assert out.startswith("left: 13, 13.0 kB; --yes removes it\n")
    assert all(f"1.0 kB  {path}" in out for path in made)
    assert all(path.exists() for path in made), "listing removes nothing"
    status, out, _ = clean("--yes")
    assert status == 0
    assert out.startswith("removed: 13, 13.0 kB\n")
    assert files(folders) == kept
    assert clean()[1].startswith("nothing is left")


def test_parts_of_the_living_stay(folders, clean):
    parts(folders, mark())
    kept = files(folders)
    assert clean("--yes", "--damaged")[1].startswith("nothing is left")
    assert files(folders) == kept


@pytest.mark.parametrize("token", ["0" * 32, "00000000-7-7-000000000000"])
def test_parts_of_nobody_knows_whom_stay_until_they_have_been_quiet(folders, clean, token):
    kept = files(folders)
    made = parts(folders, token)
    assert clean("--yes")[1].startswith("nothing is left")
    for path in made:
        for one in (path, *path.rglob("*")):
            os.utime(one, (1, 1))
    assert clean("--yes")[1].startswith("removed: 13")
    assert files(folders) == kept


def test_foreign_names_stay(folders, clean):
    """A folder of records may lie beside anything."""
    results, cache, _ = folders
    for path in (results / "notes.part", results / ".bashrc.old", cache / ".x.old", cache / "tmp7"):
        path.write_text("mine")
        os.utime(path, (1, 1))
    kept = files(folders)
    assert clean("--yes", "--damaged")[1].startswith("nothing is left")
    assert files(folders) == kept


@pytest.mark.parametrize("place", ["results/running/x.json", "cache/shared/x.claim"])
def test_claims_of_the_dead_go_and_those_of_the_living_stay(folders, clean, tmp_path, place):
    path = tmp_path / place
    claim = Claim(path)
    assert claim.take() is None
    assert clean("--yes")[1].startswith("nothing is left")
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"started": "1"}))
    assert "claim of process" in clean("--yes")[1]
    assert not path.exists()
    claim.release()


def checkpoints(store, replaces):
    folder = store.unfinished(RUN)
    folder.mkdir()
    (folder / "key.json").write_text(json.dumps({"replaces": replaces}))
    (folder / "0000-0.safetensors").write_bytes(b"1" * 1000)
    return folder


def test_checkpoints_of_a_finished_run_go(folders, clean):
    folder = checkpoints(Store(folders[0]), None)
    assert "checkpoints of a finished run" in clean("--yes")[1]
    assert not folder.exists()


def test_checkpoints_that_an_attempt_goes_on_from_stay(folders, clean):
    """Of a rerun that was cut off, of a run at work, of one that has no record, of one failed."""
    store = Store(folders[0])
    folder = checkpoints(store, STARTED)
    assert clean("--yes")[1].startswith("nothing is left")
    (folder / "key.json").write_text(json.dumps({"replaces": None}))
    claim = store.claim(RUN)
    assert claim.take() is None
    assert clean("--yes")[1].startswith("nothing is left")
    claim.release()
    store.write(record(RUN, None, "failed", error="it broke"))
    assert clean("--yes")[1].startswith("nothing is left")
    store.path(RUN).unlink()
    assert clean("--yes")[1].startswith("nothing is left")
    assert len(list(folder.iterdir())) == 2


def test_what_was_set_aside_as_damaged_goes_when_asked_for(folders, clean):
    path = folders[0] / f"{RUN}.damaged"
    path.write_text("{")
    assert f"set aside, removed with --damaged: 1, 1 B\n        1 B  {path}" in clean("--yes")[1]
    assert path.exists()
    clean("--yes", "--damaged")
    assert not path.exists()


def test_an_artifact_cut_off_between_two_renames_is_put_back(folders, clean, monkeypatch):
    monkeypatch.setattr(leftovers, "QUIET", -1.0)
    artifacts = folders[0] / "artifacts"
    old = artifacts / f".{RUN}.old"
    old.mkdir()
    (old / "flexround.safetensors").write_text("whole")
    clean("--yes")
    assert (artifacts / RUN / "flexround.safetensors").read_text() == "whole"
    old.mkdir()
    clean("--yes")
    assert not old.exists()
    assert (artifacts / RUN / "flexround.safetensors").read_text() == "whole"


def test_a_folder_that_is_none_is_one_line(clean, tmp_path):
    status, out, err = clean("--cache-dir", str(tmp_path / "nowhere"))
    assert (status, out) == (1, "")
    assert err.startswith(f"error: --cache-dir {tmp_path}/nowhere is no folder")


def test_a_run_sweeps_what_its_own_earlier_attempts_have_left(folders, dead):
    made = parts(folders, dead)
    leftovers.sweep(Store(folders[0]), RUN)
    own = [
        p for p in made if RUN in p.name and p.parent.name in ("results", "outcomes", "artifacts")
    ]
    assert len(own) == 3
    assert not any(path.exists() for path in own)


def test_a_folder_that_is_written_again_sweeps_what_the_dead_wrote_of_it(tmp_path, dead):
    for token in (dead, mark()):
        (tmp_path / f".net.{token}.part").mkdir()
    with written_folder(tmp_path / "net"):
        pass
    assert len(list(tmp_path.glob(".net.*.part"))) == 1
