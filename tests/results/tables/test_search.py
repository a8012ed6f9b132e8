"""Searches from their records: the winner, equal budgets, and what a test metric has chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from results.__main__ import main
from results.records.searches import Search, Trial, held_out_error, load, write
from results.records.store import Store
from results.tables.search import check_budgets, check_choice, searched
from results.tables.winners import write_winners
from tests.results.records.test_store import record

SETTING = ["model=resnet18", "bits=3", "recon.held_out=8"]


def trial(name, errors, value=90.0, quant="flexround", **changes):
    """Return a finished run whose units have these errors on held-out samples."""
    blocks = [{"name": str(i), "held_out_after": error} for i, error in enumerate(errors)]
    return record(name, value, quant=quant, blocks=blocks, **changes)


def search(method, names, chosen, budget=None):
    values = [{"recon.lr": 10.0**-at} for at in range(len(names))]
    trials = [Trial(value, name) for value, name in zip(values, names, strict=True)]
    setting = [*SETTING, f"quant={method}"]
    return Search(
        f"{method}-search", method, setting, {"recon.lr": "interval(0, 1)"},
        budget or len(names), trials, chosen,
    )  # fmt: skip


def of(searches, records):
    return searched(searches, {one.run_id: one for one in records})


def test_the_error_is_the_geometric_mean_over_units():
    assert held_out_error(trial("a", [1.0, 4.0, 16.0])) == pytest.approx(4.0)
    assert held_out_error(trial("a", [])) is None
    assert held_out_error(trial("a", [1.0, None])) is None
    assert held_out_error(trial("a", [1.0], status="failed")) is None


def test_the_winner_has_the_lowest_error_whatever_the_metric_says():
    records = [trial("a", [2.0], value=99.0), trial("b", [1.0], value=10.0), trial("c", [3.0])]
    (found,) = of([search("flexround", "abc", chosen=1)], records)
    assert found.best == 1
    check_choice(found)


def test_a_search_that_the_test_metric_has_decided_is_told_from_its_records():
    records = [trial("a", [2.0], value=99.0), trial("b", [1.0], value=10.0)]
    (found,) = of([search("flexround", "ab", chosen=0)], records)
    with pytest.raises(ValueError, match=r"winner is trial 0, whose top1 on the test set is the b"):
        check_choice(found)
    (other,) = of([search("flexround", "abc", chosen=2)], [*records, trial("c", [3.0], value=50.0)])
    with pytest.raises(ValueError, match=r"winner is trial 2; trial 1 has the lowest error"):
        check_choice(other)
    (none,) = of([search("flexround", "a", chosen=0)], [trial("a", [], value=99.0)])
    with pytest.raises(ValueError, match="no error on held-out samples, so a metric of the test"):
        check_choice(none)


def test_a_lower_metric_that_is_better_tells_too():
    worse = {"higher_is_better": False, "metric": "perplexity"}
    records = [
        trial(name, [error], value=value, metrics={"perplexity": value}, **worse)
        for name, error, value in (("a", 2.0, 5.0), ("b", 1.0, 9.0))
    ]
    (found,) = of([search("flexround", "ab", chosen=0)], records)
    with pytest.raises(ValueError, match="perplexity on the test set is the best"):
        check_choice(found)


def test_budgets_that_differ_are_refused():
    records = [trial(name, [1.0]) for name in "abcd"]
    fair = of([search("flexround", "ab", 0), search("adaround", "cd", 0)], records)
    check_budgets(fair)
    unfair = of([search("flexround", "ab", 0), search("adaround", "c", 0)], records)
    with pytest.raises(ValueError, match=r"unequal .* flexround 2 of 2, adaround 1 of 1 trials; g"):
        check_budgets(unfair)
    unfinished = of([search("flexround", "a", 0, 2), search("adaround", "cd", 0, 2)], records)
    with pytest.raises(ValueError, match=r"flexround 1 of 2, adaround 2 of 2"):
        check_budgets(unfinished)


def test_failed_trials_count_and_never_win():
    records = [trial("a", [9.0]), trial("b", [1.0], status="failed")]
    (found,) = of([search("flexround", "ab", chosen=0)], records)
    assert found.best == 0
    check_choice(found)
    check_budgets([found])


def test_of_a_search_given_again_with_more_trials_the_longest_counts():
    """And the order in which a command line has its options tells no two settings apart."""
    records = [trial(name, [1.0], quant=q) for q in ("flexround", "adaround") for name in (q[:4],)]
    short, long = (search("flexround", ["flex"] * n, 0) for n in (1, 2))
    other = search("adaround", ["adar"] * 2, 0)
    turned = replace(other, setting=other.setting[::-1])
    check_budgets(of([short, long, turned], records))
    for one in (other, turned):
        with pytest.raises(ValueError, match="unequal budgets"):
            check_budgets(of([short, one], records))
    unfinished = search("flexround", ["flex"] * 2, 0, budget=9)
    check_budgets(of([long, unfinished, turned], records))


def test_a_winner_is_written_where_runs_look_for_it(tmp_path):
    found = of(
        [search("flexround", "a", 0)],
        [trial("a", [1.0], task="glue/mrpc", model="bert_base")],
    )
    (path,) = write_winners(found, tmp_path)
    assert path == tmp_path / "glue" / "mrpc_bert_base_flexround.yaml"
    hub = of([search("flexround", "a", 0)], [trial("a", [1.0], model="org/name")])
    with pytest.raises(ValueError, match="org/name is a model of the hub without a file"):
        write_winners(hub, tmp_path)


@pytest.fixture
def folder(tmp_path):
    """Give a folder of results with a fair search of two methods."""
    store = Store(tmp_path)
    for name, quant, error in (
        ("a", "flexround", 2.0), ("b", "flexround", 1.0), ("c", "adaround", 3.0),
        ("d", "adaround", 4.0),
    ):  # fmt: skip
        store.write(trial(name, [error], value=12.34, quant=quant))
    write(tmp_path, search("flexround", "ab", 1))
    write(tmp_path, search("adaround", "cd", 0))
    return tmp_path


def test_a_search_comes_back_from_its_file(folder):
    assert {one.name: one for one in load(folder)} == {
        "flexround-search": search("flexround", "ab", 1),
        "adaround-search": search("adaround", "cd", 0),
    }


def show(capsys, *args):
    status = main(["search", *args])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_table_has_errors_and_values_and_no_metric_of_the_test_set(folder, capsys):
    status, out, _ = show(capsys, "--results-dir", str(folder))
    assert status == 0
    assert "| flexround | 2 of 2" in out
    assert "recon.lr=0.1" in out
    assert "12.34" not in out
    assert "not fair" not in out
    _, out, _ = show(capsys, "--results-dir", str(folder), "--trials")
    assert out.count("-search") == 4
    assert "12.34" not in out
    for form in ("csv", "latex"):
        assert show(capsys, "--results-dir", str(folder), "--format", form)[0] == 0


def test_winners_are_written_as_the_tuned_files_are(folder, capsys, tmp_path):
    out = tmp_path / "tuned"
    assert show(capsys, "--results-dir", str(folder), "--tuned", str(out))[0] == 0
    text = (out / "digits_resnet18_flexround.yaml").read_text()
    assert text.startswith("# @package _global_\n")
    assert OmegaConf.create(text) == {"recon": {"lr": 0.1}}


def test_what_was_not_searched_stays_in_a_tuned_file(folder, capsys, tmp_path):
    """The papers' own settings stand in such files, and every table runs by them."""
    path = tmp_path / "tuned" / "digits_resnet18_flexround.yaml"
    path.parent.mkdir()
    head = "# @package _global_\n# FlexRound, Table 18.\nrecon:\n"
    rates = '  lr: "${by_bits:${bits},{2: 1e-3, default: 4e-4}}"\n'
    rest = "  iters: 500   # sec. 4.3\nquant:\n  rank: 4\n"
    path.write_text(head + rates + rest)
    lines = [*head.splitlines(), *rest.splitlines()]
    for _ in range(2):
        assert show(capsys, "--results-dir", str(folder), "--tuned", str(path.parent))[0] == 0
        assert [line for line in path.read_text().splitlines() if "trial" not in line] == lines
        found = OmegaConf.load(path)
        assert found == {"recon": {"lr": 0.1, "iters": 500}, "quant": {"rank": 4}}
        assert "# trial 1 of the 2 of flexround-search" in path.read_text()


