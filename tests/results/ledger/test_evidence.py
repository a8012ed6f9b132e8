"""Contrasts of records: which runs a cell finds, and what they add up to."""

from __future__ import annotations

import math

import numpy as np
import pytest

from results.ledger import kept
from results.ledger.claims import Claim
from results.ledger.evidence import cells_of, conflict, estimate, missing, mixed_arms, mixed_seeds
from results.records.given import SURROUNDINGS
from tests.results.records.test_store import record


def claim(**changes):
    facts = dict(
        id="a", says="A above B", source="a paper", under=["model=resnet18 bits=2"],
        more=["quant=flexround"], less=["quant=adaround"], margin=0.1, seeds=2,
    )  # fmt: skip
    return Claim(**(facts | changes))


def run(quant, value, seed=0, more=(), bits=2, **changes):
    given = ["model=resnet18", f"bits={bits}", f"quant={quant}", *more]
    name = f"{quant}{bits}{seed}{more}"
    return record(name, value, quant=quant, bits=bits, seed=seed, overrides=given, **changes)


def no_outcomes(_):
    return {}


def test_a_cell_is_what_the_command_line_gave_places_and_seed_aside():
    mine = run("flexround", 90.0, 1, ["data_dir=/here", "threads=1", "seed=1", "save=true"])
    other = run("flexround", 50.0, 1, ["recon.iters=5"])
    assert cells_of([mine, other])[frozenset({"model=resnet18", "bits=2", "quant=flexround"})] == {
        1: mine
    }


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_what_decides_nothing_of_the_value_is_no_part_of_a_cell(name):
    """A run on a GPU, or checked against a number, counts for the claim as any other."""
    mine = run("flexround", 90.0, 1, [f"{name}=other", "seed=1"])
    (cell,) = cells_of([mine])
    assert cell == {"model=resnet18", "bits=2", "quant=flexround"}
    assert mine.overrides[:3] == kept.slim(mine, units=False).overrides[:3]
    assert kept.slim(mine, units=False).overrides[3:] == ["seed=1"]


def test_what_lies_below_a_logger_is_no_part_of_a_cell():
    (cell,) = cells_of([run("flexround", 90.0, more=["logger=wandb", "+logger.project=mine"])])
    assert cell == {"model=resnet18", "bits=2", "quant=flexround"}


def test_a_scale_is_part_of_a_cell_as_it_brings_iterations():
    (cell,) = cells_of([run("flexround", 90.0, more=["scale=smoke"])])
    assert "scale=smoke" in cell


def test_a_value_is_the_same_however_it_is_spelled():
    swept = run(
        "flexround", 90.0, more=["model.equalize=True", "recon.lr=0.0010", "task.seq_len=+8"]
    )
    single = run("adaround", 88.0, more=["model.equalize=true", "recon.lr=1e-3", "task.seq_len=8"])
    asked = claim(
        under=["model=resnet18 bits=2 model.equalize=TRUE recon.lr=1.0E-3 task.seq_len=8"]
    )
    assert estimate(asked, cells_of([swept, single]), no_outcomes).values == (2.0,)
    other = claim(under=["model=resnet18 bits=2 model.equalize=false recon.lr=1e-3 task.seq_len=8"])
    assert estimate(other, cells_of([swept, single]), no_outcomes) is None


def test_the_newest_finished_run_of_a_cell_counts():
    old, new = run("flexround", 90.0, started="1"), run("flexround", 91.0, started="2")
    failed = run("flexround", 0.0, status="failed", started="3")
    (runs,) = cells_of([new, failed, old]).values()
    assert runs == {0: new}


def test_a_difference_is_paired_by_seed_and_only_whole_seeds_count():
    found = cells_of([run("flexround", 90.0), run("adaround", 88.0), run("flexround", 91.0, 1)])
    assert estimate(claim(), found, no_outcomes).values == (2.0,)
    assert missing(claim(), found) == [
        (frozenset({"model=resnet18", "bits=2", "quant=adaround"}), 1)
    ]
    assert estimate(claim(), cells_of([run("flexround", 90.0)]), no_outcomes) is None


