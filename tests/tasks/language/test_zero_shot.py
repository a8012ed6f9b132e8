"""The harness's numbers are its own, and what goes wrong is told before a weight is loaded."""

from __future__ import annotations

import json
import logging
import random

import pytest
import torch

from flexround.models.language import LanguageModel
from flexround.models.language_adapter import LanguageAdapter
from results.records.store import Store
from tasks.language.calibration_data import Stream
from tasks.language.corpora import PythonDocs
from tasks.language.harness_scores import percent
from tasks.language.zero_shot import ZeroShot

lm_eval = pytest.importorskip("lm_eval", reason="the extra zero-shot is not installed")

TINY = LanguageModel(name="tiny_llama", source="tiny:llama", kind="causal", leave=[])
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}
  cache_dir: {folder}/../cache
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "Text: {{{{text}}}}\\nRest:"
doc_to_target: label
doc_to_choice: rests
metric_list:
{metrics}
{more}
"""
METRIC = "  - {{metric: {}, aggregation: mean, higher_is_better: true}}\n"


def write_task(folder, name, *metrics, more=""):
    lines = "".join(METRIC.format(metric) for metric in metrics)
    text = TASK.format(name=name, folder=folder, metrics=lines, more=more)
    (folder / f"{name}.yaml").write_text(text)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    """Two tasks on Python's documentation: which end, of three of unlike lengths, is a line's."""
    lines = [line.strip() for line in PythonDocs().rows("test") if len(line) > 60][:90]
    cuts = random.Random(0)
    for part, split in enumerate(("train", "test")):
        rows = []
        for i in range(part * 45, part * 45 + 45, 3):
            for j in range(3):
                text = lines[i + j][:30]
                rests = [line[30 : cuts.randint(35, 60)] for line in lines[i : i + 3]]
                rows.append(json.dumps({"text": text, "rests": rests, "label": j}))
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    write_task(folder, "line_ends", "acc", "acc_norm")
    write_task(folder, "line_ends_acc", "acc")
    return folder


def make(folder, cache_dir, **changes):
    options = dict(
        name="zero_shot", version=1, tasks=["line_ends"], num_fewshot=0, limit=None,
        include_path=str(folder), calibration_corpus=Stream(PythonDocs(), "file"), seq_len=32,
        eval_batch_size=4, expected=None, tolerance=0.5, cache_dir=str(cache_dir),
        checkpoints_dir=str(cache_dir),
    )  # fmt: skip
    return ZeroShot(**(options | changes))


def loaded(folder, cache_dir, **changes):
    task = make(folder, cache_dir, **changes)
    network = task.load(TINY, None)
    return task, LanguageAdapter(network, task.example(), torch.device("cpu"))


def prompts(task):
    return [instance.args[0] for instance in task._tasks["line_ends"].instances]


def test_numbers_are_those_of_the_harness_on_the_saved_model(folder, cache_dir, capsys, caplog):
    tasks = ["line_ends", "line_ends_acc"]
    task, adapter = loaded(folder, cache_dir, tasks=tasks, num_fewshot=1)
    capsys.readouterr()
    caplog.clear()
    before = random.getstate(), torch.get_rng_state()
    with caplog.at_level(logging.INFO):
        ours = task.evaluate(adapter)
    assert not caplog.records, "the harness is quiet"
    assert capsys.readouterr() == ("", "")
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])

    saved = folder / "saved"
    adapter.model.save_pretrained(saved)
    task.tokenizer.save_pretrained(saved)
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(saved)},
        tasks=tasks,
        num_fewshot=1,
        batch_size=4,
        device="cpu",
        task_manager=lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False),
    )["results"]
    assert theirs["line_ends"]["acc,none"] != theirs["line_ends"]["acc_norm,none"]
    norm, plain = theirs["line_ends"]["acc_norm,none"], theirs["line_ends_acc"]["acc,none"]
    assert ours == {
        "line_ends": 100 * norm,
        "line_ends_acc": 100 * plain,
        "average": (100 * norm + 100 * plain) / 2,
    }
    assert set(task.outcomes) == set(tasks)
    for name, right in task.outcomes.items():
        assert 100 * right.double().mean().item() == pytest.approx(ours[name])
    assert task.evaluate(adapter) == ours, "the same network has the same number"


def test_shots_and_limit_reach_the_harness(folder, cache_dir):
    task, adapter = loaded(folder, cache_dir, limit=5)
    zero = task.evaluate(adapter)["average"]
    assert {p.count("Text:") for p in prompts(task)} == {1}
    assert len(set(prompts(task))) == 5
    assert zero in [20.0 * n for n in range(6)]
    task, adapter = loaded(folder, cache_dir, limit=5, num_fewshot=2)
    task.evaluate(adapter)
    assert {p.count("Text:") for p in prompts(task)} == {3}
    assert len(set(prompts(task))) == 5


def test_the_weights_at_the_time_are_evaluated(folder, cache_dir):
    task, adapter = loaded(folder, cache_dir)
    first = task.evaluate(adapter)
    with torch.no_grad():
        for block in adapter.blocks():
            for layer in block.layers:
                layer.module.weight.mul_(-1)
    assert task.evaluate(adapter) != first


def test_acc_norm_goes_before_acc():
    scores = {"alias": "x", "acc,none": 0.25, "acc_norm,none": 0.5, "acc_stderr,none": "N/A"}
    assert percent(scores) == 50.0
    del scores["acc_norm,none"]
    assert percent(scores) == 25.0


def test_calibration_is_the_corpus_by_seed(folder, cache_dir):
    task, _ = loaded(folder, cache_dir)
    batches = task.calibration(10, 3)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(4, 32), (4, 32), (2, 32)]
    expected = Stream(PythonDocs(), "file").sequences(task.tokenizer, 32, 10, 3)
    assert torch.equal(torch.cat([batch["input_ids"] for batch in batches]), expected)


def test_an_average_that_is_not_the_expected_is_refused(folder, cache_dir):
    task = make(folder, cache_dir, expected=60.0)
    task.check_full_precision({"average": 59.6})
    with pytest.raises(ValueError, match=r"average 59.400, expected are 60.000"):
        task.check_full_precision({"average": 59.4})
    make(folder, cache_dir).check_full_precision({"average": 1.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"tasks": ["line_end"]}, "has no readable task line_end; did you mean line_ends, line_ends_"),
     ({"tasks": ["mmlu"]}, "has no readable task mmlu; it has line_ends, line_ends_acc"),
     ({"include_path": "nowhere"}, "data_dir=nowhere: no such folder"),
     ({"seq_len": 257}, r"tiny:llama has 256 positions; lower task.seq_len \(257\)"),
     ({"tasks": []}, r"task.tasks=\[\]: name at least one"),
     ({"limit": 0}, "task.limit=0: give a whole number of at least 1"),
     ({"num_fewshot": -1}, "task.num_fewshot=-1: give a whole number of at least 0"),
     ({"calibration_corpus": None}, "give calibration=c4")],
)  # fmt: skip
def test_bad_options_are_refused(folder, cache_dir, changes, message):
    with pytest.raises(ValueError, match=message):
        make(folder, cache_dir, **changes).load(TINY, None)


def test_tasks_are_checked_before_weights(folder, cache_dir):
    nothing = LanguageModel(name="none", source="./nowhere", kind="causal", leave=[])
    with pytest.raises(ValueError, match="has no readable task"):
        make(folder, cache_dir, tasks=["nothing"]).load(nothing, None)


def test_items_that_can_not_be_had_name_the_task(folder, cache_dir):
    (folder / "test.jsonl").unlink()
    with pytest.raises(ValueError, match=r"line_ends can't be loaded: .*data_dir=PATH") as e:
        make(folder, cache_dir).load(TINY, None)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("metrics", "more", "message"),
    [(["brier_score"], "", "the task other measures neither acc_norm nor acc"),
     (["acc"], "num_fewshot: 0", "the task other sets its own to 0")],
)  # fmt: skip
def test_a_task_that_can_not_serve_is_refused(folder, cache_dir, metrics, more, message):
    write_task(folder, "other", *metrics, more=more)
    with pytest.raises(ValueError, match=message):
        make(folder, cache_dir, tasks=["other"], num_fewshot=1).load(TINY, None)


def test_there_is_nothing_to_train_on(folder, cache_dir):
    task = make(folder, cache_dir)
    for attempt in (task.training_rows, task.collator):
        with pytest.raises(ValueError, match="zero_shot has no training split"):
            attempt()


SHORT = ("model=tiny_llama", "task=zero_shot", "quant=rtn", "calibration=python_docs")
SHORT += ("task.seq_len=32", "num_samples=8", "bits=3", "symmetric=false")


def test_a_run_ends_in_its_record(folder, cli, results_dir):
    outcome = cli(*SHORT, f"data_dir={folder}", "task.tasks=[line_ends,line_ends_acc]")
    assert outcome.status == 0, outcome.err
    (record,) = Store(results_dir).load()
    assert (record.task, record.metric, record.higher_is_better) == ("zero_shot", "average", True)
    assert set(record.metrics) == {"line_ends", "line_ends_acc", "average"}
    assert record.settings["task"]["num_fewshot"] == 0


def test_bad_input_is_one_line(folder, cli):
    outcome = cli(*SHORT, f"data_dir={folder}", "task.tasks=[line_end]")
    assert outcome.status == 1
    assert "no readable task line_end; did you mean line_ends" in outcome.err.splitlines()[-1]
