"""Checks of what a task says of itself and of what it gives, own ones above all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from itertools import chain
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiment.identity import data_paths

if TYPE_CHECKING:
    from tasks.base import Task

SAID = ("metric", "higher_is_better", "version")
PLACES = ("data_dir", "calibration_dir", "imagenet_dir")  # which tasks' paths are made from


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


def check_places(settings: dict[str, Any]) -> None:
    """Check that the files and folders of data are there that settings, a run's plain ones, name.

    The task itself looks for what is in them, once the network is loaded.

    Raises:
        ValueError: names the option and the place.
    """
    for name, place in data_paths(settings):
        if not Path(place).expanduser().exists():
            short = next((n for n in PLACES if settings.get(n) == place), name)
            node = reduce(getitem, name.split(".")[:-1], settings)
            named = ", ".join(chain.from_iterable((node.get("files") or {}).values()))
            wanted = f"give the folder of {named}" if named else "give the place where they lie"
            raise ValueError(f"{short}={place}: there is no such file or folder; {wanted}")


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
