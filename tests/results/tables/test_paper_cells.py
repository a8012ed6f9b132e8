"""Which run is of which cell: every job of the paper's presets, and no run of another setup."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiment.content import Contents
from experiment.finetune import UNEVALUATED
from experiment.finetuned import FINETUNED
from experiment.identity import places, plain, reduced
from experiment.sweeps.jobs import names_of
from results.records.record import Record
from results.tables.other_papers import compare_with_others, of_paper
from results.tables.paper_comparison import compare_with_paper, frame, text
from tests.conftest import some_slow
from tests.experiment.test_paper_protocols import PAPER, jobs_of_sweep
from tests.results.tables.test_other_papers import ROW, WINDOWS
from tests.results.tables.test_other_papers import run as run_of_others
from tests.results.tables.test_paper_comparison import STATIC, TASK, W8A8, cell, run

QUICK = ("table03", "table07", "table10", "table23")  # one of each kind; the others stand for them


def hits(table, *records):
    """Return (method, setting, bits) of the cells that records are of, full precision aside."""
    joined = compare_with_paper(table, records)
    found = [j.cell for j in joined if j.ours and j.cell.method != "fp"]
    return {(c.method, c.setting, c.bits) for c in found}


@pytest.mark.parametrize("table", some_slow(PAPER, [t for t in PAPER if t not in QUICK]))
def test_every_job_of_a_preset_is_a_cell_of_its_table_without_a_note(table, tmp_path):
    metrics = {j.cell.metric: 50.0 for j in compare_with_paper(table, [])}
    for job in jobs_of_sweep(table):
        model, task, method = names_of(job.cfg, job.choices)
        settings = reduced(plain(job.cfg), Contents(tmp_path))
        metric = next(iter(metrics))
        record = Record(
            "a", "ok", model, task, 1, method, job.cfg.bits, 0, metric, True, 50.0, 50.0, settings,
            metrics, metrics, places=places(job.cfg),
            overrides=[f"{name}={value}" for name, value in job.given.items()],
        )  # fmt: skip
        joined = [j for j in compare_with_paper(table, [record]) if j.ours]
        assert {j.cell.method for j in joined} - {"fp"} == {method}, job.given
        assert {j.note for j in joined} == {""}, job.given


B = {"unit": "block", "inputs": "quant", "act_inputs": "fp"}
Q = {"unit": "block", "inputs": "mixed", "act_steps": "together", "quant_prob": 0.5}
SETUPS = {
    "weights": ("table02", {}, B | {"act_steps": "start"}, ("B", "W4A32")),
    "B": ("table03", STATIC, B | {"act_steps": "after"}, ("B", "W4A4")),
    "Q": ("table03", STATIC, Q, ("Q", "W4A4")),
}
OTHER = [
    ("weights", {"unit": "layer"}), ("weights", {"inputs": "mixed"}),
    ("weights", {"inputs": "mixed", "act_steps": "together"}),
    ("B", {"unit": "layer"}), ("B", {"act_steps": "start"}), ("B", {"act_inputs": "quant"}),
    ("B", {"inputs": "mixed"}), ("Q", {"unit": "layer"}), ("Q", {"inputs": "quant"}),
    ("Q", {"quant_prob": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), OTHER)
def test_a_run_of_another_setup_is_no_cell(name, change):
    """The fact sheet of the paper, 1.6: unit, order, the block's inputs, share of dropping."""
    table, settings, recon, (setting, bits) = SETUPS[name]
    assert hits(table, run("flexround", 70.0, **settings, recon=recon)) == {
        ("flexround", setting, bits)
    }
    assert not hits(table, run("flexround", 70.0, **settings, recon=recon | change))


def test_steps_that_are_not_learned_are_left_out_of_a_record_and_no_cell():
    assert not hits("table03", run("flexround", 70.0, **STATIC, recon=B))


def test_first_and_last_layers_of_an_image_network_have_8_bits():
    for bits, found in ((8, True), (4, False)):
        record = run("flexround", 70.0, model={"first_last_bits": bits})
        assert bool(hits("table02", record)) == found


