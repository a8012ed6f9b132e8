"""Ours beside the paper's: which run is which cell, medians, noise, and the methods' order."""

from __future__ import annotations

from dataclasses import replace

import pytest

from results.__main__ import main
from results.records.record import Record
from results.records.store import Store
from results.tables.paper_comparison import compare_with_paper, frame, text
from results.tables.published_numbers import published

WHOLE = {"name": "run_clm", "split": "validation", "window": 1024, "max_windows": None}
TASK = {"perplexity": {"protocol": WHOLE}}


def run(
    method, value, seed=0, bits=4, network="mobilenet_v2", task="imagenet", metric="top1", **more
):
    settings = {
        "activation": None, "act_bits": 8, "num_samples": 1024, "model": {"equalize": False},
        "checkpoint": "brecq.pth" if task == "imagenet" else None,
        "symmetric": task == "imagenet", "task": TASK.get(metric, {}),
        "recon": {"act_steps": "start", "unit": "block"},
        "granularity": {"_target_": "PerChannel" if "llama" in network else "PerTensor"},
    } | more  # fmt: skip
    return Record(
        f"{method}{value}{seed}{bits}{network}", "ok", network, task, 1, method, bits, seed, metric,
        metric != "perplexity", value, 72.6, settings, {metric: value}, {metric: 72.6},
    )  # fmt: skip


def cell(joined, method, bits, setting="B", model="mobilenet_v2", metric="top1"):
    key = (method, bits, setting, model, metric)
    (found,) = [
        j
        for j in joined
        if (j.cell.method, j.cell.bits, j.cell.setting, j.cell.model, j.cell.metric) == key
    ]
    return found


def test_a_cell_has_the_median_of_its_seeds_and_the_papers_number():
    records = [run("flexround", v, seed) for seed, v in enumerate((70.0, 71.0, 70.9))]
    found = cell(compare_with_paper("table02", records), "flexround", "W4A32")
    assert (found.value, found.cell.value) == (70.9, 70.82)
    assert found.noise, "0.08 is less than the seeds' 0.55"
    assert not cell(compare_with_paper("table02", records[1:2]), "flexround", "W4A32").noise, (
        "one seed has none"
    )
    fp = cell(compare_with_paper("table02", records), "fp", "32", "")
    assert (fp.value, fp.cell.value) == (72.6, 72.62)


def test_full_precision_of_one_network_is_a_number_and_of_two_is_none():
    """Other processors have other last digits of it."""
    records = [run("flexround", 70.0, seed) for seed in range(3)]
    near = [replace(r, fp_metrics={"top1": 72.6 + r.seed * 1e-9}, network="n") for r in records]
    assert cell(compare_with_paper("table02", near), "fp", "32", "").value == 72.6 + 1e-9
    for network in (str, lambda seed: None):
        far = [replace(r, network=network(r.seed)) for r in near]
        assert cell(compare_with_paper("table02", far), "fp", "32", "").value is None


STATIC = {"activation": {"_target_": "StaticPerTensor", "bits": 4}, "act_bits": 4}
W8A8 = STATIC | {"act_bits": 8, "recon": {"act_steps": "together", "unit": "block"}}


@pytest.mark.parametrize(
    ("table", "settings", "where"),
    [
        ("table02", {}, {"bits": "W4A32", "setting": "B"}),
        ("table03", STATIC | {"recon": {"act_steps": "after"}}, {"bits": "W4A4", "setting": "B"}),
        (
            "table03",
            STATIC | {"recon": {"act_steps": "together"}},
            {"bits": "W4A4", "setting": "Q"},
        ),
        (
            "table10",
            {"model": {"equalize": True, "absorb_biases": True}, "checkpoint": None},
            {"bits": "W4A32", "setting": "B torchvision equalize absorb_biases"},
        ),
        ("figure07", {"num_samples": 64}, {"bits": "W4A32", "setting": "B num_samples=64"}),
    ],
)
def test_a_run_is_of_the_cell_that_its_settings_say(table, settings, where):
    joined = compare_with_paper(table, [run("flexround", 70.0, **settings)])
    hits = [j.cell for j in joined if j.ours and j.cell.method != "fp"]
    assert hits
    for hit in hits:
        assert hit.method == "flexround"
        assert hit.bits == where["bits"]
    assert where["setting"] in {hit.setting for hit in hits}


