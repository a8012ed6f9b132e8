"""The harness's numbers are its own, and what goes wrong is told before a weight is loaded."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import logging
import math
import random
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from flexround.models.language import LanguageModel
from flexround.models.language_adapter import LanguageAdapter
from results.records.store import Store
from tasks.language.calibration_data import Stream
from tasks.language.corpora import PythonDocs
from tasks.language.harness_metrics import is_share
from tasks.language.harness_scores import outcomes, scores
from tasks.language.harness_tasks import as_text, isolated
from tasks.language.zero_shot import ZeroShot

lm_eval = pytest.importorskip("lm_eval", reason="the extra zero-shot is not installed")
HFLM = pytest.importorskip("lm_eval.models.huggingface").HFLM

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
        name="zero_shot", version=1, tasks=["line_ends"], average_of="paper",
        num_fewshot=0, add_bos_token=None, limit=None,
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
    return [instance.args[0] for instance in task._harness.tasks["line_ends"].instances]


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
        "line_ends.acc": 100 * theirs["line_ends"]["acc,none"],
        "line_ends.acc_norm": 100 * norm,
        "line_ends_acc.acc": 100 * plain,
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


def test_examples_are_those_that_the_harness_draws_by_its_defaults(folder, cache_dir):
    task, adapter = loaded(folder, cache_dir, num_fewshot=2)
    task.evaluate(adapter)
    harness = HFLM(adapter.model, tokenizer=task.tokenizer, batch_size=4)
    theirs = lm_eval.simple_evaluate(
        harness,
        tasks=["line_ends"],
        num_fewshot=2,
        task_manager=lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
    )
    drawn = [sample["arguments"][0][0] for sample in theirs["samples"]["line_ends"]]
    first = [i.args[0] for i in task._harness.tasks["line_ends"].instances if i.idx == 0]
    assert first == drawn
    assert task.facts["fewshot_seed"] == theirs["config"]["fewshot_seed"]


def test_tasks_are_read_by_the_seeds_of_the_harness():
    """Of `simple_evaluate`, which seeds all three before it reads its tasks."""
    options = inspect.signature(lm_eval.simple_evaluate).parameters
    seeds = {name: options[f"{name}random_seed"].default for name in ("", "numpy_", "torch_")}
    with isolated():
        found = random.random(), np.random.rand(), torch.rand(())
    assert found[0] == random.Random(seeds[""]).random()
    assert found[1] == np.random.RandomState(seeds["numpy_"]).rand()
    assert found[2] == torch.rand((), generator=torch.Generator().manual_seed(seeds["torch_"]))


def test_the_weights_at_the_time_are_evaluated(folder, cache_dir):
    task, adapter = loaded(folder, cache_dir)
    first = task.evaluate(adapter)
    with torch.no_grad():
        for block in adapter.blocks():
            for layer in block.layers:
                layer.module.weight.mul_(-1)
    assert task.evaluate(adapter) != first


def test_scores_are_all_metrics_by_their_filters_and_shares_in_percent():
    results = {"alias": "x", "acc,none": 0.25, "acc_stderr,none": "N/A", "sample_len": 3,
               "exact_match,strict": 0.5, "exact_match,flexible": 0.75,
               "perplexity,none": 7.0}  # fmt: skip
    assert scores(results, ["acc", "exact_match", "perplexity"]) == {
        "acc": 25.0, "exact_match,strict": 50.0, "exact_match,flexible": 75.0, "perplexity": 7.0,
    }  # fmt: skip
    assert is_share("prompt_level_strict_acc")
    assert not is_share("word_perplexity")


def of_class(place, name):
    """Return what is of lm-eval's own class by name alone: not each can be imported here."""
    tree = ast.parse((Path(lm_eval.__file__).parent / "tasks" / place / "task.py").read_text())
    made = {"ConfigurableTask": object}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            made[node.name] = type(node.name, tuple(made[base.id] for base in node.bases), {})
    return made[name]()


@pytest.mark.parametrize(
    ("place", "name", "metric"),
    [("squadv2", "SQuAD2", "f1"), ("scrolls", "Qasper", "f1"), ("scrolls", "NarrativeQA", "f1"),
     ("scrolls", "QuALITY", "em"), ("scrolls", "ContractNLI", "em")],
)  # fmt: skip
def test_what_a_task_gives_in_percent_is_told_as_it_is(place, name, metric):
    task = of_class(place, name)
    assert scores({f"{metric},none": 37.5}, [metric], task) == {metric: 37.5}
    sample = {"doc_id": 0, "metrics": [metric], metric: 37.5, "filter": "none"}
    assert outcomes([sample], metric, 37.5, task).tolist() == [37.5]
    assert scores({"acc,none": 0.375}, ["acc"], task) == {"acc": 37.5}, "and a share in percent"


