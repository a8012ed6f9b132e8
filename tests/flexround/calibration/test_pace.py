"""How far what a GPU is asked for lies ahead of what it has done, without a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from flexround.calibration import pace
from flexround.calibration.calls import RecordedCalls, ended_at
from flexround.reconstruction.layerwise import Solve
from flexround.solvers.gptq import GPTQ
from tests.flexround.reconstruction.test_end_to_end import SHORT as END_TO_END
from tests.flexround.reconstruction.test_end_to_end import quantized
from tests.flexround.reconstruction.test_optimize import SHORT, UNITS
from tests.flexround.reconstruction.test_reconstruction import (
    CPU,
    GRID,
    RANGES,
    adapter,
    calibration,
    quantize,
)


@pytest.fixture
def told(monkeypatch):
    """What a pretended GPU was asked for, and which pass was waited for."""
    seen = []

    class Event:
        def __init__(self, number):
            self.number = number

        def synchronize(self):
            seen.append(f"{self.number} is done")

    class Stream:
        def record_event(self):
            seen.append("asked")
            return Event(seen.count("asked"))

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    return seen


def test_a_gpu_is_at_most_two_passes_behind(told):
    """What is asked for as pass n + 2 is, waits for pass n; before that nothing waits."""
    own = pace.Pace()
    for _ in range(5):
        own.step(torch.device("cuda:0"))
    assert pace.BEHIND == 2
    assert told == [
        "asked", "asked", "asked", "1 is done", "asked", "2 is done", "asked", "3 is done",
    ]  # fmt: skip


@pytest.fixture
def passes(monkeypatch):
    """The device of each pass that has been asked for."""
    seen = []
    monkeypatch.setattr(pace.Pace, "step", lambda self, device: seen.append(device))
    return seen


def test_each_pass_over_recorded_calls_keeps_pace_one_that_is_ended_too(passes):
    calls, layer = RecordedCalls(torch.ones(4, 3)), nn.Linear(3, 2)
    block = nn.Sequential(layer, nn.ReLU())
    list(calls.replay_each(block, 2, CPU))
    assert passes == [CPU] * 2
    with ended_at({layer: 1}):
        calls.replay(block, torch.arange(2), CPU)
    assert passes == [CPU] * 3


def test_iterations_keep_pace(passes):
    quantize(SHORT)
    short = len(passes)
    quantize(replace(SHORT, iters=SHORT.iters + 4))
    assert len(passes) - 2 * short == UNITS * 4


def test_scales_end_to_end_keep_pace(passes):
    quantized(replace(END_TO_END, e2e_iters=2))
    short = len(passes)
    quantized(replace(END_TO_END, e2e_iters=6))
    assert len(passes) - 2 * short == 4


def test_hessians_keep_pace(passes):
    solver = GPTQ(128, 0.01, False, False, False, "ranges")
    Solve(8, sequential=False)(
        adapter(), calibration(32), quantizer=solver, grid=GRID, ranges=RANGES,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert len(passes) >= UNITS * 32 // 8
