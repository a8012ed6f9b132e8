"""A disk that is full at any of its changes: one line, no failed record, the same value later."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from experiment.shared_cache import Cache
from flexround.reconstruction.checkpoints import FileCheckpoints
from flexround.reconstruction.report import BlockReport
from flexround.reconstruction.snapshots import Snapshot
from flexround.utils.atomic_files import written_folder
from results.records.claim import Claim
from results.records.store import Store
from tests.conftest import TINY
from tests.full_disk import FullDisk, leftovers
from tests.results.records.test_store import record

OLD, NEW = record("a", 90.0), replace(record("a", 95.0), started="2")
OUTCOMES = {"top1": [True, False]}


def every_point(root, act):
    """Call act on a disk that is full from the n-th change on, and at it, for every n."""
    for once in (False, True):
        passes = 0
        while True:
            disk = FullDisk(root, passes, once)
            with disk.mounted():
                act(passes, once)
            if disk.seen <= passes:
                break
            passes += 1
        assert passes, "nothing was changed at all"


def test_a_record_is_the_old_or_the_new_one_with_its_own_outcomes(tmp_path):
    store = Store(tmp_path / "results")
    store.write(OLD, {"top1": [False, True]})

    def act(*_):
        try:
            store.write(NEW, OUTCOMES)
        except OSError:
            now = Store(store.root).peek("a")
            assert now in (OLD, NEW)

    every_point(store.root, act)
    assert leftovers(tmp_path) == []
    store.write(NEW, OUTCOMES)
    assert store.outcomes(store.peek("a"))["top1"].tolist() == [True, False]


def test_without_room_the_old_record_keeps_its_outcomes(tmp_path):
    # The disk is full while the bytes are written: both files' come before either is renamed.
    store = Store(tmp_path / "results")
    store.write(OLD, {"top1": [False, True]})
    changes = FullDisk(store.root, 100)
    with changes.mounted():
        store.write(NEW, OUTCOMES)
    store.write(OLD, {"top1": [False, True]})
    for passes in range(changes.seen - 4):  # the last four rename, and sync what is renamed
        with FullDisk(store.root, passes).mounted(), pytest.raises(OSError, match="No space left"):
            store.write(NEW, OUTCOMES)
        assert store.outcomes(store.peek("a"))["top1"].tolist() == [False, True]


def test_a_claim_is_free_or_held_whole(tmp_path):
    def act(passes, once):
        claim = Claim(tmp_path / f"{passes}-{once}" / "it.json")
        try:
            assert claim.take() is None
        except OSError:
            assert claim.owner() is None
        claim.release()
        assert not claim.path.exists()

    every_point(tmp_path, act)
    assert leftovers(tmp_path) == []


def test_a_cache_gives_its_value_and_is_told_once(tmp_path, caplog):
    def act(passes, once):
        caplog.clear()
        cache = Cache(tmp_path / f"{passes}-{once}", 1)
        for key in "abc":
            assert cache.get(key, key.encode) == key.encode()
        assert sum("No space left" in r.getMessage() for r in caplog.records) <= 1

    every_point(tmp_path, act)
    assert leftovers(tmp_path) == []
    assert not list(tmp_path.rglob("*.claim"))


def test_checkpoints_are_whole_and_told_once(tmp_path, caplog):
    report = BlockReport("0", {}, 1.0, 0.5, 0.1, 0.1)

    def act(passes, once):
        caplog.clear()
        folder = tmp_path / f"{passes}-{once}"
        kept = FileCheckpoints(folder, {"it": 1})
        for unit in "abc":
            kept.save(unit, Snapshot({"x": torch.ones(2)}, report))
        assert caplog.text.count("no checkpoints from here on") <= 1

    every_point(tmp_path, act)
    assert leftovers(tmp_path) == []


def test_a_folder_is_there_whole_or_as_it_was(tmp_path):
    place = tmp_path / "artifact"
    for content in ("old", "new"):

        def act(_, once, content=content):
            try:
                with written_folder(place) as part:
                    (part / "one").write_text(content)
                    (part / "two").write_text(content)
            except OSError:
                pass
            if place.exists():
                assert (place / "one").read_text() == (place / "two").read_text()
            if content == "new" and once:  # else not even the old one's name could be given back
                assert place.exists(), "what was there is there until the new one is"

        every_point(tmp_path, act)
        with written_folder(place) as part:
            (part / "one").write_text(content)
            (part / "two").write_text(content)
    assert leftovers(tmp_path) == []


RUNS = {
    "vision": (*TINY, "quant=flexround", "recon.iters=2", "num_samples=32", "save=true"),
    "language": ("model=tiny_llama", "quant=rtn", "bits=8", "num_samples=4", "task.seq_len=32"),
}


@pytest.mark.slow
@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("kind", RUNS)
def test_a_run_on_a_full_disk_fails_no_record(cli, results_dir, tmp_path, kind, once):
    run = RUNS[kind]
    assert cli(*run).status == 0
    (path,) = results_dir.glob("*.json")
    expected = json.loads(path.read_text())["value"]
    passes, ended = 0, 0
    while True:
        place = tmp_path / f"{passes}"
        disk = FullDisk(place, passes, once)
        own = (f"results_dir={place}/results", f"hydra.run.dir={place}/run")
        with disk.mounted():
            outcome = cli(*run, *own)
        if disk.seen <= passes:
            break
        assert "Traceback" not in outcome.err, outcome.err
        assert outcome.status in (0, 1)
        errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == outcome.status, outcome.err
        records = [json.loads(p.read_text()) for p in place.glob("results/*.json")]
        assert all(r["status"] == "ok" for r in records), records
        assert leftovers(place) == [], outcome.err
        again = cli(*run, *own)
        assert again.status == 0, again.err
        (path,) = place.glob("results/*.json")
        assert json.loads(path.read_text())["value"] == expected
        passes, ended = passes + 1, ended + outcome.status
    assert ended >= 5, "no place that a run can't do without was full"