def test_a_tuned_file_that_the_trials_did_not_run_by_is_refused(folder, capsys, tmp_path):
    """A rate is one for its iterations: beside others it says what nothing has measured."""
    (record,) = [r for r in Store(folder).load() if r.run_id == "b"]
    settings = {**record.settings, "recon": {"lr": 0.1, "iters": 500}}
    Store(folder).write(replace(record, settings=settings))
    path = tmp_path / "tuned" / "digits_resnet18_flexround.yaml"
    path.parent.mkdir()
    text = "# @package _global_\nrecon:\n  iters: 5000\n"
    path.write_text(text)
    status, _, err = show(capsys, "--results-dir", str(folder), "--tuned", str(path.parent))
    assert (status, path.read_text()) == (1, text)
    assert f"{path} has recon.iters=5000, and the trials of flexround-search 500" in err


def test_unfair_searches_are_told_and_their_winners_not_written(folder, capsys, tmp_path):
    write(folder, search("adaround", "c", 0))
    status, out, _ = show(capsys, "--results-dir", str(folder))
    assert status == 0
    assert "not fair: unequal budgets" in out
    status, _, err = show(capsys, "--results-dir", str(folder), "--tuned", str(tmp_path / "t"))
    assert status == 1
    assert "unequal budgets" in err
    assert not (tmp_path / "t").exists()


def test_bad_input_is_one_line(folder, capsys, tmp_path):
    (folder / "searches" / "x.json").write_text('{"name": 1}')
    _, _, err = show(capsys, "--results-dir", str(folder))
    assert "x.json is no search" in err
    empty = Store(tmp_path / "empty")
    empty.root.mkdir()
    empty.write(trial("a", [1.0]))
    _, _, err = show(capsys, "--results-dir", str(empty.root))
    assert "no searches in" in err
    assert "hydra/sweeper=optuna makes them" in err
