"""One setting varied, all others held; what the configuration changes along is followed."""

from __future__ import annotations

import io

import pandas as pd
import pytest

from results.__main__ import main
from results.records.given import SURROUNDINGS, by_hand
from results.records.off import GROUPS, OFF
from results.records.store import Store
from results.tables.ablation import ablation, in_order, render
from tests.results.records.test_store import record


def run(
    value,
    seed=0,
    quant="flexround",
    bits=4,
    network="resnet18",
    status="ok",
    given=None,
    **settings,
):
    """Return a record; given is what its command line said, None where that was not kept."""
    settings = {
        "bits": bits, "seed": seed, "num_samples": 64,
        "quant": {"_target_": quant},
    } | settings  # fmt: skip
    return record(
        f"{value}{settings}", value, status, quant=quant, bits=bits, model=network, seed=seed,
        settings=settings, overrides=given,
    )  # fmt: skip


def recon(iters, **more):
    return {"recon": {"iters": iters, "unit": "block"} | more}


ITERS = [run(90.0 + s, s, **recon(iters)) for iters in (100, 20) for s in (0, 2)]


def test_a_column_is_a_value_in_ascending_order_with_mean_deviation_and_seeds():
    found = ablation([run(88.0, **recon(9)), *ITERS], "recon.iters")
    text = render(found, "recon.iters", "markdown").splitlines()
    assert [word.strip() for word in text[0].split("|")[1:-1]] == [
        "model", "quant", "bits", "recon.iters=9", "recon.iters=20", "recon.iters=100",
    ]  # fmt: skip
    pm = "\N{PLUS-MINUS SIGN}"
    assert [word.strip() for word in text[2].split("|")[4:-1]] == [
        "88.00 (1)", f"91.00 {pm} 1.41 (2)", f"91.00 {pm} 1.41 (2)",
    ]  # fmt: skip


def test_a_row_is_what_is_held_and_shows_what_tells_it_apart():
    layers = [run(80.0, **recon(iters, unit="layer")) for iters in (100, 20)]
    alone = run(70.0, bits=2, **recon(20))
    found = ablation([*ITERS, *layers, alone], "recon.iters")
    assert found.names == ["model", "quant", "bits", "recon.unit"]
    assert found.table["recon.unit"].tolist() == ["block", "block", "layer", "layer"]
    assert found.table["n"].tolist() == [2, 2, 1, 1]
    assert found.remarks == ["1 runs have no other that differs in recon.iters alone"]


@pytest.mark.parametrize(
    ("name", "on"), [("loss", "trimmed"), ("last_loss", "logits"), ("held_out", 8)]
)
def test_an_option_that_records_leave_out_where_it_is_off_has_that_value(name, on):
    """`experiment.identity` leaves it out; a method without the loop has no value of it."""
    off = OFF[f"recon.{name}"]
    solved = run(80.0, quant="gptq", recon={"sequential": True})
    found = ablation([run(90.0, **recon(9)), run(91.0, **recon(9, **{name: on})), solved],
                     f"recon.{name}")  # fmt: skip
    assert list(found.table[f"recon.{name}"]) == [str(off), str(on)]
    assert list(found.table["mean"]) == [90.0, 91.0]
    assert f"1 runs have no recon.{name}" in found.remarks


@pytest.mark.parametrize(("group", "none"), GROUPS.items())
def test_a_group_that_records_leave_out_where_nothing_is_chosen_has_that_member(group, none):
    chosen = run(80.0, given=[f"{group}=it"], **{group: {"_target_": "It"}})
    found = ablation([run(90.0, given=[]), chosen], group)
    assert dict(zip(found.table[group], found.table["mean"], strict=True)) == {none: 90, "It": 80}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_what_decides_nothing_of_the_value_holds_no_runs_apart(name):
    there = run(91.0, **recon(100), given=[f"{name}=other", "recon.iters=100"])
    found = ablation([run(90.0, **recon(20), given=["recon.iters=20"]), there], "recon.iters")
    assert list(found.table["mean"]) == [90.0, 91.0]
    assert found.remarks == []


