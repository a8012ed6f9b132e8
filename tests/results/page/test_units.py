"""Units and curves on the page: few digits, few points, as many runs as there is room for."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks.board import records as synthetic
from results.__main__ import main
from results.page.page import page
from results.page.sections import Beside
from results.page.units import LEVELS, POINTS, levels, units_of
from results.records.reading import newest_with_units
from results.records.store import Store
from tests.results.page.test_page import EVIL, Reader
from tests.results.records.test_store import record

TOP = len(LEVELS) - 1


def unit(name="layer1.0", curve=(), **changes):
    held = {"error_before": 2.0, "error_after": 0.123456, "seconds": 1.5}
    return {"name": name, **held, "curve": list(curve), **changes}


def told(*blocks):
    """Return what the page has of a run's units."""
    found = units_of([record("a", blocks=list(blocks))])
    (place, units) = found["runs"]["a"]
    return found["names"][place], units


def test_errors_keep_three_significant_digits():
    names, units = told(unit(), unit("fc", error_before=12345.6, held_out_after=3e-7))
    assert names == ["layer1.0", "fc"]
    assert units[0] == ["2", "0.123", "", "", "1.5"]
    for text, value in zip(units[1][:4], (12345.6, 0.123456, None, 3e-7), strict=True):
        assert text == "" if value is None else math.isclose(float(text), value, rel_tol=5e-3)


def test_a_point_is_as_high_as_the_logarithm_of_its_loss():
    _, ((*_, drawn, first, last, iteration),) = told(unit(curve=[[0, 100.0], [10, 10.0], [19, 1]]))
    assert (first, last, iteration) == ("100", "1", 19)
    assert [LEVELS.index(letter) for letter in drawn] == [TOP, round(TOP / 2), 0]
    assert levels([3.0, 3.0]) == "AA"


@pytest.mark.parametrize("number", [2, POINTS, POINTS + 1, 1000])
def test_a_long_curve_keeps_both_ends_and_its_course(number):
    _, ((*_, drawn, first, last, iteration),) = told(
        unit(curve=[[i, math.exp(-i / number)] for i in range(number)])
    )
    heights = [LEVELS.index(letter) for letter in drawn]
    assert len(heights) == min(number, POINTS)
    # A straight line on the logarithmic axis, from the top to the bottom.
    steps = len(heights) - 1
    assert all(abs(h - TOP * (1 - i / steps)) < 4 for i, h in enumerate(heights))
    assert (first, iteration) == ("1", number - 1)
    assert float(last) == pytest.approx(math.exp(-(number - 1) / number), rel=5e-3)


@pytest.mark.parametrize(
    "curve", [[], None, [[0, 1.0]], [[0, 0.0], [1, -1]], [[0, "x"]], [3], "ab"]
)
def test_what_is_no_curve_is_none(curve):
    _, (found,) = told(unit(curve=[]) | {"curve": curve})
    assert found == ["2", "0.123", "", "", "1.5"]


def test_a_loss_of_zero_or_nan_leaves_the_others():
    _, ((*_, drawn, _, last, _),) = told(
        unit(curve=[[0, 4.0], [1, math.nan], [2, math.inf], [3, 2.0], [4, 0.0]])
    )
    assert (drawn, last) == ("_A", "2")


def test_what_is_no_number_is_nothing():
    _, (found,) = told({"name": 3, "error_before": [], "error_after": "x", "seconds": 10**400})
    assert found == [""] * 5


def test_runs_are_read_as_far_as_they_fit_and_share_their_units_names():
    asked = []

    def newest():
        for at in range(9):
            asked.append(at)
            yield record(f"r{at}", blocks=[unit(f"layer{i}") for i in range(20)])

    size = len(json.dumps(units_of([record("r0", blocks=[unit("l")] * 20)])))
    found = units_of(newest(), most=3 * size)
    assert list(found["runs"]) == [f"r{at}" for at in range(len(found["runs"]))]
    assert 2 <= len(found["runs"]) < 9
    assert asked == list(range(len(found["runs"]) + 1))
    assert not found["whole"]
    assert len(found["names"]) == 1
    assert len(json.dumps(found, separators=(",", ":"))) < 3 * size + 100  # and its own three keys
    assert units_of([record("a")]) == {"names": [], "runs": {"a": []}, "whole": True}


def test_the_newest_come_first_with_their_units(tmp_path):
    store = Store(tmp_path)
    rows = [record(name, started=str(at), blocks=[unit(name)]) for at, name in enumerate("abc")]
    for row in rows:
        store.write(row)
    store.path("b").unlink()
    assert [r.blocks[0]["name"] for r in newest_with_units(tmp_path, rows)] == ["c", "a"]
    lines = tmp_path / "some.jsonl"
    lines.write_text("\n".join(json.dumps(row.to_json()) for row in rows))
    assert [r.blocks[0]["name"] for r in newest_with_units(lines, rows)] == ["c", "b", "a"]


def test_the_command_puts_units_on_the_page(tmp_path, capsys):
    store = Store(tmp_path / "results")
    store.root.mkdir()
    store.write(record("a", blocks=[unit(curve=[[0, 2.0], [9, 1.0]])]))
    store.write(record("b", seed=1))
    out = tmp_path / "page.html"
    assert main(["html", "--results-dir", str(store.root), "--out", str(out)]) == 0
    units = Reader(out.read_text()).units
    assert units["names"] == [["layer1.0"]]
    assert units["runs"]["a"] == [0, [["2", "0.123", "", "", "1.5", "_A", "2", "1", 9]]]
    assert units["runs"]["b"] == []
    assert Reader(out.read_text()).data["option"] == f"--results-dir {store.root}"
    capsys.readouterr()


@pytest.mark.slow
def test_ten_thousand_runs_with_units_stay_below_ten_megabytes():
    number = 10_000
    rows = list(synthetic(number, blocks=0))
    text = page(rows, [], "results", Beside(units=synthetic(number, blocks=50)))
    units = Reader(text).units
    assert not units["whole"]
    assert len(units["runs"]) > 500
    assert len(text.encode()) < 10_000_000


def test_units_have_what_the_rest_of_the_page_leaves(monkeypatch):
    rows = list(synthetic(50, blocks=0))
    bare = len(page(rows, [], "results").encode())
    monkeypatch.setattr("results.page.page.PAGE_BYTES", bare + 9_000)
    text = page(rows, [], "results", Beside(units=synthetic(50, blocks=20)))
    assert bare + 5_000 < len(text.encode()) < bare + 9_100
    assert not Reader(text).units["whole"]


def test_no_name_of_a_unit_becomes_part_of_the_page():
    text = page([record()], [], "results", Beside(units=[record(blocks=[unit(EVIL)])]))
    read = Reader(text)
    assert [tag for tag, _ in read.tags].count("script") == 3
    assert read.units["names"] == [[EVIL]]
    assert not [1 for tag, a in read.tags if tag == "img" or "onerror" in a]
