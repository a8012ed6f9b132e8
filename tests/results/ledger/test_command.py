"""`python -m results claims`, from records to verdicts, and what the repository keeps."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
import yaml

from results.__main__ import main
from results.ledger import claims, kept
from results.records.store import Store
from tests.results.ledger.test_claims import GOOD
from tests.results.ledger.test_evidence import run

SECOND = GOOD | {"id": "b", "needs": "a GPU", "under": [], "more": [], "less": []}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    path = tmp_path / "claims.yaml"
    data = {"settings": {"both": "model=resnet18"}, "claims": [GOOD, SECOND]}
    path.write_text(yaml.safe_dump(data))
    monkeypatch.setattr(claims.read, "__defaults__", (path,))
    monkeypatch.setattr(kept.read, "__defaults__", (tmp_path / "ledger.jsonl",))
    monkeypatch.setattr(kept, "LEDGER", tmp_path / "ledger.jsonl")
    return tmp_path / "results"


def said(capsys, folder, *argv):
    assert main(["claims", *argv, "--results-dir", str(folder)]) == 0
    return capsys.readouterr().out


def fill(folder, seeds):
    right = np.arange(1000) < 900
    for seed in range(seeds):
        for quant, wrong in (("flexround", 10 + seed), ("adaround", 60)):
            answers = right & (np.arange(1000) >= wrong)
            value = 100 * float(answers.mean())
            Store(folder).write(run(quant, value, seed), {"top1": answers})


def test_without_runs_it_says_how_many_there_are_to_do(folder, capsys):
    assert "not run: 6 runs to do" in said(capsys, folder)


def test_one_seed_has_no_verdict(folder, capsys):
    fill(folder, 1)
    assert "undecided: one seed has no interval" in said(capsys, folder)


def test_the_verdict_the_runs_and_the_commands(folder, capsys):
    fill(folder, 2)
    text = said(capsys, folder, "--format", "csv")
    row = text.splitlines()[1].split(",")
    # 900 right ones less the wrong: 5.0 and 4.9 points apart
    assert row[3] == "holds"
    assert float(row[7]) == pytest.approx(4.95)
    assert "needs hardware" in text
    table = said(capsys, folder)
    assert "1 of 1 testable claims are decided: 1 hold, 0 fail" in table
    assert "+ 89.0000 seed 0" in said(capsys, folder, "a", "--records")
    commands = said(capsys, folder, "--commands", "--also", "threads=1").splitlines()
    assert commands == [
        f"python run.py -m model=resnet18 quant={quant} bits=2 seed=2 threads=1"
        for quant in ("flexround", "adaround")
    ]
    assert all(shlex.split(line) for line in commands)


def test_what_is_kept_gives_the_same_verdicts(folder, capsys):
    fill(folder, 3)
    before = said(capsys, folder)
    assert "6 records" in said(capsys, folder, "--keep")
    assert said(capsys, folder.parent / "none") == before
    record, outcomes = kept.read(kept.LEDGER)[0]
    assert len(outcomes["top1"]) == 1000
    assert not any(text.startswith("data_dir") for text in record.overrides)


def test_a_kept_line_that_is_damaged_is_named(folder, capsys):
    kept.LEDGER.write_text('{"record": {"schema": 2}}\n')
    assert main(["claims", "--results-dir", str(folder)]) == 1
    assert "ledger.jsonl:1: record without" in capsys.readouterr().err


def test_the_page_shows_what_is_decided(folder, capsys):
    fill(folder, 3)
    out = folder.parent / "page.html"
    assert main(["html", "--results-dir", str(folder), "--out", str(out)]) == 0
    text = out.read_text()
    assert '<h2 id="claims">' in text
    assert "1 of 1 testable claims are decided" in text
    kept.LEDGER.write_text("{}")
    assert main(["html", "--results-dir", str(folder), "--out", str(out)]) == 0
    assert "the page is without claims: ledger.jsonl:1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["--also", "x=1"], "does nothing without --commands"), (["c"], "no claim c; did you mean")],
)
def test_what_does_nothing_is_refused(folder, capsys, argv, message):
    assert main(["claims", *argv, "--results-dir", str(folder)]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_that_is_not_there_yet_is_said(folder, capsys):
    assert main(["claims", "--results-dir", str(folder / "none")]) == 0
    assert "there is no such folder yet" in capsys.readouterr().err


def test_records_of_two_versions_of_a_task_are_refused(folder, capsys):
    Store(folder).write(run("flexround", 90.0))
    Store(folder).write(run("adaround", 90.0, task_version=2))
    assert main(["claims", "--results-dir", str(folder)]) == 1
    assert "claim a: its records have task_version 1 and 2" in capsys.readouterr().err
