"""`make methods`: every method under every transform on one language model, in docs/methods.md.

    python -m scripts.methods_table [--also data_dir=/data/wikitext-2] [--results-dir PATH]

computes the runs that have no record yet, keeps the records in results/methods.jsonl and writes the
tables of docs/methods.md from them. Given again it goes on where it was; --no-runs leaves the runs
out. What no run has measured yet is a dash.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd

from experiment import ROOT
from flexround.utils.arguments import ArgumentParser
from flexround.utils.atomic_files import write_whole
from results.ledger import kept
from results.ledger.evidence import Found, cells_of
from results.records.lines import to_lines
from results.records.reading import DEFAULT
from results.records.record import Record
from results.records.store import Store
from results.tables.formats import markdown
from scripts.door import enter

PAGE, KEPT = ROOT / "docs" / "methods.md", ROOT / "results" / "methods.jsonl"
TABLES = re.compile(r"(<!-- methods -->\n).*?(<!-- end -->)", re.DOTALL)
COMMON = (
    "model=smollm2_135m", "protocol=file", "protocol.window=512", "protocol.max_windows=4",
    "num_samples=16", "task.seq_len=128",
)  # fmt: skip
# The rates of recon=fast, chosen on other networks; its iterations would take days for all methods.
LEARNED = ("recon=fast", "recon.iters=25", "recon.batch_size=2")
METHODS: dict[str, tuple[str, ...]] = {
    "rtn": (),
    "gptq": (),
    "gptaq": (),
    "qronos": (),
    "cdquant": ("quant.start=gptq", "quant.sweeps=4"),
    "adaround": LEARNED,
    "adaquant": LEARNED,
    "flexround": LEARNED,
    "flexround_lwc": LEARNED,
    "lrq": LEARNED,
    "lwc": LEARNED,
    "signround": LEARNED,
    "signround_v2": (*LEARNED, "symmetric=true"),
}
TRANSFORMS = ("none", "awq", "hadamard")
BITS = (4, 3, 2)
GROUPS = {
    "Groups of 64": ("granularity=per_group", "group_size=64"),
    "A scale a row": ("granularity=per_channel",),
}
Cell = frozenset[str]
NOTHING = "-"  # where no run has measured a number


def cell(method: str, transform: str, bits: int, group: str) -> Cell:
    """Return the options of one number of the tables, but for the seed."""
    changed = () if transform == "none" else (f"transform={transform}",)
    return frozenset(
        (*COMMON, f"quant={method}", f"bits={bits}", *METHODS[method], *GROUPS[group], *changed)
    )


def cells() -> list[Cell]:
    """Return all numbers' options, those first that tell methods apart."""
    order = product(GROUPS, (3, 2, 4), METHODS, TRANSFORMS)
    return [cell(method, transform, bits, group) for group, bits, method, transform in order]


def render(found: Found) -> str:
    """Return the tables: perplexity, and in brackets the divergence from full precision [nats].

    Methods and columns of which nothing is measured are left out.
    """
    parts = []
    for group in GROUPS:
        rows = []
        for method in METHODS:
            records = {
                f"W{bits}" if transform == "none" else f"W{bits} {transform}": found.get(
                    cell(method, transform, bits, group), {}
                ).get(0)
                for bits, transform in product(BITS, TRANSFORMS)
            }
            if any(records.values()):
                flops = max(map(_flops, records.values()))
                numbers = {name: _number(record) for name, record in records.items()}
                rows.append({"method": method, **numbers, "Tflops": f"{flops / 1e12:.1f}"})
        table = pd.DataFrame(rows)
        if rows:
            parts.append(f"{group}:\n\n{markdown(table.loc[:, (table != NOTHING).any()])}")
    return "\n\n".join([*parts, f"{len(found)} of {len(cells())} numbers are measured."])


def _number(record: Record | None) -> str:
    if record is None:
        return NOTHING
    perplexity, divergence = record.metrics["perplexity"], record.metrics["kl"]
    whole = f"{perplexity:.2f}" if perplexity < 1e3 else f"{perplexity:.1e}".replace("e+0", "e")
    return f"{whole} ({divergence:.3f})"


def _flops(record: Record | None) -> float:
    """Return the operations of a method's own work, 0 where nothing is learned or solved."""
    return sum(unit["cost"]["flops"] for unit in record.blocks) if record else 0.0


def gathered(folder: Path) -> Found:
    """Return the newest record of each number, of folder and of those that are kept."""
    held = [record for record, _ in kept.read(KEPT)]
    found = cells_of([*held, *(Store(folder).load() if folder.is_dir() else ())])
    wanted = set(cells())
    return {own: runs for own, runs in found.items() if own in wanted}


def written(records: Iterable[Record]) -> bytes:
    """Return records as the bytes of a file; their units are one, of all their cost.

    Outcomes are left out: no two methods are compared by this table alone.
    """
    return to_lines((slim(record), {}) for record in records)


def slim(record: Record) -> Record:
    """Return record with what the tables show, and nothing of a machine's places."""
    plain = kept.slim(record, units=False)
    whole = {"name": "model", "cost": {"flops": _flops(record)}}
    return replace(plain, blocks=[whole], transform={})


def main(argv: Sequence[str]) -> int:
    """Do it; return the exit status, 1 where a run has failed."""
    parser = ArgumentParser(prog="python -m scripts.methods_table", description=__doc__)
    parser.add_argument("--also", default="")
    parser.add_argument("--results-dir", type=Path, default=DEFAULT)
    parser.add_argument("--no-runs", action="store_true")
    args = parser.parse_args(argv)
    failed, found = 0, gathered(args.results_dir)
    for own in [] if args.no_runs else cells():
        if 0 not in found.get(own, {}):
            also = [*shlex.split(args.also), f"results_dir={args.results_dir}"]
            command = [sys.executable, str(ROOT / "run.py"), *sorted(own), *also]
            failed |= subprocess.run(command, cwd=ROOT).returncode
    if not args.no_runs:
        found = gathered(args.results_dir)
    write_whole(KEPT, written(runs[0] for runs in found.values() if 0 in runs))
    text = TABLES.sub(lambda m: f"{m[1]}\n{render(found)}\n\n{m[2]}", PAGE.read_text())
    write_whole(PAGE, text.encode())
    print(f"{len(found)} of {len(cells())} numbers are measured")
    return 1 if failed else 0


if __name__ == "__main__":
    enter(main)