def test_a_difference_of_differences():
    ours = claim(
        under=["model=resnet18"],
        more=["quant=flexround bits=2", "quant=adaround bits=4"],
        less=["quant=adaround bits=2", "quant=flexround bits=4"],
    )
    runs = [run("flexround", 80.0), run("adaround", 70.0)]
    runs += [run("flexround", 97.0, bits=4), run("adaround", 96.0, bits=4)]
    assert estimate(ours, cells_of(runs), no_outcomes).values == (80 - 70 - (97 - 96),)


def test_several_settings_are_averaged():
    ours = claim(under=["model=resnet18 bits=2", "model=resnet18 bits=4"])
    runs = [run("flexround", 80.0), run("adaround", 70.0)]
    runs += [run("flexround", 97.0, bits=4), run("adaround", 96.0, bits=4)]
    assert estimate(ours, cells_of(runs), no_outcomes).values == (5.5,)


def test_perplexities_are_compared_by_their_ratio_and_less_is_better():
    changes = {"metric": "perplexity", "higher_is_better": False}
    runs = [
        run("flexround", 20.0, metrics={"perplexity": 20.0}, **changes),
        run("adaround", 22.0, metrics={"perplexity": 22.0}, **changes),
    ]
    found = estimate(claim(), cells_of(runs), no_outcomes)
    assert found.values == pytest.approx((100 * math.log(1.1),))


def test_the_error_of_a_run_is_the_geometric_mean_of_its_units():
    def units(*errors):
        return [{"name": str(e), "error_after": e} for e in errors]

    runs = [
        run("flexround", 90.0, blocks=units(1.0, 4.0)),
        run("adaround", 99.0, blocks=units(2.0, 8.0)),
    ]
    found = estimate(claim(metric="error"), cells_of(runs), no_outcomes)
    assert found.values == pytest.approx((100 * math.log(2),))  # 2 beside 4, less is better


def test_right_and_wrong_answers_give_the_variance_of_their_difference():
    first = np.array([1, 1, 1, 0], bool)
    second = np.array([1, 0, 0, 0], bool)
    held = {"flexround": {"top1": first}, "adaround": {"top1": second}}
    runs = [
        run("flexround", 75.0),
        run("adaround", 25.0),
        run("flexround", 75.0, 1),
        run("adaround", 25.0, 1),
    ]
    found = estimate(claim(), cells_of(runs), lambda r: held[r.quant])
    differences = np.array([0, 100, 100, 0])
    assert found.samples == 4
    assert found.sampling == pytest.approx(differences.var(ddof=1) / 4)


def test_windows_of_a_perplexity_give_that_of_their_log_likelihoods():
    held = {
        "flexround": {"perplexity": np.array([3.0, 3.2])},
        "adaround": {"perplexity": np.array([3.1, 3.5])},
    }
    changes = {"metric": "perplexity", "higher_is_better": False}
    runs = [run(q, 20.0, metrics={"perplexity": 20.0}, **changes) for q in held]
    found = estimate(claim(), cells_of(runs), lambda r: held[r.quant])
    assert found.sampling == pytest.approx(np.array([-10.0, -30.0]).var(ddof=1) / 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("task_version", 2), ("network", "another"), ("evaluation_data", "another")],
)
def test_records_that_do_not_compare_are_refused(name, value):
    runs = [run("flexround", 90.0), run("adaround", 88.0, **{name: value})]
    assert f"its records have {name} " in conflict(claim(), cells_of(runs))


def test_records_of_one_setting_are_of_one_configuration():
    """As where a default has changed between seeds: their command lines are the same."""
    rates = [{"seed": seed, "recon": {"lr": lr}} for seed, lr in ((0, 1e-3), (1, 5e-3))]
    runs = [run("flexround", 90.0, s["seed"], settings=s) for s in rates]
    runs += [run("adaround", 88.0, seed, settings=rates[0] | {"seed": seed}) for seed in (0, 1)]
    told = "its records of one setting have recon.lr 0.001 and 0.005; rerun=true makes them again"
    assert conflict(claim(), cells_of(runs)) == told
    for asked in runs:
        asked.settings["recon"] = {"lr": 1e-3}
    assert conflict(claim(), cells_of(runs)) is None


