"""A shortage of memory: one line that says where, how much was free and what helps."""

from __future__ import annotations

import gc
import resource
import weakref

import pytest
import torch

from flexround.activations.hooks import Activations
from flexround.quantizers.rtn import RTN
from flexround.reconstruction.layerwise import Solve
from flexround.utils import memory
from flexround.utils.memory import explained, forget_dead, free_bytes, is_shortage
from tests.conftest import TINY
from tests.flexround.reconstruction.test_end_to_end import SHORT as END_TO_END
from tests.flexround.reconstruction.test_end_to_end import quantized
from tests.flexround.reconstruction.test_reconstruction import (
    GRID,
    RANGES,
    SETTING,
    adapter,
    calibration,
)
from tests.flexround.solvers.test_solvers import CYCLIC

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def little_memory():
    """Leave this process 256 MiB more than it has."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    taken = memory.proc_bytes(memory.STATUS, "VmData")
    resource.setrlimit(resource.RLIMIT_DATA, (taken + 2**28, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


def test_what_torch_says_without_memory_is_known(little_memory):
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2**28)
    assert is_shortage(caught.value)
    with pytest.raises(MemoryError) as caught:
        bytearray(2**30)
    assert is_shortage(caught.value)
    assert is_shortage(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_shortage(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_what_is_free_heeds_the_limit(little_memory):
    assert 0 <= free_bytes() <= 2**28


class Hungry(RTN):
    """Takes a gigabyte in the second block."""

    def __init__(self, weight, **options):
        super().__init__(weight, **options)
        if not weight.is_meta and weight.shape == (6, 6, 3, 3):
            torch.ones(2**28)


def test_a_block_without_memory_is_named_with_what_helps(little_memory):
    with pytest.raises(ValueError, match=r"^block 2: out of memory") as caught:
        SETTING(
            adapter(), calibration(), quantizer=Hungry, grid=GRID, ranges=RANGES,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
    line = str(caught.value)
    assert "\n" not in line
    free = float(line.partition("(")[2].partition(" GiB were free on cpu")[0])
    assert 0 <= free <= 0.25
    for option in ("recon.batch_size", "stream_gib", "stream_dtype", "offload"):
        assert option in line


def test_a_solvers_block_is_named_too(monkeypatch):
    def short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr("flexround.reconstruction.layerwise.solve_layer", short)
    with pytest.raises(ValueError, match=r"^block 0: out of memory \(.* GiB were free"):
        Solve(8, sequential=True)(
            adapter(), calibration(), quantizer=CYCLIC, grid=GRID, ranges=RANGES,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip


def test_the_gpu_is_asked_what_it_has(monkeypatch):
    """Of the 77 GiB that are taken torch holds 8 and uses 7.5: 3 and 0.5 are free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 8 * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: int(7.5 * 2**30))
    with (
        pytest.raises(
            ValueError, match=r"block 7: out of memory \(3\.50 GiB were free on cuda\); "
        ) as told,
        explained("block 7", torch.device("cuda")),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    # What spills the CPU's streams does nothing for a GPU's.
    assert "stream_device=cpu" in str(told.value)
    assert "stream_gib" not in str(told.value)
    with (
        pytest.raises(ValueError, match=r"on cuda\); less of it"),
        explained("it", GPU, "less of it"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_what_a_run_has_left_is_gone_before_the_next(cli, monkeypatch):
    """Hooks on layers hold their layers: without a look for such rings they outlive the run."""
    left = []
    leave_on = Activations.leave_on

    def kept(self):
        left.append(weakref.ref(self))
        leave_on(self)

    monkeypatch.setattr(Activations, "leave_on", kept)
    monkeypatch.setattr("experiment.execute.forget_dead", gc.collect)  # what it does with a GPU
    gc.disable()
    try:
        told = cli(*TINY, "quant=rtn", "activation=static_per_tensor", "num_samples=64")
    finally:
        gc.enable()
    assert told.status == 0, told.err
    assert [ref() for ref in left] == [None]


def test_a_gpu_is_given_back_what_is_held_in_a_ring_alone(monkeypatch):
    class Ring:
        def __init__(self):
            self.own = self

    emptied = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(ring() is None))
    gc.disable()
    try:
        ring = weakref.ref(Ring())
        assert ring() is not None
        forget_dead()
    finally:
        gc.enable()
    assert emptied == [True], "what is dead, and then what torch keeps of it"


def test_scales_end_to_end_tell_what_helps_them(monkeypatch):
    def short(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("flexround.reconstruction.reconstruction.learn_end_to_end", short)
    with pytest.raises(
        ValueError, match=r"end to end: out of memory.*; lower recon.e2e_batch_size"
    ):
        quantized(END_TO_END)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), explained("block 7", CPU):
        raise RuntimeError("shapes do not fit")


def test_a_record_tells_of_it(cli, monkeypatch):
    def short(*_, **__):
        raise MemoryError

    monkeypatch.setattr("flexround.reconstruction.learning.attach", short)
    outcome = cli("model=tiny_llama", "quant=rtn", "num_samples=8", "task.seq_len=16")
    assert outcome.status == 1
    assert outcome.err.count("error:") == 1
    assert "block model.layers.0: out of memory" in outcome.err.replace("\n", " ")
