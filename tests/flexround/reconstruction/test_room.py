"""A GPU that is too small is told before any work; the sizes are worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from experiment.device import device_of
from flexround.calibration.activation_cache import ActivationCache
from flexround.calibration.arguments import Arguments, PerSample
from flexround.calibration.calls import RecordedCalls
from flexround.calibration.disk_tensors import DiskTensors
from flexround.kernels import chunking
from flexround.reconstruction import room
from flexround.reconstruction.precision import check_precision
from tests.flexround.quantizers.methods import METHODS
from tests.flexround.reconstruction.test_reconstruction import (
    GRID,
    RANGES,
    SETTING,
    adapter,
    calibration,
    quantize,
)

GPU = torch.device("cuda:0")
# The largest block: two convolutions of 6 x 6 x 3 x 3; 4 bytes a weight are there already.
WEIGHTS = 2 * 6 * 6 * 9


@pytest.mark.parametrize(("method", "each"), [("rtn", 4), ("flexround", 12)])
def test_a_block_that_does_not_fit_ends_the_run_before_it_begins(monkeypatch, method, each):
    monkeypatch.setattr(room, "free_on", lambda _: each * WEIGHTS - 1)
    with pytest.raises(ValueError, match=r"GiB are free on cpu, and block 2 at work needs"):
        quantize(method=method)
    monkeypatch.setattr(room, "free_on", lambda _: each * WEIGHTS)
    quantize(method=method)


def test_the_hessian_of_a_solver_counts(monkeypatch):
    """A row of the convolutions meets 6 x 3 x 3 values; the sum and the mean are in float64."""
    needed = 4 * WEIGHTS + 2 * 8 * 54**2
    monkeypatch.setattr(room, "free_on", lambda _: needed - 1)
    with pytest.raises(ValueError, match=r"and block 2 at work needs"):
        room.check_room(adapter(), room.SOLVED, hessians=True)
    room.check_room(adapter(), room.SOLVED)
    monkeypatch.setattr(room, "free_on", lambda _: needed)
    room.check_room(adapter(), room.SOLVED, hessians=True)


def test_the_hessian_of_a_start_counts_where_something_learns(monkeypatch):
    setting = replace(SETTING, start="gptq")
    monkeypatch.setattr(room, "free_on", lambda _: 12 * WEIGHTS)
    with pytest.raises(ValueError, match=r"and block 2 at work needs"):
        quantize(setting, "flexround")
    monkeypatch.setattr(room, "free_on", lambda _: 4 * WEIGHTS)
    quantize(setting, "rtn")


def test_a_network_that_does_not_fit_is_told_to_be_offloaded(monkeypatch):
    target = adapter()
    target.device = GPU  # its weights lie on the CPU still
    whole = sum(4 * p.numel() for p in target.model.parameters())
    assert whole > 8 * WEIGHTS
    monkeypatch.setattr(room, "free_on", lambda _: whole - 1)
    with pytest.raises(ValueError, match="give offload=true"):
        room.check_room(target, room.SOLVED)
    monkeypatch.setattr(room, "free_on", lambda _: whole)
    room.check_room(target, room.SOLVED)


def test_a_card_without_bfloat16_is_told_by_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(ValueError, match=r"precision=bfloat16: Tesla T4 has none.* 7\.5"):
        check_precision("bfloat16", GPU)


def test_compiling_for_a_gpu_needs_a_c_compiler(monkeypatch):
    monkeypatch.setattr(chunking.importlib.util, "find_spec", lambda _: object())
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(chunking.shutil, "which", lambda name: name == "gcc")
    chunking.check_compiler(GPU)
    for there in ("", "cc"):  # which triton looks for where CC says so alone
        monkeypatch.setattr(chunking.shutil, "which", lambda name, there=there: name == there)
        with pytest.raises(ValueError, match="compile=true needs a C compiler beside triton"):
            chunking.check_compiler(GPU)
    monkeypatch.setenv("CC", "cc")
    chunking.check_compiler(GPU)


def test_streams_of_a_llama_block_by_hand():
    """Llama-3.1-8B's: 128 x 2048 tokens of 4096 values, of which five are live at once.

    Its block at work: 4096 x (4096 + 1024 + 1024 + 4096) + 3 x 4096 x 14336 weights of 16 bytes.
    """
    stream, work = 128 * 2048 * 4096, 16 * (4096 * 10240 + 3 * 4096 * 14336)
    calls = RecordedCalls(torch.empty(128, 2048, 4096, device="meta"))
    assert room.streams_take(2048 * 4096, calls) == 5 * 4 * stream == 20 * 2**30
    assert room.streams_fit(20 * 2**30, work, 80 * 10**9)
    assert not room.streams_fit(20 * 2**30, work, 40 * 10**9)
    half = replace(calls, inputs=calls.inputs.to(torch.bfloat16))
    assert room.streams_take(2048 * 4096, half) == 10 * 2**30
    assert room.streams_fit(10 * 2**30, work, 40 * 10**9)
    assert not room.streams_fit(10 * 2**30, work, 24 * 10**9)


def test_arguments_that_samples_have_count_once_for_all_blocks():
    mask = PerSample(torch.zeros(3, 1, 5, 5))
    later = (Arguments((mask,)), Arguments((), {"mask": mask, "shared": torch.zeros(7)}))
    calls = RecordedCalls(torch.zeros(3, 5, 2), (mask,), {}, later=later)
    assert room.streams_take(10, calls) == 5 * 3 * 10 * 4 + 3 * 25 * 4


def test_the_widest_stream_of_a_network_of_images_is_that_of_its_widest_block():
    """Three channels of 8 x 8 come in, six of 6 x 6 leave the first convolution."""
    assert adapter().widest(torch.zeros(5, 3, 8, 8)) == 6 * 6 * 6
    assert adapter().widest(torch.zeros(5, 3, 9, 9)) == 3 * 9 * 9


@pytest.mark.parametrize(
    ("where", "limit", "message"),
    [
        ("gpu", math.inf, "stream_device=gpu: give auto, cuda, cpu"),
        ("cuda", 1.0, r"stream_gib=1.0 limits .* leave one of the two out"),
    ],
)
def test_places_that_there_are_none_of_are_refused(where, limit, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ActivationCache(None, limit, DiskTensors(tmp_path), where)


def test_a_run_on_the_cpu_has_no_gpu_for_its_streams():
    with pytest.raises(ValueError, match=r"stream_device=cuda does nothing .* give device=cuda"):
        SETTING(
            adapter(), calibration(8), quantizer=METHODS["rtn"], grid=GRID, ranges=RANGES,
            generator=torch.Generator(), cache=ActivationCache(where="cuda"),
        )  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_process_that_sees_no_gpu_is_told_why(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ValueError, match=r"device=cuda: CUDA_VISIBLE_DEVICES= lets this .* no GPU"):
        device_of("cuda")
