"""The model card of an artifact: what it is, how it was made, its numbers, how to make it again."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add

import pandas as pd

from experiment.artifacts.front_matter import front_matter
from flexround.artifact.artifact import Artifact, size_of
from flexround.grid import Granularity, Grid
from results.records.record import Record
from results.tables.paper_comparison import published_beside


def model_card(artifact: Artifact, record: Record) -> str:
    """Return the card in Markdown, with the hub's front matter."""
    total = reduce(add, (size_of(layer) for layer in artifact.layers.values()))
    parts = [
        f"# {record.model}, {record.bits} bit by {record.quant}, on {record.task}",
        f"Integer codes, scales and zero points of {len(artifact.layers)} layers "
        f"({total.weights:,} weights) at {total.bits:.2f} bits a weight, scales and zero points "
        f"included: {total.share:.3f} of half precision. {_coverage(record)}Everything else is "
        "stored as it is.",
        "## How",
        _how(artifact, record),
        "## Numbers",
        _numbers(record),
        "The paper is FlexRound (arXiv 2306.00317v2); a dash is a cell that it does not have. "
        "Full precision tells whether the checkpoints agree.",
        "## Again",
        f"```\n{_command(record)}\n```",
        "```\npython artifact.py eval .      # measures it again\n"
        "python artifact.py inspect .   # its layers, bits and bytes\n```",
    ]
    return f"{front_matter(record)}\n" + "\n\n".join(parts) + "\n"


def _how(artifact: Artifact, record: Record) -> str:
    grids = Counter(layer.grid for layer in artifact.layers.values())
    weights = "; ".join(
        f"{count} layers at {grid.bits} bit, {kind_of(grid)}, {words(grid.granularity)}"
        for grid, count in grids.most_common()
    )
    kinds = Counter((site.bits, site.static) for site in artifact.sites.values())
    activations = "; ".join(
        f"{count} at {bits} bit, {'a static step each' if static else 'a range for each token'}"
        for (bits, static), count in kinds.most_common()
    )
    rows = {
        "weights": weights,
        "activations": activations or "not quantized",
        "calibration samples": record.settings["num_samples"],
        "seed": record.seed,
        "record": record.run_id,
        "code": record.commit or "no git checkout",
        "made with": ", ".join(f"{name} {v}" for name, v in record.versions.items()),
        "full-precision network, SHA-256": artifact.facts["source"],
    }
    return _table([{"": name, "value": value} for name, value in rows.items()])


def _coverage(record: Record) -> str:
    """Return which share of the blocks' weights they are, empty where the record does not say."""
    if record.quantized_share is None:
        return ""
    kept = f"; left in full precision: {', '.join(record.left)}" if record.left else ""
    return f"They are {record.quantized_share:.2%} of the weights in the model's blocks{kept}. "


def kind_of(grid: Grid) -> str:
    """Return the name of a grid's table of levels, or whether its integers have a zero point."""
    if grid.levels is not None:
        return grid.levels.name
    return "symmetric" if grid.symmetric else "asymmetric"


def words(granularity: Granularity) -> str:
    """Return the command line's name of granularity, with the size of its groups."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(granularity).__name__).lower()
    return " of ".join([name, *(str(size) for size in vars(granularity).values())])


def _numbers(record: Record) -> str:
    found = published_beside(record)
    rows = []
    for metric, value in record.metrics.items():
        full_precision = record.fp_metrics.get(metric)
        here = [j.cell for j in found if j.cell.metric == metric]
        full = {c.printed for c in here if c.method == "fp"}
        own = {f"{c.printed} ({c.table} {c.setting} {c.bits})" for c in here if c.method != "fp"}
        rows.append(
            {
                "metric": metric,
                "quantized": f"{value:.4f}",
                "full precision": f"{full_precision:.4f}" if full_precision is not None else "-",
                "paper": ", ".join(sorted(own)) or "-",
                "paper, full precision": ", ".join(sorted(full)) or "-",
            }
        )
    return _table(rows)


def _command(record: Record) -> str:
    return shlex.join(["python", "run.py", *(record.overrides or []), "save=true"])


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
