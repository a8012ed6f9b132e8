"""ActivationCache: held in memory, in half precision or in files, with the same results."""

from __future__ import annotations

import copy
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flexround.activations.schemes import StaticPerTensor
from flexround.calibration import activation_cache
from flexround.calibration.activation_cache import ActivationCache, rows
from flexround.calibration.disk_tensors import DiskTensors
from flexround.reconstruction import reconstruction
from flexround.reconstruction.layerwise import Solve
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.reconstruction.test_reconstruction import (
    GRID,
    RANGES,
    SETTING,
    adapter,
    calibration,
)
from tests.flexround.solvers.test_solvers import CYCLIC

CPU = torch.device("cpu")
STATIC = StaticPerTensor(4, True, 4, 8, None, 8, "quant")
FROM_FP = replace(STATIC, ranges_from="fp")
SHORT = replace(SETTING, iters=6)
CASES = {
    "block": (SHORT, METHODS["flexround"], None),
    "layer": (replace(SHORT, unit="layer"), METHODS["flexround"], None),
    "fp": (replace(SHORT, inputs="fp"), METHODS["flexround"], None),
    "qdrop": (replace(SHORT, inputs="mixed", act_steps="together"), METHODS["flexround"], FROM_FP),
    "brecq": (
        replace(SHORT, act_steps="after", act_iters=5, act_inputs="fp"),
        METHODS["adaround"],
        STATIC,
    ),
    "cdquant": (Solve(8, sequential=True), CYCLIC, STATIC),
}


def quantize(case, held=None):
    """Return the codes and what the quantized model gives."""
    setting, method, activation = CASES[case]
    target = adapter()
    codes = setting(
        target, calibration(), quantizer=method, grid=GRID, ranges=RANGES, activation=activation,
        generator=torch.Generator().manual_seed(0), cache=held,
    )  # fmt: skip
    with torch.no_grad():
        return codes, target.forward(calibration()[0])


@pytest.mark.parametrize("case", CASES)
def test_what_lies_on_disk_changes_no_bit(case, tmp_path):
    spill = Counting(tmp_path / "spill")
    codes, outputs = quantize(case)
    other, again = quantize(case, ActivationCache(limit_gib=0, spill=spill))
    assert spill.puts > len(codes)
    assert all(torch.equal(codes[name].codes, other[name].codes) for name in codes)
    assert torch.equal(outputs, again)
    assert list((tmp_path / "spill").iterdir()) == []


class Counting(DiskTensors):
    """Counts what it is given."""

    puts = 0

    def write(self, parts):
        """Count and put."""
        self.puts += 1
        return super().write(parts)


def test_only_what_does_not_fit_goes_to_disk(tmp_path):
    spill = Counting(tmp_path)
    # Two streams, the targets and the outputs in the making: four times 4 KiB.
    held = ActivationCache(limit_gib=4 * 4096 / 2**30, spill=spill)
    held.store([torch.zeros(8, 64), torch.zeros(8, 64)])
    assert spill.puts == 0
    held.store([torch.zeros(8, 64), torch.zeros(8, 64), torch.zeros(1, 64)])
    assert spill.puts == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_spilled_tensor_is_the_tensor(tmp_path, dtype):
    parts = [torch.randn(n, 3, 2).to(dtype) for n in (2, 1, 4)]
    found = DiskTensors(tmp_path).write(iter(parts))
    assert found.dtype == dtype
    assert torch.equal(found, torch.cat(parts))
    assert list(tmp_path.iterdir()) == []  # while it is in use


def test_a_run_that_fails_leaves_no_file(tmp_path):
    setting = replace(SETTING, lr=1e30)
    with pytest.raises(ValueError, match="the loss is"):
        setting(
            adapter(), calibration(), quantizer=METHODS["flexround"], grid=GRID, ranges=RANGES,
            generator=torch.Generator().manual_seed(0),
            cache=ActivationCache(limit_gib=0, spill=DiskTensors(tmp_path)),
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_off_by_half_an_epsilon_at_most(dtype):
    values = torch.randn(64, 33, generator=torch.Generator().manual_seed(0))
    held = ActivationCache(dtype).store(values.split(10))
    assert held.dtype == dtype
    off = (rows(held, torch.arange(64), CPU) - values).abs()
    assert off.max() > 0
    assert (off <= torch.finfo(dtype).eps / 2 * values.abs() + torch.finfo(dtype).tiny).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["block", "cdquant"])
