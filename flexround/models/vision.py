"""Convolutional classifiers of torchvision and timm as chains of BRECQ's units (2102.05426).

A residual block is one unit, every other layer a unit of its own; BatchNorm is folded first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from flexround.calibration.activation_cache import ActivationCache, rows
from flexround.calibration.calls import record_calls, stub_forward
from flexround.models.base import ModelAdapter, check_kind
from flexround.models.batch_norm import fold_batch_norm
from flexround.models.equalization import absorb_biases, equalize, replace_relu6
from flexround.models.tracing import Trace, trace
from flexround.models.vision_activation_sites import with_sites
from flexround.structure import QUANTIZABLE, Block, Layer

# Class names, so that a torchvision run need not import timm.
BLOCK_CLASSES = (
    "BasicBlock",
    "Bottleneck",
    "ConvBnAct",
    "DepthwiseSeparableConv",
    "EdgeResidual",
    "FusedMBConv",
    "InvertedResidual",
    "MBConv",
    "UniversalInvertedResidual",
)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU)


class VisionSource(Protocol):
    """What a vision task provides to build an adapter."""

    kinds: Sequence[str]

    def load(self, model: VisionModel, checkpoint: str | None) -> nn.Module:
        """Return model's full-precision network for the task."""
        ...

    def bare(self, model: VisionModel, checkpoint: str | None, folder: Path) -> nn.Module:
        """Return the same network, its weights without meaning."""
        ...

    def example(self) -> Tensor:
        """Return two images [2, 3, height, width]."""
        ...


@dataclass(frozen=True)
class VisionModel:
    """An architecture by name.

    Attributes:
        library: torchvision or timm.
        name: the library's own name of the architecture.
        weights: the default ImageNet checkpoint, see tasks.vision.checkpoints.
        first_last_bits: bits of the first and the last layer, or None for the run's own.
        equalize: replace ReLU6 by ReLU and equalise the weights' ranges across layers.
        absorb_biases: move high biases to the next layer as well (both: FlexRound, Table 10).
    """

    library: str
    name: str
    weights: str | None
    first_last_bits: int | None
    equalize: bool
    absorb_biases: bool

    kind: ClassVar[str] = "vision"

    def build(self, num_classes: int) -> nn.Module:
        """Return the architecture with fresh weights and a head of num_classes.

        Raises:
            ValueError: when the library has no model of that name.
        """
        if self.library == "torchvision":
            import torchvision

            names, make = torchvision.models.list_models(), torchvision.models.get_model
        elif self.library == "timm":
            import timm

            names, make = timm.list_models(), timm.create_model
        else:
            raise ValueError(f"model.library={self.library}: give torchvision or timm")
        if self.name not in names:
            raise ValueError(f"model.name={self.name}: {self.library} has no such model")
        network: nn.Module = make(self.name, num_classes=num_classes)
        return network.eval()

    def adapter(
        self,
        source: VisionSource,
        checkpoint: str | None,
        device: torch.device,
        offload: ActivationCache | None = None,
    ) -> VisionAdapter:
        """Return the adapter of this architecture with source's full-precision weights.

        Raises:
            ValueError: when the task is for another kind of model, or offload is asked for.
        """
        check_kind(self.kind, source.kinds)
        if offload is not None:
            raise ValueError("offload=true is for language models; give offload=false")
        if self.absorb_biases and not self.equalize:
            raise ValueError("model.absorb_biases=true goes with model.equalize=true; give both")
        network = source.load(self, checkpoint).eval().requires_grad_(False)
        if self.equalize:
            replace_relu6(network)
            statistics = fold_batch_norm(network, source.example())
            equalize(network, source.example(), statistics)
            if self.absorb_biases:
                absorb_biases(network, source.example(), statistics)
        return VisionAdapter(network, source.example(), self.first_last_bits, device)

    def bare_adapter(
        self, source: VisionSource, checkpoint: str | None, folder: Path, device: torch.device
    ) -> VisionAdapter:
        """Return the adapter that an artifact in folder is restored to.

        Of equalisation only the activation functions count: its weights are in the artifact.
        """
        check_kind(self.kind, source.kinds)
        network = source.bare(self, checkpoint, folder)
        if self.equalize:
            replace_relu6(network)
        return VisionAdapter(network, source.example(), self.first_last_bits, device)