def test_five_shot_runs_are_of_the_five_shot_tables():
    record = run("flexround", 76.0, 0, 8, "llama_7b", "five_shot", "boolq", **W8A8)
    found = cell(
        compare_with_paper("table20", [record]),
        "flexround",
        "W8A8",
        "Q num_fewshot=5",
        "llama_7b",
        "boolq",
    )
    assert (found.value, found.cell.value) == (76.0, 76.76)
    assert {j.cell.task for j in compare_with_paper("table20", [])} == {"five_shot"}
    assert not any(j.ours for j in compare_with_paper("table19", [record]))


def test_the_order_of_the_methods_is_compared_where_all_have_run():
    values = {"adaquant": 15.0, "adaround": 69.0, "flexround": 70.0}
    table = frame(compare_with_paper("table02", [run(m, v) for m, v in values.items()]))
    ranked = table.dropna(subset=["rank_ours"])
    ranked = ranked[ranked["bits"] == "W4A32"].set_index("method")
    assert ranked["rank_ours"].to_dict() == {"adaquant": 3, "adaround": 2, "flexround": 1}
    assert "methods in the paper's order in 1 of 1 columns" in text(table)
    worse = frame(
        compare_with_paper("table02", [run(m, v) for m, v in (values | {"flexround": 1.0}).items()])
    )
    assert "methods in the paper's order in 0 of 1 columns" in text(worse)


def test_lower_is_better_for_perplexity():
    records = [
        run(m, v, 0, 8, "opt_125m", "ptb", "perplexity", **W8A8, checkpoint="sha256:1")
        for m, v in {"adaround": 20.0, "flexround": 18.0}.items()
    ]
    table = (
        frame(compare_with_paper("table05", records))
        .dropna(subset=["rank_ours"])
        .set_index("method")
    )
    assert table["rank_ours"].to_dict() == {"adaround": 2, "flexround": 1}
    assert table["rank_paper"].to_dict() == {"adaround": 2, "flexround": 1}


