"""The search: equal budgets, held-out errors alone, and the same command again."""

from __future__ import annotations

import sys
import threading

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from experiment.config import composed
from experiment.sweeps.plan import plan
from experiment.sweeps.search_space import SPACES, is_interval, space_of
from experiment.sweeps.status import Sweep
from results.records.searches import held_out_error, load
from results.records.store import Store
from results.tables.search import check_budgets, check_choice, searched
from tests.conftest import TINY

QUANT = SPACES.parent / "quant"
CLOSED = ("rtn", "gptq", "gptaq", "qronos", "cdquant")  # nothing is learned
SEARCH = (
    "-m", "hydra/sweeper=optuna", *TINY, "bits=3", "num_samples=48", "recon.iters=2",
    "recon.batch_size=16", "hydra.sweeper.held_out=16", "hydra.sweeper.trials=3",
    "hydra.sweeper.startup=2",
)  # fmt: skip


def parsed(*texts):
    return OverridesParser.create().parse_overrides(list(texts))


@pytest.fixture
def _optuna():
    pytest.importorskip("optuna", reason="the extra search is not installed")


def test_every_learned_method_has_a_space_of_its_own_settings():
    learned = {path.stem for path in QUANT.glob("*.yaml")}.difference(CLOSED)
    assert {path.stem for path in SPACES.glob("*.yaml")} == learned
    for method in learned:
        cfg = composed([f"quant={method}"])
        for name, interval in space_of(method, []).items():
            now = OmegaConf.select(cfg, name)
            assert now is not None, f"{method} has no {name}"
            assert name not in OmegaConf.to_container(cfg.idle, resolve=True)["quant"]
            assert interval.log
            assert interval.low <= now <= interval.high, f"{method}: {name}={now} is not tried"


def test_intervals_of_the_command_line_win():
    given = parsed("recon.lr=interval(0.1,0.2)")
    assert is_interval(given[0])
    found = space_of("adaround", given)
    rate = found["recon.lr"]
    assert (rate.low, rate.high, rate.log) == (0.1, 0.2, False)
    assert found["quant.reg_weight"].log
    assert not is_interval(parsed("recon.lr=0.1,0.2")[0])


@pytest.mark.parametrize("text", ["interval(0.2,0.1)", "tag(log,interval(0,1))"])
def test_an_empty_interval_is_refused(text):
    with pytest.raises(ValueError, match=r"recon.lr=.*give interval\(LOW, HIGH\)"):
        space_of("flexround", parsed(f"recon.lr={text}"))


def test_a_method_without_settings_to_search_is_refused():
    with pytest.raises(ValueError, match="quant=rtn has nothing to search; conf/search has adaq"):
        space_of("rtn", [])


@pytest.mark.usefixtures("_optuna")
def test_methods_get_equal_budgets_and_the_lowest_held_out_error_wins(
    cli, results_dir, tmp_path, monkeypatch
):
    outcome = cli(*SEARCH, "quant=flexround,adaround")
    assert outcome.status == 0, outcome.err
    store = Store(results_dir)
    records = {record.run_id: record for record in store.load()}
    searches = list(load(results_dir))
    assert {one.method: len(one.trials) for one in searches} == {"flexround": 3, "adaround": 3}
    assert len(records) == 6, "every trial is a record"
    found = searched(searches, records)
    check_budgets(found)
    for one in found:
        check_choice(one)
        runs = [records[trial.run_id] for trial in one.search.trials]
        errors = [held_out_error(record) for record in runs]
        assert one.search.chosen == errors.index(min(errors))
        assert {record.settings["recon"]["held_out"] for record in runs} == {16}
        for trial, record in zip(one.search.trials, runs, strict=True):
            assert record.settings["recon"]["lr"] == trial.values["recon.lr"]
    first = next(one for one in searches if one.method == "flexround").trials[0]
    now = composed([*TINY, "quant=flexround"]).recon.lr
    assert first.values == {"recon.lr": now}, "the setting as it stands is tried first"
    assert "| flexround | 3 of 3" in outcome.out
    states = Sweep(tmp_path / "sweep").states()
    assert [one.state for one in states] == ["done"] * 6
    # The same command again computes nothing and says the same.
    monkeypatch.setattr("experiment.execute.execute", lambda *_: pytest.fail("computed again"))
    before = {path: path.read_bytes() for path in results_dir.rglob("*.json")}
    again = cli(*SEARCH, "quant=flexround,adaround")
    assert again.status == 0, again.err
    assert {path: path.read_bytes() for path in results_dir.rglob("*.json")} == before