def test_fewer_samples_or_iterations_are_joined_and_noted():
    """docs/results.md, Table 2 beside ours."""
    short = run("adaround", 60.0, num_samples=64, recon=B | {"iters": 60})
    whole = run("flexround", 70.0, recon=B | {"iters": 5000})
    joined = compare_with_paper("table02", [short, whole])
    note = "ours has num_samples=64, not 1024, and recon.iters=60, not 20000"
    assert cell(joined, "adaround", "W4A32").note == note
    assert cell(joined, "flexround", "W4A32").note == ""
    assert note in text(frame(joined))
    swept = run("flexround", 70.0, num_samples=64, recon=B | {"iters": 5000})
    (found,) = [j for j in compare_with_paper("figure07", [swept]) if j.ours]
    assert found.note == "", "the cell is of 64"
    odd = run("flexround", 76.0, 0, 8, "llama_33b", "five_shot", "boolq", **W8A8, num_samples=8)
    notes = frame(compare_with_paper("table20", [odd]))["note"]
    assert "ours has num_samples=8, not 512" in set(notes)


OPT = ("opt_125m", "wikitext2", "perplexity")
LLAMA = ("llama_33b", "wikitext2", "perplexity")


def given(where, place, told_by="places", method="flexround"):
    """Return a run whose checkpoint= was place, as its places or its command line tell."""
    made = run(method, 18.0, 0, 8, *where, **W8A8, checkpoint="sha256:1")
    if told_by == "places":
        return replace(made, places={} if place is None else {"checkpoint": place})
    return replace(made, overrides=[f"checkpoint={place}"])


@pytest.mark.parametrize("told_by", ["places", "overrides"])
def test_a_checkpoint_by_its_place_is_the_published_network_and_finetunes_is_not(told_by):
    """docs/troubleshooting.md has whoever is offline give checkpoint=FOLDER."""
    for place in ("/data/opt", "facebook/opt-125m@1", "/data/wikitext2/opt_350m"):
        record = given(OPT, place, told_by)
        assert not any(j.ours for j in compare_with_paper("table05", [record])), place
    assert hits("table07", given(LLAMA, "/data/llama", told_by))
    assert not hits("table23", given(LLAMA, "/data/llama", told_by))
    folder = "/outputs/checkpoints/wikitext2/opt_125m"
    for place in (FINETUNED, folder, f"{folder}/", f"{folder}{UNEVALUATED}"):
        assert hits("table05", given(OPT, place, told_by)), place


def test_what_finetune_has_noted_tells_whatever_the_place_is_called():
    for where, table, other in ((OPT, "table05", "table07"), (LLAMA, "table23", "table07")):
        for place in ("/data/mine", None):
            record = given(where, place)
            here = replace(record, finetuning={"task": where[1], "model": where[0]})
            assert hits(table, here), (table, place)
            assert not hits(other, here), (other, place)
            elsewhere = replace(record, finetuning={"task": "ptb", "model": where[0]})
            assert not hits(table, elsewhere), "it was trained on another task"
            assert not hits(other, elsewhere), "and is not what its authors have published"


def test_a_task_that_needs_training_has_any_checkpoint_trained():
    for table, where in (
        ("table15", ("bert_base", "glue/mnli", "accuracy")),
        ("table12", ("bert_base", "squad", "f1")),
        ("table06", ("gpt2_medium", "webnlg", "bleu_all")),
    ):
        assert hits(table, given(where, "/data/mine"))


def test_what_tells_nothing_of_its_checkpoint_is_of_a_trained_network():
    """Old records, and tasks that take the network of finetune.py by themselves."""
    assert hits("table05", given(OPT, None))
    assert not hits("table07", given(LLAMA, None))


def test_other_papers_take_a_published_network_by_its_place_too():
    record = run_of_others("llama2_7b", "signround", 40.0, 2, checkpoint="sha256:1")
    for place, found in (("/data/llama2", True), ("finetuned", False), (None, False)):
        one = replace(record, places={} if place is None else {"checkpoint": place})
        joined = compare_with_others(of_paper("signround/w2g128"), [one])
        assert any(j.ours for j in joined) == found, place


def test_penn_treebank_is_joined_by_spaces_by_itself_and_wikitext2_is_not():
    for task, found in (("ptb", True), ("wikitext2", False)):
        record = given(("opt_125m", task, "perplexity"), "finetuned")
        record.settings["task"] = TASK["perplexity"] | {"corpus": {"joined_by": "space"}}
        assert bool(hits("table05", record)) == found, task
        windows = WINDOWS | {"corpus": {"joined_by": "space"}}
        other = run_of_others("opt_125m", "gptq", 45.0, task=task, metric="perplexity",
                              granularity=ROW, quant={"act_order": False})  # fmt: skip
        other.settings["task"] = windows
        joined = compare_with_others(of_paper("gptq/opt"), [other])
        assert any(j.ours and j.cell.method == "gptq" for j in joined) == found, task
