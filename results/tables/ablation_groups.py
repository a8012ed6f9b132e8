"""Runs of an ablation in groups that differ in the varied setting alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from results.records.given import below, by_hand, chosen_by_hand, word
from results.records.off import LOOP, TARGET
from results.records.record import Record
from results.records.selection import ABSENT, fact, facts, value_of
from results.tables.cell import SEEDS
from results.tables.leaderboard import CELL

Held = tuple[tuple[str, str], ...]
Group = dict[Any, list[Record]]


def groups_of(records: Sequence[Record], setting: str, by: Sequence[str]) -> dict[Held, Group]:
    """Return the runs by what is held, then by their value.

    Where setting is a group, some of its members have no value of what is held, as a method without
    a loop has no recon.iters: their runs are beside every value of that.
    """
    given = _given(records, setting) | {*by}
    alike: dict[Held, list[Record]] = {}
    for record in records:
        own = facts(record)
        names = list(own) if record.overrides is None else [*CELL, "bits", "task_version", *given]
        free = [name for name in names if name in SEEDS or below(name, [setting])]
        held = {name for name in names if name in by or name not in free}
        values = by_hand(record) | {name: word(value) for name, value in own.items()}
        alike.setdefault(_texts(values, held), []).append(record)
    groups: dict[Held, Group] = {}
    for shared, members in alike.items():
        swept = _swept(members, setting)
        for record in members:
            own = {name: fact(record, name, ABSENT) for name in swept}
            held_too = _texts({n: word(v) for n, v in own.items() if v is not ABSENT}, swept)
            group = groups.setdefault(tuple(sorted({*shared, *held_too})), {})
            group.setdefault(value_of(record, setting), []).append(record)
    for group in groups.values():
        for value, runs in group.items():
            group[value] = [r for r in runs if r.status == "ok"] or runs
    target = f"{setting}.{TARGET}"
    is_group = any(fact(record, target, ABSENT) is not ABSENT for record in records)
    return _joined(groups, setting) if is_group else groups


def _joined(groups: dict[Held, Group], setting: str) -> dict[Held, Group]:
    """Return groups with the runs that lack some of what is held in each that they else equal."""
    left = dict(sorted(groups.items(), key=lambda item: -len(item[0])))
    names = {held: dict(held).keys() for held in groups}
    for held, group in list(left.items()):
        own, placed = set(held), set[Any]()
        for other, there in left.items():
            if len(other) == len(held):
                break  # from here on none holds more
            if not own.issubset(other):
                continue
            more, example = names[other] - names[held], next(iter(there.values()))[0]
            new = {
                value: runs for value, runs in group.items()
                if value not in there and _lacks(runs[0], example, more, setting)
            }  # fmt: skip
            there.update(new)
            placed.update(new)
        for value in placed:
            del group[value]
        if not group:
            del left[held]
    return {held: left[held] for held in groups if held in left}


def _lacks(record: Record, there: Record, names: Iterable[str], setting: str) -> bool:
    """Return whether names are settings that a record can't have, and there, another one, has.

    A method without a loop has no option of recon. Any other option, such as act_bits, a record can
    only lack for its member of setting where the members of all other groups are the same.
    """
    without, having = facts(record), facts(there)
    classes = {name for name in (*without, *having) if name.endswith(f".{TARGET}")}
    alike = all(
        without.get(name) == having.get(name)
        for name in classes if not below(name, [setting, LOOP])
    )  # fmt: skip
    return all(
        any(below(known, [name]) for known in having)
        and not any(below(known, [name]) for known in without)
        and (alike or below(name, [LOOP]))
        for name in names
    )


def _given(records: Sequence[Record], setting: str) -> set[str]:
    """Return what was chosen by hand, by the names that hold for what was not, too.

    A member of a group is its class where that tells the members apart, as granularity=per_tensor
    by hand is what a task may have by itself. The group that setting is in is free.
    """
    told = [(by_hand(record), facts(record)) for record in records]
    names = set()
    for name in {name for record in records for name in chosen_by_hand(record)}:
        if setting.startswith(f"{name}."):
            continue
        target = f"{name}.{TARGET}"
        classes: dict[Any, set[str]] = {}
        for hand, own in told:
            if name in hand:
                classes.setdefault(own.get(target), set()).add(hand[name])
        alone = None not in classes and all(len(members) == 1 for members in classes.values())
        names.add(target if alone else name)
    return names


def _texts(values: dict[str, str], names: Iterable[str]) -> Held:
    return tuple(sorted((name, values[name]) for name in names if name in values))


def _swept(members: Sequence[Record], setting: str) -> list[str]:
    """Return the settings that one value of setting has several values of."""
    seen: dict[tuple[str, Any], set[str]] = {}
    done = [r for r in members if r.status == "ok"] or members
    for record in done:
        chosen = value_of(record, setting)
        for name, value in facts(record).items():
            if name not in SEEDS:
                seen.setdefault((name, chosen), set()).add(word(value))
    return list({name for (name, _), values in seen.items() if len(values) > 1})
