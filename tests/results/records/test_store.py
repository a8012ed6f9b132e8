"""Records and their folder."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import MappingProxyType

import pytest

from experiment.recorder import recording
from results.records.record import Record
from results.records.store import Store


def record(run_id="a", value=97.0, status="ok", settings=None, **changes):
    """Return a record; a failed one has no value."""
    ok = status == "ok"
    facts = dict(
        run_id=run_id, status=status, model="resnet18", task="digits", task_version=1,
        quant="flexround", bits=4, seed=0, metric="top1", higher_is_better=True,
        value=value if ok else None, fp_value=98.0, settings=settings or {"bits": 4, "seed": 0},
        metrics={"top1": value} if ok else {}, error=None if ok else "it broke", started="1",
    )  # fmt: skip
    return Record(**(facts | changes))


def test_a_record_survives_the_store(tmp_path):
    store = Store(tmp_path)
    first = record(blocks=[{"name": "layer1.0", "error_before": 2.0, "error_after": 1.0}])
    path = store.write(first)
    assert path.name == "a.json"
    assert store.get_or_quarantine("a") == first
    assert store.load() == [first]
    assert store.get_or_quarantine("b") is None


@pytest.mark.parametrize(
    "changes",
    [{"value": float("nan"), "metrics": {"top1": float("nan")}}, {"metrics": {}},
     {"metrics": {"top1": 1.0}}, {"metric": None}, {"status": "done"},
     {"status": "failed", "error": None}],
)  # fmt: skip
def test_a_record_that_can_not_be_true_is_refused(changes):
    with pytest.raises(ValueError, match="record a"):
        record(**changes)


def test_damaged_and_foreign_files_are_named_and_passed_over(tmp_path, caplog):
    store = Store(tmp_path)
    store.write(record("good"))
    (tmp_path / "torn.json").write_text('{"run_id": "torn"')
    old = record("old").to_json() | {"schema": 0}
    (tmp_path / "old.json").write_text(json.dumps(old))
    unknown = record("unknown").to_json() | {"colour": "red"}
    (tmp_path / "unknown.json").write_text(json.dumps(unknown))
    assert [r.run_id for r in store.load()] == ["good"]
    assert store.get_or_quarantine("torn") is None
    for name in ("torn.json", "old.json", "unknown.json"):
        assert name in caplog.text


def test_a_write_that_dies_leaves_the_old_record(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.write(record(value=90.0))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write(record(value=95.0))
    assert store.get_or_quarantine("a").value == 90.0
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_can_not_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"results_dir=.*can't be written.*results_dir=PATH"):
        Store(tmp_path / "file" / "results").check_writable()


class FakeTask:
    """What a record needs of a task."""

    metric, higher_is_better, version = "top1", True, 1
    facts = MappingProxyType({})


BASE = dict(run_id="r", model="m", task="t", quant="q", bits=4, seed=0, settings={"bits": 4})


def test_a_run_that_ends_well_is_ok(tmp_path):
    store = Store(tmp_path)
    with recording(store, BASE) as draft:
        draft.watch(FakeTask(), None, None)
        draft.fp_metrics, draft.metrics = {"top1": 98.0}, {"top1": 97.0}
    assert store.get_or_quarantine("r") == draft.record
    assert (draft.record.status, draft.record.value, draft.record.fp_value) == ("ok", 97.0, 98.0)


@pytest.mark.parametrize("error", [ValueError("bad\nidea"), RuntimeError("bad\nidea")])
def test_a_run_that_raises_is_failed_and_still_raises(tmp_path, error):
    store = Store(tmp_path)
    with pytest.raises(type(error)), recording(store, BASE):
        raise error
    found = store.get_or_quarantine("r")
    assert (found.status, found.value) == ("failed", None)
    assert found.error.endswith("bad idea")


@pytest.mark.parametrize("metrics", [{}, {"top1": float("nan")}, {"top5": 1.0}])
def test_a_run_without_a_finite_metric_is_failed(tmp_path, metrics):
    store = Store(tmp_path)

    def run():
        with recording(store, BASE) as draft:
            draft.watch(FakeTask(), None, None)
            draft.metrics = metrics

    with pytest.raises(ValueError, match="top1="):
        run()
    assert store.get_or_quarantine("r").status == "failed"


def test_a_failure_does_not_replace_what_had_succeeded(tmp_path, caplog):
    store = Store(tmp_path)
    store.write(record("r"))
    with pytest.raises(ValueError, match="bad"), recording(store, BASE):
        raise ValueError("bad")
    assert store.get_or_quarantine("r").status == "ok"
    assert "is kept" in caplog.text


def test_a_mirror_that_asks_for_a_login_is_no_failure_of_the_run(tmp_path):
    """After it the same command computes the run, which nothing has tried yet."""

    class NoLogin:
        """Refuses to start."""

        def start(self, run_id, name, settings):
            """Raise."""
            raise ValueError("log in first")

    store = Store(tmp_path)
    with pytest.raises(ValueError, match="log in first"), recording(store, BASE) as draft:
        draft.watch(FakeTask(), None, NoLogin())
    assert store.get_or_quarantine("r") is None


def test_a_field_of_another_type_is_refused(tmp_path):
    with pytest.raises(ValueError, match="bits"):
        Record.from_json(record().to_json() | {"bits": "four"})


def test_a_record_from_before_a_field_with_a_default_is_read(tmp_path):
    old = record(overrides=["bits=4"]).to_json()
    del old["overrides"]
    (tmp_path / "a.json").write_text(json.dumps(old))
    assert Store(tmp_path).load() == [record()]
    assert record().overrides is None


@pytest.mark.parametrize("name", ["run_id", "settings", "value", "schema"])
def test_a_record_without_what_it_needs_is_refused(name):
    facts = record().to_json()
    del facts[name]
    with pytest.raises(ValueError, match=name):
        Record.from_json(facts)


def test_an_interrupted_run_leaves_no_record(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt), recording(store, BASE):
        raise KeyboardInterrupt
    assert store.load() == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_record_that_can_not_be_read_is_neither_damaged_nor_replaced(
    tmp_path, monkeypatch, caplog, number
):
    store = Store(tmp_path)
    store.write(record("a"))
    store.write(record("b"))
    real = Path.read_bytes

    def read(path):
        if path == store.path("a"):
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    monkeypatch.setattr("flexround.utils.file_errors.WAITS", (0.0,))
    with pytest.raises(ValueError, match=r"a\.json can't be read .* not replaced"):
        store.get_or_quarantine("a")
    assert [r.run_id for r in store.load()] == ["b"]
    assert f"{store.path('a')} passed over" in caplog.text
    monkeypatch.undo()
    assert store.get_or_quarantine("a") == record("a")
    assert not list(tmp_path.glob("*.damaged"))


def test_an_unknown_field_is_another_versions(tmp_path):
    store = Store(tmp_path)
    path = store.path("a")
    path.write_text(json.dumps(record("a").to_json() | {"colour": "red"}))
    with pytest.raises(ValueError, match=r"'colour'.*the two do not mix"):
        store.get_or_quarantine("a")
    assert path.exists()


def test_a_folder_that_can_not_be_read_is_not_empty(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(ValueError, match="can't be read"):
        Store(tmp_path).load()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EACCES])
def test_an_error_of_the_file_system_fails_no_run(tmp_path, number):
    store = Store(tmp_path)
    with pytest.raises(OSError, match="here"), recording(store, BASE):
        raise OSError(number, os.strerror(number), "here")
    assert store.load() == []
