"""Peak memory of a method in bytes a weight, above the plain block's training step.

`python -m benchmarks.peak` prints, for each block, the bytes that torch holds at the peak of an
iteration, and how many bytes a quantized weight that is above the plain block's forward and
backward pass with gradients of its weights, and above the same with Adam on the weights.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.blocks import CASES, Case, reached
from benchmarks.reconstruction import floor, methods_of, ours, plain
from benchmarks.timing import Run

MEASURED = "measured"


def peak_bytes(make: Callable[[], Run]) -> int:
    """Return the bytes held at the peak of a run of what make returns, what make took included."""
    gc.collect()  # what is freed inside would count as less than nothing
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run = make()
        run()
        with record_function(MEASURED):
            run()
    results = profiler.profiler.kineto_results  # events() gives memory to operations, not to times
    events = sorted(results.events(), key=lambda event: event.start_ns())
    begin = next(event.start_ns() for event in events if event.name() == MEASURED)
    held = peak = 0
    for event in events:
        held += event.nbytes() if event.name() == "[memory]" else 0
        if event.start_ns() >= begin:
            peak = max(peak, held)
    return int(peak)


def table(case: Case, compile_: bool) -> None:
    """Print the rows of one block."""
    weights = sum(layer.module.weight.numel() for layer in reached(case)[1].layers)
    passes = peak_bytes(lambda: floor(case))
    adam = peak_bytes(lambda: floor(case, adam=True))
    makes: dict[str, Callable[[], Run]] = {
        name: lambda method=method: ours(case, method, "float32", compile_)  # type: ignore[misc]
        for name, method in methods_of(case).items()
    }
    makes["flexround, plain"] = lambda: plain(case, "flexround")
    print(f"| {case.name} | floor | {passes / 2**20:.1f} | | |", flush=True)
    for name, make in makes.items():
        held = peak_bytes(make)
        above = [f"{(held - base) / weights:.1f}" for base in (passes, adam)]
        print(f"| {case.name} | {name} | {held / 2**20:.1f} | {' | '.join(above)} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="", help="only blocks whose name holds this")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    print("| block | | MiB at the peak | bytes a weight above the passes | above them with Adam |")
    print("|---|---|---|---|---|")
    for case in CASES:
        if args.case in case.name:
            table(case, args.compile)


if __name__ == "__main__":
    main()