class VisionAdapter(ModelAdapter):
    """A classifier of images [batch, 3, height, width], BatchNorm folded."""

    channel_dim = 1

    def __init__(
        self, model: nn.Module, example: Tensor, first_last_bits: int | None, device: torch.device
    ) -> None:
        """Fold BatchNorm and find the blocks by running model on example [2, 3, height, width].

        Raises:
            ValueError: when the network is not a chain of blocks.
        """
        self.device = self.storage_device = device
        self.model = model.eval().requires_grad_(False).to(device)
        self._example = example.to(device)
        for module in self.model.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]
        fold_batch_norm(self.model, self._example)
        order = trace(self.model, self._example)
        self._blocks = find_blocks(self.model, order, first_last_bits)
        # One sample's output of every block stands in for it when a later block's input is wanted.
        self._stand_ins = [order.first[block.module].output[:1] for block in self._blocks]
        self._check_chain(order)

    def blocks(self) -> list[Block]:
        """Return the units of reconstruction in execution order."""
        return self._blocks

    def forward(self, batch: Tensor) -> Tensor:
        """Return logits [batch, classes] of images [batch, 3, height, width]."""
        logits: Tensor = self.model(batch.to(self.device))
        return logits

    @torch.no_grad()
    def advance(self, index: int, outputs: Tensor, cache: ActivationCache | None = None) -> Tensor:
        """Return the inputs of block index + 1 from the outputs [samples, ...] of block index.

        What lies between the two (pooling, flattening, a stem's ReLU) is run by the model itself,
        the blocks before it replaced by stored results.
        """
        target = self._blocks[index + 1].module

        def inputs(part: Tensor) -> Tensor:
            here = rows(outputs, part, self.device)
            with ExitStack() as stack:
                for block, stand_in in zip(self._blocks[:index], self._stand_ins, strict=False):
                    stack.enter_context(stub_forward(block.module, stand_in))
                stack.enter_context(stub_forward(self._blocks[index].module, here))
                return record_calls(target, self.model, [self._example[:1]]).inputs.to(
                    outputs.device
                )

        parts = torch.arange(len(outputs)).split(64)
        return (cache or ActivationCache()).store(map(inputs, parts))

    def _check_chain(self, order: Trace) -> None:
        for index, (block, after) in enumerate(
            zip(self._blocks[:-1], self._blocks[1:], strict=True)
        ):
            inputs = self.advance(index, order.first[block.module].output)
            if not torch.allclose(inputs, order.first[after.module].inputs, rtol=1e-4, atol=1e-5):
                raise ValueError(
                    f"block {after.name} needs more than the output of {block.name} before it; "
                    "only networks that are a chain of blocks can be reconstructed"
                )


def find_blocks(model: nn.Module, order: Trace, first_last_bits: int | None) -> list[Block]:
    """Return the units in execution order: residual blocks, and the layers outside of them."""
    names = {module: name for name, module in model.named_modules()}
    called = [m for m in order.modules if isinstance(m, QUANTIZABLE)]
    if not called:
        raise ValueError("the model holds no convolution or linear layer to quantize")
    for module in called:
        if sum(call.module is module for call in order.calls) > 1:
            raise ValueError(f"layer {names[module]} is used twice; it cannot be quantized")
    first, last = called[0], called[-1]
    layers = {
        module: Layer(
            names[module],
            module,
            first_last_bits if module in (first, last) else None,
            order.consumer(module, ACTIVATIONS),
        )
        for module in called
    }
    blocks = []
    for unit in _units(model):
        inside = [layers[m] for m in called if any(m is sub for sub in unit.modules())]
        if inside:
            own = inside[0].activation if inside[0].module is unit else None
            blocks.append(Block(names[unit], unit, inside, own))
    position = {module: index for index, module in enumerate(order.modules)}
    blocks.sort(key=lambda block: position[block.module])
    return with_sites(blocks, order, names, ACTIVATIONS)


def _units(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child).__name__ in BLOCK_CLASSES or isinstance(child, QUANTIZABLE):
            yield child
        else:
            yield from _units(child)
