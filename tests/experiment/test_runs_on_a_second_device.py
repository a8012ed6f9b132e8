"""Whole runs on the stand-in for a GPU: built, reconstructed, evaluated, recorded, saved."""

from __future__ import annotations

import os

import pytest

if "STAND_IN" not in os.environ:
    pytest.skip("tests/test_second_device.py runs it", allow_module_level=True)

import torch

from experiment import device, execute
from results.records.store import Store
from tests import stand_in
from tests.conftest import TINY

RUNS = {
    "vision": (*TINY, "quant=flexround", "recon.iters=2", "recon.batch_size=16", "num_samples=32"),
    "causal": ("model=tiny_llama", "quant=rtn", "num_samples=4"),
    "offloaded": ("model=tiny_llama", "quant=rtn", "num_samples=4", "offload=true"),
    "encoder": ("model=tiny_bert", "quant=rtn", "num_samples=4"),
}


# Those of networks that take long to be made on first use are slow.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "offloaded" else [pytest.mark.slow]) for name in RUNS],
)
def test_a_run_is_the_cpus(cli, tmp_path, monkeypatch, name):
    args = (*RUNS[name], "ranges=min_max", "save=true", "cache_gib=0", "threads=1")
    if name == "offloaded":
        args = tuple(arg for arg in args if arg != "save=true")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = record_of(cli(*args, f"results_dir={tmp_path}/cpu"), tmp_path / "cpu")
        with stand_in.used(monkeypatch) as made:
            for module in (device, execute):
                monkeypatch.setattr(module, "device_of", lambda _: made)
            found = record_of(cli(*args, f"results_dir={tmp_path}/gpu"), tmp_path / "gpu")
    assert found.device == str(made)
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-4)
    assert found.fp_metrics == pytest.approx(expected.fp_metrics, rel=1e-6)


def record_of(outcome, folder):
    assert outcome.status == 0, outcome.err
    (record,) = Store(folder).load()
    return record
