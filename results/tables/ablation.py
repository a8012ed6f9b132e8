"""Ablation: one setting varied, all others held; a row for what is held, a column a value.

What is held is told by the records alone: the options and groups that their command lines gave, and
whatever one value of the setting has several values of. Everything else that differs between two
such runs follows from the varied setting (a learning rate tuned for a method, a size computed from
another) or from a default that was another one then; it is named below the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from results.records.given import below, word
from results.records.record import Record
from results.records.selection import ABSENT, check_known, facts, nearest, value_of
from results.tables.ablation_groups import Group, Held, groups_of
from results.tables.cell import SEEDS
from results.tables.formats import MARK, PLUS_MINUS, latex, markdown
from results.tables.leaderboard import CELL, TOLD_APART, mean_text, numbers


@dataclass
class Ablation:
    """What was found.

    Attributes:
        names: the held settings that tell the rows apart.
        table: a row for each row's value: names, the value, and what `numbers` says.
        remarks: what changed along, and which runs have no such setting.
    """

    names: list[str]
    table: pd.DataFrame
    remarks: list[str]


def ablation(records: Sequence[Record], setting: str, by: Sequence[str] = ()) -> Ablation:
    """Return the runs in groups that differ in setting alone, the seed aside.

    by are settings to hold though they change along with setting.

    Raises:
        ValueError: for a setting that no record has or that has one value, and when no two runs
            differ in it alone.
    """
    for name in by:
        check_known(records, name, f"--by {name}")
    having = [record for record in records if value_of(record, setting) is not ABSENT]
    if not having:
        known = {name for r in records for name in facts(r)} | {"granularity", "activation"}
        raise ValueError(f"no record has a setting {setting}{nearest(setting, known)}")
    values = in_order(value_of(record, setting) for record in having)
    if len(values) == 1:
        raise ValueError(
            f"{setting} is {word(values[0])} in all {len(having)} runs that have it; "
            f"python run.py -m {setting}=... with several values makes others"
        )
    groups = groups_of(having, setting, by)
    varied = {held: group for held, group in groups.items() if len(group) > 1}
    if not varied:
        raise ValueError(_nothing_alone(groups, setting))
    names = _telling(list(varied), by, setting)
    rows = [
        {name: dict(held).get(name, "-") for name in names}
        | {setting: word(value)} | numbers(group[value])
        for held, group in varied.items() for value in values if value in group
    ]  # fmt: skip
    remarks = _along(varied.values(), setting)
    ways = dict.fromkeys(row["mixed"] for row in rows if pd.notna(row["mixed"]))
    remarks += [f"{MARK} runs of one cell differ in {told}" for told in ways]
    if len(having) < len(records):
        remarks.append(f"{len(records) - len(having)} runs have no {setting}")
    left = sum(len(runs) for g in groups.values() if len(g) == 1 for runs in g.values())
    if left:
        remarks.append(f"{left} runs have no other that differs in {setting} alone")
    return Ablation(names, pd.DataFrame(rows), remarks)


def in_order(values: Iterable[Any]) -> list[Any]:
    """Return the different values: null first, numbers ascending, words as they come."""
    different = list(dict.fromkeys(values))
    numeric = [v for v in different if isinstance(v, int | float)]
    words = [v for v in different if v is not None and v not in numeric]
    return [*([None] if None in different else []), *sorted(numeric), *words]


def _telling(keys: Sequence[Held], by: Sequence[str], setting: str) -> list[str]:
    """Return the names that a row needs: its cell's, by, and what else tells it apart."""
    helds = [dict(key) for key in keys]
    names = [n for n in (*CELL, "bits", *by) if n != setting and any(n in h for h in helds)]
    if len({h.get("task") for h in helds}) == 1 and "task" in names:
        names.remove("task")
    differing = {n for held in helds for n in held if len({h.get(n) for h in helds}) > 1}
    order = (n not in TOLD_APART for n in differing)
    for _, _, name in sorted(zip(order, (n.count(".") for n in differing), differing, strict=True)):
        shown = [tuple(h.get(n) for n in names) for h in helds]
        with_it = [(*own, h.get(name)) for own, h in zip(shown, helds, strict=True)]
        if len(set(with_it)) > len(set(shown)) and name not in names:
            names.append(name)
    return names


def _along(groups: Iterable[Group], setting: str) -> list[str]:
    """Return which other settings changed with the varied one, and how."""
    changed: dict[str, list[Any]] = {}
    for group in groups:
        flats = [facts(runs[0]) for runs in group.values()]
        names = dict.fromkeys(name for flat in flats for name in flat)
        for name in names:
            if name in (*SEEDS, "metric") or below(name, [setting]):
                continue
            found = [str(flat[name]) if isinstance(flat[name], list) else flat[name]
                     for flat in flats if name in flat]  # fmt: skip
            if len(set(found)) > 1:
                changed.setdefault(name, []).extend(found)
    told = [f"{name} ({', '.join(map(word, in_order(v)))})" for name, v in changed.items()]
    return [f"along with {setting} changed {', '.join(told)}"] if told else []


def _nothing_alone(groups: dict[Held, Group], setting: str) -> str:
    """Return why no two runs differ in setting alone, by the two that are closest to it."""
    pairs: list[list[str]] = [
        [name for name in dict(a).keys() | dict(b).keys() if dict(a).get(name) != dict(b).get(name)]
        for (a, left), (b, right) in combinations(groups.items(), 2)
        if left.keys() != right.keys()
    ]
    closest = ", ".join(sorted(min(pairs, key=lambda names: len(list(names)))))
    return f"no two runs differ in {setting} alone; the closest differ in {closest} too"


def render(found: Ablation, setting: str, form: str) -> str:
    """Return the ablation as markdown or latex text, or a row for each value as csv."""
    if form == "csv":
        return found.table.to_csv(index=False).rstrip("\n")
    shown = _shown(found, setting)
    if form == "latex":
        return latex(shown)
    metrics = " or ".join(found.table["metric"].dropna().unique())
    caption = f"{metrics}; mean {PLUS_MINUS} standard deviation over seeds (how many)"
    return "\n\n".join([markdown(shown), caption, *found.remarks])


def _shown(found: Ablation, setting: str) -> pd.DataFrame:
    """Return a row for each set of held settings, a column for each value."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for row in found.table.to_dict("records"):
        key = tuple(row[name] for name in found.names)
        text = f"{mean_text(row)} ({row['n']})" if row["n"] else "failed"
        rows.setdefault(key, {})[row[setting]] = text
    columns = list(dict.fromkeys(found.table[setting]))
    return pd.DataFrame(
        [
            dict(zip(found.names, key, strict=True))
            | {f"{setting}={value}": texts.get(value, "-") for value in columns}
            for key, texts in rows.items()
        ]
    )
