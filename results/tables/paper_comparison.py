"""Our numbers beside the paper's, cell by cell: value, difference, and the order of the methods.

The paper's value of an ImageNet cell is the median of five trials; ours is the median of the seeds
that there are. A difference counts as noise (~) when it is no larger than the standard deviation of
at least two seeds. Which checkpoint was quantized shows in the full-precision rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from statistics import fmean, median, stdev
from typing import Any

import pandas as pd

from results.records.given import by_hand
from results.records.off import TARGET, turned_on
from results.records.record import Record
from results.records.selection import fact
from results.tables.cell import differing
from results.tables.formats import markdown
from results.tables.published_numbers import Cell, published

LOWER_IS_BETTER = ("perplexity",)
# How the paper measures perplexity.
PROTOCOL = {"name": "run_clm", "split": "validation", "window": 1024, "max_windows": None}
TRAINED = frozenset({"finetuned", "lora"})  # words for a network trained on the task before
ALWAYS_TRAINED = ("glue/", "squad")
TUNED = "tuned_lr"  # the word for a learning rate of each task's own
ASIDE = {"stream_dtype"}  # of what a run can turn on, what is no part of its method


@dataclass(frozen=True)
class ComparedCell:
    """A published cell with our values of it, one a seed."""

    cell: Cell
    ours: Sequence[float]

    @property
    def value(self) -> float | None:
        """Our median, None without a run."""
        return median(self.ours) if self.ours else None

    @property
    def noise(self) -> bool:
        """Whether the difference to the paper is within the seeds' spread."""
        if self.value is None or len(self.ours) < 2:
            return False
        return abs(self.value - self.cell.value) <= stdev(self.ours)


def compare_with_paper(table: str, records: Sequence[Record]) -> list[ComparedCell]:
    """Return every cell of a published table with what records have of it.

    Raises:
        ValueError: when there is no such table, or runs of one cell differ in more than the seed.
    """
    cells = [replace(c, task=_task(c)) for c in published(table) if "." not in c.metric]
    if not cells:
        raise ValueError(f"{table} lists settings, not results; they are in conf/tuned/")
    done = newest_version([record for record in records if record.status == "ok"])
    return [ComparedCell(cell, _values(cell, done)) for cell in cells]


def newest_version(records: Sequence[Record]) -> list[Record]:
    """Return the records of each task's newest version, which others do not compare with."""
    newest: dict[str, int] = {}
    for record in records:
        newest[record.task] = max(newest.get(record.task, 0), record.task_version or 0)
    return [record for record in records if record.task_version == newest[record.task]]


def published_beside(record: Record) -> list[ComparedCell]:
    """Return the published cells that record is a run of, each with its value."""
    cells = [cell for cell in published() if "." not in cell.metric]
    return [ComparedCell(cell, ours) for cell in cells if (ours := _values(cell, [record]))]


def _values(cell: Cell, records: Sequence[Record]) -> list[float]:
    found = [r for r in records if _is_measured(r, cell)]
    if cell.method == "fp":
        return full_precision(found, cell.metric)
    own = [r for r in found if _is(r, cell)]
    return one_configuration(cell, _best_rate(own, cell) if TUNED in cell.setting.split() else own)


def _best_rate(records: Sequence[Record], cell: Cell) -> list[Record]:
    """Return those of the learning rate with the best mean, as the paper has chosen its own."""
    by_rate: dict[Any, list[Record]] = {}
    for record in records:
        if cell.metric in record.metrics:
            by_rate.setdefault(fact(record, "recon.lr"), []).append(record)
    sign = 1 if all(r.higher_is_better for r in records) else -1
    means = {lr: sign * fmean(r.metrics[cell.metric] for r in by_rate[lr]) for lr in by_rate}
    return by_rate[max(means, key=means.__getitem__)] if means else []


def full_precision(records: Sequence[Record], metric: str) -> list[float]:
    """Return the metric of the network that records started from; nothing of several.

    One network has other last digits on another processor: it has their median.
    """
    held = [r for r in records if metric in r.fp_metrics]
    values = [r.fp_metrics[metric] for r in held]
    networks = {r.network for r in held}  # None of an old record, of which nothing is known
    one = len(set(values)) == 1 or (len(networks) == 1 and None not in networks)
    return [median(values)] if one else []


def one_configuration(cell: Cell, records: Sequence[Record]) -> list[float]:
    """Return the values of a cell's runs, one a seed.

    Raises:
        ValueError: when they differ in more than the seed; names what in.
    """
    found = [r for r in records if isfinite(r.metrics.get(cell.metric, nan))]
    unlike = differing(found) if found else {}
    if unlike or len({r.seed for r in found}) < len(found):
        told = "; ".join(f"{name} ({', '.join(values)})" for name, values in unlike.items())
        table = f"{cell.paper}/{cell.table}" if cell.paper else cell.table
        raise ValueError(
            f"several configurations fall into {table} {cell.model} {cell.task} {cell.method} "
            f"{cell.setting} {cell.bits}: {told or 'a seed twice'}; choose with --where"
        )
    return [r.metrics[cell.metric] for r in found]