def test_a_group_is_told_as_its_members_are():
    class Group:
        def get_all_tasks(self):
            return [of_class("squad_completion", "SQUADCompletion"), of_class("squadv2", "SQuAD2")]

    assert not is_share("f1", Group())
    assert is_share("contains", Group()), "squad_completion gives a share"


def test_outcomes_are_kept_where_the_score_is_their_mean():
    def sample(doc, score, filtered="none"):
        return {"doc_id": doc, "metrics": ["f1"], "f1": score, "filter": filtered}

    log = [sample(1, 0.5), sample(0, 1.0), sample(0, 0.0, "second")]
    assert outcomes(log, "f1", 75.0).tolist() == [100.0, 50.0], "in the data's order, in percent"
    assert outcomes(log, "f1", 80.0) is None, "as of a score that is no mean over items"
    right = [sample(0, 1.0), sample(1, 0.0)]
    assert outcomes(right, "f1", 50.0).tolist() == [True, False]
    assert outcomes([sample(0, (1, 2))], "f1", 50.0) is None


def write_group(folder, name, *members, metrics=("acc",), weighted=True):
    listed = "".join(
        f"  - {{metric: {m}, weight_by_size: {str(weighted).lower()}}}\n" for m in metrics
    )
    state = f"aggregate_metric_list:\n{listed}" if metrics else ""
    (folder / f"{name}.yaml").write_text(f"group: {name}\ntask: [{', '.join(members)}]\n{state}")


@pytest.fixture
def groups(folder):
    """Tasks of 45 and of 7 items, and groups of both: by size, by halves, without a score."""
    rows = (folder / "test.jsonl").read_text().splitlines()
    small = folder / "small"
    small.mkdir()
    for split in ("train", "test"):
        (small / f"{split}.jsonl").write_text("\n".join(rows[1:20:3]))
    text = TASK.format(
        name="few", folder=small, metrics="".join(METRIC.format(m) for m in ("acc", "acc_norm")),
        more="",
    )  # fmt: skip
    (folder / "few.yaml").write_text(text)
    write_group(folder, "by_size", "line_ends", "few", metrics=("acc", "acc_norm"))
    write_group(folder, "by_halves", "line_ends", "few", weighted=False)
    write_group(folder, "bare", "line_ends", "few", metrics=())
    return folder


def harness(folder, adapter, task, tasks):
    """Return lm-eval's own results on the network."""
    from lm_eval.models.huggingface import HFLM

    return lm_eval.simple_evaluate(
        HFLM(adapter.model, tokenizer=task.tokenizer, batch_size=4),
        tasks=tasks,
        num_fewshot=0,
        bootstrap_iters=0,
        task_manager=lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False),
    )["results"]


@pytest.mark.parametrize(("name", "weights"), [("by_size", (45, 7)), ("by_halves", (1, 1))])
def test_a_group_is_one_vote_by_lm_evals_own_weights(groups, cache_dir, name, weights):
    task, adapter = loaded(groups, cache_dir, tasks=[name, "line_ends_acc"], average_of="acc")
    ours = task.evaluate(adapter)
    theirs = harness(groups, adapter, task, [name, "line_ends_acc"])
    assert ours[name] == 100 * theirs[name]["acc,none"]
    assert ours["few"] != ours["line_ends"]
    members = [w * ours[m] for w, m in zip(weights, ("line_ends", "few"), strict=True)]
    assert ours[name] == pytest.approx(sum(members) / sum(weights))
    assert ours["few"] == ours["few.acc"] == 100 * theirs["few"]["acc,none"]
    assert ours["few.acc_norm"] == 100 * theirs["few"]["acc_norm,none"]
    assert ours["average"] == (ours[name] + ours["line_ends_acc"]) / 2, "a group is one number"
    assert task.facts["average_of"] == {name: "acc", "line_ends_acc": "acc"}


def test_a_group_that_states_no_score_is_its_members(groups, cache_dir):
    task, adapter = loaded(groups, cache_dir, tasks=["bare"])
    ours = task.evaluate(adapter)
    assert "bare" not in ours
    assert ours["average"] == (ours["line_ends"] + ours["few"]) / 2
    assert task.facts["average_of"] == {"line_ends": "acc_norm", "few": "acc_norm"}


