"""What is printed at the end of a sweep that is a search."""

from __future__ import annotations

from omegaconf import OmegaConf

from experiment.sweeps.table_callback import _print_searches
from results.records.searches import write
from tests.results.tables.test_search import search, trial


def test_another_search_of_the_folder_that_shares_a_trial_is_not_shown(tmp_path, capsys):
    """The setting as it stands is the first trial of each: what else it found is not loaded."""
    write(tmp_path, search("flexround", ["a", "b", None], chosen=1))
    write(tmp_path, search("adaround", "acd", chosen=1))
    write(tmp_path, search("gptq", [None, None], chosen=None))
    _print_searches(
        OmegaConf.create({"results_dir": str(tmp_path)}), [trial("a", [2.0]), trial("b", [1.0])]
    )
    told = capsys.readouterr().out
    assert "flexround" in told
    assert "3 of 3" in told
    assert "adaround" not in told
    assert "gptq" not in told
    assert "not fair" not in told
