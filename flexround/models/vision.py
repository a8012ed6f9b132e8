"""Image classifiers of torchvision and timm as chains of blocks; BatchNorm is folded first.

Convolutional networks are cut into BRECQ's units (2102.05426), ViT and DeiT into their transformer
blocks (2010.11929, 2012.12877).
"""

from __future__ import annotations

from collections.abc import Sequence
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
from flexround.models.coverage import without_left
from flexround.models.equalization import absorb_biases, equalize, replace_relu6
from flexround.models.network_checks import NoChain, check_chain, check_network
from flexround.models.tracing import told_apart, trace
from flexround.models.vision_blocks import find_blocks
from flexround.utils.tensor_float32 import tensor_float32

# Class names, so that a torchvision run need not import timm.
BLOCK_CLASSES = (
    "BasicBlock",
    "Block",
    "Bottleneck",
    "ConvBnAct",
    "DepthwiseSeparableConv",
    "EdgeResidual",
    "FusedMBConv",
    "InvertedResidual",
    "MBConv",
    "UniversalInvertedResidual",
)


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
        leave: names of weights that stay in full precision, see `without_left`.
    """

    library: str
    name: str
    weights: str | None
    first_last_bits: int | None
    equalize: bool
    absorb_biases: bool
    leave: Sequence[str]

    kind: ClassVar[str] = "vision"

    def build(self, num_classes: int, image_size: int | None = None) -> nn.Module:
        """Return the architecture with fresh weights and a head of num_classes.

        A network for images of one size, as ViT is by its position embedding, is built for images
        of image_size pixels a side, without it for its own.

        Raises:
            ValueError: when the library has no model of that name.
        """
        options = {}
        if self.library == "torchvision":
            import torchvision

            # Of its own module: others detect and segment, and fetch weights of a part unasked.
            names = torchvision.models.list_models(module=torchvision.models)
            make = torchvision.models.get_model
        elif self.library == "timm":
            import timm

            names, make = timm.list_models(pretrained="." in self.name), timm.create_model
            config = timm.get_pretrained_cfg(self.name) if self.name in names else None
            if config is not None and config.fixed_input_size and image_size is not None:
                options = {"img_size": image_size}
        else:
            raise ValueError(f"model.library={self.library}: give torchvision or timm")
        if self.name not in names:
            raise ValueError(
                f"model.name={self.name}: {self.library} has no such model that classifies"
            )
        network: nn.Module = make(self.name, num_classes=num_classes, **options)
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
            check_network(network, source.example(), self.leave)
            statistics = fold_batch_norm(network, source.example())
            equalize(network, source.example(), statistics)
            if self.absorb_biases:
                absorb_biases(network, source.example(), statistics)
        return self._adapter(network, source, device)

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
        return self._adapter(network, source, device)

    def _adapter(
        self, network: nn.Module, source: VisionSource, device: torch.device
    ) -> VisionAdapter:
        return VisionAdapter(network, source.example(), self.first_last_bits, device, self.leave)


class VisionAdapter(ModelAdapter):
    """A classifier of images [batch, 3, height, width], BatchNorm folded."""

    @tensor_float32(False)  # the fold and the chain are checked by their outputs
    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        first_last_bits: int | None,
        device: torch.device,
        leave: Sequence[str] = (),
        units: Sequence[str] = (),
    ) -> None:
        """Fold BatchNorm and find the blocks by running model on example [2, 3, height, width].

        Of the example its sizes count: where its samples are the same, the second is replaced.
        leave names weights that stay in full precision, units modules that are a block each, as
        those of BLOCK_CLASSES are.

        Raises:
            ValueError: when the network is not a chain of blocks, or holds a weight that can't be
                quantized.
        """
        self.device = self.storage_device = device
        self.leave = leave
        self.model = model.eval().requires_grad_(False).to(device)
        self._example = told_apart(example).to(device)
        for module in self.model.modules():
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]
        check_network(self.model, self._example, leave)
        fold_batch_norm(self.model, self._example)
        order = trace(self.model, self._example)
        blocks = find_blocks(
            self.model, self._example, order, first_last_bits, BLOCK_CLASSES, units
        )
        self._blocks = without_left(blocks, leave)
        self.coverage()
        # One sample's output of every block stands in for it when a later block's input is wanted.
        self._stand_ins = [order.first[block.module].output[:1] for block in self._blocks]
        self._whole_batches = False
        try:
            check_chain(self, self._example, order)
        except NoChain:  # it may be a chain that reads its batch's size off the images
            self._whole_batches = True
            check_chain(self, self._example, order)

    def widest(self, inputs: Tensor) -> int:
        """Return how many values of a sample a block takes or gives at most."""
        return max(inputs[:1].numel(), *(output.numel() for output in self._stand_ins))

    def forward(self, batch: Tensor) -> Tensor:
        """Return logits [batch, classes] of images [batch, 3, height, width]."""
        # A copy: some networks normalise what they are given in place.
        logits: Tensor = self.model(batch.to(self.device, copy=True))
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
            # One sample stands for as many as the network has to see.
            alike = torch.zeros(len(part) if self._whole_batches else 1, dtype=torch.long)
            with ExitStack() as stack:
                for block, stand_in in zip(self._blocks[:index], self._stand_ins, strict=False):
                    stack.enter_context(stub_forward(block.module, stand_in[alike]))
                stack.enter_context(stub_forward(self._blocks[index].module, here))
                return record_calls(target, self.forward, [self._example[alike]]).inputs.to(
                    outputs.device
                )

        parts = torch.arange(len(outputs)).split(64)
        return (cache or ActivationCache()).store(map(inputs, parts))
