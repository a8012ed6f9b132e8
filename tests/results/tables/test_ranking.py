"""Methods in order of their ranks: what is paired, what is not, and what too few settings say."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from results.__main__ import main
from results.page.page import page
from results.records.store import Store
from results.tables.ranking import ranking
from results.tables.ranking_text import render
from tests.results.records.test_store import record

HEIGHTS = {"best": 3.0, "middle": 2.0, "last": 1.0}


def run(quant, bits, value, seed=0, task="digits", **changes):
    settings = {"bits": bits, "seed": seed, "quant": {"_target_": quant}} | changes.pop("set", {})
    facts = dict(quant=quant, bits=bits, seed=seed, task=task, settings=settings) | changes
    metric = facts.setdefault("metric", "top1")
    return record(f"{quant}-{task}-{bits}-{seed}", value, metrics={metric: value}, **facts)


def board(count=6, heights=HEIGHTS):
    """Return records of settings in which the methods always have one order."""
    return [
        run(quant, 2 + at % 7, 10.0 * at + height, task=f"task{at // 7}")
        for at in range(count)
        for quant, height in heights.items()
    ]


def rows(found):
    return {row["method"]: row for row in found.methods}


def test_one_order_everywhere_is_the_order():
    found = ranking(board(8))
    assert [row["method"] for row in found.methods] == ["best", "middle", "last"]
    assert [row["mean_rank"] for row in found.methods] == [1, 2, 3]
    assert [row["wins"] for row in found.methods] == [100, 50, 0]
    assert {(row["low"], row["high"]) for row in found.methods} == {(1, 1), (2, 2), (3, 3)}
    # Eight of eight signs: 2 / 2^8 for each of three pairs; Holm makes the smallest three times it.
    assert [row["p"] for row in found.pairs] == pytest.approx([2 / 2**8] * 3)
    assert [row["corrected"] for row in found.pairs] == pytest.approx([6 / 2**8] * 3)
    assert {row["alike"] for row in found.methods} == {""}


def test_a_lower_metric_that_is_better_counts_the_other_way():
    flipped = [
        run(
            r.quant, r.bits, 100 - r.value, task=r.task, metric="perplexity",
            higher_is_better=False,
        )
        for r in board()
    ]  # fmt: skip
    assert [row["method"] for row in ranking(flipped).methods] == ["best", "middle", "last"]


def test_perplexities_differ_by_their_ratio():
    """A small network's are a hundred times a large one's, and so are their differences."""
    ratios = [1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07, 1 / 1.08]
    sizes = [1000.0, 500.0, 200.0, 100.0, 50.0, 20.0, 10.0, 5.0]
    lower = dict(metric="perplexity", higher_is_better=False)
    found = ranking([
        run(quant, 4, size * (ratio if quant == "last" else 1), task=f"task{at}", **lower)
        for at, (ratio, size) in enumerate(zip(ratios, sizes, strict=True))
        for quant in ("best", "last")
    ])  # fmt: skip
    # The one loss has the largest ratio, so that its rank is 8: as far from even as are 25 of the
    # 2^8 sets of ranks, those whose sum is 8 or less.
    sets = sum(
        sum(chosen) <= 8 for count in range(9) for chosen in combinations(range(1, 9), count)
    )
    assert found.pairs[0]["p"] == pytest.approx(2 * sets / 2**8)


def test_no_size_of_a_metric_outweighs_another():
    """One huge perplexity more or less changes nothing: only the order in each setting counts."""
    both = board(4) + [
        run(quant, 4, 1e6 if quant == "best" else 5.0 - height, task="text", metric="perplexity",
            higher_is_better=False)
        for quant, height in HEIGHTS.items()
    ]  # fmt: skip
    found = rows(ranking(both))
    assert found["best"]["mean_rank"] == pytest.approx((4 * 1 + 3) / 5)
    assert found["middle"]["mean_rank"] == pytest.approx((4 * 2 + 1) / 5)


def test_settings_are_of_the_seeds_that_all_have():
    records = [run("one", 4, 90.0, 0), run("one", 4, 10.0, 1), run("two", 4, 80.0, 0)]
    found = rows(ranking(records))
    assert (found["one"]["mean_rank"], found["two"]["mean_rank"]) == (1, 2)
    with_other = [*records, run("two", 4, 70.0, 1)]
    assert rows(ranking(with_other))["one"]["mean_rank"] == 2, "50 against 75"


@pytest.mark.parametrize("metric", ["top1", "perplexity"])
def test_runs_of_one_seed_that_differ_in_a_seed_of_the_methods_own_are_averaged(metric):
    """The last is ahead of two, their mean is not."""
    own = dict(metric=metric, higher_is_better=metric == "top1")
    values = (10.0, 20.0, 90.0) if metric == "top1" else (90.0, 80.0, 10.0)
    records = [
        replace(run("lrq", 4, value, set={"quant": {"_target_": "lrq", "seed": at}}, **own),
                run_id=f"lrq-{at}")
        for at, value in enumerate(values)
    ]  # fmt: skip
    found = rows(ranking([*records, run("two", 4, 50.0 if metric == "top1" else 20.0, **own)]))
    assert (found["lrq"]["mean_rank"], found["two"]["mean_rank"]) == (2, 1)


def test_too_few_settings_have_no_interval_and_no_test():
    found = ranking(board(5))
    assert all(row["low"] is None and row["wins_low"] is None for row in found.methods)
    assert all(row["p"] is None for row in found.pairs)
    assert "middle (untested)" in rows(found)["best"]["alike"], "and so not told apart either"
    text = render(found, "markdown")
    assert "5 of 6 settings" in text
    assert "5 settings in common, 6 are needed: no interval, and nothing is tested" in text
    assert "p = " not in text
    assert "Critical difference" not in text


def test_a_method_of_few_settings_keeps_the_others_rank():
    """Eight settings have three methods; a fourth that has one of them takes no part."""
    found = ranking([*board(8), run("rare", 2, 99.0, task="task0")])
    ranked = rows(found)
    assert ranked["best"]["ranked"] == 8
    assert ranked["rare"]["mean_rank"] is None
    assert ranked["rare"]["wins"] == 100
    assert found.methods[-1]["method"] == "rare"
    assert "not ranked, for too few settings in common: rare" in found.remarks


def test_methods_without_a_setting_in_common_are_not_compared():
    found = ranking([run("one", 4, 90.0), run("two", 3, 80.0)])
    assert found.pairs == []
    assert {row["mean_rank"] for row in found.methods} == {None}
    for form in ("markdown", "csv", "latex"):
        assert "one" in render(found, form)
    assert "0 settings in common, 6 are needed" in render(found, "markdown")


def test_methods_that_take_turns_are_not_told_apart():
    records = []
    for at in range(6):
        records += [
            run("left", 2 + at, 50.0 + at % 2), run("right", 2 + at, 51.0 - at % 2),
            run("low", 2 + at, 1.0),
        ]  # fmt: skip
    found = rows(ranking(records))
    assert found["left"]["mean_rank"] == found["right"]["mean_rank"] == 1.5
    assert "right" in found["left"]["alike"]


def test_intervals_are_students_and_end_where_a_rank_or_a_share_does():
    """Ahead in five of six settings: ranks 1 and once 2, shares of 100 and once 0."""
    records = [run("one", 2 + at, 9.0 if at else 1.0) for at in range(6)]
    records += [run("two", 2 + at, 5.0) for at in range(6)]
    one = rows(ranking(records))["one"]
    half = 2.5706 * (1 / 6) ** 0.5 / 6**0.5  # t of 5 degrees; the variance of 0, 0, 0, 0, 0, 1
    assert (one["low"], one["high"]) == pytest.approx((1, 7 / 6 + half), abs=1e-4)
    assert (one["wins_low"], one["wins_high"]) == pytest.approx((500 / 6 - 100 * half, 100), 1e-4)


def test_a_method_without_a_setting_meets_each_value_of_it():
    steps = [{"recon": {"act_steps": value}} for value in ("after", "together")]
    records = [
        record(str(at), 90.0 + at, quant="learned", settings={"bits": 4, "seed": 0} | step)
        for at, step in enumerate(steps)
    ]
    records.append(record("rtn", 10.0, quant="rtn", settings={"bits": 4, "seed": 0}))
    found = ranking(records)
    assert {row["method"]: row["settings"] for row in found.methods} == {"learned": 2, "rtn": 2}


def test_a_setting_with_a_transform_holds_no_run_without_one():
    """A run that leaves the setting out is of no transform, once, and not of each of them."""
    turned = {"transform": {"_target_": "AWQ"}}
    records = [
        run("one", 4, 90.0), run("two", 4, 80.0), run("three", 4, 70.0),
        run("one", 4, 91.0, set=turned), run("two", 4, 92.0, set=turned),
    ]  # fmt: skip
    found = ranking(records)
    held = {(row["first"], row["second"]): row["settings"] for row in found.pairs}
    assert held == {("one", "two"): 2, ("one", "three"): 1, ("two", "three"): 1}
    assert rows(found)["one"]["wins"] == pytest.approx((100 + 0) / 2)
    assert rows(found)["three"]["settings"] == 1


def test_runs_of_other_samples_are_not_ranked_against_each_other():
    records = [
        run("one", 4, 90.0, set={"num_samples": 64}), run("two", 4, 80.0, set={"num_samples": 64}),
        run("three", 4, 99.0, set={"num_samples": 8}),
    ]  # fmt: skip
    found = ranking(records)
    assert any("without three: it differs in num_samples" in text for text in found.remarks)


@pytest.mark.parametrize("form", ["markdown", "csv", "latex"])
def test_from_the_command_line(tmp_path, capsys, form):
    store = Store(tmp_path)
    for one in board(8):
        store.write(one)
    assert main(["leaderboard", "--results-dir", str(tmp_path), "--format", form]) == 0
    printed = capsys.readouterr().out
    assert "mean rank" in printed or "mean_rank" in printed
    assert printed.index("best") < printed.index("middle") < printed.index("last")


def test_one_method_is_no_ranking(tmp_path, capsys):
    store = Store(tmp_path)
    store.write(run("one", 4, 90.0))
    assert main(["leaderboard", "--results-dir", str(tmp_path)]) == 1
    assert "only one has finished a run; it takes two methods" in capsys.readouterr().err


def test_the_page_ranks_too_where_there_is_something_to_rank():
    shown = page(board(), (), "results")
    assert "Ranking" in shown
    assert "not told apart from" in shown
    assert "Ranking" not in page([run("one", 4, 90.0)], (), "results")


@pytest.mark.parametrize("first", ["solver", "best"])
def test_methods_that_compare_are_ranked_whichever_was_recorded_first(first):
    """A solver on other ranges compares with neither; the other two do with each other."""
    own = [run("solver", 2, 50.0, set={"ranges": {"_target_": "MinMax"}})]
    others = [
        run(quant, 2, value, set={"ranges": {"_target_": "LpNorm"}})
        for quant, value in (("best", 90.0), ("last", 80.0))
    ]
    found = ranking([*own, *others] if first == "solver" else [*others, *own])
    (pair,) = found.pairs
    assert (pair["first"], pair["second"], pair["ahead"]) == ("best", "last", 1)
    assert any("without solver: it differs in ranges" in told for told in found.remarks)


def test_a_seed_of_two_networks_is_left_out():
    runs = [
        run(quant, 2, value + (100 if seed and quant == "last" else 0), seed=seed, network=network)
        for quant, value in (("best", 90.0), ("last", 80.0))
        for seed, network in ((0, "a"), (1, quant))
    ]
    found = ranking(runs)
    assert found.pairs[0]["ahead"] == 1, "seed 1 is of a network for each"
    assert any("seed 1: they are of different networks" in told for told in found.remarks)