@pytest.mark.usefixtures("_optuna")
def test_a_whole_number_is_not_searched_in_an_interval(cli, results_dir):
    fixed = [text for text in SEARCH if not text.startswith("recon.iters")]
    outcome = cli(*fixed, "quant=flexround", "recon.iters=interval(5,40)")
    assert outcome.status == 1
    assert "recon.iters=interval(5,40): numbers with a fraction are drawn" in outcome.err
    assert not list(results_dir.glob("*.json")), "no trial is spent on it"


def held_for(claim, seconds):
    """Hold claim for so long, as another process that then ends without a record would."""
    assert claim.take() is None
    timer = threading.Timer(seconds, claim.release)
    timer.start()
    return timer


@pytest.mark.usefixtures("_optuna")
@pytest.mark.slow
def test_what_another_search_is_at_work_on_is_waited_for(cli, results_dir, tmp_path):
    alone = tmp_path / "alone"
    assert cli(*SEARCH, "quant=flexround", f"results_dir={alone}").status == 0
    (expected,) = load(alone)
    store = Store(results_dir)
    trial = held_for(store.claim(expected.trials[0].run_id), 4)
    search = held_for(store.claim(f"search-{expected.name.rpartition('-')[2]}"), 2)
    outcome = cli(*SEARCH, "quant=flexround")
    for timer in (trial, search):
        timer.join()
    assert outcome.status == 0, outcome.err
    assert f"is at work on the search {expected.name}; waiting for it" in outcome.err
    assert "left alone" in outcome.err
    assert list(load(results_dir)) == [expected], "no trial counts as failed"
    assert list((results_dir / "running").iterdir()) == []


@pytest.mark.usefixtures("_optuna")
def test_a_metric_of_the_test_set_is_not_looked_at(cli, results_dir, tmp_path, monkeypatch):
    """Other test outcomes, the same calibration: the same trials, the same winner."""
    told = []
    for number, value in enumerate((5.0, 95.0)):
        at = iter([value, 100 - value, 50.0] * 9)
        monkeypatch.setattr(
            "tasks.vision.digits.Digits.evaluate", lambda *_, at=at: {"top1": next(at)}
        )
        monkeypatch.setattr("tasks.vision.digits.Digits.check_full_precision", lambda *_: None)
        folder = tmp_path / str(number)
        outcome = cli(*SEARCH, "quant=flexround", f"results_dir={folder}")
        assert outcome.status == 0, outcome.err
        (found,) = load(folder)
        told.append((found.trials, found.chosen))
    assert told[0] == told[1]


@pytest.mark.usefixtures("_optuna")
@pytest.mark.parametrize(
    ("args", "words"),
    [(("quant=rtn",), "quant=rtn has nothing to search"),
     (("quant=flexround", "hydra.sweeper.trials=0"), "hydra.sweeper.trials=0: give 1 or more"),
     (("quant=flexround", "recon.held_out=0"), "recon.held_out=0: a search chooses by the error"),
     (("quant=flexround", "recon.lr=interval(2,1)"), "give interval(LOW, HIGH)")],
)  # fmt: skip
def test_bad_input_is_one_line(cli, results_dir, args, words):
    given = [text for text in SEARCH if text.partition("=")[0] not in str(args)]
    outcome = cli(*given, *args)
    assert outcome.status == 1
    lines = outcome.err.strip().splitlines()
    assert words in lines[-1]
    assert "Traceback" not in outcome.err
    assert not results_dir.exists() or not list(results_dir.glob("*.json"))


def test_a_search_without_m_is_refused(cli):
    given = [text for text in SEARCH if text != "-m"]
    outcome = cli(*given, "quant=flexround")
    assert outcome.status == 1
    assert "hydra/sweeper=optuna makes sweeps; add -m" in outcome.err


def test_without_optuna_one_line_says_what_to_install(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    outcome = cli(*SEARCH, "quant=flexround")
    assert outcome.status == 1
    (line,) = outcome.err.strip().splitlines()
    assert line.startswith("error: optuna is not installed; pip install")


def test_a_plan_of_a_search_says_that_there_is_none():
    given = [text for text in SEARCH if text != "-m"]
    with pytest.raises(ValueError, match="proposes its runs as it goes, 6 here; leave hydra/sweep"):
        plan([*given, "quant=flexround,adaround"])
    with pytest.raises(ValueError, match="proposes its runs as it goes, 3 here"):
        plan([*given, "quant=flexround", "recon.lr=interval(0.1,0.2)"])
