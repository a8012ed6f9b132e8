"""Patches of a layer's input: the vectors that a row of its weight meets, as the layer pads it.

A convolution is x -> sum over channels and kernel of w * patch, so its Hessian is that of a linear
layer on its patches (GPTQ's code takes them by im2col; arXiv 2210.17323). Which patches there are
is the layer's to say: "same" and "valid", zeros, reflection, the nearest value or the other side
at the border, and timm's Conv2dSame, which pads as TensorFlow does, by the size of its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from flexround.structure import Layer, along_tokens, counted, pads_as_tensorflow

Convolution = nn.Conv1d | nn.Conv2d


def rows_of(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return inputs as the vectors that a row of module's weight meets, [groups, vectors, in].

    A convolution's are its patches, by group; a linear layer has one group.
    """
    if not isinstance(module, Convolution):
        return inputs.reshape(1, -1, inputs.shape[-1])
    axes = len(module.kernel_size)
    if inputs.dim() == axes + 1:  # a sample without a batch axis
        inputs = inputs[None]
    patches = padded(module, inputs)
    for axis, kernel, stride, dilation in zip(
        range(2, 2 + axes), module.kernel_size, module.stride, module.dilation, strict=True
    ):
        span = dilation * (kernel - 1) + 1
        patches = patches.unfold(axis, span, stride)[..., ::dilation]
    # [samples, channels, *places, *kernel] -> [groups, samples, *places, channels, *kernel]
    patches = patches.unflatten(1, (module.groups, -1))
    places, kernels = range(3, 3 + axes), range(3 + axes, 3 + 2 * axes)
    patches = patches.permute(1, 0, *places, 2, *kernels)
    rows: Tensor = patches.flatten(2 + axes).flatten(1, 1 + axes)
    return rows


def counted_rows(layer: Layer, inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Return `rows_of` the inputs of layer that are no padding, in float32.

    mask is as for `counted`. A convolution along the tokens has a row for each place of its output,
    whose patch may reach into padding, as the output does; a place behind the last token has none.
    """
    module = layer.module
    if mask is None or not isinstance(module, nn.Conv1d):
        return rows_of(module, counted(layer, inputs, mask).float())
    rows = rows_of(module, inputs.float())
    samples, tokens = mask.shape
    places = rows.shape[1] // samples
    steps_of_one = along_tokens(inputs, mask) and module.stride == (1,)
    if not steps_of_one or places < tokens:
        return rows
    counts = functional.pad(mask.to(rows.device), (0, places - tokens))
    return rows[:, counts.flatten()]


def padded(module: Convolution, inputs: Tensor) -> Tensor:
    """Return inputs [samples, channels, *size] with the border that module puts around them."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    if pads_as_tensorflow(module):
        return functional.pad(inputs, _tensorflow_border(module, inputs.shape[2:]))
    if module.padding == "valid":
        return inputs
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        border = [(extra // 2, extra - extra // 2) for extra in total]
    else:
        border = [(int(side), int(side)) for side in module.padding]
    if not any(map(any, border)):
        return inputs
    return functional.pad(inputs, _last_axis_first(border), mode)


def geometry(module: nn.Module) -> Any:
    """Return what decides which vectors module makes of a tensor; equal where they are equal."""
    if not isinstance(module, Convolution):
        return None
    return (
        module.kernel_size, module.dilation, module.padding, module.stride, module.groups,
        module.padding_mode, pads_as_tensorflow(module),
    )  # fmt: skip


def _tensorflow_border(module: Convolution, size: Sequence[int]) -> list[int]:
    """Return the border that leaves ceil(size / stride) places, the odd element of it behind."""
    border = []
    for length, kernel, stride, dilation in zip(
        size, module.kernel_size, module.stride, module.dilation, strict=True
    ):
        places = -(-length // stride)
        extra = max((places - 1) * stride + dilation * (kernel - 1) + 1 - length, 0)
        border.append((extra // 2, extra - extra // 2))
    return _last_axis_first(border)


def _last_axis_first(border: Sequence[tuple[int, int]]) -> list[int]:
    """Return (before, behind) by axis in the order that torch's pad takes them."""
    return [side for pair in reversed(border) for side in pair]
