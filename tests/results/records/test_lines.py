"""Records in one file, a line each: with their outcomes they are what a folder of them is."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import pytest

from results.__main__ import main
from results.ledger import kept
from results.records.lines import MOST, to_lines
from results.records.outcomes import pack
from results.records.reading import outcomes_in, read
from results.records.store import Store
from tests.results.records.test_store import record

RIGHT = np.arange(9) % 2 == 0


@pytest.fixture
def both(tmp_path):
    """Return a folder of records with outcomes, and the file that keeps them."""
    store = Store(tmp_path / "folder")
    for number, quant in enumerate(("flexround", "adaround")):
        made = record(quant[0], 50.0 + number, started=str(number), quant=quant)
        store.write(made, {"top1": RIGHT ^ (number == 1)})
    path = tmp_path / "kept.jsonl"
    path.write_bytes(kept.written((r, store.outcomes(r)) for r in store.load()))
    return tmp_path / "folder", path


def line_of(made, outcomes=None):
    """Return the line of a record whose settings are no parts, as JSON."""
    (line,) = to_lines([(made, outcomes or {})]).splitlines()
    return json.loads(line)


@pytest.fixture
def back(tmp_path):
    """Return a function that reads lines of JSON as a file of records."""

    def read_back(*lines):
        path = tmp_path / "some.jsonl"
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return kept.read(path)

    return read_back


def test_a_record_comes_back_with_its_outcomes_and_alone(back):
    made = record("a", started="1")
    ((found, outcomes),) = back(line_of(made, {"top1": RIGHT}))
    assert found == made
    assert outcomes["top1"].tolist() == RIGHT.tolist()
    assert back(line_of(made)) == [(made, {})]
    assert back(made.to_json()) == [(made, {})]


def test_settings_that_records_share_are_one_line(tmp_path):
    """The names of parts are digests, so that a file of the same records has the same bytes."""
    made = [
        record(name, started="1", settings={"bits": 3, "task": task, "quant": {"lr": lr}})
        for name, task, lr in (("a", {"images": 5}, 0.1), ("b", {"images": 5}, 0.2))
    ]
    data = to_lines((one, {}) for one in reversed(made))
    lines = [json.loads(line) for line in data.splitlines()]
    parts = [line for line in lines if "part" in line]
    assert lines[: len(parts)] == sorted(parts, key=lambda line: line["part"])
    held = sorted(json.dumps(line["settings"]) for line in parts)
    assert held == ['{"images": 5}', '{"lr": 0.1}', '{"lr": 0.2}']
    assert [line["record"]["settings"] for line in lines[len(parts) :]] == [{"bits": 3}] * 2
    path = tmp_path / "kept.jsonl"
    path.write_bytes(data)
    assert kept.read(path) == [(one, {}) for one in made]
    assert to_lines(reversed(kept.read(path))) == data


def test_what_a_record_has_no_value_for_is_not_written():
    made = record("a", started="1")
    assert {"sensitivity", "conditions", "error", "threads"}.isdisjoint(line_of(made)["record"])
    assert "sensitivity" in made.to_json()


OTHER = {"lr": 0.3}  # than the part's


@pytest.mark.parametrize(
    "change",
    [
        lambda line: None,
        lambda line: line | {"part": 3},
        lambda line: line | {"settings": []},
        lambda line: line | {"settings": OTHER},
        lambda line: {"part": line["part"]},
    ],
)
def test_a_part_that_is_lost_or_changed_costs_the_records_that_name_it(tmp_path, change):
    made = [
        record(name, started=name, settings={"quant": {"lr": lr}})
        for name, lr in (("a", 0.1), ("b", 0.2))
    ]
    lines = list(map(json.loads, to_lines((one, {}) for one in made).splitlines()))
    found = [change(line) if line.get("settings") == {"lr": 0.1} else line for line in lines]
    path = tmp_path / "kept.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in found if line is not None))
    dropped = []
    assert [r.run_id for r in read(path, dropped=dropped)] == ["b"]
    assert "which no line before holds" in dropped[-1][1]
    assert len(dropped) == (1 if None in found else 2)


def test_a_part_moves_no_cursor(back):
    made = record("a", started="1", settings={"quant": {"name": "\x1b[2J"}})
    lines = map(json.loads, to_lines([(made, {})]).splitlines())
    with pytest.raises(ValueError, match=r"some\.jsonl:1: record with control characters"):
        back(*lines)
    with pytest.raises(ValueError, match=r"settings '\\x1b\[2J': 'x', which no line before holds"):
        back(line_of(record("a", started="1")) | {"parts": {"\x1b[2J": "x"}})


def test_outcomes_of_before_they_were_deflated_are_read(back):
    held = line_of(record("a", started="1"), {"top1": RIGHT})
    held["outcomes"] = base64.b64encode(pack({"top1": RIGHT}, "1")).decode()
    ((_, outcomes),) = back(held)
    assert outcomes["top1"].tolist() == RIGHT.tolist()


def test_a_line_takes_no_more_memory_than_a_runs_outcomes_do(back):
    """A few kilobytes may say gigabytes."""
    held = line_of(record("a", started="1"), {"top1": RIGHT})
    bomb = zlib.compress(bytes(MOST + 1), level=9)
    held["outcomes"] = base64.b64encode(bomb).decode()
    assert len(bomb) < 1 << 18
    with pytest.raises(ValueError, match="outcomes that are damaged, or of no run"):
        back(held)


def test_the_ledgers_file_is_read_as_its_folder_is(both, capsys):
    folder, path = both
    assert [r.run_id for r in read(path)] == [r.run_id for r in read(folder)]
    for held in read(folder):
        one, other = outcomes_in(folder)(held), outcomes_in(path)(held)
        assert one["top1"].tolist() == other["top1"].tolist()
    said = []
    for place in both:
        assert main(["compare", "flexround", "adaround", "--results-dir", str(place)]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_units_errors_are_kept_of_the_runs_that_are_compared_by_them(tmp_path):
    units = [{"name": "stem", "error_before": 3.0, "error_after": 1.2345678}]
    entries = [(record(name, started="1", blocks=units), {}) for name in ("a", "b")]
    path = tmp_path / "kept.jsonl"
    path.write_bytes(kept.written(entries, units_of={"b"}))
    (one, _), (other, _) = kept.read(path)
    assert (one.blocks, other.blocks) == ([], [{"name": "stem", "error_after": 1.23457}])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda held: held | {"outcomes": 3}, "outcomes that are no text"),
        (lambda held: held | {"outcomes": "UEs="}, "it is damaged"),
        (lambda held: held | {"outcomes": held["outcomes"][:-8]}, "outcomes that are damaged"),
        (lambda held: held | {"outcomes": "eJz//////w=="}, "outcomes that are damaged"),
        (lambda held: held | {"record": [1]}, "a record is a JSON object"),
        (lambda held: held | {"parts": [1]}, "parts of settings that have no names"),
        (
            lambda held: held | {"parts": {"task": 1}},
            "settings 'task': 1, which no line before holds",
        ),
        (lambda held: held | {"record": held["record"] | {"task": "a\u001bb"}}, "control"),
    ],
)
def test_a_line_that_is_neither_is_told_and_the_others_are_read(both, change, why):
    path = both[1]
    first, second = path.read_text().splitlines()
    path.write_text(f"{json.dumps(change(json.loads(first)))}\n{second}\n")
    dropped = []
    assert [r.run_id for r in read(path, dropped=dropped)] == ["f"]
    ((what, reason),) = dropped
    assert what == f"line 1 of {path}"
    assert why in reason
    with pytest.raises(ValueError, match=rf"kept\.jsonl:1: .*{why}"):
        kept.read(path)
