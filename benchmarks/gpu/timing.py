"""Times on the device: CUDA events on a GPU, the clock on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from flexround.utils.tensor_float32 import tensor_float32


class Marks:
    """Moments on a device, and the milliseconds between them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[torch.cuda.Event] = []
        self._moments: list[float] = []

    def mark(self) -> None:
        """Note the moment that the device comes to this place."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._events.append(event)
        else:
            self._moments.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Return the time from each moment to the next, and forget them; waits for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            pairs = zip(self._events, self._events[1:], strict=False)
            found = [float(first.elapsed_time(second)) for first, second in pairs]
        else:
            times = zip(self._moments, self._moments[1:], strict=False)
            found = [1e3 * (second - first) for first, second in times]
        self._events, self._moments = [], []
        return found


def rounds_of(
    step: Callable[[], object], device: torch.device, rounds: int, steps: int
) -> list[float]:
    """Return the milliseconds of a step in each round of steps, after one round to warm up."""
    for _ in range(min(steps, 3)):
        step()
    marks = Marks(device)
    marks.mark()
    for _ in range(rounds):
        for _ in range(steps):
            step()
        marks.mark()
    return [time_ / steps for time_ in marks.milliseconds()]


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the median of values and the distance of their quartiles, 0 where they are few."""
    if len(values) < 3:
        return statistics.median(values), 0.0
    first, _, third = statistics.quantiles(values, n=4)
    return statistics.median(values), third - first


def throughput(device: torch.device, dtype: torch.dtype, tf32: bool, size: int) -> float:
    """Return the floating-point operations a second of a product of two [size, size] matrices."""
    draws = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn(size, size, generator=draws, device=device).to(dtype) for _ in range(2)
    )
    with tensor_float32(tf32):
        times = rounds_of(lambda: left @ right, device, 5, 3)
    return 2 * size**3 / (median_and_spread(times)[0] / 1e3)


def ceilings(device: torch.device, tiny: bool, bfloat16: bool) -> dict[str, float]:
    """Return the measured operations a second of matrix products by the names of precisions."""
    size = 256 if tiny else 8192
    found = {"float32": throughput(device, torch.float32, False, size)}
    if device.type == "cuda" and bfloat16:
        found["tf32"] = throughput(device, torch.float32, True, size)
    if bfloat16:
        found["bfloat16"] = throughput(device, torch.bfloat16, False, size)
    return found
