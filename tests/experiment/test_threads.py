"""One folder of results keeps one number of threads; every record says what decides its bits."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from experiment import threads
from experiment.device import precision_told, processor
from experiment.threads import number_for, running_on
from results.records.store import Store
from results.tables.mixed import mixed
from tests.conftest import TINY
from tests.experiment.test_configs import composed

RTN = (*TINY, "quant=rtn", "bits=8", "num_samples=32")


@pytest.fixture
def own(monkeypatch):
    """Return a function that sets how many threads torch takes by itself."""
    return lambda count: monkeypatch.setattr(torch, "get_num_threads", lambda: count)


def test_a_folder_keeps_the_number_of_its_first_run(tmp_path, own, caplog):
    caplog.set_level(logging.INFO)
    own(4)
    assert number_for(tmp_path, None, "A") == 4
    own(1)  # as another launcher gives
    assert number_for(tmp_path, None, "A") == 4
    assert "threads=4, as in earlier runs of" in caplog.text
    assert "threads=1 takes" in caplog.text
    assert number_for(tmp_path, None, "B") == 1  # of another kind, whose bits are others anyway


def test_a_number_that_is_asked_for_is_taken_and_not_kept(tmp_path, own):
    own(4)
    assert number_for(tmp_path, 3, "A") == 3
    assert number_for(tmp_path, None, "A") == 4


def test_many_first_runs_agree(tmp_path, monkeypatch):
    numbers = iter(range(1, 17))

    def first(_):
        return number_for(tmp_path, None, "A")

    monkeypatch.setattr(torch, "get_num_threads", lambda: next(numbers))
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(first, range(16)))
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    "text", ["", "\n", "four A", "0 A", "-1 A", "99999999999 A", "A 4", "\x00\xff", "4"]
)
def test_a_damaged_file_is_no_number(tmp_path, own, text):
    tmp_path.joinpath(threads.KEPT).write_text(text + "\n", errors="replace")
    own(2)
    assert number_for(tmp_path, None, "A") == 2


def test_a_folder_that_can_not_be_written_costs_nothing(tmp_path, own):
    own(2)
    (tmp_path / "file").touch()
    assert number_for(tmp_path / "file", None, "A") == 2


def test_the_number_is_torchs_in_the_context_and_no_longer():
    before = torch.get_num_threads()

    def fail():
        with running_on(before + 1):
            assert torch.get_num_threads() == before + 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.get_num_threads() == before


def test_a_record_says_what_decides_its_last_bits(cli, results_dir):
    before = torch.get_num_threads()
    assert cli(*RTN, "threads=1").status == 0
    (record,) = Store(results_dir).load()
    assert record.threads == 1
    assert (record.device, record.processor) == ("cpu", processor())
    assert record.versions["torch"]
    assert len(record.network) == len(record.evaluation_data) == 64
    assert torch.get_num_threads() == before
    # Another number is no other run; who asks for it learns that it was not taken.
    again = cli(*RTN, "threads=2")
    assert "already recorded" in again.err
    assert "computed with threads=1; rerun=true takes threads=2" in again.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["quant=flexround"], "float32"),
        (["quant=flexround", "compile=true"], "float32 compiled"),
        (["quant=flexround", "recon.compile=true"], "float32 compiled"),
        (["quant=rtn", "compile=true"], "float32"),  # as rtn and gptq run in a sweep with others
        (["quant=gptq", "compile=true"], "float32"),
    ],
)
def test_a_record_says_whether_passes_were_compiled(options, told):
    assert precision_told(composed(*options), "float32") == told


@pytest.mark.slow  # compiles
def test_a_table_marks_cells_that_mix_compiled_runs_with_others(cli, results_dir):
    run = (*TINY, "quant=flexround", "recon.iters=1", "num_samples=32")
    assert cli(*run, "seed=0", "compile=true").status == 0
    assert cli(*run, "seed=1").status == 0
    assert mixed(Store(results_dir).load()) == "precision (float32 compiled, float32)"


@pytest.mark.parametrize("value", ["0", "-1", "1025", "99999999999999999999", "1.5", "many", "''"])
def test_a_number_of_threads_that_is_none_is_refused(cli, results_dir, value):
    outcome = cli(*RTN, f"threads={value}")
    assert outcome.status == 1
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    assert "threads" in line
    assert not list(results_dir.glob("*.json"))