def test_half_precision_barely_moves_the_results(case, dtype):
    _, outputs = quantize(case)
    _, near = quantize(case, ActivationCache(dtype))
    off = (near - outputs).norm() / outputs.norm()
    # Rounded at each of four blocks, and codes at the edge between two may fall on the other side.
    assert 0 < off < 64 * torch.finfo(dtype).eps


def test_what_float16_can_not_hold_is_refused():
    with pytest.raises(ValueError, match=r"ends at 65504, an activation is 7e\+04; give bfloat16"):
        ActivationCache(torch.float16).store([torch.tensor([1.0, 7e4])])


def test_a_folder_without_rights_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"spill_dir=.*file/in: Not a directory; give a folder"):
        DiskTensors(tmp_path / "file" / "in").check_writable()


def test_a_folder_without_room_is_named(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ValueError, match=r"spill_dir=.*: File too large; give a folder with"):
            DiskTensors(tmp_path).write([torch.zeros(100), torch.zeros(1000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_samples_reach_a_gpu_from_page_locked_memory(monkeypatch):
    """The GPU is a device of that name whose copies stay where they are."""
    locked, sent = [], []

    def page_locked(shape, dtype):
        locked.append(torch.empty(shape, dtype=dtype))
        return locked[-1]

    def to(tensor, device, non_blocking=False):
        sent.append((device.type, non_blocking, tensor is locked[-1]))
        return tensor

    values, indices = torch.randn(6, 2), torch.tensor([4, 1])
    monkeypatch.setattr(activation_cache, "page_locked", page_locked)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    stream_of_its_own(monkeypatch, [])
    assert torch.equal(rows(values, indices, torch.device("cuda")), values[indices])
    assert sent == [("cuda", True, True)]


def test_no_copy_of_a_block_is_made_where_its_outputs_are_enough(monkeypatch):
    copies = []
    monkeypatch.setattr(reconstruction.copy, "deepcopy", lambda m: copies.append(m) or copy.copy(m))
    quantize("block")
    quantize("qdrop")
    assert copies == []


@pytest.mark.parametrize("limit", [-1.0, float("nan")])
def test_a_limit_out_of_range_is_refused(limit, tmp_path):
    with pytest.raises(ValueError, match="stream_gib="):
        ActivationCache(limit_gib=limit, spill=DiskTensors(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_falls_where_streams_lie_on_disk(tmp_path):
    """A stream of 128 MiB, of which at least two are live; benchmarks.memory makes the model."""

    def peak(limit):
        command = [sys.executable, "-m", "benchmarks.memory", "streams", limit, str(tmp_path)]
        root = Path(__file__).parents[3]
        environment = os.environ | {"PYTHONPATH": str(root)}
        ran = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=root, env=environment
        )
        return float(ran.stdout.split()[-1])

    held, spilled = peak("inf"), peak("0.01")
    assert held > 256
    assert spilled < held - 200


def stream_of_its_own(monkeypatch, told):
    """Have streams that tell what they are asked for: there need be no GPU."""

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            told.append(f"{self.name} waits for {other.name}")

        def __enter__(self):
            told.append(f"into {self.name}")

        def __exit__(self, *_):
            told.append("out of it")

    monkeypatch.setattr(activation_cache, "_copy_stream", lambda _: Stream("lane"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream("compute"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)


def test_a_batch_goes_to_a_gpu_on_a_stream_of_its_own(monkeypatch):
    """What computes waits for the copy, the copy for nothing; its memory is not reused early."""
    told = []

    class Batch:
        def to(self, device, non_blocking):
            assert non_blocking
            told.append("copy")
            return self

        def record_stream(self, stream):
            told.append(f"held for {stream.name}")

    stream_of_its_own(monkeypatch, told)
    activation_cache._sent(Batch(), torch.device("cuda:0"))
    assert told == [
        "into lane", "copy", "out of it", "compute waits for lane", "held for compute",
    ]  # fmt: skip