def test_runs_without_the_setting_are_counted():
    found = ablation([*ITERS, run(10.0, quant="rtn")], "recon.iters")
    assert found.remarks == ["1 runs have no recon.iters"]


def test_a_setting_that_is_computed_from_the_varied_one_is_followed():
    rows = [
        run(v, given=["granularity=per_group", f"group_size={g}"], group_size=g,
            granularity={"_target_": "PerGroup", "group_size": g})
        for g, v in ((128, 90.0), (32, 95.0))
    ]  # fmt: skip
    found = ablation(rows, "group_size")
    assert found.table["mean"].tolist() == [95.0, 90.0]
    assert found.remarks == ["along with group_size changed granularity.group_size (32, 128)"]


def test_a_method_brings_its_own_schedule():
    rows = [
        run(95.0, given=["quant=flexround"], **recon(100, lr=0.02)),
        run(96.0, quant="adaround", given=["quant=adaround"], **recon(100, lr=0.05)),
        run(50.0, quant="rtn", given=["quant=rtn"]),
    ]
    found = ablation(rows, "quant")
    assert found.table["quant"].tolist() == ["flexround", "adaround", "rtn"]
    assert "recon.lr (0.02, 0.05)" in found.remarks[0]


def swept(quant, value, *given, **loop):
    """Return a run of a sweep; loop is what its method has of recon."""
    return run(value, quant=quant, given=[f"quant={quant}", *given], **loop)


@pytest.mark.parametrize("option", ["recon.iters=100", "recon=fast"])
def test_a_method_without_a_loop_is_beside_those_that_were_given_options_of_it(option):
    """Its record leaves out what was idle."""
    rows = [
        swept("flexround", 95.0, option, **recon(100)),
        swept("adaround", 96.0, option, **recon(100)),
        swept("rtn", 50.0),
    ]
    found = ablation(rows, "quant")
    assert found.table["quant"].tolist() == ["flexround", "adaround", "rtn"]
    assert found.remarks == []


def test_a_method_without_a_loop_is_beside_every_value_that_others_were_given():
    rows = [
        swept(quant, value + iters, f"recon.iters={iters}", **recon(iters))
        for iters in (9, 20) for quant, value in (("flexround", 60.0), ("adaround", 70.0))
    ]  # fmt: skip
    solver = {"recon": {"_target_": "Solve", "sequential": True}}
    rows += [swept("rtn", 50.0), swept("gptq", 55.0, **solver)]
    found = ablation(rows, "quant")
    assert found.table.groupby("recon.iters")["mean"].apply(list).to_dict() == {
        "9": [69.0, 79.0, 50.0, 55.0], "20": [80.0, 90.0, 50.0, 55.0],
    }  # fmt: skip
    assert not [told for told in found.remarks if "no other" in told]


@pytest.mark.parametrize("first", ["rtn", "lrq"])
def test_of_a_group_only_what_has_no_loop_is_beside_the_runs_of_a_loop(first):
    """In whatever order: lrq has a loop of its own, which is not that of either preset."""
    rows = [
        swept(quant, value, f"recon={preset}", **recon(100, inputs=inputs))
        for preset, inputs in (("brecq", "fp"), ("qdrop", "mixed"))
        for quant, value in (("flexround", 95.0), ("adaround", 96.0))
    ]
    others = [swept("rtn", 50.0), swept("lrq", 90.0, **recon(9, inputs="quant"))]
    found = ablation([*rows, *sorted(others, key=lambda r: r.quant != first)], "quant")
    assert found.table.groupby("recon")["quant"].apply(list).to_dict() == {
        "brecq": ["flexround", "adaround", "rtn"], "qdrop": ["flexround", "adaround", "rtn"],
    }  # fmt: skip
    assert "1 runs have no other that differs in quant alone" in found.remarks


