"""Methods in order: mean ranks and wins over settings, which have one metric each.

A setting is a task, a model, bits and whatever else tells cells of the leaderboard apart; its
values are means over the seeds that all its methods have. No mean is taken over settings, whose
metrics may be a percentage here and a perplexity there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from results.records.record import Record
from results.tables.paired_tests import mean_interval
from results.tables.rank_tests import LEAST, critical_difference, friedman, holm, ranks, told_apart
from results.tables.ranked_settings import Setting, settings_of

ERROR = 0.05  # of a pair that is called different


@dataclass
class Ranking:
    """What was found.

    Attributes:
        methods: a row a method, best first: ranked says over how many settings mean_rank is, low
            and high are its interval; wins is the share of paired methods that it is ahead of, in
            percent, over `settings` settings; alike names those that it is not told apart from.
        pairs: a row a pair: the settings in which either is ahead, or none, and the p values.
        remarks: the tests over all methods, and what takes no part.
    """

    methods: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def ranking(records: Sequence[Record], by: Sequence[str] = ()) -> Ranking:
    """Return the methods of records in the order of their mean ranks.

    Raises:
        ValueError: when fewer than two methods have finished a run, or as leaderboard does.
    """
    done = [r for r in records if r.status == "ok"]
    known = list(dict.fromkeys(r.quant for r in done))
    if len(known) < 2:
        told = f"only {known[0]} has" if known else "no method has"
        raise ValueError(f"{told} finished a run; it takes two methods to rank them")
    found = Ranking()
    settings = list(settings_of(done, by, found.remarks))
    pairs = dict(_pairs(settings, known))
    corrected = iter(holm([p for *_, p in pairs.values() if p is not None]))
    alike: dict[str, list[str]] = {method: [] for method in known}
    for (first, second), (differences, p) in pairs.items():
        adjusted = None if p is None else next(corrected)
        if adjusted is None or adjusted >= ERROR:
            untested = "" if adjusted is not None else " (untested)"
            alike[first].append(second + untested)
            alike[second].append(first + untested)
        signs = np.sign(differences)
        found.pairs.append(
            {
                "first": first, "second": second, "settings": len(differences),
                "ahead": int((signs > 0).sum()), "behind": int((signs < 0).sum()),
                "equal": int((signs == 0).sum()), "p": p, "corrected": adjusted,
            }
        )  # fmt: skip
    ranked, blocks = _complete(settings, known)
    places = ranks(blocks) if blocks else np.empty((0, len(ranked)))
    for method in known:
        own = list(places[:, ranked.index(method)]) if method in ranked else []
        row = {"method": method, "ranked": len(own)}
        row |= _mean("mean_rank", own, (1, len(ranked)))
        shares = _shares(settings, method)
        row |= _mean("wins", shares, (0, 100), "wins_") | {"settings": len(shares)}
        found.methods.append(row | {"alike": ", ".join(alike[method])})
    # A method without a rank stands last, in the order of its wins.
    found.methods.sort(key=lambda row: (row["mean_rank"] or len(known) + 1, -(row["wins"] or 0)))
    found.remarks[:0] = _over_all(settings, known, ranked, blocks)
    return found


def _mean(
    name: str, values: Sequence[float], bounds: tuple[float, float], prefix: str = ""
) -> dict[str, Any]:
    """Return a mean and its interval, of enough settings, within what such a mean can be."""
    low, high = (mean_interval(values) if len(values) >= LEAST else None) or (None, None)
    if low is not None and high is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return {
        name: fmean(values) if values else None, f"{prefix}low": low, f"{prefix}high": high,
    }  # fmt: skip


def _pairs(
    settings: Sequence[Setting], known: Sequence[str]
) -> Iterator[tuple[tuple[str, str], tuple[list[float], float | None]]]:
    """Yield two methods, their differences over the settings that both have, and the p value."""
    for first, second in combinations(known, 2):
        differences, metrics = [], set()
        for setting in settings:
            if (values := setting.values((first, second))) is not None:
                differences.append(values[0] - values[1])
                metrics.add(next(iter(setting.runs[first].values()))[0].metric)
        if differences:
            p = told_apart(differences, len(metrics) == 1)
            yield (first, second), (differences, p)


def _shares(settings: Sequence[Setting], method: str) -> list[float]:
    """Return for each setting of method the share of others there it is ahead of, in percent."""
    shares = []
    for setting in settings:
        others = [setting.values((method, other)) for other in setting.runs if other != method]
        points = [50 * (1 + np.sign(pair[0] - pair[1])) for pair in others if pair is not None]
        if method in setting.runs and points:
            shares.append(float(fmean(points)))
    return shares


def _complete(
    settings: Sequence[Setting], known: Sequence[str]
) -> tuple[list[str], list[list[float]]]:
    """Return methods, and their values in the settings that all of them have.

    Methods of few settings are left out one by one, until LEAST settings have all the others; where
    no two methods come so far, the two or more with the most.
    """
    methods, best = list(known), (list(known), _blocks(settings, known))
    while len(methods) > 1:
        blocks = _blocks(settings, methods)
        if len(blocks) > len(best[1]):
            best = (list(methods), blocks)
        if len(blocks) >= LEAST:
            break
        counts = {method: sum(method in s.runs for s in settings) for method in methods}
        methods.remove(min(reversed(methods), key=counts.__getitem__))
    return best


def _blocks(settings: Sequence[Setting], methods: Sequence[str]) -> list[list[float]]:
    held = (setting.values(methods) for setting in settings)
    return [values for values in held if values is not None]


def _over_all(
    settings: Sequence[Setting], known: Sequence[str], ranked: Sequence[str],
    blocks: Sequence[Sequence[float]],
) -> list[str]:  # fmt: skip
    """Return what holds for all ranked methods together."""
    count = len(blocks)
    told = [
        f"mean rank: over the {count} of {len(settings)} settings that have {', '.join(ranked)}; "
        "1 is best. wins: share of the methods of a setting that one is ahead of, a tie half. "
        "Intervals: 95 %, Student's t over settings. Settings of one network are not "
        "independent, so intervals are too narrow where few networks have many settings."
    ]
    if left := [method for method in known if method not in ranked]:
        told.append(f"not ranked, for too few settings in common: {', '.join(left)}")
    if count < LEAST:
        told.append(
            f"{count} settings in common, {LEAST} are needed: no interval, and nothing is tested"
        )
        return told
    p = friedman(blocks)
    text = "" if p is None else f"Friedman's test of no order at all: p = {p:.3g}. "
    gap = critical_difference(len(ranked), count)
    told.append(f"{text}Critical difference of two mean ranks (Nemenyi, 5 %): {gap:.2f}")
    return told
