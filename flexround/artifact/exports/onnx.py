"""A quantized model as ONNX, its weights and activations behind QuantizeLinear/DequantizeLinear.

The rest of the graph is torch.onnx's (https://docs.pytorch.org/docs/stable/onnx.html).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from flexround.activations.quantizers import FAKE_QUANTIZE, as_nodes
from flexround.artifact.exports.huggingface import check_integer
from flexround.artifact.exports.onnx_graph import replace_activation, replace_weight
from flexround.grid import QuantizedTensor
from flexround.models.base import ModelAdapter
from flexround.structure import is_transposed, output_first
from flexround.utils.atomic_files import write_whole

# Opset and file version; the newer one is asked for only where 2-bit weights are stored as such.
OPSET_4_BITS, OPSET_2_BITS = (21, 10), (25, 13)


class Logits(nn.Module):
    """An adapter's forward pass, batch -> logits, as a module to be traced."""

    def __init__(self, adapter: ModelAdapter) -> None:
        super().__init__()
        self.model, self.adapter = adapter.model, adapter

    def forward(self, batch: Any) -> Tensor:
        """Return the logits of a batch as adapter.forward takes it."""
        return self.adapter.forward(batch)


def export(
    adapter: ModelAdapter, integers: Mapping[str, QuantizedTensor], batch: Any, path: Path
) -> None:
    """Write the quantized model to path as ONNX, integers in the place of its baked weights.

    batch is one that adapter.forward takes; the file takes any number of samples, and of tokens.

    Raises:
        ValueError: when ONNX cannot express the model, or integers are not its weights'.
    """
    check_model(adapter.model)
    check_integers(adapter, integers)
    # With quantized activations onnxruntime takes 2-bit weights to kernels that it has not.
    narrowest = 2 if adapter.activations is None else 4
    widths = {name: max(narrowest, q.grid.bits) for name, q in integers.items()}
    opset, version = OPSET_2_BITS if 2 in widths.values() else OPSET_4_BITS
    model = trace(adapter, batch, opset)
    layers = adapter.layers()
    for name, quantized in integers.items():
        turned = is_transposed(layers[name].module)
        replace_weight(model.graph, name, quantized, widths[name], turned)
    onnxscript.optimizer.optimize(model)
    for node in list(model.graph):  # now: it would make Clip of Max and Min again
        if node.domain == FAKE_QUANTIZE.partition("::")[0]:
            replace_activation(model.graph, node)
    ClearMetadataAndDocStringPass()(model)  # it tells where torch's files lie on this machine
    model.ir_version = version
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    write_whole(path, proto.SerializeToString())


def check_model(model: nn.Module) -> None:
    """Check that model is one whose forward pass is all there is to it.

    Raises:
        ValueError: when it is a language model that generates.
    """
    can_generate = getattr(model, "can_generate", None)
    if can_generate is not None and can_generate():
        raise ValueError(
            f"{type(model).__name__} generates text, which needs more than a graph of its forward "
            "pass; ONNX export is for vision models and encoders"
        )


def check_integers(adapter: ModelAdapter, integers: Mapping[str, QuantizedTensor]) -> None:
    """Check that integers are the weights of adapter's layers, and zero points ONNX's.

    Raises:
        ValueError: when they are not; names the layer.
    """
    layers = {name: layer.module for name, layer in adapter.layers().items()}
    for name in sorted(layers.keys() ^ integers.keys()):
        where = "the model" if name in layers else "the integers"
        raise ValueError(f"layer {name}: only {where} has it; give the integers of this model")
    for name, quantized in integers.items():
        check_integer(quantized.grid, name, "ONNX")
        weight = output_first(layers[name], cast(Tensor, layers[name].weight))
        if weight.dtype != torch.float32:
            raise ValueError(f"layer {name}: its weight is {weight.dtype}; ONNX export is float32")
        if not torch.equal(weight, quantized.dequantize().to(weight.device)):
            raise ValueError(
                f"layer {name}: its weight is not what its integers stand for; give the integers "
                "of this model"
            )
        grid, zero = quantized.grid, quantized.zero_point
        outside = (zero < grid.qmin) | (zero > grid.qmax) | (zero % 1 != 0)
        if outside.any():
            raise ValueError(
                f"layer {name}: zero point {zero[outside][0]:g} is no whole number from "
                f"{grid.qmin} to {grid.qmax}, as ONNX needs it; give symmetric=true"
            )


@torch.no_grad()
def trace(adapter: ModelAdapter, batch: Any, opset: int) -> ir.Model:
    """Return adapter's forward pass as a graph, layers' parameters named model.LAYER.weight.

    The first axis of every input may vary, and the second where inputs are tokens.

    Raises:
        ValueError: when an activation quantizer cannot be traced.
    """
    adapter.model.to(adapter.device)
    axes = ("batch", "tokens") if isinstance(batch, Mapping) else ("batch",)
    batch = dict(batch) if isinstance(batch, Mapping) else batch
    # Two samples: torch takes an axis of length 1 for one that never varies.
    pair = tree_map(lambda values: torch.cat([values, values])[:2], batch)
    names = list(pair) if isinstance(pair, dict) else ["images"]
    dynamic = tree_map(lambda _: dict.fromkeys(range(len(axes)), torch.export.Dim.DYNAMIC), pair)
    with as_nodes():
        traced = torch.export.export(
            Logits(adapter).eval(), (pair,), dynamic_shapes={"batch": dynamic}, strict=False
        )
    with warnings.catch_warnings():
        # Several inputs share their axes, each of which is told to have been named before.
        warnings.filterwarnings("ignore", "# The axis name")
        program = torch.onnx.export(
            traced,
            dynamic_shapes={"batch": tree_map(lambda _: dict(enumerate(axes)), pair)},
            input_names=names,
            output_names=["logits"],
            opset_version=opset,
            optimize=False,  # it would fold transposed copies of weights
            verbose=False,
        )
    assert program is not None, "torch returns one when it traces"
    model: ir.Model = program.model
    return model
