"""A GPU that is too small is told before any work; the sizes are worked out by hand."""

from __future__ import annotations

import pytest
import torch

from experiment.device import device_of
from flexround.kernels import chunking
from flexround.reconstruction import room
from flexround.reconstruction.precision import check_precision
from tests.flexround.reconstruction.test_reconstruction import adapter, quantize

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
    monkeypatch.setattr(chunking.shutil, "which", lambda _: None)
    with pytest.raises(ValueError, match="compile=true needs a C compiler beside triton"):
        chunking.check_compiler(GPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_process_that_sees_no_gpu_is_told_why(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ValueError, match=r"device=cuda: CUDA_VISIBLE_DEVICES= lets this .* no GPU"):
        device_of("cuda")
