"""Table of what was found: medians over repetitions, and ratios to the first peer."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.peers.comparisons import OURS, Comparison
from benchmarks.peers.environment import Environment
from benchmarks.peers.runs import Row, Store

HEAD = (
    "| | program | perplexity | CPU, s | of the peer's | wall, s | of the peer's | peak, MiB "
    "| above the network, MiB | runs |"
)


def table(
    comparisons: Sequence[Comparison], store: Store, environment: Environment
) -> Iterator[str]:
    """Yield the table's lines, and under it what differs between the settings."""
    yield from _head(store)
    yield HEAD
    yield "|" + "---|" * HEAD.count(" |")
    for comparison in comparisons:
        yield from _rows(comparison, store, environment)
    yield ""
    for comparison in comparisons:
        yield f"- {comparison.name}: {comparison.differs}"


def _head(store: Store) -> Iterator[str]:
    setting = store.facts["setting"]
    versions = store.facts["versions"]
    told = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield (
        f"{setting['model']}, groups of {setting['group_size']}, {setting['samples']} x "
        f"{setting['tokens']} tokens, batches of {setting['batch_size']}, {setting['threads']} "
        f"threads; {told or 'no peer'}."
    )
    if store.reference:
        ours, plain = store.reference["ours"], store.reference["transformers"]
        yield f"Full precision: {ours:.4f} by our evaluator, {plain:.4f} by transformers alone."
    loads = [row["load"] for row in store.rows if "load" in row]
    if loads:
        yield f"Load of the machine before the runs: median {statistics.median(loads):.1f}."
    yield ""


def _rows(comparison: Comparison, store: Store, environment: Environment) -> Iterator[str]:
    peer: dict[str, float] = {}
    for contender in comparison.contenders:
        missing = environment.missing(contender.program)
        mine = {"comparison": comparison.name, "contender": contender.label}
        rows = [row for row in store.rows if mine.items() <= row.items()]
        good = [row for row in rows if "error" not in row]
        version = environment.version_of(contender.program)
        label = f"{contender.label}{' ' + version if version and not missing else ''}"
        start = f"| {comparison.title} | {label} |"
        if good:
            cells = list(_cells(good, comparison.bits, peer))
            if contender.program != OURS and not peer:
                peer = {name: _median(good, name) for name in ("cpu", "wall")}
            yield f"{start} {' | '.join(cells)} |"
        else:
            why = missing or (rows[0]["error"] if rows else "not run")
            yield f"{start} {why} |" + " |" * (HEAD.count(" |") - 3)


def _cells(rows: Sequence[Row], bits: int, peer: dict[str, float]) -> Iterator[str]:
    perplexities = sorted({round(row["perplexity"], 3) for row in rows})
    odd = max(row["values"] for row in rows) > 2**bits
    yield " to ".join(f"{v:.3f}" for v in dict.fromkeys((perplexities[0], perplexities[-1]))) + (
        f" (up to {max(row['values'] for row in rows)} values a group)" if odd else ""
    )
    for name in ("cpu", "wall"):
        yield _spread(rows, name)
        yield f"{_median(rows, name) / peer[name]:.2f}" if peer else ""
    yield f"{_median(rows, 'peak'):.0f}"
    yield f"{_median(rows, 'grown'):.0f}"
    yield str(len(rows))


def _spread(rows: Sequence[Row], name: str) -> str:
    values = [row[name] for row in rows]
    middle = f"{statistics.median(values):.1f}"
    return middle + (f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else "")


def _median(rows: Sequence[Row], name: str) -> float:
    return statistics.median(row[name] for row in rows)
