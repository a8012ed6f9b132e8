"""Command lines that are generated: each ends in a record, or in one line that says what to mend.

`FLEXROUND_COMMAND_LINES=2000 FLEXROUND_SEED=1 pytest -s -m slow
tests/experiment/test_generated_command_lines.py` runs 2,000 of them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from experiment import execute, rehearsal
from results.records.record import Record
from results.records.store import Store
from tests.experiment.command_lines import command_lines

ROOT = Path(__file__).resolve().parents[2]
COUNT = int(os.environ.get("FLEXROUND_COMMAND_LINES", "100"))
SEED = int(os.environ.get("FLEXROUND_SEED", "0"))
SECONDS = 90  # that no short run takes, its network made on first use included
LOGGED = re.compile(r"\d\d:\d\d:\d\d |\[\d{4}-")
GENERATED: dict[str, Any] = dict(
    database=None, phases=[Phase.generate], deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    """Yield a process that runs command lines in children of its own."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.experiment.fork_server"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, **offline, "PYTHONPATH": paths},
    )  # fmt: skip
    yield process
    assert process.stdin is not None
    process.stdin.close()
    process.wait(60)


def ask(server: subprocess.Popen[str], args: Sequence[str], folder: Path) -> dict[str, Any]:
    assert server.stdin is not None
    assert server.stdout is not None
    request = {"args": list(args), "folder": str(folder), "seconds": SECONDS}
    print(json.dumps(request), file=server.stdin, flush=True)
    return json.loads(server.stdout.readline())


def with_folders(args: Sequence[str], folder: Path, cache: Path) -> list[str]:
    """Return args with the folders of the run, unless args has them."""
    own = {
        "results_dir": folder / "results", "cache_dir": cache,
        "checkpoints_dir": folder / "checkpoints", "hydra.run.dir": folder / "run",
        "hydra.sweep.dir": folder / "sweep",
    }  # fmt: skip
    given = {word.lstrip("+~").partition("=")[0] for word in args}
    return [*args, *(f"{key}={value}" for key, value in own.items() if key not in given)]


def told(answer: dict[str, Any]) -> list[str]:
    """Return the lines on stderr that are no log."""
    return [line for line in answer["err"].splitlines() if line.strip() and not LOGGED.match(line)]


def kind_of(args: Sequence[str], answer: dict[str, Any], folder: Path) -> str:
    """Return what has become of a command line.

    Raises:
        AssertionError: when that is neither a record nor one line, or something is half-written.
    """
    status, words = answer["status"], told(answer)
    assert status is not None, "it did not end"
    assert "Traceback" not in answer["out"] + answer["err"], "it ends in a traceback"
    left = [p for p in folder.rglob("*") if p.suffix == ".part" or p.name.startswith("tmp")]
    assert not left, f"half-written: {left}"
    records = [json.loads(p.read_text()) for p in (folder / "results").glob("*.json")]
    states = Counter(Record.from_json(data).status for data in records)
    assert not list((folder / "results" / "running").glob("*.json")), "a claim is left"
    if status == 0:
        assert not states["failed"], "it failed and its exit status is 0"
        assert not [word for word in words if word.startswith("error:")], "an error, and status 0"
        return "records" if states["ok"] else "text"
    errors = [word for word in words if word.startswith("error: ")]
    assert status in (1, 2), f"its exit status is {status}"
    if "-m" not in args:
        assert len(errors) == 1, f"{len(errors)} lines of error"
        assert words[-1] == errors[0], "the last line is no error"
    else:
        assert errors, "no line of error"
    assert len(errors[-1]) > len("error: x"), "it says nothing"
    return "failed record" if states["failed"] else "refused"


@pytest.mark.slow
def test_every_command_line_ends_in_a_record_or_one_line(server, tmp_path):
    counts: Counter[str] = Counter()
    faults: list[str] = []
    cache = tmp_path / "cache"

    @settings(max_examples=COUNT, **GENERATED)
    @seed(SEED)
    @given(command_lines())
    def run(args: list[str]) -> None:
        folder = tmp_path / f"{counts.total()}"
        folder.mkdir()
        answer = ask(server, with_folders(args, folder, cache), folder)
        try:
            kind = kind_of(args, answer, folder)
        except (AssertionError, ValueError) as error:
            kind = "FAULT"
            faults.append(f"{error}\n  {args}\n  {answer['err'][-1500:]}")
            print(faults[-1], flush=True)  # as it comes: thousands take an hour
        counts[kind] += 1
        shutil.rmtree(folder)

    run()
    print(f"\n{counts.total()} command lines: {dict(counts)}")
    assert not faults, f"{len(faults)} of {counts.total()}\n" + "\n".join(faults)
    assert min(counts["records"], counts["refused"]) > COUNT / 50, "they are all of one kind"


def test_a_few_command_lines_before_any_work(cli, monkeypatch, results_dir):
    """All checks before the first weight, in this process: 30 command lines."""

    def stop(*_: object) -> None:
        raise ValueError("all checks before the work are passed")

    monkeypatch.setattr(execute, "rehearse", stop)
    assert rehearsal.rehearse is not stop
    ends: Counter[int] = Counter()

    @settings(max_examples=30, **GENERATED)
    @seed(0)
    @given(command_lines())
    def run(args: list[str]) -> None:
        outcome = cli(*args)  # what is no SystemExit comes through and fails the test
        ends[outcome.status] += 1
        assert outcome.status == 0 or "error: " in outcome.err, args
        assert "Traceback" not in outcome.err, args

    run()
    assert {record.status for record in Store(results_dir).load()} == {"failed"}
    assert ends[1] + ends[2] > 15
