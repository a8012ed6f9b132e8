"""Tasks of the lm-eval harness: read by name, checked, and which of them vote in an average."""

from __future__ import annotations

import difflib
import inspect
import json
import logging
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch

from tasks.language.harness_metrics import chosen, is_group, metrics_of, name_of

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # where an object lies: another in each process


class HarnessTasks:
    """The harness's tasks, tags and groups of those names, with all their items.

    Attributes:
        manager: the harness's index of the tasks there are.
        asked: its tasks and groups, those of tags one by one.
        tasks: all tasks by name, members of groups included.
        groups: all groups that make a score of their members', by name.
        votes: the metric of each task and group that has a vote in the average, by its name.
        metrics: the same of every task and group; members have that of their group.
    """

    def __init__(
        self, names: Sequence[str], include_path: str | None, num_fewshot: int, average_of: str
    ) -> None:
        """Read them: the harness's own, or with include_path those of that folder's YAMLs.

        Raises:
            ValueError: when one does not exist, its items can't be had, it lacks the metric of
                average_of or can't be measured here.
        """
        self.manager = _index(include_path)
        self._where = "lm-eval" if include_path is None else f"data_dir={include_path}"
        for name in names:
            self._check_name(name)
        self.asked: list[Any] = []
        self.tasks: dict[str, Any] = {}
        self.groups: dict[str, Any] = {}
        self.votes: dict[str, str] = {}
        self.metrics: dict[str, str] = {}
        for name in names:
            self._add(name, num_fewshot, average_of)

    def item(self, name: str) -> Any:
        """Return the task or group of that name."""
        return self.tasks[name] if name in self.tasks else self.groups[name]

    def _check_name(self, name: str) -> None:
        known = self.manager.all_tasks
        if name in known:
            return
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(known[:5])}"
        raise ValueError(f"task.tasks: {self._where} has no readable task {name}; {hint}")

    def _add(self, name: str, num_fewshot: int, average_of: str) -> None:
        """Add the task, the group, or the tasks of the tag called name."""
        try:
            found = self.manager.load([name])
        except Exception as error:  # of any library that reads a data set
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"the task {name} can't be loaded: {reason}; without a network give data_dir=PATH, "
                "a folder of own lm-eval task YAMLs"
            ) from error
        for key, task in found["tasks"].items():
            if key in self.tasks:
                raise ValueError(
                    f"task.tasks: {key} is there twice, by {name} and by another name; give one"
                )
            _check(key, task, num_fewshot)
        self.tasks |= found["tasks"]
        groups = found.get("groups", {})
        self.groups |= {key: group for key, group in groups.items() if group.has_aggregation}
        items = [groups[name]] if name in groups else list(found["tasks"].values())
        self.asked += items
        for voter in (v for item in items for v in _voters(item)):
            metric = chosen(voter, average_of)
            self.votes[name_of(voter)] = self.metrics[name_of(voter)] = metric
            self._take_along(voter, metric)

    def _take_along(self, voter: Any, metric: str) -> None:
        """Have the members of voter, where it is a group, told by its metric."""
        if is_group(voter):
            members = [g for g in voter.get_all_groups() if g.has_aggregation]
            members = [g for g in members if metric in metrics_of(g)] + voter.get_all_tasks()
            self.metrics |= {name_of(member): metric for member in members}


def _index(include_path: str | None) -> Any:
    """Return the harness's index of the tasks there are."""
    # Imported for its own needs: without them the weights would be loaded in vain.
    import lm_eval.models.huggingface  # noqa: F401
    from lm_eval.tasks import TaskManager

    if include_path is None:
        return TaskManager()
    folder = Path(include_path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"data_dir={include_path}: no such folder of task YAMLs")
    return TaskManager(include_path=str(folder), include_defaults=False)


def _check(name: str, task: Any, num_fewshot: int) -> None:
    """Check that a task can be measured.

    Raises:
        ValueError: when it asks for other shots, more than a text, or to run what a model writes.
    """
    if num_fewshot > 0 and task.config.num_fewshot == 0:
        raise ValueError(
            f"task.num_fewshot={num_fewshot}: the task {name} sets its own to 0, "
            "which lm-eval keeps; leave it out of task.tasks or remove it there"
        )
    for flag, what in (("UNSAFE_CODE", "runs code that the model writes"),
                       ("MULTIMODAL", "shows images")):  # fmt: skip
        if getattr(task, flag, False):
            raise ValueError(f"the task {name} {what}, which is not done here; leave it out")


def _voters(item: Any) -> Iterator[Any]:
    """Yield the tasks and groups that have a vote each where item is asked for."""
    if not is_group(item) or item.has_aggregation:
        yield item
        return
    for child in item:
        yield from _voters(child)


@contextmanager
def isolated() -> Iterator[None]:
    """Seed as the harness does, and keep that to it, its log lines and bars off the screen."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from tqdm import tqdm

    create = cast(Callable[..., None], tqdm.__init__)

    def hidden(bar: Any, *args: Any, **options: Any) -> None:
        create(bar, *args, **(options | {"disable": True}))

    disabled = logging.root.manager.disable
    state, numpy_state = random.getstate(), np.random.get_state()
    logging.disable(logging.WARNING)
    random.seed(DEFAULT_RANDOM_SEED)  # some tasks shuffle their answers when they are read
    np.random.seed(DEFAULT_OTHER_SEED)
    try:
        with mock.patch.object(tqdm, "__init__", hidden), torch.random.fork_rng():
            torch.manual_seed(DEFAULT_OTHER_SEED)
            yield
    finally:
        logging.disable(disabled)
        random.setstate(state)
        np.random.set_state(numpy_state)


def as_text(found: Any) -> str:
    """Return an item, or the settings of a task or group, as text: the same in every process."""
    return json.dumps(found, sort_keys=True, default=_lasting)


def _lasting(value: Any) -> Any:
    """Return what stands for a value that JSON does not have: of a function its source."""
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if not callable(value):
        return ADDRESS.sub("", str(value))
    try:
        return inspect.getsource(value)
    except (TypeError, OSError):  # it is built in, or an object that can be called
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}.{named.__qualname__}"
