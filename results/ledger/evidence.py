"""Records behind a claim: those whose command lines gave what its cells give, paired by seed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, product
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from results.ledger.claims import Claim, Overrides
from results.ledger.statistics import Estimate
from results.records.given import by_hand, chosen_by_hand
from results.records.outcomes import Outcomes
from results.records.record import Record
from results.records.selection import flatten
from results.tables.cell import differing
from results.tables.mixed import MACHINE, mixed
from results.tables.paired_tests import PERPLEXITY

ERROR = "error"  # the geometric mean of the units' errors
LOGARITHMIC = (PERPLEXITY, "kl", "kl_median", "kl_p99", ERROR)  # compared by their ratio
PLACES = ("root", "local", "include_path")  # last words of options of data, known by their content
SEED = "seed"  # by which the runs of a cell are told apart
ALIKE = ("task_version", "network", "evaluation_data", "metric")
# Options that make another network in full precision.
OF_NETWORK = (
    "checkpoint", "finetuned", "model.source", "model.weights", "model.equalize",
    "model.absorb_biases",
)  # fmt: skip

Found = dict[Overrides, dict[int, Record]]
OutcomesOf = Callable[[Record], Outcomes]


def cells_of(records: Iterable[Record]) -> Found:
    """Return the newest finished record of each cell and seed."""
    found: Found = {}
    for record in sorted(records, key=lambda r: r.started):
        if record.status == "ok" and record.overrides is not None:
            given = chosen_by_hand(record).items()
            cell = frozenset(f"{name}={value}" for name, value in given if name != SEED)
            found.setdefault(cell, {})[record.seed] = record
    return found


def missing(claim: Claim, found: Found) -> list[tuple[Overrides, int]]:
    """Return the (cell, seed) that have no record yet."""
    return [
        (cell, seed)
        for cell in claim.cells
        for seed in range(claim.seeds)
        if seed not in found.get(cell, {})
    ]


def conflict(claim: Claim, found: Found) -> str | None:
    """Return why the records of a claim do not compare, None where they do.

    Those of each of its settings must be of one task and data, those of a cell of one
    configuration, those of a seed of one network, and all have its metric. Seeds may differ in the
    network: one that a task trains on first use has
    other last bits on another processor.
    """
    for more, less in claim.settings:
        held = [r for cell in (*more, *less) for r in found.get(cell, {}).values()]
        seen: dict[tuple[Any, ...], set[str]] = {}
        for record, name in product(held, ALIKE):
            own = record.seed if name == "network" else None
            key = (name, own, *_of(record, name))
            seen.setdefault(key, set()).add(str(getattr(record, name)))
        for record in held:
            for name, value in _data_of(record):
                seen.setdefault((name, *_of(record, name), _asked_of(record)), set()).add(value)
        for (name, *_), values in seen.items():
            if len(values) > 1:
                told = " and ".join(sorted(_shorter(value) for value in values))
                return f"its records have {name} {told}; rerun=true makes them again"
        for cell in (*more, *less):
            runs = list(found.get(cell, {}).values())
            for name, words in (differing(runs) if runs else {}).items():
                told = " and ".join(map(_shorter, words))
                return f"its records of one setting have {name} {told}; rerun=true makes them again"
        for record in held:
            if why := _lacks(record, claim.metric or str(record.metric)):
                return why
    return None


def _shorter(value: str) -> str:
    """Return a value, the beginning of a digest."""
    digest = value.removeprefix("sha256:")
    return digest[:12] if re.fullmatch(r"[0-9a-f]{32,64}", digest) else value


def _asked_of(record: Record) -> str | None:
    """Return which calibration set the command line asked for."""
    return by_hand(record).get("calibration")


def _data_of(record: Record) -> Iterator[tuple[str, str]]:
    """Yield what record calls the files and folders of data that it read, by its option."""
    for name, value in flatten(record.settings).items():
        if name.rpartition(".")[2] in PLACES and value is not None:
            yield name, str(value)


def _of(record: Record, name: str) -> tuple[Any, ...]:
    """Return what records have in common that must be of one name: network, metric and so on.

    The model and the task; for the network also what the command line asked of it.
    """
    asked = {n: v for n, v in by_hand(record).items() if n in OF_NETWORK}
    own = frozenset(asked.items()) if name == "network" else None
    return record.model, record.task, own


def mixed_arms(claim: Claim, found: Found) -> str | None:
    """Return on which different machines the runs were that a seed contrasts; None on one."""
    told: dict[str, None] = {}
    for more, less in claim.settings:
        for arms in _pairs(found, (*more, *less)).values():
            if unlike := mixed(arms, MACHINE):
                told[unlike] = None
    return "; ".join(told) or None


def mixed_seeds(claim: Claim, found: Found) -> str | None:
    """Return of how many full-precision networks the seeds are; None where of one."""
    most = 1
    for more, less in claim.settings:
        of: dict[tuple[Any, ...], set[str | None]] = {}
        for record in chain.from_iterable(_pairs(found, (*more, *less)).values()):
            of.setdefault(_of(record, "network"), set()).add(record.network)
        most = max([most, *map(len, of.values())])
    return f"{most} full-precision networks" if most > 1 else None


def _pairs(found: Found, cells: Iterable[Overrides]) -> dict[int, list[Record]]:
    """Return the records of cells for each seed that all of them have."""
    runs = [found.get(cell, {}) for cell in cells]
    return {seed: [own[seed] for own in runs] for seed in set.intersection(*map(set, runs))}


def estimate(claim: Claim, found: Found, outcomes: OutcomesOf) -> Estimate | None:
    """Return claim's contrast by seed, None where no seed has all of its cells."""
    seeds = set.intersection(*({*found.get(cell, {})} for cell in claim.cells))
    if not seeds:
        return None
    by_setting = []
    for more, less in claim.settings:
        rows = [
            [
                *((+1, found[cell][seed]) for cell in more),
                *((-1, found[cell][seed]) for cell in less),
            ]
            for seed in sorted(seeds)
        ]
        by_setting.append((rows, _sampling(rows, claim.metric, outcomes)))
    values = tuple(
        fmean(_contrast(rows[k], claim.metric) for rows, _ in by_setting) for k in range(len(seeds))
    )
    variances = [sampling for _, sampling in by_setting]
    if any(v is None for v in variances):
        return Estimate(values)
    # Settings share their samples: as if they were wholly correlated, standard errors add.
    error = fmean(math.sqrt(v[0]) for v in variances if v)
    return Estimate(values, error**2, min(v[1] for v in variances if v))


