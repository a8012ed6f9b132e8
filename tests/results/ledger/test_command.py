"""`python -m results claims`, from records to verdicts, and what the repository keeps."""

from __future__ import annotations

import csv
import io
import shlex

import numpy as np
import pytest
import yaml

from results.__main__ import main
from results.ledger import claims, kept
from results.records.store import Store
from results.tables.formats import MARK
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


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


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
    [
        (["--also", "x=1"], "--also x=1 does nothing without --commands"),
        (["a", "--records", "--format", "csv"], "--format csv does nothing with --records"),
        (["a", "--commands", "--format", "latex"], "--format latex does nothing with --commands"),
        (["--keep", "--format", "csv"], "--format csv does nothing with --keep"),
        (["a", "--keep"], "a does nothing with --keep"),
        (["c"], "no claim c; did you mean"),
    ],
)
def test_what_does_nothing_is_refused(folder, capsys, argv, message):
    assert main(["claims", *argv, "--results-dir", str(folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not kept.LEDGER.exists()


def test_a_folder_that_is_not_there_yet_is_said(folder, capsys):
    assert main(["claims", "--results-dir", str(folder / "none")]) == 0
    assert "there is no such folder yet" in capsys.readouterr().err


def claimed(folder, *others):
    """Write the claim a and others like it at other widths, each under its name."""
    path = folder.parent / "claims.yaml"
    data = yaml.safe_load(path.read_text())
    data["claims"] += [GOOD | {"id": name, "under": [f"both bits={bits}"]} for name, bits in others]
    path.write_text(yaml.safe_dump(data))


def test_a_claim_whose_records_do_not_compare_leaves_the_others_their_verdicts(folder, capsys):
    claimed(folder, ("c", 4))
    fill(folder, 3)
    for seed in range(3):
        for quant, value in (("flexround", 90.0 + seed), ("adaround", 80.0)):
            Store(folder).write(run(quant, value, seed, bits=4))
    assert "2 of 2 testable claims are decided" in said(capsys, folder)
    said(capsys, folder, "--keep")
    before = kept.LEDGER.read_bytes()
    Store(folder).write(run("adaround", 80.0, bits=4, network="another", started="9"))
    rows = {row["claim"]: row for row in rows_of(said(capsys, folder, "--format", "csv"))}
    assert rows["a"]["verdict"] == "holds"
    assert rows["c"]["verdict"] == "does not compare"
    assert rows["c"]["missing"].startswith("its records have network None and another; rerun=true")
    assert "1 are undecided, 1 of them as their records do not compare" in said(capsys, folder)
    # What does not compare is kept by nobody: the ledger has what it had.
    assert main(["claims", "--keep", "--results-dir", str(folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "nothing is kept: of the claim c its records have network None and another" in line
    assert kept.LEDGER.read_bytes() == before


def test_records_of_two_versions_of_a_task_do_not_compare(folder, capsys):
    Store(folder).write(run("flexround", 90.0))
    Store(folder).write(run("adaround", 90.0, task_version=2))
    assert "does not compare: its records have task_version 1 and 2" in said(capsys, folder)


def test_the_correction_is_for_all_claims_whichever_are_shown(folder, capsys):
    """Holm: of two tests the smaller p is doubled, of one it stays."""
    claimed(folder, ("c", 4))
    fill(folder, 3)
    for seed in range(3):
        for quant, value in (("flexround", 90.0 + 3 * seed), ("adaround", 80.0)):
            Store(folder).write(run(quant, value, seed, bits=4))
    whole = {row["claim"]: row for row in rows_of(said(capsys, folder, "--format", "csv"))}
    assert float(whole["a"]["holm"]) == pytest.approx(2 * float(whole["a"]["p"]))
    for name in ("a", "c"):
        (alone,) = rows_of(said(capsys, folder, name, "--format", "csv"))
        assert alone == whole[name]
    told = said(capsys, folder, "c")
    assert "1 of 1 testable claims are decided: 1 hold" in told
    assert "Of 1 verdicts at 5 %" in told
    assert "over all tested claims, 1 stay decided" in told


def test_a_claim_whose_runs_were_on_two_processors_says_so(folder, capsys):
    for seed in range(3):
        for quant, value, processor in (("flexround", 90.0 + seed, "A"), ("adaround", 80.0, "B")):
            row = run(quant, value, seed, device="cpu", processor=processor)
            Store(folder).write(row)
    text = said(capsys, folder)
    assert f"points top1{MARK}" in text
    assert f"{MARK} runs that are contrasted differ in processor (A, B): a" in text
    (row, _) = rows_of(said(capsys, folder, "--format", "csv"))
    assert row["note"] == "runs that are contrasted differ in processor (A, B)"
    for seed in (3, 4):
        for quant, value in (("flexround", 93.0), ("adaround", 80.0)):
            Store(folder).write(run(quant, value, seed, network="trained elsewhere"))
    assert "; seeds are of 2 full-precision networks: a" in said(capsys, folder)
