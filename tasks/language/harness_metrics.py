"""Metrics of lm-eval's tasks and groups, and the one of each by which it votes in an average.

A group's score is lm-eval's own, by the weights that the group states (MMLU: by questions), so that
a group has one vote in the average and not one a member. Groups that state none, and tags, are
their members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PAPER = "paper"  # acc_norm where a task has it, else acc: FlexRound's tables fit this choice
AVERAGES = ("acc", "acc_norm", PAPER)
# What PAPER takes, the first that there is; those behind acc are of tasks that generate an answer.
ORDER = ("acc_norm", "acc", "exact_match", "em", "f1", "prompt_level_strict_acc")
SHARES = ("exact_match", "em", "f1", "contains", "mcc")  # besides accuracies, of any name
# By the class of lm-eval's own tasks in Python, what they give in percent already.
IN_PERCENT = {"SQuAD2": ("f1",), "_SCROLLSTask": ("f1", "em")}


def is_share(metric: str, item: Any = None) -> bool:
    """Return whether lm-eval gives the metric as a share of 1, which is told in percent here.

    item is the task or group that it is a metric of; None is one that a YAML alone describes.
    """
    tasks = item.get_all_tasks() if is_group(item) else [item]
    kinds = {kind.__name__ for task in tasks for kind in type(task).__mro__}
    if any(metric in IN_PERCENT.get(kind, ()) for kind in kinds):
        return False
    return metric in SHARES or "acc" in metric


def is_group(item: Any) -> bool:
    """Return whether item is a group of lm-eval, not a task."""
    return hasattr(item, "get_all_tasks")


def name_of(item: Any) -> str:
    """Return what lm-eval calls a task or group."""
    return str(item.name if is_group(item) else item.task_name)


def metrics_of(item: Any) -> list[str]:
    """Return the metrics that a task has, or that a group makes of a metric of all its tasks."""
    if not is_group(item):
        return list(item.aggregation())
    stated = [entry.metric for entry in item.aggregate_metric_list or ()]
    return [metric for metric in stated if not lacking(item, metric)]


def lacking(group: Any, metric: str) -> list[str]:
    """Return the names of group's tasks that do not have the metric."""
    return [task.task_name for task in group.get_all_tasks() if metric not in task.aggregation()]


def chosen(item: Any, average_of: str) -> str:
    """Return the metric by which a task or group votes.

    Raises:
        ValueError: when it does not have it; names what it has.
    """
    held, name = metrics_of(item), name_of(item)
    if average_of != PAPER and average_of not in held:
        there = f"the {'group' if is_group(item) else 'task'} {name} has {_listed(held)}"
        without = lacking(item, average_of) if is_group(item) else []
        if without:
            more = f" and {len(without) - 3} more" if len(without) > 3 else ""
            there += f"; its members {', '.join(without[:3])}{more} lack {average_of}"
        raise ValueError(
            f"task.average_of={average_of}: {there}; give task.average_of=paper, which takes "
            "acc_norm where there is one, else acc, or leave it out of task.tasks"
        )
    found = [m for m in ORDER if m in held] if average_of == PAPER else [average_of]
    if not found:
        kind = "group" if is_group(item) else "task"
        raise ValueError(
            f"the {kind} {name} measures none of {', '.join(ORDER)}, but {_listed(held)}; leave it "
            "out of task.tasks"
        )
    return found[0]


def _listed(metrics: Sequence[str]) -> str:
    return ", ".join(metrics) or "no metric that all its members have"
