"""The contract of a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from flexround.models.base import ModelAdapter
from flexround.models.vision import VisionModel


class Task(ABC):
    """Data and metric.

    Attributes:
        metric: name of the main metric, a key of what `evaluate` returns.
        higher_is_better: its direction.
        version: raised whenever the same model could get another number.
        outcomes: what the last `evaluate` found of each evaluation sample, in the data's order, by
            metric: [samples], bool for right or wrong, float for the mean negative log-likelihood
            [nats a token] behind a perplexity. Metrics that are no mean over samples are absent.
    """

    metric: str
    higher_is_better: bool
    version: int
    outcomes: Mapping[str, Tensor] = MappingProxyType({})

    @abstractmethod
    def calibration(self, num_samples: int, seed: int) -> Sequence[Any]:
        """Return num_samples training samples as batches for the adapter's forward.

        Raises:
            ValueError: when there are fewer samples.
        """

    @abstractmethod
    def evaluate(self, adapter: ModelAdapter) -> dict[str, float]:
        """Return the metrics by name, in percent where they are shares."""

    @abstractmethod
    def write_architecture(self, network: nn.Module, folder: Path) -> None:
        """Write what `bare` needs of network besides the model's settings into folder."""

    @abstractmethod
    def bare(self, model: Any, checkpoint: str | None, folder: Path) -> nn.Module:
        """Return the network that `load` gives, its weights without meaning.

        Nothing is read but what `write_architecture` left in folder.
        """


class VisionTask(Task):
    """Classification of images; it also knows the checkpoint that its networks start from."""

    kinds = ("vision",)
    metric = "top1"
    higher_is_better = True
    num_classes: int

    @abstractmethod
    def load(self, model: VisionModel, checkpoint: str | None) -> nn.Module:
        """Return model's full-precision network for this task, in eval mode."""

    @abstractmethod
    def example(self) -> Tensor:
        """Return two images [2, 3, height, width] of the size that the task feeds."""

    def write_architecture(self, network: nn.Module, folder: Path) -> None:
        """Write nothing: the model's settings name the architecture."""

    def bare(self, model: VisionModel, checkpoint: str | None, folder: Path) -> nn.Module:
        """Return the architecture of checkpoint's network, all zeros."""
        network = model.build(self.num_classes)
        for parameter in network.parameters():
            parameter.data.zero_()  # random ones may grow beyond all bounds on the way through
        return network

    def check_full_precision(self, metrics: dict[str, float]) -> None:
        """Refuse a full-precision network that is not what it should be.

        Raises:
            ValueError: when it does no better than chance, which no quantizer can be blamed for.
        """
        chance = 100 / self.num_classes
        if metrics[self.metric] < 2 * chance:
            raise ValueError(
                f"full precision reaches {metrics[self.metric]:.2f} % {self.metric}, chance is "
                f"{chance:.2f} %: checkpoint, preprocessing and class list do not belong together"
            )


@torch.no_grad()
def in_topk(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return [batch], whether each of labels is among the k largest of logits [batch, classes]."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1)
