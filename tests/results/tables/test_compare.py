"""Paired comparison of two methods, against closed forms."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from results.__main__ import main
from results.records.off import OFF
from results.records.store import Store
from results.tables.alike import differing
from results.tables.compare import compare, render
from results.tables.paired_tests import mcnemar, mean_interval, metric_interval, metric_of
from tests.results.records.test_selection import with_option
from tests.results.records.test_store import record

SETTINGS = {"bits": 4, "num_samples": 64, "recon": {"lr": 1e-3}}


def run(quant, seed, value, **changes):
    settings = SETTINGS | {"seed": seed, "quant": {"_target_": quant}} | changes
    return record(
        f"{quant}{seed}", value, quant=quant, seed=seed, bits=settings["bits"], settings=settings
    )


def outcomes(only_first, only_second, both, neither):
    """Return the outcomes of two methods with so many samples of each kind."""
    counts = (only_first, only_second, both, neither)
    first = np.repeat([True, False, True, False], counts)
    second = np.repeat([False, True, True, False], counts)
    return first, second


def test_mcnemar_is_the_sign_test_of_the_discordant_samples():
    b, c, p = mcnemar(*outcomes(1, 9, 50, 40))
    assert (b, c) == (1, 9)
    assert p == pytest.approx(2 * (1 + 10) / 2**10), "0 or 1 of 10, at either end"
    assert mcnemar(*outcomes(9, 1, 0, 7))[2] == pytest.approx(p)
    assert mcnemar(*outcomes(4, 4, 10, 0))[2] == 1
    right = np.array([True, False, True])
    assert mcnemar(right, right) == (0, 0, 1)


def test_an_interval_of_equal_differences_is_a_point_and_of_one_seed_is_none():
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert mean_interval([0.5]) is None


@pytest.mark.parametrize("seeds", [2, 3, 5, 40])
def test_the_interval_over_seeds_covers_the_mean_as_often_as_it_says(seeds):
    drawn = np.random.default_rng(1).normal(0, 1, (2000, seeds))
    covered = np.mean([low <= 0 <= high for low, high in map(mean_interval, drawn)])
    assert covered == pytest.approx(0.95, abs=0.02), "four deviations of a share in 2,000 trials"


def test_the_interval_over_few_windows_covers_the_difference_of_perplexities():
    """A window's losses move together in both networks; the perplexities are of all windows."""
    rng, covered = np.random.default_rng(2), []
    for _ in range(1000):
        shared = rng.normal(3, 0.3, 12)
        first, second = (shared + rng.normal(at, 0.05, 12) for at in (0.2, 0.1))
        low, high = metric_interval(first, second, "perplexity")
        # Of the windows that were drawn the difference is of their own mean loss.
        truth = math.exp(shared.mean()) * (math.exp(0.2) - math.exp(0.1))
        covered.append(low <= truth <= high)
    assert np.mean(covered) > 0.93


def test_the_interval_over_samples_is_the_normal_one_for_many_samples():
    first, second = outcomes(300, 200, 3000, 1500)
    low, high = metric_interval(first, second, "top1")
    b, c = 300 / 5000, 200 / 5000
    spread = 1.96 * 100 * math.sqrt((b + c - (b - c) ** 2) / 5000)
    assert low == pytest.approx(2 - spread, abs=0.15)
    assert high == pytest.approx(2 + spread, abs=0.15)
    assert metric_interval(first, first, "top1") == (0, 0)


def test_the_metric_of_losses_is_their_perplexity():
    losses = np.log(np.array([2.0, 8.0], dtype=np.float32))
    assert metric_of(losses, "perplexity") == pytest.approx(4.0), "the geometric mean"
    low, high = metric_interval(losses, losses - np.log(np.float32(2)), "perplexity")
    # 4 - 2; a loss of log 2 more or less than the mean adds (4 - 2) log 2 to first order. Two
    # samples x apart have a mean of standard error x / 2; t of 1 degree at 97.5 % is 12.706.
    half = 12.7062 * (4 - 2) * math.log(2)
    assert (low, high) == pytest.approx((2 - half, 2 + half), rel=1e-4)
    assert metric_interval(losses[:1], losses[:1], "perplexity") is None


