"""Presets of the harness measure what the papers' tables do, on tasks that lm-eval has."""

from __future__ import annotations

import pytest

from experiment.config import composed
from experiment.sweeps.plan import jobs

SEVEN = {"boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"}
# auto-round, docs/paper_acc.md: beside the seven MMLU, LAMBADA, TruthfulQA-mc1 and RTE.
ELEVEN = SEVEN | {"mmlu", "lambada_openai", "truthfulqa_mc1", "rte"}


@pytest.mark.parametrize(
    ("task", "names", "shots", "average_of"),
    [("zero_shot", SEVEN, 0, "paper"),
     ("five_shot", SEVEN, 5, "paper"),
     ("mmlu", {"mmlu"}, 5, "acc"),
     ("eleven", ELEVEN, 0, "acc")],
)  # fmt: skip
def test_a_preset_has_its_papers_tasks(task, names, shots, average_of):
    cfg = composed(["model=tiny_llama", f"task={task}"])
    assert set(cfg.task.tasks) == names
    assert (cfg.task.num_fewshot, cfg.task.average_of) == (shots, average_of)
    assert cfg.task.add_bos_token is None, "as lm-eval has it for the model"


@pytest.mark.parametrize("quant", ["gptq", "cdquant", "signround"])
@pytest.mark.parametrize("task", ["mmlu", "eleven"])
def test_a_method_keeps_its_own_protocol_on_every_preset(task, quant):
    same = [
        composed(["model=llama2_7b", f"task={t}", f"quant={quant}"]) for t in (task, "zero_shot")
    ]
    for name in ("seq_len", "calibration_corpus"):
        assert same[0].task[name] == same[1].task[name]
    assert same[0].num_samples == same[1].num_samples
    assert same[0].granularity == same[1].granularity


@pytest.mark.parametrize(
    ("preset", "count", "task"),
    [("lrq/mmlu", 12, "mmlu"), ("lrq/common_sense", 12, "zero_shot"),
     ("signround/w4", 12, "eleven")],
)  # fmt: skip
def test_a_papers_sweep_is_on_its_task_and_in_small_on_an_embedded_one(preset, count, task):
    full = jobs([f"experiment={preset}"])
    assert len(full) == count
    assert all(f"task={task}" in job for job in full)
    small = jobs([f"experiment={preset}", "scale=smoke"])
    assert all({"model=tiny_llama", "task=python_docs"} <= set(job) for job in small)


@pytest.mark.slow  # reads thousands of files
def test_lm_eval_has_every_task_of_the_presets():
    pytest.importorskip("lm_eval", reason="the extra zero-shot is not installed")
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    assert set(manager.all_tasks) >= ELEVEN
    assert "mmlu" in manager.all_groups, "one vote, not 57"