Terms = Sequence[tuple[int, Record]]


def _contrast(terms: Terms, metric: str | None) -> float:
    """Return the contrast of one seed, positive for the better."""
    name = metric or str(terms[0][1].metric)
    total = sum(sign * scaled(name, value_of(record, name)) for sign, record in terms)
    return better(name, terms[0][1]) * total


def _lacks(record: Record, metric: str) -> str | None:
    """Return that record has no value of metric, None where it has one."""
    if metric in record.metrics or (metric == ERROR and record.blocks):
        return None
    given = " ".join(record.overrides or ())
    return f"the run {record.run_id} ({given}) has no {metric}; it has {', '.join(record.metrics)}"


def value_of(record: Record, metric: str) -> float:
    """Return record's value of metric.

    Raises:
        ValueError: when it has none.
    """
    if why := _lacks(record, metric):
        raise ValueError(why)
    if metric == ERROR and record.blocks:
        return math.exp(fmean(math.log(max(b["error_after"], 1e-30)) for b in record.blocks))
    return record.metrics[metric]


def scaled(metric: str, value: float) -> float:
    """Return value as contrasts add it: 100 times the logarithm of what is compared by ratio."""
    return 100 * math.log(value) if metric in LOGARITHMIC else value


def better(metric: str, record: Record) -> int:
    """Return 1 where more of metric is better, else -1."""
    if metric == record.metric:
        return 1 if record.higher_is_better else -1
    return -1 if metric in LOGARITHMIC else 1


def _sampling(
    rows: Sequence[Terms], metric: str | None, outcomes: OutcomesOf
) -> tuple[float, int] | None:
    """Return (variance, samples) of the contrast's mean over evaluation samples.

    None where a run keeps no outcomes of the metric.
    """
    name = metric or str(rows[0][0][1].metric)
    by_seed: list[NDArray[np.float64]] = []
    for terms in rows:
        parts = [(sign, _linear(outcomes(record), name)) for sign, record in terms]
        lengths = {len(part) for _, part in parts if part is not None}
        if any(part is None for _, part in parts) or len(lengths) != 1:
            return None
        by_seed.append(sum(sign * part for sign, part in parts if part is not None))  # type: ignore[arg-type]
    if len({len(own) for own in by_seed}) != 1 or len(by_seed[0]) < 2:
        return None
    whole = np.mean(by_seed, axis=0)
    return float(np.var(whole, ddof=1)) / len(whole), len(whole)


def _linear(held: Mapping[str, NDArray[Any]], metric: str) -> NDArray[np.float64] | None:
    """Return what each sample adds to the scaled metric [samples], to first order."""
    if metric not in held:
        return None
    values = held[metric].astype(np.float64)
    if metric == PERPLEXITY or held[metric].dtype == bool:
        return 100 * values  # of a perplexity its logarithms are kept
    return 100 * values / values.mean() if metric in LOGARITHMIC else values
