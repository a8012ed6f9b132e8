"""Scores of the lm-eval harness: one number a task, and what each of its samples came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

METRICS = ("acc_norm", "acc")  # the first that a task has; the paper's tables fit this choice


def percent(scores: Mapping[str, Any]) -> float:
    """Return the first of METRICS that the harness's scores "METRIC,FILTER" hold, in percent."""
    by_metric = {key.partition(",")[0]: value for key, value in scores.items()}
    return 100 * float(next(by_metric[metric] for metric in METRICS if metric in by_metric))


def right(samples: Sequence[Mapping[str, Any]]) -> Tensor | None:
    """Return [items] of the harness's log of a task, by the first of METRICS, in the data's order.

    None where an item counts other than as 0 or 1.
    """
    metric = next(metric for metric in METRICS if metric in samples[0]["metrics"])
    own = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
    scores = [sample[metric] for sample in sorted(own, key=lambda sample: sample["doc_id"])]
    return torch.tensor(scores).bool() if set(scores) <= {0, 1} else None


def likelihoods(samples: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return every number among the answers in the harness's log of a task."""
    leaves = tree_leaves([sample["filtered_resps"] for sample in samples])
    return torch.tensor([leaf for leaf in leaves if isinstance(leaf, float)])
