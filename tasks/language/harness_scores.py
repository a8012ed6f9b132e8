"""Scores of the lm-eval harness: every metric of a task or group, and what each item came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tasks.language.harness_metrics import is_share


def scores(
    results: Mapping[str, Any], metrics: Sequence[str], item: Any = None
) -> dict[str, float]:
    """Return lm-eval's results "METRIC,FILTER" of a task or group for metrics, shares in percent.

    item is that task or group, as in `is_share`. The filter none, which every metric of a task
    without filters has, is left out of the names.
    """
    found = {}
    for key, value in results.items():
        metric, _, filtered = key.partition(",")
        if metric in metrics and isinstance(value, int | float):
            name = metric if filtered == "none" else key
            found[name] = (100 if is_share(metric, item) else 1) * float(value)
    return found


def outcomes(
    samples: Sequence[Mapping[str, Any]], metric: str, value: float, item: Any = None
) -> Tensor | None:
    """Return [items] of the harness's log of a task by metric, in the data's order.

    bool where every item is right or wrong, else in the unit of value, which is the task's score
    by metric. None where that is not their mean. item is the task, as in `is_share`.
    """
    own = [sample for sample in samples if metric in sample["metrics"]]
    own = [sample for sample in own if sample["filter"] == own[0]["filter"]]
    held = [sample[metric] for sample in sorted(own, key=lambda sample: sample["doc_id"])]
    if not held or not all(isinstance(score, int | float) for score in held):
        return None
    share = is_share(metric, item)
    found = torch.tensor(held, dtype=torch.float64) * (100 if share else 1)
    if not torch.isclose(found.mean(), torch.tensor(value, dtype=torch.float64)):
        return None
    return found.bool() if set(held) <= {0, 1} and share else found


def likelihoods(samples: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return every number among the answers in the harness's log of a task."""
    leaves = tree_leaves([sample["filtered_resps"] for sample in samples])
    return torch.tensor([leaf for leaf in leaves if isinstance(leaf, float)])