def test_a_method_is_not_beside_runs_with_quantized_activations_for_want_of_their_bits():
    static = {"activation": {"_target_": "Static", "bits": 4}, "act_bits": 4}
    given = ["activation=static", "act_bits=4", "recon.iters=9"]
    rows = [swept(quant, 90.0, *given, **recon(9), **static) for quant in ("flexround", "adaround")]
    found = ablation([*rows, swept("rtn", 50.0, activation=None)], "quant")
    assert found.table["quant"].tolist() == ["flexround", "adaround"]
    assert found.remarks == ["1 runs have no other that differs in quant alone"]


def test_a_member_of_the_varied_group_that_has_no_such_option_is_beside_every_value_of_it():
    static = [
        run(80.0 + bits, given=["activation=static", f"act_bits={bits}"], act_bits=bits,
            activation={"_target_": "Static", "bits": bits})
        for bits in (4, 8)
    ]  # fmt: skip
    bare = run(95.0, given=[], activation=None)
    dynamic = run(90.0, given=["activation=dynamic", "act_bits=8"], act_bits=8,
                  activation={"_target_": "Dynamic", "bits": 8})  # fmt: skip
    found = ablation([*static, bare, dynamic], "activation").table
    assert found[["act_bits", "activation", "mean"]].values.tolist() == [
        ["4", "null", 95.0], ["4", "Static", 84.0],
        ["8", "null", 95.0], ["8", "Static", 88.0], ["8", "Dynamic", 90.0],
    ]  # fmt: skip


def test_a_method_that_has_what_is_held_at_another_value_is_not_beside_it():
    rows = [
        swept("flexround", 95.0, "recon.iters=100", **recon(100)),
        swept("adaround", 96.0, "recon.iters=100", **recon(100)), swept("lrq", 97.0, **recon(9)),
        swept("rtn", 50.0, num_samples=8), swept("rtn", 51.0, "num_samples=9", num_samples=9),
    ]  # fmt: skip
    found = ablation(rows, "quant")
    assert found.table["quant"].tolist() == ["flexround", "adaround"]
    assert found.remarks[-1] == "3 runs have no other that differs in quant alone"


def signround(iters, lr, *given):
    given = ["quant=signround", f"recon.iters={iters}", *given]
    return run(90.0 + lr, quant="signround", given=given, **recon(iters, lr=lr))


def test_a_setting_that_the_command_line_gave_is_held():
    own = [signround(100, 1, "recon.lr=1"), signround(200, 2, "recon.lr=2")]
    with pytest.raises(ValueError, match=r"the closest differ in recon.lr too"):
        ablation(own, "recon.iters")
    follows = [signround(100, 1), signround(200, 2)]  # each rate of its number of iterations
    found = ablation(follows, "recon.iters")
    assert found.table["mean"].tolist() == [91.0, 92.0]
    assert found.remarks == ["along with recon.iters changed recon.lr (1, 2)"]
    with pytest.raises(ValueError, match=r"the closest differ in recon.lr too"):
        ablation(follows, "recon.iters", by=["recon.lr"])


def test_a_setting_given_by_one_command_line_and_a_default_of_the_other_are_one_value():
    rows = [signround(100, 1, "recon.unit=block"), signround(200, 1)]
    assert ablation(rows, "recon.iters").table["mean"].tolist() == [91.0, 91.0]


def test_a_group_by_hand_and_the_same_one_by_default_are_one_value():
    tensor = {"granularity": {"_target_": "PerTensor"}}
    rows = [
        run(90.0, given=["granularity=per_tensor", "recon.iters=9"], **recon(9), **tensor),
        run(91.0, given=["recon.iters=20"], **recon(20), **tensor),
    ]
    assert ablation(rows, "recon.iters").table["mean"].tolist() == [90.0, 91.0]
    channel = run(80.0, given=["granularity=per_channel", "recon.iters=9"], **recon(9),
                  granularity={"_target_": "PerChannel"})  # fmt: skip
    with pytest.raises(ValueError, match="the closest differ in granularity"):
        ablation([channel, rows[1]], "recon.iters")


