"""The contract between a model and the reconstruction loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import reduce
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from flexround.calibration.activation_cache import ActivationCache
from flexround.calibration.calls import RecordedCalls, record_calls
from flexround.grid import Grid, QuantizedTensor
from flexround.models.coverage import Coverage, coverage_of
from flexround.structure import Block, Layer, bits_by_name
from flexround.utils.memory import explained

if TYPE_CHECKING:
    from flexround.activations.hooks import Activations


def check_kind(model: str | None, task: Sequence[str]) -> None:
    """Check that a model of one kind (vision, causal, encoder) meets a task for that kind.

    None is a language model of either kind.

    Raises:
        ValueError: when it does not.
    """
    if model not in task and (model is not None or "vision" in task):
        raise ValueError(
            f"the model is {model or 'a language model'}, the task is for "
            f"{' and '.join(task)} models; choose another task= or model="
        )


def _floating(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of module that have a type of their own to keep."""
    for name, values in chain(module.named_parameters(), module.named_buffers()):
        if values.is_floating_point():
            yield name, values


class ModelAdapter(ABC):
    """A model seen as a chain of blocks that together hold every quantized layer.

    Attributes:
        model: the module, in eval mode.
        device: where blocks run.
        storage_device: where they lie when they do not.
        activations: the quantizers that the model's activations pass, None where there are none.
        leave: names of weights in the blocks that stay in full precision.
    """

    model: nn.Module
    device: torch.device
    storage_device: torch.device
    activations: Activations | None = None
    leave: Sequence[str] = ()
    _blocks: list[Block]

    def blocks(self) -> list[Block]:
        """Return the units of reconstruction in execution order."""
        return self._blocks

    def assign_bits(self, patterns: Mapping[str, int]) -> None:
        """Give layers their own bits, by name or pattern; the last pattern that fits counts.

        Raises:
            ValueError: when a pattern fits no layer.
        """
        found = bits_by_name(list(self.layers()), patterns)
        self.change_layers(lambda layer: replace(layer, chosen=found.get(layer.name)))

    def change_layers(self, change: Callable[[Layer], Layer]) -> None:
        """Have change(layer) in the place of each layer."""
        self._blocks = [
            replace(block, layers=[change(layer) for layer in block.layers])
            for block in self._blocks
        ]

    def average_bits(self, grid: Grid) -> float:
        """Return the mean of bits over the weights that are quantized in a run on grid."""
        found = [
            (cast(nn.Parameter, layer.module.weight).numel(), layer.grid(grid).bits)
            for layer in self.layers().values()
        ]
        return sum(count * bits for count, bits in found) / sum(count for count, _ in found)

    def layers(self) -> dict[str, Layer]:
        """Return the layers that are quantized, by name, in execution order."""
        return {layer.name: layer for block in self.blocks() for layer in block.layers}

    def coverage(self) -> Coverage:
        """Return which of the blocks' weights are quantized."""
        inside = {id(p) for block in self.blocks() for p in block.module.parameters()}
        outside = {
            name: p for name, p in self.model.named_parameters()
            if p.dim() > 1 and id(p) not in inside
        }  # fmt: skip
        return coverage_of(self.blocks(), self.leave, outside)

    @abstractmethod
    def forward(self, batch: Any) -> Tensor:
        """Return the model's logits on one batch of its task."""

    def outputs(self, batches: Iterable[Any]) -> Iterator[Tensor]:
        """Yield the model's logits on each batch."""
        for batch in batches:
            yield self.forward(batch)

    def last_outputs(self, batches: Sequence[Any]) -> Iterator[Tensor]:
        """Yield what the last block gives on each batch, on the CPU.

        Raises:
            NotImplementedError: for a model whose logits do not follow from that alone.
        """
        raise NotImplementedError

    def logits_after(self, batch: Any, outputs: Tensor) -> Tensor:
        """Return the logits on a batch whose last block gives outputs, by what follows it.

        Nothing of that is quantized in a language model: outputs of the full-precision network
        give its logits, whatever has become of the blocks.

        Raises:
            NotImplementedError: as for `last_outputs`.
        """
        raise NotImplementedError

    def vocabulary(self) -> int | None:
        """Return how many tokens the head tells apart; None where it predicts no next token."""
        return None

    def head(self) -> Callable[[Any, Tensor], Tensor]:
        """Return what makes logits of (batch, the last block's outputs), as it is now.

        It lies on the device in float32 at least, and gradients reach the outputs.

        Raises:
            NotImplementedError: for a model without a `vocabulary`.
        """
        raise NotImplementedError

    def record_calls(
        self, batches: Sequence[Any], cache: ActivationCache | None = None
    ) -> RecordedCalls:
        """Return the calls of the first block over the calibration batches, held by cache."""
        return record_calls(self.blocks()[0].module, self.forward, batches, cache)

    def num_samples(self, batch: Any) -> int:
        """Return how many samples a calibration batch holds."""
        return len(batch)

    def advance(self, index: int, outputs: Tensor, cache: ActivationCache | None = None) -> Tensor:
        """Return the inputs of block index + 1 from the outputs [samples, ...] of block index."""
        return outputs

    def widest(self, inputs: Tensor) -> int:
        """Return how many values of a sample a block takes or gives at most.

        inputs [samples, ...] are the first block's.
        """
        return inputs[:1].numel()

    def loss_mask(self, batches: Sequence[Any]) -> Tensor | None:
        """Return which positions count in the loss, [samples, ...], or None where all do."""
        return None

    def onloaded(self, block: Block) -> AbstractContextManager[None]:
        """Return the context in which block's weights are in memory, at home in their own type."""
        return nullcontext()

    @contextmanager
    def on_device(self, block: Block) -> Iterator[None]:
        """Have block on the device in float32 at least; then at home in its own types again.

        Raises:
            ValueError: when memory runs out meanwhile; names the block.
        """
        where = f"block {block.name}"
        with explained(where, self.device), self.onloaded(block):
            own = {name: values.dtype for name, values in _floating(block.module)}
            # Half precision is too coarse to train. A buffer has no say: float64 is left alone.
            weights = (weight.dtype for weight in block.module.parameters())
            kind = reduce(torch.promote_types, weights, torch.float32)
            block.module.to(self.device, kind)
            try:
                with explained(where, self.device):  # before anything is let go of
                    yield
            finally:
                kinds = set(own.values())
                block.module.to(self.storage_device, *(kinds if len(kinds) == 1 else ()))
                for name, values in _floating(block.module):
                    if values.dtype != own.get(name, values.dtype):
                        values.data = values.to(own[name])

    def commit(
        self, block: Block, integers: dict[str, QuantizedTensor]
    ) -> dict[str, QuantizedTensor]:
        """Have the weights of a block at work as they are now in all that follows.

        Return its integers where they may stay until the end of the run.
        """
        return {name: held.on(self.storage_device) for name, held in integers.items()}

    def release(self, module: nn.Module) -> None:
        """Send a copy of a block at work home."""
        module.to(self.storage_device)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all that the model stores, by name."""
        yield from self.model.state_dict().items()
