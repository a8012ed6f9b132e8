"""Our numbers beside those of the other methods' papers: which run is which of their cells.

A table is called PAPER/TABLE as its preset is, a paper alone is all of its tables. What a table has
and no run of ours can be is named with the reason.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from results.records.record import Record
from results.tables.paper_cells import added, in_whole, trained_on
from results.tables.paper_comparison import (
    ComparedCell,
    full_precision,
    newest_version,
    one_configuration,
)
from results.tables.published_numbers import Cell, others

PAPERS = ("cdquant", "gptq", "lrq", "signround")
# What a published method is called here, by its quant= and the class of its transform=.
METHODS: dict[str, tuple[str, str | None]] = {
    "awq": ("rtn", "AWQ"), "quantease": ("cdquant", None), "brecq": ("adaround", None),
}  # fmt: skip
# How they measure perplexity: GPTQ's windows.
PROTOCOL = {"name": "gptq", "split": "test", "window": 2048, "max_windows": None}
# The version of a task from which on its text is GPTQ's: before, rows were joined otherwise.
SINCE = {"c4": 3}
TRAINED = ("imagenet", "squad")  # whose networks are of the task; others are as they are published
# On ResNets GPTQ's paper has AdaRound and AdaQuant layer by layer, BRECQ block by block.
UNITS = {"adaround": "layer", "adaquant": "layer", "brecq": "block"}
# A published task and metric by the task= and the metric that measure it.
MEASURED = {
    ("zero_shot", "average_11"): ("eleven", "average"),
    ("zero_shot", "mmlu"): ("eleven", "mmlu"),
}

# What a table has that no run of ours can be: by an attribute of its cells, how that begins, why.
REASONS = (
    ("task", "none", "times and memory are of the machine that they were taken on"),
    ("method", "hqq", "HQQ is no method here"),
    ("method", "obq", "OBQ is no method here"),
    ("method", "omniquant", "OmniQuant has more to it than its clipping, quant=lwc"),
    ("metric", "average_share", "which tasks it is the mean of is not said"),
    ("model", "opt_175b", "OPT-175B is given to few"),
    ("model", "bloom", "BLOOM's blocks can't be replayed: its ALiBi folds heads and samples"),
    ("model", "falcon", "Falcon's linear layers have a forward pass of their own"),
)
# What a paper has besides the tables here.
BESIDES = {
    "cdquant": "CDQuant's own tables are of PaLM2, which nobody can get; these are QuantEase's, "
    "whose cyclic descent is the same",
    "lrq": "of LRQ's other tables no number could be read; their presets are there",
}


def of_paper(name: str) -> list[Cell]:
    """Return the cells of PAPER or PAPER/TABLE, by the task= and metric that measure them here.

    Raises:
        ValueError: when there is none; lists those that there are.
    """
    paper, slash, table = name.partition("/")
    if paper not in PAPERS:
        raise ValueError(f"no paper {paper}; there are {', '.join(PAPERS)}")
    cells = [_measured(cell) for cell in others() if cell.paper == paper]
    if not slash:
        return cells
    tables = sorted({cell.table for cell in cells})
    if table not in tables:
        near = difflib.get_close_matches(table, tables, n=1)
        hint = f"did you mean {paper}/{near[0]}? " if near else ""
        raise ValueError(f"no table {name}; {hint}{paper} has {', '.join(tables)}")
    return [cell for cell in cells if cell.table == table]


def _measured(cell: Cell) -> Cell:
    task, metric = MEASURED.get((cell.task, cell.metric), (cell.task, cell.metric))
    return replace(cell, task=task, metric=metric)


def why_not(cell: Cell) -> str | None:
    """Return why no run of ours can be cell; None where one can."""
    found = (why for name, start, why in REASONS if getattr(cell, name).startswith(start))
    return next(found, None)


def left_out(cells: Sequence[Cell]) -> list[str]:
    """Return a line for each reason that cells can't be made for, and of what else their paper has.

    Raises:
        ValueError: when that is all of them.
    """
    found = [reason for cell in cells if (reason := why_not(cell))]
    if len(found) == len(cells):
        (paper,), tables = {c.paper for c in cells}, {c.table for c in cells}
        raise ValueError(f"{paper}/{min(tables)} can't be made here: {'; '.join(set(found))}")
    told = [f"{found.count(reason)} left out: {reason}" for reason in dict.fromkeys(found)]
    return told + [text for paper, text in BESIDES.items() if paper == cells[0].paper]


def compare_with_others(cells: Sequence[Cell], records: Sequence[Record]) -> list[ComparedCell]:
    """Return the cells that can be made, each with what records have of it.

    Raises:
        ValueError: when runs of one cell differ in more than the seed.
    """
    done = newest_version([record for record in records if record.status == "ok"])
    return [ComparedCell(cell, _values(cell, done)) for cell in cells if why_not(cell) is None]


def _values(cell: Cell, records: Sequence[Record]) -> list[float]:
    since = SINCE.get(cell.task, 0)
    named = [r for r in records if (r.model, r.task) == (cell.model, cell.task)]
    named = [r for r in named if (r.task_version or 0) >= since]
    if cell.task not in TRAINED:
        named = [r for r in named if trained_on(r) is None]
    found = [r for r in named if in_whole(r, PROTOCOL)]
    if cell.method == "fp":
        return full_precision(found, cell.metric)
    return one_configuration(cell, [r for r in found if _is(r, cell)])


def _is(record: Record, cell: Cell) -> bool:
    """Return whether record is a run of the cell."""
    settings = record.settings
    transform = (settings.get("transform") or {}).get("_target_")
    recon, activation = settings.get("recon") or {}, settings.get("activation")
    if (record.quant, transform) != METHODS.get(cell.method, (cell.method, None)):
        return False
    if cell.task == "imagenet" and recon.get("unit") != UNITS.get(cell.method):
        return False
    if added(record) - {"transform"}:  # which none of them has
        return False
    words = cell.setting.split() or ["per_channel"]  # SQuAD's table does not say it once more
    kv_bits = None if activation is None else activation.get("kv_bits")
    return (
        not settings["symmetric"]
        and _bits(record) == cell.bits
        and _granularity(settings["granularity"]) == words[0]
        and [w for w in words if w.startswith("kv_bits")] == [f"kv_bits={kv_bits}"] * bool(kv_bits)
        and (record.quant != "gptq" or _is_gptq(settings["quant"], recon, cell.model, words))
    )


def _bits(record: Record) -> str:
    activation = record.settings.get("activation")
    return f"W{record.bits}" + ("" if activation is None else f"A{activation['bits']}")


def _granularity(granularity: dict[str, Any]) -> str:
    size = granularity.get("group_size")
    names = {"PerChannel": "per_channel", "PerTensor": "per_tensor"}
    return names.get(granularity["_target_"], f"group_size={size}")


def _is_gptq(
    quant: dict[str, Any], recon: dict[str, Any], model: str, words: Sequence[str]
) -> bool:
    """Return whether a run of GPTQ is of the tricks that words name.

    LLaMA alone is printed with and without true-sequential. Static groups are what act-order needs
    here, so that they are no trick of their own.
    """
    if quant["act_order"] != ("act_order" in words):
        return False
    told = "sequential" in words
    return bool(recon["sequential"]) == told if told or model.startswith("llama_") else True