def test_members_of_a_group_that_differ_in_the_varied_setting_alone_are_its_values():
    """recon=block and recon=layer are how recon.unit is varied."""
    loop = {"_target_": "Reconstruction", "iters": 9}
    rows = [
        run(90.0 + at, given=[f"recon={unit}"], recon=loop | {"unit": unit})
        for at, unit in enumerate(("block", "layer"))
    ]
    assert ablation(rows, "recon.unit").table["mean"].tolist() == [90.0, 91.0]


def test_a_name_that_no_record_has_is_refused():
    with pytest.raises(ValueError, match=r"--by recon.lrr: no record has a setting"):
        ablation(ITERS, "recon.iters", by=["recon.lrr"])


def test_a_setting_that_was_swept_is_held_whatever_the_command_lines_say():
    cross = [signround(iters, lr) for iters in (100, 200) for lr in (1, 2)]
    found = ablation(cross, "recon.iters")
    assert found.table["recon.lr"].tolist() == ["1", "1", "2", "2"]
    assert found.table["mean"].tolist() == [91.0, 91.0, 92.0, 92.0]
    assert not found.remarks


def test_a_default_that_was_another_one_then_is_named():
    """The records tell: today's configuration has no say."""
    rows = [
        run(90.0, given=["recon.iters=20"], **recon(20, batch_size=16)),
        run(91.0, given=["recon.iters=100"], **recon(100, batch_size=32)),
    ]
    assert ablation(rows, "recon.iters").remarks == [
        "along with recon.iters changed recon.batch_size (16, 32)"
    ]


def test_a_folder_of_data_elsewhere_is_the_same_data():
    rows = [
        run(90.0 + i, given=[f"data_dir={where}", f"recon.iters={i}"], **recon(i))
        for i, where in ((1, "/here"), (2, "/there"))
    ]
    assert ablation(rows, "recon.iters").table["mean"].tolist() == [91.0, 92.0]


def test_what_a_command_line_gave_is_read_from_the_record():
    given = ["model=resnet18", "+quant.rank=4", "task@_global_.task=digits", "~logger", "bits=4"]
    assert by_hand(run(1.0, given=given)) == {
        "model": "resnet18", "quant.rank": "4", "task": "digits", "logger": "", "bits": "4",
    }  # fmt: skip
    assert by_hand(run(1.0)) == {}


def test_values_stand_in_a_sensible_order():
    assert in_order([100, 20.5, 3, 20.5]) == [3, 20.5, 100]
    assert in_order([8, None, 4]) == [None, 4, 8]
    assert in_order(["rtn", "adaround", "rtn"]) == ["rtn", "adaround"]
    assert in_order([True, False]) == [False, True]


def test_failed_is_failed_unless_another_seed_has_succeeded():
    rows = [*ITERS, *(run(0.0, 1, status="failed", **recon(iters)) for iters in (5, 20))]
    text = render(ablation(rows, "recon.iters"), "recon.iters", "markdown").splitlines()[2]
    assert text.split("|")[4].strip() == "failed"
    assert "(2)" in text.split("|")[5]


def test_csv_reads_back_to_the_same_table():
    found = ablation(ITERS, "recon.iters")
    again = pd.read_csv(io.StringIO(render(found, "recon.iters", "csv")))
    pd.testing.assert_frame_equal(
        again, found.table.astype({"recon.iters": int, "bits": int}), check_dtype=False
    )


@pytest.mark.parametrize(
    ("rows", "setting", "message"),
    [
        (ITERS, "recon.itres", "no record has a setting recon.itres; did you mean recon.iters"),
        (ITERS, "iters", "did you mean recon.iters"),
        (ITERS, "num_samples", "num_samples is 64 in all 4 runs that have it"),
        (
            [run(1.0, **recon(9)), run(2.0, num_samples=8, **recon(10))],
            "recon.iters",
            "no two runs differ in recon.iters alone; the closest differ in num_samples too",
        ),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, rows, setting, message):
    for row in rows:
        Store(tmp_path).write(record(**{**vars(row), "run_id": f"{abs(hash(row.run_id))}"}))
    assert main(["ablation", setting, "--results-dir", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
