"""The embedded classification: topics of Python's help(), on a network fine-tuned on first use."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from flexround.models.language import LanguageModel
from tasks.bounds import Count, NotNegative
from tasks.language import pretrained, tiny_models
from tasks.language.classification import Classification
from tasks.language.finetuning import Recipe
from tasks.language.glue_data import PythonTopics

log = logging.getLogger(__name__)


class TopicClassification(Classification):
    """A classification that makes its fine-tuned network by itself where there is none."""

    always_finetuned = False  # by finetune.py

    def __init__(
        self,
        name: str,
        version: int,
        data: PythonTopics,
        num_labels: Count,
        metrics: Annotated[list[str], Field(min_length=1)],
        splits: dict[str, str],
        max_len: Count,
        eval_batch_size: Count,
        expected: float | None,
        tolerance: NotNegative,
        cache_dir: str,
        checkpoints_dir: str,
        recipe: Recipe,
    ) -> None:
        """Take what a classification takes, and how its network is trained."""
        super().__init__(
            name, version, data, num_labels, metrics, splits, max_len, eval_batch_size,
            expected, tolerance, cache_dir, checkpoints_dir,
        )  # fmt: skip
        self._recipe = recipe

    def describe(self, model: LanguageModel, checkpoint: str | None, folder: Path) -> bool:
        """Write the configuration and the tokenizer of a network that is still to be fine-tuned."""
        tiny = model.source.startswith(tiny_models.PREFIX)
        if checkpoint is not None:
            return super().describe(model, checkpoint, folder)
        if not tiny or self._cached(model).is_dir():
            return False
        tiny_models.describe(model.source, folder, self.head())
        return True

    def hollow(self, model: LanguageModel, checkpoint: str | None) -> nn.Module | None:
        """Return the network that the hub describes; none of what is fine-tuned here."""
        return None if checkpoint is None else super().hollow(model, checkpoint)

    def load(self, model: LanguageModel, checkpoint: str | None) -> nn.Module:
        """Return the network of checkpoint, or the one trained now or on an earlier first use."""
        if checkpoint is not None:
            return super().load(model, checkpoint)
        folder = self._cached(model)
        read = super().load
        return pretrained.read_or_make(
            folder, lambda place: read(model, str(place)), lambda: self._make(model)
        )

    def _cached(self, model: LanguageModel) -> Path:
        parts = [model.source, self.version, self._max_len, vars(self._data), asdict(self._recipe)]
        key = json.dumps([*parts, asdict(tiny_models.RECIPE)])
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        return self._cache_dir / "checkpoints" / f"{self.name}-{model.name}-{digest}"

    def _make(self, model: LanguageModel) -> tuple[nn.Module, Any]:
        log.info("training %s on Python's help() (first use)", model.name)
        network = self.fresh(model, None, seed=0)
        rows = self.training_rows()
        network = self._recipe.train(
            network, rows, self.collator(), seed=0, device=torch.device("cpu")
        )
        return network, self.tokenizer
