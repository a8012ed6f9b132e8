"""The outcomes of evaluation samples: kept beside the record, small, and never another run's."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from experiment.recorder import recording
from results.records.outcomes import pack, unpack
from results.records.store import Store
from tests.results.records.test_store import BASE, FakeTask, record

RIGHT = torch.tensor([True, False, True, True, False, True, False, True, True])  # no whole byte


def test_what_is_kept_comes_back():
    losses = torch.tensor([1.5, 2.25, 0.5])
    found = unpack(pack({"top1": RIGHT, "perplexity": losses}, "1"), "1")
    assert found["top1"].dtype == bool
    assert found["top1"].tolist() == RIGHT.tolist()
    assert found["perplexity"].tolist() == [1.5, 2.25, 0.5]


def test_fifty_thousand_images_take_less_than_ten_kilobytes():
    right = np.random.default_rng(0).random(50_000) < 0.7
    assert len(pack({"top1": right}, "2026-01-01T00:00:00+00:00")) < 10_000


def test_a_record_finds_its_own_outcomes_and_loads_without_them(tmp_path, caplog):
    store = Store(tmp_path)
    store.write(record("a", started="1"), {"top1": RIGHT})
    assert store.outcomes(record("a", started="1"))["top1"].tolist() == RIGHT.tolist()
    assert "top1" not in json.loads((tmp_path / "a.json").read_text()).get("outcomes", {})
    assert [r.run_id for r in store.load()] == ["a"]
    assert store.outcomes(record("old")) == {}, "from before they were kept"
    assert not caplog.records
    assert store.outcomes(record("a", started="2")) == {}
    assert "it is of the attempt of 1, not of 2" in caplog.text


def test_a_run_again_replaces_both(tmp_path):
    store = Store(tmp_path)
    store.write(record("a", 60.0, started="1"), {"top1": RIGHT})
    store.write(record("a", 70.0, started="2"), {"top1": ~RIGHT})
    assert store.outcomes(store.get_or_quarantine("a"))["top1"].tolist() == (~RIGHT).tolist()
    assert [p.name for p in (tmp_path / "outcomes").iterdir()] == ["a.npz"]


def test_outcomes_are_there_before_the_record(tmp_path, monkeypatch):
    moved = []
    monkeypatch.setattr("results.records.store.move", lambda part, path: moved.append(path.name))
    Store(tmp_path).write(record("a"), {"top1": RIGHT})
    assert moved == ["a.npz", "a.json"]


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04torn", b"text"])
def test_damaged_outcomes_are_passed_over_by_name(tmp_path, caplog, data):
    store = Store(tmp_path)
    store.write(record("a"), {"top1": RIGHT})
    store.outcomes_path("a").write_bytes(data)
    assert store.outcomes(record("a")) == {}
    assert "a.npz passed over" in caplog.text


def test_a_run_that_ends_well_keeps_them_and_one_that_fails_does_not(tmp_path):
    store = Store(tmp_path)
    with recording(store, BASE) as draft:
        draft.watch(FakeTask(), None, None)
        draft.metrics, draft.outcomes = {"top1": 97.0}, {"top1": RIGHT}
    assert store.outcomes(draft.record)["top1"].tolist() == RIGHT.tolist()
    with pytest.raises(ValueError, match="top1=nan"), recording(store, BASE) as draft:
        vars(draft).update(task=FakeTask(), metrics={"top1": math.nan}, outcomes={"top1": ~RIGHT})
    assert store.outcomes(store.get_or_quarantine("r"))["top1"].tolist() == RIGHT.tolist()
