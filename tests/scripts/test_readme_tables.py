"""README's tables are what the kept records render to, of the runs that its commands name."""

from __future__ import annotations

import shlex
from dataclasses import replace
from subprocess import CompletedProcess

import pytest

from experiment.sweeps.plan import plan
from results.records.record import Record
from results.records.store import Store
from scripts import readme_tables as readme
from tests.results.records.test_store import record

COMMAND = "model=resnet18 quant=rtn bits=4,3 num_samples=32"
PAGE = f"before\n\n<!-- leaderboard: {COMMAND} -->\nold\n<!-- end -->\n\nafter\n"


def kept(command: str = COMMAND) -> dict[str, Record]:
    """Return a record for each run of command, 90 + bits points."""
    found = {}
    for run in plan(shlex.split(command)):
        own = record(
            run.run_id, 90.0 + run.options["bits"], quant="rtn", bits=run.options["bits"],
            settings={"bits": run.options["bits"]}, started=f"{-run.options['bits']}",
        )  # fmt: skip
        found[run.run_id] = own
    return found


def test_readmes_tables_are_those_of_the_kept_records_and_of_todays_configuration():
    text = readme.README.read_text()
    assert len(readme.commands(text)) == 2
    assert readme.with_tables(text, readme.read(readme.KEPT)) == text, "run `make leaderboard`"
    assert readme.KEPT.stat().st_size < 200_000


def test_the_command_that_a_reader_sees_is_the_one_that_makes_the_table():
    text = readme.README.read_text()
    for command in readme.commands(text):
        assert f"python run.py -m {command}\n" in text


def test_a_table_is_written_between_its_marks_and_nowhere_else():
    text = readme.with_tables(PAGE, kept())
    assert "\nold\n" not in text
    assert text.startswith(f"before\n\n<!-- leaderboard: {COMMAND} -->\n\n| model ")
    assert text.endswith("<!-- end -->\n\nafter\n")
    assert "94.00 (-4.00) | 93.00 (-5.00)" in text
    assert readme.with_tables(text, kept()) == text


def test_a_default_that_has_changed_makes_the_table_stale():
    other = kept("model=resnet18 quant=rtn bits=4,3 num_samples=33")
    with pytest.raises(ValueError, match=r"2 of the 2 runs of .* have no record.*make leaderboard"):
        readme.with_tables(PAGE, other)


def test_records_are_kept_slim_and_come_back(tmp_path):
    full = record(blocks=[{"name": "layer1.0"}], versions={"torch": "2"}, peak_memory_gib=1.0)
    path = tmp_path / "kept.jsonl"
    path.write_bytes(readme.written([readme.slim(full)]))
    assert readme.read(path) == {"a": replace(full, blocks=[], versions={}, peak_memory_gib=0.0)}
    assert readme.read(tmp_path / "none.jsonl") == {}


def test_only_what_has_no_record_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    monkeypatch.setattr(readme, "KEPT", tmp_path / "kept.jsonl")
    (tmp_path / "README.md").write_text(PAGE)
    store, asked = Store(tmp_path / "results"), []
    store.root.mkdir()

    def compute(command):
        asked.append(command[3:])
        for made in kept().values():
            store.write(made)
        return CompletedProcess(command, 0)

    monkeypatch.setattr(readme.subprocess, "run", compute)
    where = f"results_dir={store.root}"
    readme.main([where])
    assert asked == [[*shlex.split(COMMAND), where]]
    assert "94.00 (-4.00)" in (tmp_path / "README.md").read_text()
    readme.main([f"results_dir={tmp_path}/empty"])
    assert len(asked) == 1, "the kept records are enough"
    newer = replace(next(iter(kept().values())), value=50.0, metrics={"top1": 50.0}, started="9")
    store.write(newer)
    readme.main([where])
    assert "50.00 (-48.00)" in (tmp_path / "README.md").read_text(), "a newer record wins"


def test_where_a_run_fails_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    monkeypatch.setattr(readme, "KEPT", tmp_path / "kept.jsonl")
    (tmp_path / "README.md").write_text(PAGE)
    monkeypatch.setattr(readme.subprocess, "run", lambda command: CompletedProcess(command, 3))
    assert readme.main([f"results_dir={tmp_path}/results"]) == 3
    assert (tmp_path / "README.md").read_text() == PAGE
    assert not readme.KEPT.exists()


def test_the_readme_is_short_and_its_lines_fit():
    lines = readme.README.read_text().splitlines()
    assert len(lines) < 150
    loose = ("|", "<img", "  <img", "scattered_digits: ")  # tables, their captions, pictures
    assert [line for line in lines if len(line) > 110 and not line.startswith(loose)] == []