OTHERS = {
    "symmetric": {"symmetric": False},
    "granularity": {"granularity": {"_target_": "PerChannel"}},
    "grid": {"grid": {"_target_": "NF4"}},
    "transform": {"transform": {"_target_": "AWQ"}},
    "loss": {"recon": {"unit": "block", "loss": "trimmed"}},
    "start": {"recon": {"unit": "block", "start": "gptq"}},
    "last_loss": {"recon": {"unit": "block", "last_loss": "logits"}},
    "held_out": {"recon": {"unit": "block", "held_out": 8}},
    "allocation": {"allocation": {"_target_": "DeltaLoss"}},
    "bits_per_layer": {"bits_per_layer": {"features.0": 8}},
    "leave": {"model": {"leave": ["features.3"]}},
    "equalize": {"model": {"equalize": True}},
    "absorb_biases": {"model": {"absorb_biases": True}},
    "checkpoint": {"checkpoint": None},
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_run_of_other_settings_than_the_papers_is_no_cell(other):
    records = [run("flexround", 70.0), run("flexround", 99.0, 1, **OTHERS[other])]
    assert cell(compare_with_paper("table02", records), "flexround", "W4A32").ours == [70.0]


@pytest.mark.parametrize(
    "other",
    [
        {"activation": {"_target_": "DynamicPerToken"}},
        {"activation": {"_target_": "StaticPerTensor", "kv_bits": 8}},
        {"granularity": {"_target_": "PerTensor"}}, {"symmetric": True},
    ],
)  # fmt: skip
def test_activations_and_rows_of_llama_are_the_papers(other):
    def ours(**changes):
        record = run("flexround", 9.0, 0, 8, "llama_7b", "wikitext2", "perplexity",
                     **(W8A8 | changes))  # fmt: skip
        return [j.ours for j in compare_with_paper("table19", [record]) if j.ours and
                j.cell.method == "flexround"]  # fmt: skip

    assert ours() == [[9.0]]
    assert ours(**other) == []


@pytest.mark.parametrize(
    "change", [{"name": "gptq"}, {"split": "test"}, {"window": 2048}, {"max_windows": 4}]
)
def test_a_perplexity_by_another_protocol_is_no_cell_not_even_of_full_precision(change):
    def ours(protocol):
        record = run("flexround", 18.0, 0, 8, "opt_125m", "ptb", "perplexity",
                     **W8A8, checkpoint="sha256:1")  # fmt: skip
        record.settings["task"] = {"protocol": protocol}
        return [j.cell.method for j in compare_with_paper("table05", [record]) if j.ours]

    assert ours(WHOLE) == ["fp", "flexround"]
    assert ours(WHOLE | change) == []


def test_what_is_measured_on_some_items_is_no_cell():
    for task, part in ((("squad", "f1"), "max_eval"), (("zero_shot", "boolq"), "limit")):
        network = "bert_base" if task[0] == "squad" else "llama_7b"
        record = run("flexround", 80.0, 0, 8, network, *task, **W8A8)
        if task[0] == "squad":
            record.settings["checkpoint"] = "sha256:1"
        table = "table12" if task[0] == "squad" else "table19"
        assert any(j.ours for j in compare_with_paper(table, [record]))
        record.settings["task"] = {part: 100}
        assert not any(j.ours for j in compare_with_paper(table, [record]))


@pytest.mark.parametrize(
    ("table", "where", "trained"),
    [
        ("table05", ("opt_125m", "wikitext2", "perplexity"), True),
        ("table19", ("llama_7b", "wikitext2", "perplexity"), False),
        ("table23", ("llama_7b", "wikitext2", "perplexity"), True),
        ("table06", ("gpt2_medium", "webnlg", "bleu_all"), True),
        ("table15", ("bert_base", "glue/mnli", "accuracy"), True),
        ("table12", ("bert_base", "squad", "f1"), True),
    ],
)
def test_a_network_trained_on_the_task_is_of_the_tables_that_say_so(table, where, trained):
    """The words finetuned and lora; of GLUE and SQuAD all are."""
    assert any((c.model, c.task, c.metric) == where for c in published(table))
    for checkpoint in (None, "sha256:1"):
        record = run("flexround", 18.0, 0, 8, *where, **W8A8, checkpoint=checkpoint)
        found = [j.cell.method for j in compare_with_paper(table, [record]) if j.ours]
        assert found == (["fp", "flexround"] if trained == (checkpoint is not None) else [])


def test_a_rate_for_each_task_of_glue_is_of_the_table_that_has_them():
    """The word tuned_lr: Table 16 tries rates, Table 15 has the appendix's for all tasks."""
    made = run("flexround", 90.0, 0, 8, "bert_base", "glue/qnli", "accuracy",
               **W8A8, checkpoint="sha256:1")  # fmt: skip
    for given, table in ((["quant=flexround"], "table15"), (["recon.lr=3e-4"], "table16")):
        record = replace(made, overrides=given)
        for name in ("table15", "table16"):
            joined = compare_with_paper(name, [record])
            assert [j.ours for j in joined if j.ours and j.cell.method != "fp"] == (
                [[90.0]] if name == table else []
            )


def test_of_the_rates_that_were_tried_the_best_is_compared():
    """Table 16 gives none; the mean over seeds decides, not the best single run."""
    values = {"1e-4": (80.0, 92.0), "1e-3": (88.0, 90.0)}
    runs = [
        replace(
            run("flexround", value, seed, 8, "bert_base", "glue/qnli", "accuracy",
                **W8A8 | {"recon": W8A8["recon"] | {"lr": float(rate)}}, checkpoint="sha256:1"),
            overrides=[f"recon.lr={rate}"],
        )
        for rate, own in values.items() for seed, value in enumerate(own)
    ]  # fmt: skip
    (found,) = [
        j for j in compare_with_paper("table16", runs) if j.ours and j.cell.method == "flexround"
    ]
    assert sorted(found.ours) == [88.0, 90.0]


def test_two_configurations_of_one_cell_are_refused():
    """Of one seed or of two: a median over runs of different settings is nobody's number."""
    longer = {"act_steps": "start", "unit": "block", "lr": 1}
    for seed in (0, 1):
        records = [run("flexround", 70.0), run("flexround", 71.0, seed, recon=longer)]
        told = r"fall into table02 mobilenet_v2 .*: recon\.lr \(-, 1\); choose with --where"
        with pytest.raises(ValueError, match=told):
            compare_with_paper("table02", records)
    with pytest.raises(ValueError, match=r"num_samples \(1024, 64\)"):
        compare_with_paper("table02", [run("flexround", 70.0),
                                       run("flexround", 71.0, 1, num_samples=64)])  # fmt: skip


def test_a_value_that_is_none_and_an_old_version_of_the_task_are_not_joined():
    better = replace(run("flexround", 71.0, 1), task_version=2)
    found = cell(
        compare_with_paper("table02", [run("flexround", 70.0), better]), "flexround", "W4A32"
    )
    assert found.ours == [71.0]
    nothing = replace(run("flexround", 70.0), metrics={"top1": 70.0, "top5": float("nan")})
    found = cell(compare_with_paper("table02", [nothing]), "flexround", "W4A32", metric="top5")
    assert (found.ours, found.value, found.noise) == ([], None, False)


def test_a_table_of_settings_has_nothing_to_join():
    assert published("table13")
    with pytest.raises(ValueError, match="table13 lists settings, not results"):
        compare_with_paper("table13", [])


def test_from_the_command_line(tmp_path, capsys):
    Store(tmp_path).root.mkdir(exist_ok=True)
    Store(tmp_path).write(run("flexround", 70.0))
    where = ["--results-dir", str(tmp_path)]
    assert main(["table02", *where]) == 0
    out = capsys.readouterr().out
    line = next(x for x in out.splitlines() if "flexround" in x and "W4A32" in x and "mobile" in x)
    assert [word.strip() for word in line.split("|")[1:10]] == [
        "mobilenet_v2", "imagenet", "flexround", "B", "W4A32", "top1", "70.00", "1", "70.82",
    ]  # fmt: skip
    assert main(["table02", *where, "--format", "latex"]) == 0
    out = capsys.readouterr().out
    assert r"\toprule" in out
    assert r"mobilenet\_v2 & imagenet & flexround & B & W4A32 & top1 & 70.00" in out
    assert main(["table2", *where]) == 1
    assert "did you mean table02?" in capsys.readouterr().err


def test_one_model_shows_its_rows_of_the_paper_alone(tmp_path, capsys):
    Store(tmp_path).root.mkdir(exist_ok=True)
    Store(tmp_path).write(run("flexround", 70.0))
    where = ["--results-dir", str(tmp_path), "--model", "mobilenet_v2"]
    assert main(["table02", *where]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if " imagenet " in line]
    assert len(rows) == (1 + 3 * 3) * 2  # fp, 3 methods at W4, W3, W2; top-1 and top-5
    assert all(row.startswith("| mobilenet_v2 ") for row in rows)
    assert main(["table04", *where]) == 1
    assert "table04 has no model mobilenet_v2; it has " in capsys.readouterr().err
