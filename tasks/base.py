"""Contract of a task: everything that the application calls on one.

A run calls `load` (with offload=true `outline`) and `example` to build the model's adapter, then
`calibration`, `evaluate` and `check_full_precision` on the full-precision network, and `evaluate`
on the quantized one. With save=true `write_architecture` follows, and `python artifact.py` starts
from `bare`. `python finetune.py` calls what `FineTunable` adds.

What tasks of one kind share is in tasks/vision/base.py and tasks/language/base.py: derive from the
class there. docs/adding.md adds a task step by step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from flexround.models.base import ModelAdapter
from flexround.models.checkpoint_shards import Shards

Row = dict[str, Any]  # one training sample: what the network's forward takes, labels included
Collator = Callable[[list[Row]], dict[str, Any]]


class Task(ABC):
    """Data, a metric, and the full-precision network that a model has for them.

    A model is a flexround.models.vision.VisionModel or flexround.models.language.LanguageModel,
    as `kinds` says. A batch is what the network takes: images [batch, 3, height, width], or for
    language a mapping of input_ids, attention_mask, ... [batch, tokens].

    Attributes:
        kinds: the kinds of model that the task is for: "vision", "causal", "encoder".
        metric: name of the main metric, a key of what `evaluate` returns.
        higher_is_better: its direction.
        version: raised whenever the same model could get another number.
        always_finetuned: whether a network means nothing here before finetune.py has made it, and a
            run without checkpoint= takes that; the task's file in conf/ then has finetuned: true.
        outcomes: what the last `evaluate` found of each evaluation sample, in the data's order, by
            metric: [samples], bool for right or wrong, float for the mean negative log-likelihood
            [nats a token] behind a perplexity, and for any other mean in the metric's own unit.
            Metrics that are no mean over samples are absent.
        facts: what the record tells besides numbers of how the last `evaluate` measured, and of
            where `calibration` had its samples, by name.
        reference: what `compared` gave of the full-precision network, [samples, ...], which
            `evaluate` compares another network with; None compares nothing.
    """

    kinds: Sequence[str]
    metric: str
    higher_is_better: bool
    version: int
    always_finetuned: bool = False
    outcomes: Mapping[str, Tensor] = MappingProxyType({})
    facts: Mapping[str, Any] = MappingProxyType({})
    reference: Tensor | None = None

    @abstractmethod
    def load(self, model: Any, checkpoint: str | None) -> nn.Module:
        """Return model's full-precision network for this task, in eval mode.

        checkpoint is the run's checkpoint=; None is the model's own network for this task.

        Raises:
            ValueError: when it can't be had, or does not fit the model or the task.
        """

    def outline(self, model: Any, checkpoint: str | None) -> tuple[nn.Module, Shards]:
        """Return the network of `load` with its weights on the meta device, and their files.

        Only offload=true calls it, which holds one block of a language model at a time.

        Raises:
            ValueError: when the task needs the whole network; also all that `load` refuses.
        """
        raise ValueError(
            f"offload=true: the task {type(self).__name__} needs the whole network in memory; "
            "give offload=false"
        )

    @abstractmethod
    def example(self) -> Any:
        """Return two samples of the size that the task feeds; values do not matter."""

    def traced(self) -> Any:
        """Return two samples with every input that `evaluate` gives, for an export's graph.

        `load` or `bare` has been called.
        """
        return self.example()

    @abstractmethod
    def calibration(self, num_samples: int, seed: int) -> Sequence[Any]:
        """Return num_samples training samples, drawn by seed, as one batch or several.

        Raises:
            ValueError: when there are fewer.
        """

    def evaluation_data(self) -> Iterable[Any] | None:
        """Return all that `evaluate` measures on: tensors, texts, numbers, files, in any nesting.

        A file, as its path, counts by what it holds.

        Its digest finds the full-precision metrics that runs share, and stands in the record.
        `load` has been called. None, of a task that does not say, has every run measure anew.
        """
        return None

    def compared(self, adapter: ModelAdapter) -> Iterator[Tensor] | None:
        """Return what `reference` is joined from, or None of a task that compares nothing.

        It is asked for before adapter's network is quantized.
        """
        return None

    @abstractmethod
    def evaluate(self, adapter: ModelAdapter) -> dict[str, float]:
        """Return the metrics of adapter's network by name, in percent where they are shares.

        It keeps what it finds of each sample as `outcomes`.
        """

    def evaluate_reference(self, adapter: ModelAdapter) -> dict[str, float]:
        """Return what `evaluate` does of adapter's full-precision network, of which `reference` is.

        By the reference alone, where that takes less.
        """
        return self.evaluate(adapter)

    @abstractmethod
    def check_full_precision(self, metrics: dict[str, float]) -> None:
        """Check that the metrics of the full-precision network are what they should be.

        Raises:
            ValueError: when they are not, which no quantizer can be blamed for.
        """

    @abstractmethod
    def write_architecture(self, network: nn.Module, folder: Path) -> None:
        """Write what `bare` needs of network besides the model's settings into folder."""

    def describe(self, model: Any, checkpoint: str | None, folder: Path) -> bool:
        """Write what `bare` needs of a network that `load` has to make first into folder.

        Return False, with nothing written, where the network is at hand or has to be fetched. A run
        is checked on the bare network before the other is trained.
        """
        return False

    def hollow(self, model: Any, checkpoint: str | None) -> nn.Module | None:
        """Return the network of `load` on the meta device, where `load` has to fetch its weights.

        None where it has not, or where only a try tells what the network is like.
        """
        return None

    @abstractmethod
    def bare(self, model: Any, checkpoint: str | None, folder: Path) -> nn.Module:
        """Return the network that `load` gives, in eval mode, its weights without meaning.

        Nothing is read but what `write_architecture` left in folder.
        """


class FineTunable(Task):
    """A task that `python finetune.py` makes networks for.

    Attributes:
        name: the task on the command line.
    """

    name: str

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """The tokenizer of the network that was loaded last, saved beside the network."""

    @abstractmethod
    def fresh(self, model: Any, checkpoint: str | None, seed: int) -> nn.Module:
        """Return the network to fine-tune, a missing head drawn by seed.

        Raises:
            ValueError: as `load` does.
        """

    @abstractmethod
    def training_rows(self) -> Sequence[Row]:
        """Return the train split; `fresh` has been called.

        Raises:
            ValueError: when there is none.
        """

    @abstractmethod
    def collator(self) -> Collator:
        """Return what makes a batch of training rows, labels included."""

    @abstractmethod
    def finetuned_folder(self, model: Any) -> Path:
        """Return where the fine-tuned network of this task and model lies, or will."""