def test_the_average_is_of_the_metric_that_is_asked_for(groups, cache_dir):
    found = {}
    for average_of in ("acc", "acc_norm", "paper"):
        task, adapter = loaded(groups, cache_dir, tasks=["by_size"], average_of=average_of)
        found[average_of] = task.evaluate(adapter)
    plain, norm, paper = found.values()
    assert plain["average"] == plain["by_size.acc"] == paper["by_size.acc"]
    assert norm["average"] == norm["by_size.acc_norm"] != plain["average"]
    assert paper == norm
    assert plain["few"] == plain["few.acc"], "a member is told by its group's metric"


GENERATE = """
task: writes
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/test.jsonl}}, cache_dir: {folder}/../cache}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{rests[label]}}}}"
generation_kwargs: {{until: ["."], max_gen_toks: 4, do_sample: false}}
metric_list:
  - {{metric: {metric}, aggregation: mean, higher_is_better: true}}
"""


def test_a_task_that_generates_its_answer_runs(folder, cache_dir):
    (folder / "writes.yaml").write_text(GENERATE.format(folder=folder, metric="exact_match"))
    task, adapter = loaded(folder, cache_dir, tasks=["writes"], limit=6)
    ours = task.evaluate(adapter)
    assert ours == {"writes": 0, "writes.exact_match": 0, "average": 0}
    # An answer that is the network's own is right.
    harness = task._harness.tasks["writes"]
    written = [instance.resps[0] for instance in harness.instances[:3]]
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    for row, text in zip(rows, written, strict=False):
        row["rests"] = [text] * 3
    assert all(text.strip() for text in written)
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task, adapter = loaded(folder, cache_dir, tasks=["writes"], limit=6)
    assert task.evaluate(adapter)["average"] == 50
    assert task.outcomes["writes"].tolist() == [True] * 3 + [False] * 3
    assert task.facts["average_of"] == {"writes": "exact_match"}


def test_a_network_that_writes_from_nan_is_told(folder, cache_dir):
    (folder / "writes.yaml").write_text(GENERATE.format(folder=folder, metric="exact_match"))
    task, adapter = loaded(folder, cache_dir, tasks=["writes"], limit=2)
    with torch.no_grad():
        list(adapter.layers().values())[-1].module.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="outputs are nan"):
        task.evaluate(adapter)


def test_a_perplexity_of_the_harness_beyond_a_float_is_told(folder, cache_dir, monkeypatch):
    """lm-eval takes exp of a task's mean itself."""
    task, adapter = loaded(folder, cache_dir, limit=2)
    monkeypatch.setattr("lm_eval.simple_evaluate", lambda *_, **__: math.exp(1000))
    with pytest.raises(ValueError, match="beyond what a float holds: the network predicts nothing"):
        task.evaluate(adapter)


@pytest.mark.parametrize("add", [None, True, False])
def test_prompts_begin_with_bos_as_the_harness_has_it_for_the_model(folder, cache_dir, add):
    task, adapter = loaded(folder, cache_dir, add_bos_token=add, limit=2)
    bos, seen = task.tokenizer.bos_token_id, []
    hook = adapter.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["input_ids"]),
        with_kwargs=True,
    )
    task.evaluate(adapter)
    hook.remove()
    first = {int(row[0]) == bos for batch in seen for row in batch}
    assert first == {task.facts["starts_with_bos"]}
    if add is not None:
        assert first == {add}


def test_calibration_is_the_corpus_by_seed(folder, cache_dir):
    task, _ = loaded(folder, cache_dir)
    batches = task.calibration(10, 3)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(4, 32), (4, 32), (2, 32)]
    expected = Stream(PythonDocs(), "file").sequences(task.tokenizer, 32, 10, 3)
    assert torch.equal(torch.cat([batch["input_ids"] for batch in batches]), expected)
    task, _ = loaded(folder, cache_dir, begin_with_bos=True)
    found = torch.cat([batch["input_ids"] for batch in task.calibration(10, 3)])
    assert (found[:, 0] == task.tokenizer.bos_token_id).all()
    assert torch.equal(found[:, 1:], expected[:, 1:])


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
     ({"average_of": "accuracy"}, "task.average_of=accuracy: give acc, acc_norm, paper"),
     ({"tasks": ["line_ends_acc"], "average_of": "acc_norm"},
      "task.average_of=acc_norm: the task line_ends_acc has acc; give task.average_of=paper"),
     ({"tasks": ["line_ends", "line_ends"]}, "line_ends is there twice"),
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
    [(["brier_score"], "", "the task other measures none of acc_norm, acc, .*, but brier_score"),
     (["acc"], "num_fewshot: 0", "the task other sets its own to 0")],
)  # fmt: skip
def test_a_task_that_can_not_serve_is_refused(folder, cache_dir, metrics, more, message):
    write_task(folder, "other", *metrics, more=more)
    with pytest.raises(ValueError, match=message):
        make(folder, cache_dir, tasks=["other"], num_fewshot=1).load(TINY, None)


