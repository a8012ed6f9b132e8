"""What a task of one's own may get wrong is told before the work, and never kept as a result."""

from __future__ import annotations

import math

import pytest

from experiment.task_checks import SAID, check_drawn, check_metric, check_said
from results.records.store import Store
from tasks.vision.digits import Digits
from tests.conftest import TINY


class Said:
    """A task that has said all but what a test takes away."""

    metric, higher_is_better, version = "top1", True, 1


@pytest.mark.parametrize("name", ["metric", "higher_is_better", "version"])
def test_what_every_record_names_is_asked_for(name):
    check_said(Said())
    lacking = type("Lacking", (), {n: getattr(Said, n) for n in SAID if n != name})
    with pytest.raises(ValueError, match=f"the task Lacking has no {name}"):
        check_said(lacking())


@pytest.mark.parametrize("metrics", [{}, {"top5": 1.0}, {"top1": math.nan}, {"top1": math.inf}])
def test_a_metric_is_a_number(metrics):
    check_metric(Said(), {"top1": 0.0})
    with pytest.raises(ValueError, match=r"the evaluation gave top1=.*, which is no result"):
        check_metric(Said(), metrics)


def test_a_calibration_set_has_the_size_of_its_record():
    check_drawn(Said(), 8, 8)
    with pytest.raises(ValueError, match="gave 9 calibration samples where num_samples=8"):
        check_drawn(Said(), 9, 8)


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        ("evaluate", lambda *_: {"top1": math.nan}, "in full precision gave top1=nan"),
        ("evaluate", lambda *_: {"top5": 1.0}, "in full precision gave top1=None"),
        ("calibration", None, "gave 64 calibration samples where num_samples=32"),
    ],
)
def test_a_run_ends_before_its_work(cli, results_dir, monkeypatch, method, given, words):
    """Full precision is measured first; what it can't give the quantized network can't either."""
    own = Digits.calibration
    # What is measured on is not said, so that full precision is measured anew.
    monkeypatch.setattr(Digits, "evaluation_data", lambda _: None)
    monkeypatch.setattr(Digits, method, given or (lambda self, _, seed: own(self, 64, seed)))
    told = cli(*TINY, "quant=rtn", "num_samples=32")
    assert told.status == 1
    assert words in told.err
    (record,) = Store(results_dir).load()
    assert record.status == "failed"
    assert not record.blocks


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["task=wikitext2", "data_dir=nowhere"], "data_dir=nowhere: there is no such file or"),
        (["calibration=c4", "calibration_dir=nowhere"], "calibration_dir=nowhere: there is no"),
    ],
)
def test_data_that_are_not_there_are_told_before_the_network_is_read(cli, results_dir, args, words):
    told = cli("model=tiny_llama", "model.source=./no_network", "quant=rtn", *args)
    assert told.status == 1
    assert told.err.splitlines()[-1].startswith(f"error: {words}")
    (record,) = Store(results_dir).load()
    assert record.status == "failed"
    assert record.fp_value is None
