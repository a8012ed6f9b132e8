"""Ours beside other methods' papers: which run is which cell, and what can't be made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiment.sweeps.plan import EXPERIMENTS
from results.__main__ import main
from results.records.record import Record
from results.records.store import Store
from results.tables.other_papers import PAPERS, compare_with_others, left_out, of_paper, why_not

GROUPS = {"_target_": "PerGroup", "group_size": 128}
ROW = {"_target_": "PerChannel"}
GPTQ = {"quant": {"act_order": True, "static_groups": True}, "recon": {"sequential": True}}
WINDOWS = {"protocol": {"name": "gptq", "split": "test", "window": 2048, "max_windows": None}}


def run(
    model, method, value, bits=4, seed=0, task="eleven", metric="average", fp=57.98, **settings
):
    own = {
        "symmetric": False, "granularity": GROUPS, "quant": {}, "recon": {"unit": "block"},
        "task": {"limit": None} if task == "eleven" else WINDOWS, "model": {"name": model},
    }  # fmt: skip
    return Record(
        f"{method}{value}{seed}{bits}{model}", "ok", model, task, 3, method, bits, seed, metric,
        metric != "perplexity", value, fp, own | settings, {metric: value}, {metric: fp},
    )  # fmt: skip


def hits(name, *records):
    """Return what has a value: (method, setting, bits, published, ours)."""
    joined = compare_with_others(of_paper(name), records)
    return {
        (j.cell.method, j.cell.setting, j.cell.bits, j.cell.printed, tuple(j.ours))
        for j in joined if j.ours and j.cell.method != "fp"
    }  # fmt: skip


# A run, and the one published cell that it is: typed from the papers.
CELLS = {
    "signround": (
        "signround/w2g128", run("llama2_7b", "signround", 40.0, 2),
        ("signround", "group_size=128", "W2", "48.64"),
    ),
    "rtn": (
        "signround/w4", run("mistral_7b", "rtn", 58.0, granularity=ROW, recon={}),
        ("rtn", "per_channel", "W4", "58.84"),
    ),
    "awq": (
        "signround/w3g128",
        run("llama2_13b", "rtn", 58.0, 3, transform={"_target_": "AWQ"}, recon={}),
        ("awq", "group_size=128", "W3", "58.86"),
    ),
    "gptq": (
        "signround/w4g128", run("llama2_70b", "gptq", 66.0, **GPTQ),
        ("gptq", "group_size=128 act_order sequential static_groups", "W4", "66.22"),
    ),
    "opt": (
        "gptq/opt",
        run("opt_125m", "gptq", 31.5, task="wikitext2", metric="perplexity", granularity=ROW,
            quant={"act_order": False}, recon={"sequential": False}),
        ("gptq", "per_channel", "W4", "31.12"),
    ),
    "c4": (
        "gptq/opt",
        run("opt_1_3b", "gptq", 21.0, 3, task="c4", metric="perplexity", granularity=ROW,
            quant={"act_order": False}, recon={"sequential": False}),
        ("gptq", "per_channel", "W3", "21.63"),
    ),
    "llama": (
        "gptq/llama",
        run("llama_7b", "gptq", 6.1, task="wikitext2", metric="perplexity", granularity=ROW,
            **GPTQ),
        ("gptq", "per_channel act_order sequential", "W4", "6.09"),
    ),
    "llama_without_tricks": (
        "gptq/llama",
        run("llama_7b", "gptq", 7.0, task="wikitext2", metric="perplexity", granularity=ROW,
            quant={"act_order": False}, recon={"sequential": False}),
        ("gptq", "per_channel", "W4", "7.15"),
    ),
    "llama_groups": (
        "gptq/llama_groups",
        run("llama_13b", "gptq", 5.6, 3, task="wikitext2", metric="perplexity", **GPTQ),
        ("gptq", "group_size=128 act_order sequential", "W3", "5.62"),
    ),
    "layers": (
        "gptq/vision",
        run("resnet18", "adaround", 69.0, 3, task="imagenet", metric="top1", granularity=ROW,
            recon={"unit": "layer"}),
        ("adaround", "per_channel", "W3", "68.37"),
    ),
    "blocks": (
        "gptq/vision",
        run("resnet50", "adaround", 75.0, task="imagenet", metric="top1", granularity=ROW),
        ("brecq", "per_channel", "W4", "75.88"),
    ),
    "quantease": (
        "cdquant/quantease",
        run("opt_1_3b", "cdquant", 21.0, 3, task="wikitext2", metric="perplexity", granularity=ROW),
        ("quantease", "per_channel", "W3", "21.30"),
    ),
    "lrq": (
        "lrq/common_sense_w8a8",
        run("llama2_70b", "lrq", 66.0, 8, task="zero_shot", granularity=ROW,
            activation={"bits": 8, "kv_bits": 8}),
        ("lrq", "per_channel kv_bits=8", "W8A8", "65.93"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CELLS)
def test_a_run_is_the_cell_that_its_settings_say_and_no_other(case):
    table, record, cell = CELLS[case]
    if record.task in ("imagenet", "zero_shot"):
        record.settings["task"] = {"limit": None}
    assert hits(table, record) == {(*cell, (record.value,))}
    assert hits(table.partition("/")[0], record) == {(*cell, (record.value,))}, "of all tables"


@pytest.mark.parametrize(
    "other",
    [
        {"symmetric": True}, {"granularity": ROW}, {"granularity": GROUPS | {"group_size": 64}},
        {"transform": {"_target_": "Hadamard"}}, {"activation": {"bits": 8}},
        {"recon": {"unit": "block", "last_loss": "logits"}},
        {"recon": {"unit": "block", "loss": "trimmed"}},
        {"grid": {"_target_": "NF4"}}, {"allocation": {"_target_": "DeltaLoss"}},
        {"bits_per_layer": {"mlp": 8}}, {"checkpoint": "sha256:1"},
        {"task": {"limit": 100}},
    ],
    ids=lambda settings: next(iter(settings)),
)  # fmt: skip
def test_a_run_of_other_settings_is_no_cell(other):
    record = run("llama2_7b", "signround", 40.0, 2)
    assert hits("signround/w2g128", record)
    record.settings.update(other)
    assert not hits("signround/w2g128", record)


def test_a_perplexity_by_another_protocol_or_on_some_windows_is_no_cell():
    for change in ({"name": "run_clm"}, {"window": 1024}, {"max_windows": 4}, {"split": "train"}):
        record = run("opt_125m", "rtn", 37.0, task="wikitext2", metric="perplexity",
                     granularity=ROW, fp=27.65)  # fmt: skip
        assert hits("gptq/opt", record)
        record.settings["task"] = {"protocol": WINDOWS["protocol"] | change}
        assert not hits("gptq/opt", record)


def test_a_perplexity_of_rows_joined_in_another_way_is_no_cell():
    name, record, _ = CELLS["c4"]
    assert hits(name, record)
    assert not hits(name, replace(record, task_version=2))


def test_full_precision_is_beside_its_own_number():
    joined = compare_with_others(of_paper("signround/w4"), [run("llama2_7b", "rtn", 50.0)])
    (fp,) = [j for j in joined if j.ours and j.cell.method == "fp"]
    assert (fp.cell.printed, fp.value) == ("57.98", 57.98)


def test_seeds_are_one_cell_and_other_configurations_are_told():
    two = [run("llama2_7b", "signround", v, 2, seed) for seed, v in enumerate((40.0, 41.0))]
    assert hits("signround/w2g128", *two) == {
        ("signround", "group_size=128", "W2", "48.64", (40.0, 41.0))
    }
    with pytest.raises(ValueError, match=r"fall into signround/w2g128 llama2_7b .*--where"):
        hits("signround/w2g128", *two, run("llama2_7b", "signround", 42.0, 2))
    longer = run("llama2_7b", "signround", 42.0, 2, 2, recon={"unit": "block", "iters": 9})
    with pytest.raises(ValueError, match=r"signround/w2g128 .*: recon.iters \(-, 9\)"):
        hits("signround/w2g128", *two, longer)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("signround/w5", ["no table signround/w5", "signround has cost, symmetric, v2, w2g128"]),
        ("gptq/optt", ["did you mean gptq/opt?", "gptq has bloom, cost, llama, llama_groups"]),
        ("leaderbord", ["no command leaderbord; did you mean leaderboard?"]),
        ("lrqq", ["no table lrqq", "other papers are cdquant, gptq, lrq, signround"]),
        ("gptq/bloom", ["gptq/bloom can't be made here: BLOOM's blocks can't be replayed"]),
        ("signround/cost", ["signround/cost can't be made here: times and memory"]),
    ],
)
def test_a_name_that_is_none_is_one_line_with_those_that_there_are(name, words, capsys, tmp_path):
    assert main([name, "--results-dir", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_what_is_left_out_is_told_with_its_reason(capsys, tmp_path):
    Store(tmp_path).write(run("llama2_7b", "signround", 40.0, 2))
    assert main(["signround/w2g128", "--results-dir", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "| 40.00  | 1       | 48.64   | -8.64" in told
    assert "4 left out: HQQ is no method here" in told
    assert "hqq" not in told
    words = ["signround/w2g128", "--results-dir", str(tmp_path), "--task", "eleven"]
    assert main(words) == 0, "by the name that the command line has"
    assert "48.64" in capsys.readouterr().out
    assert any("PaLM2" in line for line in left_out(of_paper("cdquant")))


def test_every_table_that_can_be_made_has_its_preset():
    for paper in PAPERS:
        made = {cell.table for cell in of_paper(paper) if not why_not(cell)}
        presets = {path.stem for path in (EXPERIMENTS / paper).glob("*.yaml")}
        assert made <= presets
