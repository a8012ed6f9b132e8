"""Ours beside other programs: perplexity, seconds and memory of the same quantization.

`python -m benchmarks.peers --install DIR` makes the environment of the other programs;
`python -m benchmarks.peers --environment DIR --data-dir WIKITEXT2` runs all in turns and prints the
table. Each run is a process of its own that measures its quantization, not its imports; the
perplexity of all is ours, of the dequantized weights that a program has left. Runs that have ended
are kept in --out and not repeated by the same code.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from pathlib import Path

from benchmarks.peers.comparisons import COMPARISONS
from benchmarks.peers.environment import ROOT, environment_at, install
from benchmarks.peers.inputs import Setting, prepared
from benchmarks.peers.runs import Bench, Cut, Failed, Store, facts_of
from benchmarks.peers.table import table
from flexround.utils.arguments import ArgumentParser
from flexround.utils.atomic_files import check_writable

OUT = ROOT / "outputs" / "peers"


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """Return the options; ends the process where they make no sense."""
    parser = ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--install", type=Path, metavar="DIR", help="make the environment, end")
    parser.add_argument("--environment", type=Path, default=OUT / "environment", metavar="DIR")
    parser.add_argument("--model", default="smollm2_135m", help="a causal one of conf/model")
    parser.add_argument("--task", help="one of conf/task; the model's own without")
    parser.add_argument("--data-dir", help="the task's texts, WikiText2's files")
    parser.add_argument("--rows", nargs="+", default=list(COMPARISONS), metavar="ROW",
                        help=f"only these of {', '.join(COMPARISONS)}")  # fmt: skip
    for name, value, text in (
        ("samples", 16, "sequences to calibrate on"), ("tokens", 256, "of each"),
        ("windows", 20, "to evaluate on, at most"), ("window", 1024, "tokens of each"),
        ("group-size", 64, "weights that share a scale"), ("batch-size", 2, "of an iteration"),
        ("threads", os.cpu_count() or 1, "of torch"), ("repetitions", 3, "of every run"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} ({value})")
    parser.add_argument("--minutes", type=float, default=math.inf, help="that all may take")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of what is kept")
    parser.add_argument("--render", action="store_true", help="print the table, run nothing")
    options = parser.parse_args(words)
    unknown = [name for name in options.rows if name not in COMPARISONS]
    if unknown:
        parser.error(f"--rows {unknown[0]}: give some of {', '.join(COMPARISONS)}")
    if not options.minutes > 0:
        parser.error(f"--minutes {options.minutes:g}: give a number above 0")
    for name in ("samples", "tokens", "windows", "window", "group_size", "batch_size", "threads",
                 "repetitions"):  # fmt: skip
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: give at least 1")
    if options.samples < options.batch_size:
        parser.error(f"--samples {options.samples}: give at least --batch-size, or lower that")
    return options


def main(words: list[str] | None = None) -> int:
    """Run what is missing and print the table; return the exit status."""
    options = parsed(words)
    deadline = time.monotonic() + 60 * options.minutes
    try:
        if options.install is not None:
            install(options.install.absolute())
            return 0
        return _compared(options, deadline)
    except (ValueError, OSError, Failed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _compared(options: argparse.Namespace, deadline: float) -> int:
    environment = environment_at(options.environment.absolute())
    data_dir = options.data_dir and str(Path(options.data_dir).absolute())
    setting = Setting(
        model=options.model, task=options.task, data_dir=data_dir, samples=options.samples,
        tokens=options.tokens, windows=options.windows, window=options.window,
        group_size=options.group_size, batch_size=options.batch_size, threads=options.threads,
    )  # fmt: skip
    folder = options.out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)
    inputs = prepared(setting, folder / "inputs")
    store = Store(folder, facts_of(setting, environment, inputs))
    comparisons = [COMPARISONS[name] for name in options.rows]
    bench = Bench(setting, environment, folder, store, deadline, _say)
    if not options.render:
        try:
            bench.check_evaluators()
            bench.run(comparisons, options.repetitions)
        except Cut:
            _say(f"--minutes {options.minutes:g} are over; the same command goes on")
    _say("\n".join(["", *table(comparisons, store, environment)]))
    return 1 if any("error" in row for row in store.rows) else 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the run at work ends, too
    sys.exit(main())