def test_the_metric_of_other_numbers_is_their_mean():
    """Of divergences [nats]: a perplexity alone is kept as its logarithm."""
    divergences = np.array([0.25, 0.75], dtype=np.float32)
    assert metric_of(divergences, "kl") == 0.5
    low, high = metric_interval(divergences, 2 * divergences, "kl")
    half = 12.7062 * 0.25  # of -0.25 and -0.75
    assert (low, high) == pytest.approx((-0.5 - half, -0.5 + half), rel=1e-4)


PAIRED = [run("flexround", s, v) for s, v in enumerate((90.0, 92.0, 97.0))] + [
    run("adaround", s, v) for s, v in enumerate((89.0, 91.0, 93.0))
]


def test_differences_are_of_the_same_seed():
    first, second = outcomes(9, 1, 80, 10)
    held = {"flexround0": {"top1": first}, "adaround0": {"top1": second}}
    # The order in which the records come does not matter.
    found = compare(PAIRED[::-1], lambda r: held.get(r.run_id, {}), "flexround", "adaround")
    table = found.table
    assert table["seed"].tolist() == ["0", "1", "2", "all"]
    assert table["difference"].tolist() == [1.0, 1.0, 4.0, 2.0]
    assert table["b"].fillna(-1).tolist() == [9, -1, -1, -1], "seeds are not pooled"
    assert table["p"][0] == pytest.approx(22 / 1024)
    low, high = table.iloc[-1][["low", "high"]]
    # Standard deviation 3^0.5 of three: a standard error of 1; t of 2 degrees is 4.3027.
    assert (low, high) == pytest.approx((2 - 4.3027, 2 + 4.3027), abs=1e-4)
    told = "\n".join(found.remarks)
    assert "the run flexround1 (flexround seed 1) keeps none" in told
    assert "adaround0" not in told


def test_one_seed_gets_no_interval_over_seeds():
    found = compare([PAIRED[0], PAIRED[3]], lambda _: {}, "flexround", "adaround")
    (row,) = found.table.itertuples()
    assert (row.difference, row.seed) == (1.0, "0")
    assert math.isnan(row.low)
    assert "one seed, so no interval over seeds" in "\n".join(found.remarks)


def test_a_method_that_does_the_same_differs_in_nothing():
    right = outcomes(0, 0, 9, 1)[0]
    runs = [run("flexround", s, 90.0) for s in (0, 1)] + [run("rtn", s, 90.0) for s in (0, 1)]
    table = compare(runs, lambda _: {"top1": right}, "flexround", "rtn").table
    assert (table["difference"] == 0).all()
    assert (table[["low", "high"]] == 0).all().all()
    assert table["p"].tolist()[:2] == [1.0, 1.0]


def test_other_metrics_of_the_samples_have_rows_of_their_own():
    first, second = outcomes(3, 1, 4, 2)
    held = {"flexround0": {"boolq": first}, "adaround0": {"boolq": second}}
    table = compare([PAIRED[0], PAIRED[3]], lambda r: held[r.run_id], "flexround", "adaround").table
    assert table["metric"].tolist() == ["top1", "boolq"]
    assert table["difference"].tolist() == [1.0, pytest.approx(20.0)]


def test_only_runs_of_equal_settings_are_paired():
    other = [run("adaround", s, 89.0, num_samples=32) for s in range(3)]
    with pytest.raises(ValueError, match="they differ in num_samples 64 and 32"):
        compare(PAIRED[:3] + other, lambda _: {}, "flexround", "adaround")
    rate = [run("adaround", s, 89.0, recon={"lr": 5e-2}) for s in range(3)]
    found = compare(PAIRED[:3] + rate, lambda _: {}, "flexround", "adaround")
    assert "flexround and adaround have recon.lr 0.001 and 0.05" in "\n".join(found.remarks)
    with pytest.raises(ValueError, match="no seed in common"):
        compare([PAIRED[0], PAIRED[4]], lambda _: {}, "flexround", "adaround")
    with pytest.raises(ValueError, match="no two runs share task, model, bits and seed"):
        compare([PAIRED[0], run("rtn", 0, 1.0, bits=3)], lambda _: {}, "flexround", "rtn")


