"""A run that was cut off goes on from its own units alone: of its weights, samples, precision."""

from __future__ import annotations

import time

import pytest

from experiment import execute as execution
from experiment import resources
from flexround.models.vision import VisionModel
from flexround.reconstruction.checkpoints import FileCheckpoints
from results.records.store import Store
from tasks.vision import checkpoints
from tasks.vision.digits import Digits
from tests.conftest import TINY

LEARNED = (*TINY, "quant=flexround", "bits=3", "num_samples=32", "recon.iters=2")
GOES_ON = "going on after 1 finished units"


def cut_off(cli, monkeypatch, *args):
    """Begin a run that fails once its first unit is kept."""
    save = FileCheckpoints.save

    def last(self, *unit):
        save(self, *unit)
        raise RuntimeError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(FileCheckpoints, "save", last)
        assert cli("-m", *args).status == 1


def other_weights(cache_dir, folder, monkeypatch):
    """Have another cache with another network of first use."""
    (trained,) = cache_dir.glob("checkpoints/digits-test_efficientnet-*.safetensors")
    model = VisionModel("timm", "test_efficientnet", None, 8, False, False, []).build(10)
    model.load_state_dict(checkpoints.read(trained))
    for parameter in model.parameters():
        parameter.data *= 1.01
    (folder / "checkpoints").mkdir(parents=True)
    checkpoints.save(model, folder / "checkpoints" / trained.name)
    return [f"cache_dir={folder}"]


def other_samples(cache_dir, folder, monkeypatch):
    """Have the task make other images of the same words."""
    drawn = Digits.calibration
    monkeypatch.setattr(
        Digits, "calibration", lambda *given: [batch * 0.9 for batch in drawn(*given)]
    )
    return []


def other_precision(cache_dir, folder, monkeypatch):
    """Say that passes are compiled, as compile=true does; that takes minutes."""
    monkeypatch.setattr(execution, "precision_told", lambda *_: "float32 compiled")
    return []


def same(cache_dir, folder, monkeypatch):
    """Change nothing."""
    return []


def other_packages(cache_dir, folder, monkeypatch):
    """Have another version of a package whose code has a part in what a network computes."""
    there = resources.versions()
    monkeypatch.setattr(resources, "versions", lambda: there | {"timm": "0"})
    return []


CHANGES = [same, other_weights, other_samples, other_precision, other_packages]


@pytest.mark.parametrize("change", CHANGES)
def test_units_of_another_computation_are_made_anew(
    cli, results_dir, cache_dir, tmp_path, monkeypatch, change
):
    cut_off(cli, monkeypatch, *LEARNED)
    own = change(cache_dir, tmp_path / "other", monkeypatch)
    resumed = cli(*LEARNED, *own, "retry_failed=true")
    assert resumed.status == 0, resumed.err
    assert (GOES_ON in resumed.err) == (change is same)
    whole = cli(*LEARNED, *own, f"results_dir={tmp_path}/whole")
    assert whole.status == 0, whole.err
    (one,), (other,) = Store(results_dir).load(), Store(tmp_path / "whole").load()
    assert one.run_id == other.run_id
    assert one.metrics == other.metrics
    assert [b["error_after"] for b in one.blocks] == [b["error_after"] for b in other.blocks]


def test_a_record_has_the_seconds_of_units_of_an_earlier_attempt(cli, results_dir, monkeypatch):
    """By a clock that stands still the attempt that goes on takes none itself."""
    cut_off(cli, monkeypatch, *LEARNED)
    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: 0.0)
        resumed = cli(*LEARNED, "retry_failed=true")
    assert GOES_ON in resumed.err
    (record,) = Store(results_dir).load()
    assert record.seconds == record.blocks[0]["seconds"] > 0
