"""Checks and measurements on a GPU machine, in parts that each finish and are kept.

`python -m benchmarks.gpu --minutes 8` writes benchmarks/gpu/CARD.json, `--render` prints its tables
for docs/speed.md. Nothing is downloaded. `--device cpu --tiny` tries the script itself.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from pathlib import Path

import torch

from benchmarks.gpu.child import PartCut, PartFailed, rows_of
from benchmarks.gpu.context import Context, Row
from benchmarks.gpu.machine import probe
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.render import tables
from benchmarks.gpu.runner import run_parts
from benchmarks.gpu.store import ROOT, Store
from flexround.utils.arguments import ArgumentParser
from flexround.utils.atomic_files import check_writable

HERE = Path(__file__).resolve().parent
PROBE = 120.0  # seconds that the first use of a card may take


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    """Return the options; ends the process where they make no sense."""
    parser = ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="that the whole may take")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu with --tiny")
    parser.add_argument("--tiny", action="store_true", help="as small as can be")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), metavar="PART",
                        help=f"only these of {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--again", action="store_true", help="repeat parts that are there")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--images", type=Path, help="folder with val/ and train/, for long")
    parser.add_argument("--render", action="store_true", help="print the tables, measure nothing")
    options = parser.parse_args(words)
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"--parts {unknown[0]}: give some of {', '.join(PARTS)}")
    if not (options.minutes > 0 and math.isfinite(options.minutes)):
        parser.error(f"--minutes {options.minutes:g}: give a number above 0")
    try:
        options.device = torch.device(options.device)
    except RuntimeError:
        options.device = torch.device("meta")
    if options.device.type not in ("cpu", "cuda"):
        parser.error("--device: give cuda, cuda:N or cpu")
    if options.device.type == "cpu" and not options.tiny and not options.render:
        parser.error("--device cpu goes with --tiny: at full size a CPU takes hours")
    if options.images is not None and not (options.images / "val").is_dir():
        parser.error(f"--images {options.images}: give a folder with val/ and train/ in it")
    if options.out is None:
        on_cpu = options.device.type == "cpu" and not options.render
        options.out = ROOT / "outputs" / "gpu" if on_cpu else HERE
    return options


def main(words: list[str] | None = None) -> int:
    """Run the parts, or print the tables; return the exit status."""
    options = parsed(words)
    try:
        if options.render:
            print("\n".join(tables(options.out)))
            return 0
        check_writable(options.out)
        card = _card(options.device)
        store = Store(options.out, str(card["card"]), options.tiny)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    memory = "" if card["gib"] is None else f", {card['gib']:.1f} GiB"
    print(f"{card['card']}{memory}: {options.minutes:g} minutes, into {store.path}", flush=True)
    images = None if options.images is None else options.images.resolve()
    context = Context(options.device, options.tiny, options.out.resolve(), images)
    failed = run_parts(
        options.parts, PARTS, store, context, options.minutes,
        lambda line: print(line, flush=True), options.again,
    )  # fmt: skip
    return 1 if failed else 0


def _card(device: torch.device) -> Row:
    """Return the card's name and memory, looked at in a process of its own.

    Raises:
        ValueError: when there is none.
    """
    try:
        (found,) = rows_of(lambda: probe(device), PROBE)
    except PartFailed as error:
        raise ValueError(str(error).removeprefix("ValueError: ")) from error
    except PartCut:
        raise ValueError(f"--device={device} does not answer within {PROBE:.0f} s") from None
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part at work ends, too
    sys.exit(main())
