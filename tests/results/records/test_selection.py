"""What records are chosen by: one fact is that of all facts, and no difference is missed."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from results.records.lines import to_lines
from results.records.off import OFF
from results.records.reading import rows_in, with_units
from results.records.selection import fact, facts, flatten, select, spelled, unlike, why_none
from results.records.store import Store
from results.tables.leaderboard import TOLD_APART, leaderboard
from tests.results.records.test_store import record

LEAF = st.sampled_from([0, 1, True, 1.0, None, "1", [1], [True]])
TREE = st.dictionaries(
    st.sampled_from(["a", "b", "c.d"]),
    LEAF | st.dictionaries(st.sampled_from(["a", "e.f"]), LEAF, max_size=2),
    min_size=1, max_size=3,
)  # fmt: skip


@given(TREE)
def test_one_fact_is_that_of_all_facts(settings):
    row, absent = record(settings=settings), object()
    for name, value in facts(row).items():
        assert fact(row, name, absent) is value
    for name in ("x", "a.x", "b", "a", "c", "c.d.e", "", ".", "a."):
        assert fact(row, name, absent) is facts(row).get(name, absent)


@given(st.lists(TREE, min_size=1, max_size=4))
@example([{"a": 1}, {"a": True}])
@example([{"a": 1}, {"a": 1.0}])
@example([{"a": [1]}, {"a": [True]}])
@example([{"b": {"a": 1}}, {"b": {"a": True}}])
@example([{"a": 1, "b": 1}, {"a": 1}])
def test_what_records_differ_in_is_among_what_they_are_unlike_in(trees):
    found = unlike([record(settings=tree) for tree in trees])
    for name in {name for tree in trees for name in tree}:
        # As text, as true is not 1; an absent branch is not an empty one.
        texts = {repr(flatten({name: t[name]}) if name in t else None) for t in trees}
        assert len(texts) == 1 or name in found


def with_option(settings, path, value):
    """Return settings with value at a dotted path."""
    first, dot, rest = path.partition(".")
    return settings | {first: with_option(settings.get(first, {}), rest, value) if dot else value}


@pytest.mark.parametrize("name", OFF)
def test_a_setting_that_one_run_leaves_out_is_given_back_as_the_table_calls_it(name):
    """What stands in the column, or in what the leaderboard advises, chooses its runs."""
    whole = {"recon": {"unit": "block"}, "model": {"name": "net"}, "task": {"corpus": {}}}
    on = ["a"] if name == "model.leave" else {"a": 4} if name == "bits_per_layer" else "bfloat16"
    records = [
        record(name, 1.0, settings={"seed": 0} | settings)
        for name, settings in (("off", whole), ("on", with_option(whole, name, on)))
    ]
    own = name if name != "bits_per_layer" else "bits_per_layer.a"
    values = list(leaderboard(records, [own])[own])
    assert len(set(values)) == 2
    assert [r.run_id for r in select(records, {own: values[1]})] == ["on"]
    assert [r.run_id for r in select(records, {name: spelled(OFF[name])})] == ["off"]
    if own not in TOLD_APART:
        told = ", ".join(values).replace("(", "")
        with pytest.raises(ValueError, match=rf"{own} \({re.escape(told)}\)"):
            leaderboard(records)


def test_what_stands_in_a_table_is_a_value_that_chooses():
    records = [
        record(str(i), settings={"checkpoint": value}) for i, value in enumerate((None, True, [1]))
    ]
    for i, value in enumerate((None, True, [1])):
        assert select(records, {"checkpoint": spelled(value)}) == [records[i]]


def test_true_is_chosen_by_true_and_one_by_one():
    values = (True, 1, 1.0, False, 0)
    records = [record(str(i), settings={"x": value}) for i, value in enumerate(values)]
    chosen = {
        text: [r.run_id for r in select(records, {"x": text})]
        for text in ("true", "True", "1", "1.0", "false", "0", "2")
    }
    assert chosen == {
        "true": ["0"], "True": ["0"], "1": ["1", "2"], "1.0": ["1", "2"], "false": ["3"],
        "0": ["4"], "2": [],
    }  # fmt: skip


def test_a_group_is_chosen_by_its_member_and_an_option_by_what_it_is_when_off():
    awq = {"transform": {"_target_": "AWQ"}}
    search = {"ranges": {"_target_": "MinMax"}}
    own, other = ({"transform": {"_target_": f"{package}.Scale"}} for package in ("one", "two"))
    learned = {"recon": {"unit": "block"}}
    records = [record("a", 1.0, settings=s) for s in (awq, search, learned, own, other)]
    for name, value, wanted in (
        ("transform", "awq", [0]),
        ("transform", "none", [1, 2]),
        ("ranges", "min_max", [1]),
        ("recon.loss", "squared", [2]),
        ("transform", "two.Scale", [4]),
    ):
        assert select(records, {name: value}) == [records[i] for i in wanted]
    told = "none of the 5 records has ranges=lp; there are MinMax"
    assert why_none(records, {"ranges": "lp"}) == told


def test_a_record_counts_once_however_often_it_is_there(tmp_path, caplog):
    """As in a file that was appended to itself, or a folder with a copy of a record's file."""
    older, newer = record(value=90.0, started="1"), record(value=91.0, started="2")
    failed = record(status="failed", started="3")  # elsewhere; it hides nothing that is done
    lines = to_lines([(older, {}), (record("b"), {}), (newer, {})])
    file, folder = tmp_path / "kept.jsonl", tmp_path / "results"
    file.write_bytes(lines)
    Store(folder).write(newer)
    Store(folder).write(record("b"))
    (folder / "a (copy).json").write_bytes((folder / "a.json").read_bytes())
    for place in (file, folder):
        caplog.clear()
        assert {r.run_id: r.value for r in rows_in(place)} == {"a": 91.0, "b": 97.0}
        assert len(rows_in(place)) == 2
        assert "1 of 3 records are there more than once; the newest of each counts" in caplog.text
        assert len(with_units(place, rows_in(place))) == 2
    file.write_bytes(to_lines([(newer, {}), (failed, {})]))
    assert [r.value for r in rows_in(file)] == [91.0]
