"""The GPU script's frame: guarded parts, the time, what is kept, the tables, and bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__, runner, store
from benchmarks.gpu.context import Context, Row
from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.render import tables
from benchmarks.gpu.runner import run_parts
from benchmarks.gpu.store import Store, read
from tests.benchmarks.refusals import check_refused_in_one_line

CPU = torch.device("cpu")


def part(rows, takes: float = 0.0, most: float | None = None) -> Part:
    return Part("A title", takes, most, rows)


def good(context: Context) -> Iterator[Row]:
    yield {"fact": "a", "value": 1.5}
    yield {"fact": "b", "value": None}


def broken(context: Context) -> Iterator[Row]:
    yield {"fact": "before"}
    raise RuntimeError("CUDA error: an illegal memory access\nwith more lines")


def dying(context: Context) -> Iterator[Row]:
    yield {"fact": "before"}
    os.kill(os.getpid(), signal.SIGKILL)


def endless(context: Context) -> Iterator[Row]:
    yield {"fact": "before"}
    time.sleep(100)


class Told(list):
    """Lines that were told."""

    def __call__(self, line: str) -> None:
        """Take line."""
        self.append(line)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(CPU, False, tmp_path)


def run(parts: dict[str, Part], context: Context, minutes: float = 1.0, **options) -> tuple:
    told, kept = Told(), Store(context.folder, "Some Card (80 GB)", False)
    failed = run_parts(list(parts), parts, kept, context, minutes, told, **options)
    return failed, read(kept.path)[1], told


def test_a_failing_part_is_recorded_in_one_line_and_the_next_ones_go_on(context: Context):
    parts = {"broken": part(broken), "dying": part(dying), "good": part(good)}
    failed, found, _ = run(parts, context)
    assert failed == 2
    assert found["broken"].status == "failed"
    assert found["broken"].note == "RuntimeError: CUDA error: an illegal memory access"
    assert found["broken"].rows == [{"fact": "before"}]
    assert (found["dying"].status, found["dying"].rows) == ("failed", [{"fact": "before"}])
    assert f"signal {signal.SIGKILL.value}" in found["dying"].note
    assert found["good"].status == "done"
    assert found["good"].rows == [{"fact": "a", "value": 1.5}, {"fact": "b", "value": None}]


def test_a_part_that_hangs_is_ended_with_its_rows_kept(context: Context):
    start = time.monotonic()
    failed, found, _ = run({"endless": part(endless)}, context, minutes=0.05)
    assert time.monotonic() - start < 20
    assert (failed, found["endless"].status) == (0, "cut")
    assert found["endless"].rows == [{"fact": "before"}]


def test_a_part_is_skipped_where_too_few_minutes_are_left(context: Context):
    parts = {"long": part(good, takes=600.0), "short": part(good, takes=1.0)}
    _, found, told = run(parts, context, minutes=1.0)
    assert found["long"].status == "skipped"
    assert "600 s" in found["long"].note
    assert any("long: skipped" in line for line in told)
    assert found["short"].status == "done"


def test_rows_stop_at_the_share_of_a_part(context: Context):
    def slow(context: Context) -> Iterator[Row]:
        for number in range(3):
            yield context.row({"number": number}, 2.0, lambda: time.sleep(1.5) or {"value": 1})

    _, found, _ = run({"slow": part(slow, most=3.0)}, context)
    values = [row.get("value") for row in found["slow"].rows]
    assert values == [1, None, None]
    assert found["slow"].status == "partial"
    assert "are left" in str(found["slow"].rows[2]["skipped"])


def counting(folder: Path, fails: bool):
    """Return rows of which the second fails at first, and which count how often each was made."""

    def rows(context: Context) -> Iterator[Row]:
        for name in "ab":

            def make(name: str = name) -> Row:
                with (folder / name).open("a") as file:
                    file.write("x")
                if name == "b" and fails:
                    raise ValueError("no luck")
                return {"value": 1}

            yield context.row({"name": name}, 0.0, make)

    return rows


def made(folder: Path) -> list[int]:
    return [len((folder / name).read_text()) for name in "ab"]


def test_what_is_there_is_not_repeated(context: Context, monkeypatch: pytest.MonkeyPatch):
    folder = context.folder
    failed, found, _ = run({"part": part(counting(folder, True))}, context)
    assert (failed, found["part"].status, made(folder)) == (1, "partial", [1, 1])
    assert found["part"].rows[1] == {"name": "b", "error": "ValueError: no luck"}

    failed, found, _ = run({"part": part(counting(folder, False))}, context)
    assert (failed, found["part"].status, made(folder)) == (0, "done", [1, 2])
    assert [row["value"] for row in found["part"].rows] == [1, 1]

    _, _, told = run({"part": part(counting(folder, False))}, context)
    assert made(folder) == [1, 2]
    assert "from an earlier call" in told[0]

    run({"part": part(counting(folder, False))}, context, again=True)
    assert made(folder) == [2, 3]
    monkeypatch.setattr(runner, "code", lambda: "other")
    run({"part": part(counting(folder, False))}, context)
    assert made(folder) == [3, 4]


def test_rows_of_before_outlast_a_call_that_dies(context: Context):
    run({"part": part(counting(context.folder, True))}, context)
    _, found, _ = run({"part": part(dying)}, context)
    assert {"name": "a", "value": 1} in found["part"].rows


def test_the_code_is_the_same_until_a_file_changes(tmp_path: Path, monkeypatch):
    for folder in ("flexround", "benchmarks", "conf"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "flexround" / "a.py"
    file.write_text("x = 1\n")
    monkeypatch.setattr(store, "ROOT", tmp_path)
    before = store.code()
    assert store.code() == before
    file.write_text("x = 2\n")
    assert store.code() != before


def test_tables(context: Context, capsys: pytest.CaptureFixture[str]):
    parts = {"machine": part(good), "codes": part(broken)}
    run(parts, context)
    assert __main__.main(["--render", "--out", str(context.folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("### Some Card (80 GB)\n")
    assert "| fact | value |\n|---|---|\n| a | 1.5 |\n| b |  |\n" in out
    assert "failed: RuntimeError: CUDA error: an illegal memory access" in out
    assert PARTS["machine"].title in out


def test_odd_values_make_strict_json_and_cells(context: Context):
    def odd(context: Context) -> Iterator[Row]:
        yield {"a": float("nan"), "b": "x | y\nz", "c": True}

    run({"machine": part(odd)}, context)
    (path,) = context.folder.glob("*.json")
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert "| nan | x \\| y z | yes |" in list(tables(context.folder))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 99, "card": "x", "parts": {}}'])
def test_a_file_of_another_kind_is_named(tmp_path: Path, text: str):
    path = tmp_path / "cpu-tiny.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"cpu-tiny\.json can't be used .*; move it away"):
        Store(tmp_path, "cpu", True)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--minutes", "0"], "--minutes 0: give a number above 0"),
        (["--minutes", "-3"], "--minutes -3: give a number above 0"),
        (["--minutes", "nan"], "--minutes nan: give a number above 0"),
        (["--minutes", "soon"], "argument --minutes: invalid float value: 'soon'"),
        (["--parts", "machine", "speed"], "--parts speed: give some of machine, codes, sync"),
        (["--device", "tpu9"], "--device: give cuda, cuda:N or cpu"),
        (["--device", "cpu"], "--device cpu goes with --tiny"),
        (["--images", "/nowhere"], "--images /nowhere: give a folder with val/ and train/"),
        (["--many"], "unrecognized arguments: --many"),
    ],
)
def test_bad_options_are_refused_in_one_line(words, line, capsys: pytest.CaptureFixture[str]):
    check_refused_in_one_line(__main__.parsed, words, line, capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("visible", [None, ""])
def test_no_gpu_says_what_to_do(visible, tmp_path: Path, monkeypatch):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    # In this process CUDA may have been asked already; a fresh one is what a user has.
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=store.ROOT)
    assert done.returncode == 2
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error")]
    assert "--device=cuda" in line
    assert "--device cpu --tiny" in line
    assert ("CUDA_VISIBLE_DEVICES=" in line) == (visible is not None)
    assert not list(tmp_path.rglob("*.json"))


def test_no_results_to_render(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert __main__.main(["--render", "--out", str(tmp_path)]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_the_parent_leaves_cuda_to_its_children():
    """A process that has asked CUDA for its devices can't fork children that use them."""
    program = (
        "import os, benchmarks.gpu.__main__, torch\n"
        "if os.fork() == 0:\n"
        "    os._exit(torch._C._cuda_isInBadFork())\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=store.ROOT).returncode == 0