@pytest.mark.parametrize("name", ["task.calibration.corpus.local", "task.root"])
def test_a_contrast_is_of_methods_on_one_calibration_set(name):
    """Where it lay is in no command line that decides anything; what it held is in the settings."""

    def of(quant, held, more=()):
        settings: dict = {"seed": 0}
        *above, last = name.split(".")
        node = settings
        for part in above:
            node = node.setdefault(part, {})
        node[last] = f"sha256:{held * 32}"
        return run(quant, 90.0, more=more, settings=settings)

    assert conflict(claim(), cells_of([of("flexround", "a"), of("adaround", "a")])) is None
    told = f"its records have {name} aaaaaaaaaaaa and bbbbbbbbbbbb; rerun=true makes them again"
    assert conflict(claim(), cells_of([of("flexround", "a"), of("adaround", "b")])) == told
    asked = claim(less=["quant=adaround calibration=c4"])
    other = of("adaround", "b", ["calibration=c4"])
    assert conflict(asked, cells_of([of("flexround", "a"), other])) is None, "the claim's contrast"


def test_two_models_of_one_claim_are_no_mixture():
    runs = [run("flexround", 90.0), run("adaround", 88.0, network="b", model="mobilenet_v2")]
    assert conflict(claim(), cells_of(runs)) is None


def test_a_network_that_was_asked_to_be_another_is_no_mixture_but_its_data_are():
    asked = claim(less=["quant=adaround model.equalize=true"])
    runs = [run("flexround", 9.0), run("adaround", 8.0, more=["model.equalize=true"], network="b")]
    assert conflict(asked, cells_of(runs)) is None
    runs += [run("adaround", 8.0, 1, more=["model.equalize=true"], network="c")]
    assert conflict(asked, cells_of(runs)) is None, "a seed of its own"
    runs[2] = run("adaround", 8.0, 1, ["model.equalize=true"], network="b", evaluation_data="d")
    assert "its records have evaluation_data" in conflict(asked, cells_of(runs))


def test_a_seed_contrasts_runs_of_one_network_but_seeds_may_be_of_several():
    """A network that a task trains has other last bits on another processor."""

    def runs(*networks):
        return cells_of(
            run(quant, 9.0, seed, network=network)
            for seed, own in enumerate(networks)
            for quant, network in zip(("flexround", "adaround"), own, strict=True)
        )

    assert conflict(claim(), runs(("a", "a"), ("b", "b"))) is None
    assert mixed_seeds(claim(), runs(("a", "a"), ("b", "b"))) == "2 full-precision networks"
    assert "its records have network a and b" in conflict(claim(), runs(("a", "a"), ("a", "b")))
    assert mixed_seeds(claim(), runs(("a", "a"), ("a", "a"))) is None
    # A seed that one arm alone has is not contrasted.
    both = [run(quant, 9.0, network="a") for quant in ("flexround", "adaround")]
    alone = cells_of([*both, run("flexround", 9.0, 1, network="b")])
    assert conflict(claim(), alone) is mixed_seeds(claim(), alone) is None


def test_the_machines_of_a_contrast_are_told_where_they_differ_within_a_seed():
    def arms(*machines):
        return cells_of(
            run(quant, 9.0, seed, device="cpu", processor=processor, versions={"torch": torch})
            for seed, own in enumerate(machines)
            for quant, (processor, torch) in zip(("flexround", "adaround"), own, strict=True)
        )

    one, other, newer = ("A", "2.1"), ("B", "2.1"), ("A", "2.2")
    assert mixed_arms(claim(), arms((one, one), (other, other))) is None
    assert mixed_arms(claim(), arms((one, one), (one, other))) == "processor (A, B)"
    assert mixed_arms(claim(), arms((one, newer), (one, other))) == (
        "torch (2.1, 2.2); processor (A, B)"
    )
    # Another network is what a claim may be about.
    unlike = [run("flexround", 9.0, network="a"), run("adaround", 8.0, network="b")]
    assert mixed_arms(claim(), cells_of(unlike)) is None


def test_of_the_versions_that_a_kept_record_has_there_is_torchs():
    mine = run("flexround", 9.0, versions={"torch": "2.1", "numpy": "2.0"})
    assert kept.slim(mine, units=False).versions == {"torch": "2.1"}


def test_a_metric_that_no_record_has_is_told():
    runs = cells_of([run("flexround", 9.0), run("adaround", 8.0)])
    with pytest.raises(ValueError, match="has no kl; it has top1"):
        estimate(claim(metric="kl"), runs, no_outcomes)
    assert "has no kl; it has top1" in conflict(claim(metric="kl"), runs)
    assert "has no error; it has top1" in conflict(claim(metric="error"), runs), "without units"
