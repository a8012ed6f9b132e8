"""Base class of tasks that classify images: their metrics, and the check of full precision."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flexround.models.base import ModelAdapter
from flexround.models.vision import VisionModel
from tasks.base import Task
from tasks.finite import check_outputs


class VisionTask(Task):
    """Top-k accuracy: the share of images whose label is among the k largest logits, in percent.

    Attributes:
        num_classes: classes of the network's head.
        topk: the values of k, 1 among them.
        image_size: pixels a side of the images that the network is fed; None until it is known.
    """

    kinds = ("vision",)
    metric = "top1"
    higher_is_better = True
    num_classes: int
    topk: tuple[int, ...] = (1,)
    image_size: int | None = None

    @abstractmethod
    def load(self, model: VisionModel, checkpoint: str | None) -> nn.Module:
        """Return model's full-precision network for this task, in eval mode."""

    @abstractmethod
    def example(self) -> Tensor:
        """Return two images [2, 3, height, width] of the size that the task feeds."""

    @abstractmethod
    def test_batches(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield (images [batch, 3, height, width], labels [batch]) of the evaluation split."""

    def evaluation_data(self) -> Iterable[Any]:
        """Return the evaluation split itself; a task that reads it slowly says it shorter."""
        return self.test_batches()

    def build(self, model: VisionModel) -> nn.Module:
        """Return model's architecture for the classes and images at hand, with fresh weights."""
        return model.build(self.num_classes, self.image_size)

    @torch.no_grad()
    def evaluate(self, adapter: ModelAdapter) -> dict[str, float]:
        """Return {"topK": accuracy in percent} on the evaluation split."""
        hits: dict[str, list[Tensor]] = {f"top{k}": [] for k in self.topk}
        for images, labels in self.test_batches():
            logits = adapter.forward(images).cpu()
            check_outputs(logits)
            for k in self.topk:
                hits[f"top{k}"].append(in_topk(logits, labels, k))
        right = {name: torch.cat(batches) for name, batches in hits.items()}
        self.outcomes = {self.metric: right[self.metric]}
        return {name: 100 * int(hit.sum()) / len(hit) for name, hit in right.items()}

    def check_full_precision(self, metrics: dict[str, float]) -> None:
        """Check that the full-precision network does better than chance.

        Raises:
            ValueError: when its accuracy is below twice that of a guess.
        """
        chance = 100 / self.num_classes
        if metrics[self.metric] < 2 * chance:
            raise ValueError(
                f"full precision reaches {metrics[self.metric]:.2f} % {self.metric}, chance is "
                f"{chance:.2f} %: checkpoint, preprocessing and class list do not belong together"
            )

    def write_architecture(self, network: nn.Module, folder: Path) -> None:
        """Write nothing: the model's settings name the architecture."""

    def bare(self, model: VisionModel, checkpoint: str | None, folder: Path) -> nn.Module:
        """Return the architecture of checkpoint's network, all zeros."""
        network = self.build(model)
        for parameter in network.parameters():
            parameter.data.zero_()  # random ones may grow beyond all bounds on the way through
        return network


@torch.no_grad()
def in_topk(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Return [batch], whether each of labels is among the k largest of logits [batch, classes]."""
    best = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1)
