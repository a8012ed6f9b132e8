"""Base class of tasks on the Hugging Face library's models: which weights are loaded, and how."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flexround.models.checkpoint_shards import Shards
from flexround.models.language import LanguageModel
from flexround.models.language_adapter import Tokens
from tasks.base import FineTunable
from tasks.bounds import NotNegative
from tasks.language import pretrained, tiny_models
from tasks.language.heads import kind_of
from tasks.language.rows import files_of
from tasks.package_files import BARE

FINETUNED = "finetuned"


class TransformerTask(FineTunable):
    """A task that loads a network with its tokenizer and can fine-tune it.

    Attributes:
        auto: name of transformers' class that gives a network the head of this task.
        blockwise: whether networks are only asked for logits, which a block at a time gives.
    """

    auto: str
    blockwise = False

    def __init__(
        self,
        name: str,
        version: int,
        expected: float | None,
        tolerance: NotNegative,
        cache_dir: str,
        checkpoints_dir: str,
    ) -> None:
        """Take the task's name on the command line and the folders of what it makes.

        Full precision has to be within tolerance of expected, where that is known.
        """
        self.name, self.version = name, version
        self._expected, self._tolerance = expected, tolerance
        self._cache_dir, self._checkpoints_dir = Path(cache_dir), Path(checkpoints_dir)
        self._tokenizer: Any = None

    def load(self, model: LanguageModel, checkpoint: str | None) -> nn.Module:
        """Return the network of checkpoint, or the model's own for this task.

        checkpoint "finetuned" is what `python finetune.py` made for this task and model.

        Raises:
            ValueError: when it is absent (names the command that makes it) or does not fit.
        """
        source = self._source(model, checkpoint)
        return self._opened(model, source, source)

    def _opened(
        self, model: LanguageModel, source: str, name: str, head: dict[str, Any] | None = None
    ) -> nn.Module:
        """Return the network of `open`, which errors call name; keep its tokenizer."""
        network, tokenizer = self.open(source, head)
        self._keep(tokenizer, model, network)
        self.check_network(network, name)
        return network

    def outline(self, model: LanguageModel, checkpoint: str | None) -> tuple[nn.Module, Shards]:
        """Return the network of `load` without its weights, and the files that hold them.

        Raises:
            ValueError: when it is absent or does not fit, or the task needs the whole network.
        """
        if not self.blockwise:
            raise ValueError(
                f"offload=true: task={self.name} needs the whole network in memory; "
                "give offload=false"
            )
        import transformers

        auto, source = getattr(transformers, self.auto), self._source(model, checkpoint)
        if source.startswith(tiny_models.PREFIX):
            found = tiny_models.read_or_make(
                source, self._cache_dir, lambda folder: pretrained.outline(auto, folder)
            )
        else:
            found = pretrained.outline(auto, source)
        network, tokenizer, shards = found
        self._keep(tokenizer, model, network)
        self.check_network(network, source)
        return network, shards

    def _keep(self, tokenizer: Any, model: LanguageModel, network: nn.Module) -> None:
        """Keep tokenizer; an encoder's head reads the first column, which is no place to pad."""
        if (model.kind or kind_of(network, self.kinds)) == "encoder":
            tokenizer.padding_side = "right"
        self._tokenizer = tokenizer

    def _is_finetuned(self, checkpoint: str | None) -> bool:
        """Return whether the network is what fine-tuning has left."""
        return checkpoint == FINETUNED or (checkpoint is None and self.always_finetuned)

    def _source(self, model: LanguageModel, checkpoint: str | None) -> str:
        if self._is_finetuned(checkpoint):
            checkpoint = str(self._finetuned(model))
        return checkpoint or model.source

    def write_architecture(self, network: nn.Module, folder: Path) -> None:
        """Write the configurations of network and its tokenizer into folder."""
        its: Any = network
        its.config.save_pretrained(folder)
        if its.can_generate():  # unchecked: save_pretrained refuses some that the hub has
            its.generation_config.to_json_file(folder / "generation_config.json")
        self._tokenizer.save_pretrained(folder)

    def describe(self, model: LanguageModel, checkpoint: str | None, folder: Path) -> bool:
        """Write the configuration and the tokenizer of a tiny network that is still to be made."""
        source = checkpoint or model.source
        elsewhere = self._is_finetuned(checkpoint) or not source.startswith(tiny_models.PREFIX)
        if elsewhere or tiny_models.folder_of(source, self._cache_dir).is_dir():
            return False
        tiny_models.describe(source, folder, self.head())
        return True

    def hollow(self, model: LanguageModel, checkpoint: str | None) -> nn.Module | None:
        """Return the network that the hub describes, without its weights."""
        import transformers

        source = checkpoint or model.source
        if self._is_finetuned(checkpoint) or source.startswith((BARE, tiny_models.PREFIX)):
            return None
        return pretrained.hollow(getattr(transformers, self.auto), source)

    def bare(self, model: LanguageModel, checkpoint: str | None, folder: Path) -> nn.Module:
        """Return the network that folder describes; keep its tokenizer."""
        return self._opened(model, f"{BARE}{folder}", checkpoint or model.source)

    def fresh(self, model: LanguageModel, checkpoint: str | None, seed: int) -> nn.Module:
        """Return the network to fine-tune, a missing head drawn by seed; keep its tokenizer.

        Raises:
            ValueError: as `load` does, and when more is missing than a head.
        """
        source = checkpoint or model.source
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self._opened(model, source, source, self.head())

    def open(self, source: str, head: dict[str, Any] | None = None) -> tuple[nn.Module, Any]:
        """Return (network, tokenizer) of source; head are the settings of a head to be made."""
        import transformers

        auto = getattr(transformers, self.auto)
        if source.startswith(BARE):
            return pretrained.bare(auto, Path(source.removeprefix(BARE)))
        if source.startswith(tiny_models.PREFIX):
            return tiny_models.load(source, self._cache_dir, auto, head)
        return pretrained.load(auto, source, head)

    def head(self) -> dict[str, Any]:
        """Return the settings of transformers' config that a new head needs."""
        return {}

    def check_network(self, network: nn.Module, source: str) -> None:
        """Check that the network fits the task.

        Raises:
            ValueError: names source and what does not fit.
        """

    def evaluation_data(self) -> Iterable[Any] | None:
        """Return `texts` and the files of the tokenizer, by which the network meets them."""
        texts = self.texts()
        return None if texts is None else chain(files_of(self._tokenizer), texts)

    def texts(self) -> Iterable[Any] | None:
        """Return what the task measures on, as texts or as tokens; None shares no metrics."""
        return None

    def check_full_precision(self, metrics: dict[str, float]) -> None:
        """Check that the full-precision network has its known metric, where there is one.

        Raises:
            ValueError: names what is usually wrong.
        """
        value, expected = metrics[self.metric], self._expected
        if expected is not None and abs(value - expected) > self._tolerance:
            raise ValueError(
                f"full precision has {self.metric} {value:.3f}, expected are {expected:.3f} "
                f"(tolerance {self._tolerance}): check checkpoint, data and protocol, "
                "or set expected_fp"
            )

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the network that was loaded last."""
        return self._tokenizer

    def example(self) -> Tokens:
        """Return two short sequences."""
        return {"input_ids": torch.arange(8).view(2, 4)}

    def traced(self) -> Tokens:
        """Return two texts of unequal length, with the mask and the segments of their tokens."""
        return dict(self._tokenizer(["a", "a b c"], padding=True, return_tensors="pt"))

    def finetuned_folder(self, model: LanguageModel) -> Path:
        """Return where the fine-tuned network of this task and model lies."""
        return self._checkpoints_dir / self.name / model.name

    def _finetuned(self, model: LanguageModel) -> Path:
        folder = self.finetuned_folder(model)
        if not (folder / "config.json").is_file():
            raise ValueError(
                f"there is no {model.name} fine-tuned for {self.name} in {folder}; make it with "
                f"`python finetune.py model={model.name} task={self.name}` "
                "or give checkpoint=PATH"
            )
        return folder


def check_at_least(least: int, options: Mapping[str, int | None]) -> None:
    """Check the numbers given to options of the task; None is no number to check.

    Raises:
        ValueError: when one is below least.
    """
    for name, value in options.items():
        if value is not None and value < least:
            raise ValueError(f"task.{name}={value}: give a whole number of at least {least}")


def check_positions(network: nn.Module, source: str, length: int, options: str) -> None:
    """Check that sequences of length tokens, which options set, fit the model's positions.

    Raises:
        ValueError: when they do not.
    """
    config: Any = network.config
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ValueError(f"{source} has {positions} positions; lower {options} ({length}) to that")