def test_a_group_whose_members_lack_the_metric_is_refused(groups, cache_dir):
    write_group(groups, "mixed", "line_ends", "line_ends_acc", metrics=("acc", "acc_norm"))
    told = "the group mixed has acc; its members line_ends_acc lack acc_norm"
    with pytest.raises(ValueError, match=f"task.average_of=acc_norm: {told}"):
        make(groups, cache_dir, tasks=["mixed"], average_of="acc_norm").load(TINY, None)
    task, adapter = loaded(groups, cache_dir, tasks=["mixed"], limit=3)
    assert "mixed.acc_norm" not in task.evaluate(adapter), "lm-eval's is of some members alone"
    assert task.facts["average_of"] == {"mixed": "acc"}


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
    assert {"line_ends", "line_ends_acc", "average", "line_ends.acc"} < set(record.metrics)
    assert record.evaluation["average_of"] == {"line_ends": "acc_norm", "line_ends_acc": "acc"}
    assert record.evaluation["starts_with_bos"] in (True, False)
    assert record.evaluation["add_bos_token"] is None
    assert record.settings["task"]["num_fewshot"] == 0


def test_bad_input_is_one_line(folder, cli):
    outcome = cli(*SHORT, f"data_dir={folder}", "task.tasks=[line_end]")
    assert outcome.status == 1
    assert "no readable task line_end; did you mean line_ends" in outcome.err.splitlines()[-1]


FUNCTION = "def shown(doc):\n    return f\"{kind}: {{doc['text']}}\"\n"


def imported(path):
    """Return the function of a Python file, another object each time."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.shown


class Callable:
    """An object that can be called."""

    def __call__(self):
        """Do nothing."""


def test_functions_are_told_by_their_source_and_not_by_where_they_lie(tmp_path):
    files = [tmp_path / "first.py", tmp_path / "same.py", tmp_path / "other.py"]
    for file, kind in zip(files, ("Text", "Text", "Words"), strict=True):
        file.write_text(FUNCTION.format(kind=kind))
    first, same, other = map(imported, files)
    assert as_text({"process": [first]}) == as_text({"process": [same]})
    assert as_text({"process": [first]}) != as_text({"process": [other]})
    assert as_text([partial(first, doc=1)]) == as_text([partial(same, doc=1)])
    assert as_text([partial(first, doc=1)]) != as_text([partial(first, doc=2)])
    assert as_text([Callable()]) == as_text([Callable()])
    assert (
        as_text([len, object(), {"b": b"x"}])
        == '["builtins.len", "<object object>", {"b": "b\'x\'"}]'
    )
    assert as_text({"b": 1, "a": "at 0x1"}) == '{"a": "at 0x1", "b": 1}', "a text is as it is"


def test_what_is_measured_on_is_told_alike_in_every_process(folder, cache_dir):
    """lm-eval keeps the functions of a task in its fewshot_config too."""
    (folder / "utils.py").write_text(FUNCTION.format(kind="Text"))
    text = (folder / "line_ends.yaml").read_text()
    given = text.replace(
        'doc_to_text: "Text: {{text}}\\nRest:"', "doc_to_text: !function utils.shown"
    )
    assert given != text
    (folder / "line_ends.yaml").write_text(given)
    write_group(folder, "grouped", "line_ends")

    def found():
        task, _ = loaded(folder, cache_dir, tasks=["grouped"])
        return [str(item) for item in task.texts()]

    first = found()
    assert not [item for item in first if " at 0x" in item]
    assert any("def shown(doc)" in item for item in first)
    (folder / "utils.py").write_text(FUNCTION.format(kind="Text"))  # which is read anew
    assert found() == first
    (folder / "utils.py").write_text(FUNCTION.format(kind="Words"))
    assert found() != first
