"""Integers in an ONNX graph, behind QuantizeLinear and DequantizeLinear.

Source: the two operators at opset 21 (4-bit types, blocks along an axis) and 25 (2-bit types),
https://onnx.ai/onnx/operators.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from flexround.grid import QuantizedTensor

# ONNX's integers by bits, (unsigned, signed); other widths take the next larger one.
TYPES = {
    2: (ir.DataType.UINT2, ir.DataType.INT2),
    4: (ir.DataType.UINT4, ir.DataType.INT4),
    8: (ir.DataType.UINT8, ir.DataType.INT8),
}


def replace_weight(
    graph: ir.Graph, name: str, quantized: QuantizedTensor, width: int, turned: bool
) -> None:
    """Put codes and DequantizeLinear where graph holds the float weight of layer name.

    They are in the type of width bits, which holds at least theirs. turned tells that the weight
    lies as [in, out], in the file as in graph.
    """
    full = f"model.{name}.weight"
    value = graph.initializers.pop(full)
    codes, scale, zero_point = (
        values.cpu().numpy() for values in (quantized.codes, quantized.scale, quantized.zero_point)
    )
    dtype = integer_type(width, quantized.grid.symmetric)
    groups, channels = len(scale), len(codes)
    shape: tuple[int, ...] = ()
    attributes = {}
    if 1 < groups == channels:
        shape, attributes = (channels,), {"axis": int(turned)}
    elif groups > 1:
        # Groups run over all of a channel's weights, a convolution's kernel included.
        codes, shape = codes.reshape(channels, -1), (channels, groups // channels)
        attributes = {"axis": int(not turned), "block_size": codes.shape[1] // shape[1]}
    flat = codes.shape != quantized.codes.shape
    scale, zero_point = scale.reshape(shape), zero_point.reshape(shape).astype(dtype)
    codes = codes.astype(dtype)
    if turned:
        codes, scale, zero_point = (array.T.copy() for array in (codes, scale, zero_point))
    inputs = [
        initializer(graph, f"{full}.codes", codes),
        initializer(graph, f"{full}.scale", scale),
        initializer(graph, f"{full}.zero_point", zero_point),
    ]
    nodes = [ir.node("DequantizeLinear", inputs, attributes)]
    if flat:
        kernel = initializer(graph, f"{full}.shape", np.array(quantized.codes.shape))
        nodes.append(ir.node("Reshape", [nodes[0].outputs[0], kernel]))
    graph.insert_before(graph[0], nodes)
    substitute(value, nodes[-1].outputs[0])


def replace_activation(graph: ir.Graph, node: ir.Node) -> None:
    """Put QuantizeLinear and DequantizeLinear where graph holds node, a traced quantizer."""
    read = {name: attribute.value for name, attribute in node.attributes.items()}
    name, qmin, qmax, zero_point = (read[k] for k in ("name", "qmin", "qmax", "zero_point"))
    scale = np.float32(read["scale"])
    levels = qmax - qmin
    # Codes from 0 on in 8 bits, whatever they are by name: nothing is stored here, and of all types
    # onnxruntime fuses and moves this one alone without fault. The type saturates below.
    step = initializer(graph, f"{name}.scale", scale)
    zero = initializer(graph, f"{name}.zero_point", np.array(zero_point - qmin).astype(np.uint8))
    nodes, value = [], node.inputs[0]
    if levels < 255:
        # Not Clip: behind one onnxruntime rounds a convolution's bias to the product of two scales,
        # which at few bits moves codes, and computes in floats all the same.
        limit = initializer(graph, f"{name}.max", np.float32((qmax - zero_point) * scale))
        nodes.append(ir.node("Min", [value, limit]))
        value = nodes[-1].outputs[0]
    nodes.append(ir.node("QuantizeLinear", [value, step, zero]))
    nodes.append(ir.node("DequantizeLinear", [nodes[-1].outputs[0], step, zero]))
    graph.insert_before(node, nodes)
    substitute(node.outputs[0], nodes[-1].outputs[0])
    graph.remove(node, safe=True)


def integer_type(bits: int, signed: bool) -> Any:
    """Return numpy's form of the smallest of ONNX's integer types that holds codes of bits."""
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
