"""Checks of what a task says of itself and of what it gives, own ones above all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.base import Task

SAID = ("metric", "higher_is_better", "version")


def check_said(task: Task) -> None:
    """Check that the task has what every record names.

    Raises:
        ValueError: names what it lacks.
    """
    if lacking := [name for name in SAID if not hasattr(task, name)]:
        raise ValueError(
            f"the task {type(task).__name__} has no {', '.join(lacking)}; give each as an "
            "attribute of the class, see tasks/base.py"
        )


def check_drawn(task: Task, drawn: int, num_samples: int) -> None:
    """Check that a calibration set has the size that the record will say.

    Raises:
        ValueError: when it has not.
    """
    if drawn != num_samples:
        raise ValueError(
            f"the task {type(task).__name__} gave {drawn} calibration samples where "
            f"num_samples={num_samples}; its calibration() is to give as many as it is asked for"
        )


def check_metric(task: Task, metrics: Mapping[str, float], of: str = "the evaluation") -> None:
    """Check that the task's metric is among metrics, and a number.

    Raises:
        ValueError: when it is not.
    """
    value = metrics.get(task.metric)
    if value is None or not math.isfinite(value):
        raise ValueError(f"{of} gave {task.metric}={value}, which is no result")