@pytest.mark.parametrize("name", ["network", "evaluation_data"])
def test_runs_of_different_networks_or_data_are_not_paired(name):
    """Equal settings on another kind of processor may be of another trained network."""
    here, there = ([replace(r, **{name: d}) for r in PAIRED if r.seed == 0] for d in "ab")
    mixed = [r for r in here if r.quant == "flexround"] + [
        r for r in there if r.quant != "flexround"
    ]
    rest = [replace(r, **{name: "a"}) for r in PAIRED if r.seed]
    found = compare([*mixed, *rest], lambda _: {}, "flexround", "adaround")
    assert 0 not in found.table["seed"].tolist()
    assert "seed 0 not compared: they are of different" in "\n".join(found.remarks)
    with pytest.raises(ValueError, match="nothing of flexround and adaround can be compared"):
        compare(mixed, lambda _: {}, "flexround", "adaround")


def test_a_mean_over_several_networks_says_so():
    seeds = [replace(r, network=f"of seed {r.seed}") for r in PAIRED]
    found = compare(seeds, lambda _: {}, "flexround", "adaround")
    assert any("its seeds are of 3 full-precision networks" in told for told in found.remarks)


def test_two_configurations_of_a_method_are_compared_apart_or_not_at_all():
    rates = [run("flexround", s, 80.0, recon={"lr": 5e-2}) for s in range(3)]
    with pytest.raises(ValueError, match=r"recon.lr \(0.001, 0.05\).*--by recon.lr"):
        compare(PAIRED + rates, lambda _: {}, "flexround", "adaround")
    table = compare(PAIRED + rates, lambda _: {}, "flexround", "adaround", ["recon.lr"]).table
    assert set(table["recon.lr"]) == {"0.001"}, "adaround has no run at the other"


def test_a_method_without_a_setting_is_compared_at_every_value_of_it():
    units = [
        run("flexround", 0, v, recon={"unit": unit}) for unit, v in (("block", 9.0), ("layer", 8.0))
    ]
    rtn = record("r", 5.0, quant="rtn", settings={"bits": 4, "num_samples": 64, "seed": 0})
    table = compare([*units, rtn], lambda _: {}, "flexround", "rtn").table
    assert dict(zip(table["recon.unit"], table["difference"], strict=True)) == {
        "block": 4.0, "layer": 3.0,
    }  # fmt: skip


TRANSFORM = {"transform": {"_target_": "AWQ", "clip": True}}


def test_a_run_with_a_transform_is_compared_with_none_without():
    """A record without one leaves the setting out, and is no method that has no such setting."""
    plain, turned = run("flexround", 0, 90.0), run("flexround", 0, 80.0, **TRANSFORM)
    with pytest.raises(ValueError, match=r"they differ in transform\._target_ none and AWQ"):
        compare([run("rtn", 0, 50.0), turned], lambda _: {}, "rtn", "flexround")
    both = [run("rtn", 0, 50.0), run("rtn", 0, 40.0, **TRANSFORM), plain, turned]
    table = compare(both, lambda _: {}, "flexround", "rtn").table
    assert dict(zip(table["transform._target_"], table["difference"], strict=True)) == {
        "none": 40.0, "AWQ": 40.0,
    }  # fmt: skip


@pytest.mark.parametrize(("name", "off"), OFF.items())
def test_what_is_off_differs_from_what_is_on_for_each_setting_that_records_leave_out(name, off):
    settings = {"recon": {"unit": "block"}, "model": {"name": "net"}, "task": {"corpus": {}}}
    one = run("flexround", 0, 90.0, **settings)
    other = run("adaround", 0, 90.0, **with_option(settings, name, "it"))
    own = name.startswith("recon.")
    assert f"{name} {off} and it" in differing(one, other, own)
    assert f"{name} it and {off}" in differing(other, one, own)


