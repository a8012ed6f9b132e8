"""Scores of a causal language model on the tasks of EleutherAI's harness (FlexRound, app. K)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

from torch import Tensor, nn

from flexround.models.base import ModelAdapter
from flexround.models.language import LanguageModel
from flexround.models.language_adapter import Tokens
from tasks.base import Collator, Row
from tasks.bounds import Count, NotNegative
from tasks.finite import BEYOND, check_outputs
from tasks.language.base import TransformerTask, check_at_least, check_positions
from tasks.language.calibration_data import Calibration
from tasks.language.harness_metrics import AVERAGES, is_group, metrics_of
from tasks.language.harness_scores import likelihoods, outcomes, scores
from tasks.language.harness_tasks import HarnessTasks, as_text, isolated
from tasks.language.protocols import begun

log = logging.getLogger(__name__)


class ZeroShot(TransformerTask):
    """Mean over the harness's tasks and groups of the metric that average_of says, in percent.

    With num_fewshot every question follows that many answered ones, drawn by lm-eval's own seed.
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
        average_of: str,
        num_fewshot: int,
        add_bos_token: bool | None,
        limit: int | None,
        include_path: str | None,
        calibration_corpus: Calibration | None,
        seq_len: int,
        eval_batch_size: Count,
        expected: float | None,
        tolerance: NotNegative,
        cache_dir: str,
        checkpoints_dir: str,
        begin_with_bos: bool = False,
    ) -> None:
        """Name the tasks: the harness's own, or with include_path those of that folder's YAMLs.

        average_of is acc, acc_norm or paper: acc_norm where there is one, else acc. add_bos_token
        says whether a prompt begins with the tokenizer's <s>; None leaves it to the tokenizer, as
        lm-eval does.

        limit is the number of items of each task (None is all of them); seq_len is the length of a
        calibration sample, whose first token is <bos> with begin_with_bos.
        """
        if not tasks:
            raise ValueError("task.tasks=[]: name at least one task of lm-eval")
        if calibration_corpus is None:
            raise ValueError(
                f"task={name} has no train split to calibrate on; give calibration=c4, text or "
                "python_docs"
            )
        if average_of not in AVERAGES:
            raise ValueError(f"task.average_of={average_of}: give {', '.join(AVERAGES)}")
        check_at_least(0, {"num_fewshot": num_fewshot})
        check_at_least(1, {"limit": limit, "seq_len": seq_len})
        super().__init__(name, version, expected, tolerance, cache_dir, checkpoints_dir)
        self._names, self._num_fewshot, self._limit = tasks, num_fewshot, limit
        self._average_of, self._add_bos_token = average_of, add_bos_token
        self._include_path = include_path
        self._calibration_corpus, self._seq_len = calibration_corpus, seq_len
        self._begin_with_bos = begin_with_bos
        self._eval_batch_size = eval_batch_size
        self._found: HarnessTasks | None = None

    def load(self, model: LanguageModel, checkpoint: str | None) -> nn.Module:
        """Return the network; the tasks and all their items are read first.

        Raises:
            ValueError: when a task does not exist or its items can't be had.
        """
        log.info("reading the tasks %s", ", ".join(self._names))
        with isolated():
            self._found = HarnessTasks(
                self._names, self._include_path, self._num_fewshot, self._average_of
            )
        network = super().load(model, checkpoint)
        self._harness_tokenizer()  # refuses here, before there is anything to lose
        return network

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
        if self._begin_with_bos:
            chosen = begun(chosen, self._tokenizer)
        return [{"input_ids": part} for part in chosen.split(self._eval_batch_size)]

    def texts(self) -> Iterable[Any]:
        """Yield the harness's version, and each task's settings with all its items."""
        yield metadata.version("lm-eval")
        for group in self._harness.groups.values():
            yield as_text(group.to_dict())
        for name, task in self._harness.tasks.items():
            yield name, as_text(task.config.to_dict(keep_callable=True))
            shots = (task.fewshot_docs() or ()) if self._num_fewshot > 0 else ()
            for document in (*task.eval_docs, *shots):
                yield as_text(document)

    @property
    def _harness(self) -> HarnessTasks:
        assert self._found is not None, "load has been called"
        return self._found

    def evaluate(self, adapter: ModelAdapter) -> dict[str, float]:
        """Return what each task and group scores, and the average of those that were asked for.

        By a task's or group's name it is the metric that votes in the average; by NAME.METRIC each
        metric that lm-eval gives. Shares are in percent.
        """
        import lm_eval
        from lm_eval.models.huggingface import HFLM

        network: Any = adapter.model.to(adapter.device)  # HFLM works where the network lies
        with isolated():
            tokenizer, starts_with_bos = self._harness_tokenizer()
            harness = HFLM(
                network,
                tokenizer=tokenizer,
                batch_size=self._eval_batch_size,
                add_bos_token=self._add_bos_token,
            )
            try:
                found: Any = lm_eval.simple_evaluate(
                    harness,
                    tasks=self._harness.asked,
                    task_manager=self._harness.manager,  # else it would index all of its own again
                    num_fewshot=self._num_fewshot,
                    limit=self._limit,
                    bootstrap_iters=0,
                    log_samples=True,
                )
            except OverflowError as error:
                if "math range" not in str(error):  # exp, of lm-eval's perplexity of a task
                    raise
                raise ValueError(f"lm-eval's metric is {BEYOND}") from error
        self._check_numbers(adapter, found["samples"])
        self.facts = {
            "lm_eval": metadata.version("lm-eval"),
            "num_fewshot": {name: found["n-shot"][name] for name in self._harness.tasks},
            "fewshot_seed": found["config"]["fewshot_seed"],
            "add_bos_token": self._add_bos_token,
            "starts_with_bos": starts_with_bos,
            "average_of": self._harness.votes,
        }
        return self._scored(found)

    def _scored(self, found: Mapping[str, Any]) -> dict[str, float]:
        """Return what `evaluate` does, of all that lm-eval has found; keep the outcomes."""
        values, each = dict[str, float](), dict[str, float]()
        kept = dict[str, Tensor | None]()
        for name, metric in self._harness.metrics.items():
            item = self._harness.item(name)
            own = scores(found["results"][name], metrics_of(item), item)
            each |= {f"{name}.{key}": value for key, value in own.items()}
            given = [value for key, value in own.items() if key.partition(",")[0] == metric]
            if not given:
                raise ValueError(
                    f"lm-eval {metadata.version('lm-eval')} gave no {metric} for {name}, which its "
                    "task promises; leave it out of task.tasks"
                )
            values[name] = given[0]
            if not is_group(item):
                kept[name] = outcomes(found["samples"][name], metric, values[name], item)
        self.outcomes = {name: held for name, held in kept.items() if held is not None}
        votes = [values[name] for name in self._harness.votes]
        return values | each | {"average": sum(votes) / len(votes)}

    def _check_numbers(self, adapter: ModelAdapter, samples: Mapping[str, Any]) -> None:
        """Check that what the network told was numbers: a text that it wrote would not say.

        Raises:
            ValueError: when it is nan.
        """
        for name, task in self._harness.tasks.items():
            check_outputs(likelihoods(samples[name]))
            if task.OUTPUT_TYPE == "generate_until":
                prompt = task.instances[0].args[0]
                tokens = self._tokenizer(prompt, return_tensors="pt")["input_ids"]
                check_outputs(adapter.forward({"input_ids": tokens[:, : self._seq_len]}))

    def _harness_tokenizer(self) -> tuple[Any, bool]:
        """Return a copy of the tokenizer, and whether the harness has prompts begin with <s>.

        A copy: the harness gives a tokenizer without a padding token one.

        Raises:
            ValueError: when add_bos_token is what the tokenizer can't do, or does anyway.
        """
        tokenizer, asked = copy.deepcopy(self._tokenizer), self._add_bos_token
        bos = tokenizer.bos_token_id
        own = bos is not None and tokenizer.encode("a")[:1] == [bos]
        if asked is None or asked == own:
            return tokenizer, own
        tokenizer.add_bos_token = asked
        starts = bos is not None and tokenizer.encode("a", add_special_tokens=asked)[:1] == [bos]
        if starts != asked:
            raise ValueError(
                f"task.add_bos_token={str(asked).lower()}: this tokenizer can't; leave it out"
            )
        return tokenizer, starts


def _no_training(name: str) -> ValueError:
    return ValueError(
        f"{name} has no training split; it evaluates pretrained models, or one by checkpoint=PATH"
    )
