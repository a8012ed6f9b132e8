"""Searches: what each method's trials found, whether the methods had the same budget, the winners.

A trial is chosen by the error on the calibration samples that its run held out. Both errors and
metrics are read from the trials' records, so that a winner that another thing chose is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from results.records.record import Record
from results.records.searches import Search, held_out_error
from results.tables.formats import latex, markdown

OWN = ("quant", "recon.lr", "recon.iters", "recon.batch_size", "recon.schedule")
COLUMNS = ("method", "trials", "failed", "held-out error of the first", "of the best", "values")


@dataclass(frozen=True)
class Searched:
    """A search with what its trials found.

    Attributes:
        search: the search.
        records: of its trials, None where there is none.
        errors: on held-out samples, None where a trial has none.
    """

    search: Search
    records: Sequence[Record | None]
    errors: Sequence[float | None]

    @property
    def best(self) -> int | None:
        """The number of the trial with the lowest error, the first of several; None without any."""
        known = [(error, at) for at, error in enumerate(self.errors) if error is not None]
        return min(known)[1] if known else None

    @property
    def setting(self) -> tuple[str, ...]:
        """What it shares with other methods' searches: its overrides but for the method's own."""
        return tuple(text for text in self.search.setting if text.partition("=")[0] not in OWN)


def searched(searches: Sequence[Search], records: Mapping[str, Record]) -> list[Searched]:
    """Return searches with the records of their trials, which are found by their runs' names."""
    found = []
    for search in searches:
        own = [records.get(trial.run_id or "") for trial in search.trials]
        errors = [None if record is None else held_out_error(record) for record in own]
        found.append(Searched(search, own, errors))
    return found


def check_choice(found: Searched) -> None:
    """Check that the search's winner is the trial of the lowest error on held-out samples.

    Raises:
        ValueError: when the trials have no such error, or another trial was chosen; tells where the
            metric of the test set would have chosen that one.
    """
    name, search = found.search.name, found.search
    kept = [record for record in found.records if record is not None and record.status == "ok"]
    if not kept:
        return
    if found.best is None:
        raise ValueError(
            f"search {name}: its trials have no error on held-out samples, so a metric of the test "
            "set has chosen; search again with recon.held_out=N"
        )
    if search.chosen == found.best:
        return
    chosen = None if search.chosen is None else found.records[search.chosen]
    by_test = ""
    if chosen is not None and chosen.value is not None:
        sign = 1 if chosen.higher_is_better else -1
        if all(sign * chosen.value >= sign * (r.value or 0.0) for r in kept):
            by_test = f", whose {chosen.metric} on the test set is the best: that has chosen it"
    raise ValueError(
        f"search {name}: its winner is trial {search.chosen}{by_test}; trial {found.best} has the "
        "lowest error on held-out samples"
    )


def check_budgets(found: Sequence[Searched]) -> None:
    """Check that the methods of each setting had the same number of trials, all of them run.

    Raises:
        ValueError: when they had not; names the methods with their numbers.
    """
    for members in _by_setting(counted(found)).values():
        counts = {one.search.method: len(one.search.trials) for one in members}
        wanted = {one.search.budget for one in members} | set(counts.values())
        if len(wanted) > 1:
            told = ", ".join(
                f"{one.search.method} {len(one.search.trials)} of {one.search.budget}"
                for one in members
            )
            raise ValueError(
                f"unequal budgets at {' '.join(members[0].setting)}: {told} trials; give the "
                "methods the same hydra.sweeper.trials and finish their searches"
            )


def counted(found: Sequence[Searched]) -> list[Searched]:
    """Return the searches that count: of a method's in one setting and space the longest finished.

    Given again with more trials a search is another one, and the shorter stays where it is.
    """
    groups: dict[tuple[Any, ...], list[Searched]] = {}
    for one in found:
        space = tuple(sorted(one.search.space.items()))
        groups.setdefault((one.search.method, *sorted(one.setting), space), []).append(one)
    kept = []
    for members in groups.values():
        done = [one for one in members if len(one.search.trials) == one.search.budget]
        kept.append(max(done or members, key=lambda one: one.search.budget))
    return kept


def _by_setting(found: Sequence[Searched]) -> dict[tuple[str, ...], list[Searched]]:
    groups: dict[tuple[str, ...], list[Searched]] = {}
    for one in found:
        groups.setdefault(tuple(sorted(one.setting)), []).append(one)
    return groups


def report(found: Sequence[Searched], form: str = "markdown") -> str:
    """Return the searches setting by setting, a row each, with what is wrong with them.

    The metric of the test set is not among what is shown.
    """
    if form != "markdown":
        table = pd.DataFrame([{"setting": " ".join(one.setting), **_row(one)} for one in found])
        return latex(table.astype(str)) if form == "latex" else table.to_csv(index=False).rstrip()
    parts = []
    for setting, table, wrong in tables(found):
        parts += [setting, markdown(table), *wrong]
    parts.append(CAPTION)
    return "\n\n".join(parts)


def tables(found: Sequence[Searched]) -> list[tuple[str, pd.DataFrame, list[str]]]:
    """Return each setting with its searches, a row each, and what is wrong with them."""
    return [
        (" ".join(ones[0].setting), pd.DataFrame([_row(one) for one in ones]), problems(ones))
        for ones in _by_setting(found).values()
    ]


CAPTION = (
    "error: geometric mean of the units' errors on calibration samples that were held out, by "
    "which the values are chosen; the first trial is the setting as it stands, where it is in the "
    "space. "
    "Errors of different methods and of one setting compare; no metric of the test set has a part."
)


def problems(found: Sequence[Searched]) -> list[str]:
    """Return what is wrong with searches of one setting, a line each."""
    checks: list[Callable[[], None]] = [partial(check_budgets, found)]
    checks += [partial(check_choice, one) for one in found]
    told = []
    for check in checks:
        try:
            check()
        except ValueError as error:
            told.append(f"not fair: {error}")
    return told


def _row(one: Searched) -> dict[str, Any]:
    search, best = one.search, one.best
    first = one.errors[0] if one.errors else None
    values = "-" if best is None else _values(search.trials[best].values)
    failed = sum(error is None for error in one.errors)
    cells = (
        search.method, f"{len(search.trials)} of {search.budget}", str(failed), _error(first),
        "-" if best is None else _error(one.errors[best]), values,
    )  # fmt: skip
    return dict(zip(COLUMNS, cells, strict=True))


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.4g}"


def _values(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value:g}" for name, value in values.items())


def trials(found: Sequence[Searched], form: str = "markdown") -> str:
    """Return every trial, a row each: its values, its run and its error."""
    rows = [
        {
            "search": one.search.name, "trial": str(at), "values": _values(trial.values),
            "run": trial.run_id or "-", "held-out error": _error(error),
            "best": "yes" if at == one.best else "",
        }
        for one in found
        for at, (trial, error) in enumerate(zip(one.search.trials, one.errors, strict=True))
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    if form == "csv":
        return table.to_csv(index=False).rstrip()
    return latex(table) if form == "latex" else markdown(table)
