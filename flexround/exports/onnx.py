"""A quantized model as ONNX, its weights and activations behind QuantizeLinear/DequantizeLinear.

Source: the two operators at opset 21 (4-bit types, blocks along an axis) and 25 (2-bit types),
https://onnx.ai/onnx/operators. The rest of the graph is torch.onnx's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from flexround.attach import output_first
from flexround.files import write_whole
from flexround.grid import QuantizedTensor
from flexround.models.base import ModelAdapter
from flexround.quantizers.activation import FAKE_QUANTIZE

# ONNX's integers by bits, (unsigned, signed); other widths take the next larger one.
TYPES = {
    2: (ir.DataType.UINT2, ir.DataType.INT2),
    4: (ir.DataType.UINT4, ir.DataType.INT4),
    8: (ir.DataType.UINT8, ir.DataType.INT8),
}
# Opset and file version; the newer one is asked for only where there are 2-bit weights.
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
    narrow = any(quantized.grid.bits == 2 for quantized in integers.values())
    opset, version = OPSET_2_BITS if narrow else OPSET_4_BITS
    model = trace(adapter, batch, opset)
    for name, quantized in integers.items():
        replace_weight(model.graph, name, quantized)
    for node in list(model.graph):
        if node.domain == FAKE_QUANTIZE.partition("::")[0]:
            replace_activation(model.graph, node)
    onnxscript.optimizer.optimize(model)
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
    layers = {layer.name: layer.module for block in adapter.blocks() for layer in block.layers}
    for name in layers.keys() ^ integers.keys():
        where = "the model" if name in layers else "the integers"
        raise ValueError(f"layer {name}: only {where} has it; give the integers of this model")
    for name, quantized in integers.items():
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
    axes = ("batch", "tokens") if adapter.channel_dim == -1 else ("batch",)
    batch = dict(batch) if isinstance(batch, Mapping) else batch
    # Two samples: torch takes an axis of length 1 for one that never varies.
    pair = tree_map(lambda values: torch.cat([values, values])[:2], batch)
    names = list(pair) if isinstance(pair, dict) else ["images"]
    dynamic = tree_map(lambda _: dict.fromkeys(range(len(axes)), torch.export.Dim.DYNAMIC), pair)
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


def replace_weight(graph: ir.Graph, name: str, quantized: QuantizedTensor) -> None:
    """Put codes and DequantizeLinear where graph holds the float weight of layer name."""
    full = f"model.{name}.weight"
    value = graph.initializers.pop(full)
    codes, scale, zero_point = (
        values.cpu().numpy() for values in (quantized.codes, quantized.scale, quantized.zero_point)
    )
    dtype = integer_type(quantized.grid.bits, quantized.grid.symmetric)
    groups, channels = len(scale), len(codes)
    shape: tuple[int, ...] = ()
    attributes = {}
    if 1 < groups == channels:
        shape, attributes = (channels,), {"axis": 0}
    elif groups > 1:
        # Groups run over all of a channel's weights, a convolution's kernel included.
        codes, shape = codes.reshape(channels, -1), (channels, groups // channels)
        attributes = {"axis": 1, "block_size": codes.shape[1] // shape[1]}
    inputs = [
        initializer(graph, f"{full}.codes", codes.astype(dtype)),
        initializer(graph, f"{full}.scale", scale.reshape(shape)),
        initializer(graph, f"{full}.zero_point", zero_point.reshape(shape).astype(dtype)),
    ]
    nodes = [ir.node("DequantizeLinear", inputs, attributes)]
    if codes.shape != quantized.codes.shape:
        kernel = initializer(graph, f"{full}.shape", np.array(quantized.codes.shape))
        nodes.append(ir.node("Reshape", [nodes[0].outputs[0], kernel]))
    graph.insert_before(graph[0], nodes)
    substitute(value, nodes[-1].outputs[0])


def replace_activation(graph: ir.Graph, node: ir.Node) -> None:
    """Put QuantizeLinear and DequantizeLinear where graph holds node, a traced quantizer."""
    read = {name: attribute.value for name, attribute in node.attributes.items()}
    name, qmin, qmax, zero_point = (read[k] for k in ("name", "qmin", "qmax", "zero_point"))
    scale = np.float32(read["scale"])
    bits = (qmax - qmin).bit_length()
    # onnxruntime knows Clip before QuantizeLinear with 8 bits alone, and nothing is stored here.
    dtype = integer_type(bits if bits == 4 else 8, qmin < 0)
    step = initializer(graph, f"{name}.scale", np.array(scale))
    zero = initializer(graph, f"{name}.zero_point", np.array(zero_point).astype(dtype))
    nodes, value = [], node.inputs[0]
    if bits not in (4, 8):
        bounds = [
            initializer(graph, f"{name}.{side}", np.array((bound - zero_point) * scale))
            for side, bound in (("min", qmin), ("max", qmax))
        ]
        nodes.append(ir.node("Clip", [value, *bounds]))
        value = nodes[-1].outputs[0]
    nodes.append(ir.node("QuantizeLinear", [value, step, zero]))
    nodes.append(ir.node("DequantizeLinear", [nodes[-1].outputs[0], step, zero]))
    graph.insert_before(node, nodes)
    substitute(node.outputs[0], nodes[-1].outputs[0])
    graph.remove(node, safe=True)


def integer_type(bits: int, signed: bool) -> Any:
    """Return numpy's name of the smallest of ONNX's integer types that holds codes of bits."""
    return next(kinds[signed].numpy() for width, kinds in TYPES.items() if bits <= width)


def initializer(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    """Return the value of a new constant of graph."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name,
        const_value=tensor,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
    )
    graph.register_initializer(value)
    return value


def substitute(old: ir.Value, new: ir.Value) -> None:
    """Let everything that takes old take new, which has its type and shape."""
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new)