def _is_measured(record: Record, cell: Cell) -> bool:
    """Return whether record is of the cell's network in full precision, measured as it is."""
    if (record.model, record.task) != (cell.model, _task(cell)):
        return False
    own, words = record.settings.get("checkpoint") is None, cell.setting.split()
    if cell.task == "imagenet":
        model = record.settings["model"]
        changed = [name for name in ("equalize", "absorb_biases") if model.get(name)]
        wanted = [name for name in ("equalize", "absorb_biases") if name in words]
        return own == ("torchvision" in words) and changed == wanted
    trained = bool(TRAINED.intersection(words)) or cell.task.startswith(ALWAYS_TRAINED)
    return own != trained and in_whole(record, PROTOCOL)


def in_whole(record: Record, protocol: dict[str, Any]) -> bool:
    """Return whether a run is measured on every item, a perplexity by protocol."""
    task = record.settings["task"]
    if task.get("protocol") is None:
        return task.get("limit") is None and task.get("max_eval") is None
    return bool({name: task["protocol"].get(name) for name in protocol} == protocol)


def _is(record: Record, cell: Cell) -> bool:
    """Return whether a run of the cell's network is quantized as the cell is."""
    settings, words = record.settings, cell.setting.split()
    if record.quant != cell.method or turned_on(settings) - ASIDE:
        return False
    scheme = settings.get("activation")
    if scheme is not None and (scheme[TARGET] != "StaticPerTensor" or scheme.get("kv_bits")):
        return False
    bits = f"W{record.bits}A{settings['act_bits']}" if scheme is not None else f"W{record.bits}"
    together = scheme is not None and settings.get("recon", {}).get("act_steps") == "together"
    wanted = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    samples = wanted.get("num_samples", str(settings["num_samples"]))
    rows = cell.model.startswith("llama")  # whose weights have a scale for each
    tried = "recon.lr" in by_hand(record)
    return (
        bits == (cell.bits if scheme is not None else cell.bits.partition("A")[0])
        and (scheme is not None or cell.bits.endswith(("A16", "A32")))
        and ("Q" if together else "B") == words[0]
        and str(settings["num_samples"]) == samples
        and settings["symmetric"] == (cell.task == "imagenet")
        and settings["granularity"][TARGET] == ("PerChannel" if rows else "PerTensor")
        and (not cell.task.startswith("glue/") or tried == (TUNED in words))
    )


def _task(cell: Cell) -> str:
    return "five_shot" if "num_fewshot=5" in cell.setting.split() else cell.task


def frame(joined: Sequence[ComparedCell]) -> pd.DataFrame:
    """Return one row a cell: names, ours, n, paper, difference, noise, and both ranks.

    A rank is the place among the methods of one model, task, setting, bits and metric, 1 the best,
    and missing where any of them has no run of ours.
    """
    rows = [
        {
            "model": j.cell.model,
            "task": j.cell.task,
            "method": j.cell.method,
            "setting": j.cell.setting,
            "bits": j.cell.bits,
            "metric": j.cell.metric,
            "ours": j.value,
            "n": len(j.ours),
            "paper": j.cell.value,
            "difference": None if j.value is None else j.value - j.cell.value,
            "noise": j.noise,
            "note": j.cell.note,
        }
        for j in joined
    ]
    table = pd.DataFrame(rows)
    column = ["model", "task", "setting", "bits", "metric"]
    for _, group in table.groupby(column, sort=False):
        if len(group) < 2:
            continue
        ascending = group["metric"].iloc[0] in LOWER_IS_BETTER
        for name in ("ours", "paper"):
            if group["ours"].notna().all():
                ranks = group[name].astype(float).rank(ascending=ascending, method="min")
                table.loc[group.index, f"rank_{name}"] = ranks
    return table


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """Return the join's cells as text."""
    return pd.DataFrame(
        {
            **{name: table[name] for name in ("model", "task", "method", "setting", "bits")},
            "metric": table["metric"],
            "ours": [_number(v) for v in table["ours"]],
            "seeds": table["n"],
            "paper": [_number(v) for v in table["paper"]],
            "difference": [
                _number(d, "+.2f") + (" ~" if noise else "")
                for d, noise in zip(table["difference"], table["noise"], strict=True)
            ],
            "note": table["note"],
        }
    )


def text(table: pd.DataFrame) -> str:
    """Return the join in Markdown, with how many orders agree."""
    lines = [markdown(as_text(table))]
    if "rank_ours" in table:
        column = ["model", "task", "setting", "bits", "metric"]
        ranked = table.dropna(subset=["rank_ours"]).groupby(column, sort=False)
        same = [bool((g["rank_ours"] == g["rank_paper"]).all()) for _, g in ranked]
        lines.append(f"\nmethods in the paper's order in {sum(same)} of {len(same)} columns")
    lines.append("\n~ within the standard deviation of our seeds")
    return "\n".join(lines)


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None or pd.isna(value) else f"{value:{form}}"