def test_a_setting_that_one_lacks_differs_where_the_other_could_have_it():
    def limited(quant, task):
        return run(quant, 0, 90.0, task={"_target_": "Text", **task})

    left, right = limited("flexround", {}), limited("rtn", {"limit": 5})
    assert differing(left, right) == "task.limit - and 5"
    assert differing(right, left) == "task.limit 5 and -"
    layers = run("rtn", 0, 90.0, bits_per_layer={"head": 8})
    assert "bits_per_layer.head 8 and -" in differing(layers, run("flexround", 0, 90.0))
    # A class without the option differs from one with it in the class alone.
    searched = run("flexround", 0, 90.0, ranges={"_target_": "LpSearch", "p": 2})
    bare = run("rtn", 0, 90.0, ranges={"_target_": "MinMax"})
    assert differing(searched, bare) == "ranges._target_ LpSearch and MinMax"


def drawn(quant, seed, own, value):
    """Return a run of a method that draws by a seed of its own, too."""
    one = run(quant, seed, value)
    own_seed = {"quant": {"_target_": quant, "seed": own}}
    return replace(one, run_id=f"{quant}{seed}-{own}", settings=one.settings | own_seed)


def test_runs_of_one_seed_that_differ_in_a_seed_of_the_methods_own_are_averaged():
    """Neither has a run of the other to be paired with: lrq and cdquant draw other things."""
    right = outcomes(0, 0, 9, 1)[0]
    three = [drawn("lrq", 0, own, v) for own, v in enumerate((10.0, 50.0, 90.0))]
    for others, value in (
        ([run("flexround", 0, 40.0)], 40.0),
        ([drawn("cdquant", 0, own, v) for own, v in enumerate((20.0, 40.0))], 30.0),
    ):
        first, second = "lrq", others[0].quant
        found = compare([*three, *others], lambda _: {"top1": right}, first, second)
        (row,) = found.table.itertuples()
        assert (row.first, row.second, row.difference) == (50.0, value, 50.0 - value)
        assert math.isnan(row.low)
        assert pd.isna(row.p)
        told = "\n".join(found.remarks)
        assert "seed 0: no test on samples, lrq has the mean of 3 runs, which differ in qua" in told
    more = [*three, drawn("lrq", 1, 1, 70.0), run("flexround", 0, 40.0), run("flexround", 1, 60.0)]
    table = compare(more, lambda _: {"top1": right}, "flexround", "lrq").table
    assert table["difference"].tolist() == [-10.0, -10.0, -10.0]
    assert table["p"].fillna(-1).tolist() == [-1, 1, -1], "seed 1 has one run of each"


def test_csv_reads_back_to_the_same_table():
    found = compare(PAIRED, lambda _: {}, "flexround", "adaround")
    again = pd.read_csv(io.StringIO(render(found, "csv")), dtype={"b": "Int64", "c": "Int64"})
    pd.testing.assert_frame_equal(again, found.table, check_dtype=False)


@pytest.mark.parametrize("form", ["markdown", "csv", "latex"])
def test_from_the_command_line(tmp_path, capsys, form):
    store = Store(tmp_path)
    first, second = outcomes(9, 1, 80, 10)
    for row in PAIRED:
        store.write(row, {"top1": first if row.quant == "flexround" else second})
    where = ["--results-dir", str(tmp_path)]
    assert main(["compare", "flexround", "adaround", *where, "--format", form]) == 0
    out = capsys.readouterr().out
    assert "keeps none" not in out
    if form == "markdown":
        line = next(x for x in out.splitlines() if " 0 " in x)
        assert [word.strip() for word in line.split("|")[5:-1]] == [
            "0", "90.00", "89.00", "+1.00", "+1.90 to +14.10", "9", "1", "0.0215",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("methods", "message"),
    [(("flexruond", "adaround"), "no record of the method flexruond; did you mean flexround?"),
     (("flexround", "flexround"), "give two methods")],
)  # fmt: skip
def test_bad_input_is_one_line(tmp_path, capsys, methods, message):
    for row in PAIRED:
        Store(tmp_path).write(row)
    assert main(["compare", *methods, "--results-dir", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
