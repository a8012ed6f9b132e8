"""The contract between a model and the reconstruction loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flexround.blocks import Block, Calls, capture


def check_kind(model: str, task: Sequence[str]) -> None:
    """Check that a model of one kind (vision, causal, encoder) meets a task for that kind.

    Raises:
        ValueError: when it does not.
    """
    if model not in task:
        raise ValueError(
            f"the model is {model}, the task is for {' and '.join(task)} models; "
            "choose another task= or model="
        )


class ModelAdapter(ABC):
    """A model seen as a chain of blocks that together hold every quantized layer.

    Attributes:
        model: the module, in eval mode.
        device: where blocks run.
        home: where they lie when they do not.
        channel_dim: the axis of a block's output that the reconstruction loss sums over.
    """

    model: nn.Module
    device: torch.device
    home: torch.device
    channel_dim: int

    @abstractmethod
    def blocks(self) -> list[Block]:
        """Return the units of reconstruction in execution order."""

    @abstractmethod
    def forward(self, batch: Any) -> Tensor:
        """Return the model's logits on one batch of its task."""

    def capture(self, batches: Sequence[Any]) -> Calls:
        """Return the calls of the first block over the calibration batches."""
        return capture(self.blocks()[0].module, self.forward, batches)

    def num_samples(self, batch: Any) -> int:
        """Return how many samples a calibration batch holds."""
        return len(batch)

    def advance(self, index: int, outputs: Tensor) -> Tensor:
        """Return the inputs of block index + 1 from the outputs [samples, ...] of block index."""
        return outputs

    def loss_mask(self, batches: Sequence[Any]) -> Tensor | None:
        """Return which positions count in the loss, [samples, ...], or None where all do."""
        return None
