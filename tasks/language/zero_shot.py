"""Accuracy of a causal language model on the tasks of EleutherAI's harness (FlexRound, app. K)."""

from __future__ import annotations

import copy
import difflib
import json
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from torch import nn

from flexround.models.base import ModelAdapter
from flexround.models.language import LanguageModel
from flexround.models.language_adapter import Tokens
from tasks.base import Collator, Row
from tasks.bounds import Count, NotNegative
from tasks.finite import check_outputs
from tasks.language.base import TransformerTask, check_at_least, check_positions
from tasks.language.calibration_data import Calibration
from tasks.language.harness_scores import METRICS, likelihoods, percent, right

log = logging.getLogger(__name__)

SEED = 0


class ZeroShot(TransformerTask):
    """Mean over the harness's tasks of acc_norm where a task has it, else acc, in percent.

    With num_fewshot every question follows that many answered ones.
    """

    kinds = ("causal",)
    auto = "AutoModelForCausalLM"
    metric = "average"
    higher_is_better = True

    def __init__(
        self,
        name: str,
        version: int,
        tasks: list[str],
        num_fewshot: int,
        limit: int | None,
        include_path: str | None,
        calibration_corpus: Calibration | None,
        seq_len: int,
        eval_batch_size: Count,
        expected: float | None,
        tolerance: NotNegative,
        cache_dir: str,
        checkpoints_dir: str,
    ) -> None:
        """Name the tasks: the harness's own, or with include_path those of that folder's YAMLs.

        limit is the number of items of each task (None is all of them); seq_len is the length of a
        calibration sample.
        """
        if not tasks:
            raise ValueError("task.tasks=[]: name at least one task of lm-eval")
        if calibration_corpus is None:
            raise ValueError(
                f"task={name} has no train split to calibrate on; give calibration=c4, text or "
                "python_docs"
            )
        check_at_least(0, {"num_fewshot": num_fewshot})
        check_at_least(1, {"limit": limit, "seq_len": seq_len})
        super().__init__(name, version, expected, tolerance, cache_dir, checkpoints_dir)
        self._names, self._num_fewshot, self._limit = tasks, num_fewshot, limit
        self._include_path = include_path
        self._calibration_corpus, self._seq_len = calibration_corpus, seq_len
        self._eval_batch_size = eval_batch_size
        self._manager: Any = None
        self._tasks: dict[str, Any] = {}

    def load(self, model: LanguageModel, checkpoint: str | None) -> nn.Module:
        """Return the network; the tasks and all their items are read first.

        Raises:
            ValueError: when a task does not exist or its items can't be had.
        """
        log.info("reading the tasks %s", ", ".join(self._names))
        with _isolated():
            self._manager = self._index()
            for name in self._names:
                self._check_name(name)
            self._tasks = {k: t for name in self._names for k, t in self._items(name).items()}
        return super().load(model, checkpoint)

    def check_network(self, network: nn.Module, source: str) -> None:
        """Check that a calibration sample fits the model's positions.

        Raises:
            ValueError: when it does not.
        """
        check_positions(network, source, self._seq_len, "task.seq_len")

    def training_rows(self) -> Sequence[Row]:
        """Refuse: the harness evaluates pretrained models."""
        raise _no_training(self.name)

    def collator(self) -> Collator:
        """Refuse: the harness evaluates pretrained models."""
        raise _no_training(self.name)

    def calibration(self, num_samples: int, seed: int) -> Sequence[Tokens]:
        """Return num_samples sequences of the calibration corpus, drawn by seed."""
        chosen = self._calibration_corpus.sequences(
            self._tokenizer, self._seq_len, num_samples, seed
        )
        return [{"input_ids": part} for part in chosen.split(self._eval_batch_size)]

    def texts(self) -> Iterable[Any]:
        """Yield the harness's version, and each task's settings with all its items."""
        yield metadata.version("lm-eval")
        for name, task in self._tasks.items():
            yield name, json.dumps(task.dump_config(), sort_keys=True, default=str)
            shots = (task.fewshot_docs() or ()) if self._num_fewshot > 0 else ()
            for document in (*task.eval_docs, *shots):
                yield json.dumps(document, sort_keys=True, default=str)

    def evaluate(self, adapter: ModelAdapter) -> dict[str, float]:
        """Return the accuracy of each task by its name, and their average, in percent."""
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        network: Any = adapter.model.to(adapter.device)  # HFLM works where the network lies
        with _isolated():
            # A copy: HFLM gives a tokenizer without a padding token one.
            harness = HFLM(
                network,
                tokenizer=copy.deepcopy(self._tokenizer),
                batch_size=self._eval_batch_size,
            )
            found: Any = lm_eval.simple_evaluate(
                harness,
                tasks=list(self._tasks.values()),
                task_manager=self._manager,  # else it would index all of its own again
                num_fewshot=self._num_fewshot,
                limit=self._limit,
                bootstrap_iters=0,
                log_samples=True,
                random_seed=SEED,
                numpy_random_seed=SEED,
                torch_random_seed=SEED,
                fewshot_random_seed=SEED,
            )
        for name in self._tasks:
            check_outputs(likelihoods(found["samples"][name]))
        values = {name: percent(found["results"][name]) for name in self._tasks}
        logged = {name: right(found["samples"][name]) for name in self._tasks}
        self.outcomes = {name: kept for name, kept in logged.items() if kept is not None}
        return values | {"average": sum(values.values()) / len(values)}

    def _index(self) -> Any:
        """Return the harness's index of the tasks there are."""
        # Imported for its own needs: without them the weights would be loaded in vain.
        import lm_eval.models.huggingface  # noqa: F401
        from lm_eval.tasks import TaskManager

        if self._include_path is None:
            return TaskManager()
        folder = Path(self._include_path).expanduser()
        if not folder.is_dir():
            raise ValueError(f"data_dir={self._include_path}: no such folder of task YAMLs")
        return TaskManager(include_path=str(folder), include_defaults=False)

    def _check_name(self, name: str) -> None:
        known = self._manager.all_tasks
        if name in known:
            return
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(known[:5])}"
        where = "lm-eval" if self._include_path is None else f"data_dir={self._include_path}"
        raise ValueError(f"task.tasks: {where} has no readable task {name}; {hint}")

    def _items(self, name: str) -> dict[str, Any]:
        """Return the tasks that name stands for, one or those of a group, with their items."""
        try:
            tasks: dict[str, Any] = self._manager.load([name])["tasks"]
        except Exception as error:  # of any library that reads a data set
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"the task {name} can't be loaded: {reason}; without a network give data_dir=PATH, "
                "a folder of own lm-eval task YAMLs"
            ) from error
        for key, task in tasks.items():
            if not any(metric in task.aggregation() for metric in METRICS):
                raise ValueError(f"the task {key} measures neither {' nor '.join(METRICS)}")
            if self._num_fewshot > 0 and task.config.num_fewshot == 0:
                raise ValueError(
                    f"task.num_fewshot={self._num_fewshot}: the task {key} sets its own to 0, "
                    "which lm-eval keeps; leave it out of task.tasks or remove it there"
                )
        return tasks


def _no_training(name: str) -> ValueError:
    return ValueError(
        f"{name} has no training split; it evaluates pretrained models, or one by checkpoint=PATH"
    )


@contextmanager
def _isolated() -> Iterator[None]:
    """Seed as the harness does, and keep that to it, its log lines and bars off the screen."""
    from tqdm import tqdm

    create = cast(Callable[..., None], tqdm.__init__)

    def hidden(bar: Any, *args: Any, **options: Any) -> None:
        create(bar, *args, **(options | {"disable": True}))

    disabled = logging.root.manager.disable
    state, numpy_state = random.getstate(), np.random.get_state()
    logging.disable(logging.WARNING)
    random.seed(SEED)  # some tasks shuffle their answers when they are read
    np.random.seed(SEED)
    try:
        with mock.patch.object(tqdm, "__init__", hidden), torch.random.fork_rng():
            yield
    finally:
        logging.disable(disabled)
        random.setstate(state)
        np.random.set_state(numpy_state)
