"""Checks of a vision network: no weight is passed over, and its blocks are a chain.

Every matrix and kernel that takes part in the network's output must be the weight of a layer that
can be quantized and that is called as a module, so that its inputs are seen. Else the network is
refused in words, rather than left full precision in silence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from flexround.calibration.calls import stub_forward
from flexround.models.base import ModelAdapter
from flexround.models.coverage import is_left
from flexround.models.tracing import Trace, first_line, logits_of, same_output, trace
from flexround.structure import check_layer, is_quantizable

# Nodes of autograd's graph: products of matrices, and what only turns, reshapes or cuts a tensor.
PRODUCTS = ("AddmmBackward", "BaddbmmBackward", "BmmBackward", "ConvolutionBackward", "MmBackward",
            "MvBackward")  # fmt: skip
RESHAPING = ("AliasBackward", "AsStridedBackward", "CloneBackward", "ExpandBackward",
             "PermuteBackward", "ReshapeAliasBackward", "SelectBackward", "SliceBackward",
             "SqueezeBackward", "TBackward", "ToCopyBackward", "TransposeBackward",
             "UnsafeViewBackward", "UnsqueezeBackward", "ViewBackward")  # fmt: skip


class NoChain(ValueError):
    """A network whose blocks are no chain.

    Attributes:
        block: the name of the one whose output is not all that what follows it needs.
    """

    def __init__(self, line: str, block: str) -> None:
        super().__init__(line)
        self.block = block


def check_network(model: nn.Module, example: Tensor, leave: Sequence[str] = ()) -> None:
    """Check that all weights that decide model's output on example can be quantized.

    Those that leave names are not looked at.

    Raises:
        ValueError: when the forward pass fails, or a weight can't be; names it.
    """
    order = trace(model, example)
    names = {module: name for name, module in model.named_modules()}
    for module in order.runs:
        if is_quantizable(module) and not is_left(names[module], leave):
            check_layer(names[module], module)
    for held in _names_of_parameters(model, example).values():
        owners = [model.get_submodule(name.rpartition(".")[0]) for name in held]
        if any(is_left(name, leave) for name in held):
            continue
        if not any(is_quantizable(owner) and owner in order.runs for owner in owners):
            name, owner = held[0], owners[0]
            if is_quantizable(owner):
                raise ValueError(
                    f"layer {name.rpartition('.')[0]}: its weight is used without the layer being "
                    "called, so that nothing is known of what it is multiplied with"
                )
            parameter = model.get_parameter(name)
            raise ValueError(
                f"{type(owner).__name__} holds {name} {list(parameter.shape)}, which is no "
                "weight of a Linear, Conv1d or Conv2d and can't be quantized; "
                f"model.leave=[{name}] leaves it in full precision"
            )


def check_chain(adapter: ModelAdapter, example: Tensor, order: Trace) -> None:
    """Check that each block needs the one before it alone, and the logits the last one.

    order is the trace of adapter's model on example.

    Raises:
        NoChain: when one needs more; names it.
    """
    blocks = adapter.blocks()
    outputs = [order.first[block.module].output for block in blocks]
    for index, (block, after) in enumerate(pairwise(blocks)):
        wanted, why = order.first[after.module].inputs, ""
        try:
            same = same_output(adapter.advance(index, outputs[index]), wanted)
        except Exception as error:  # a network may raise anything on another block's results
            same, why = False, f" ({first_line(error)})"
        if not same:
            raise NoChain(
                f"block {after.name} needs more than the output of {block.name} before it; "
                f"only networks that are a chain of blocks can be reconstructed{why}",
                block.name,
            )
    with ExitStack() as stack:
        for block, output in zip(
            blocks, [*(o[:1] for o in outputs[:-1]), outputs[-1]], strict=True
        ):
            stack.enter_context(stub_forward(block.module, output))
        if not same_output(adapter.forward(example), order.output):
            raise NoChain(
                f"the logits need more than the output of {block.name} at the end", block.name
            )


def _names_of_parameters(model: nn.Module, example: Tensor) -> Mapping[int, list[str]]:
    """Return the names of each matrix that decides model's output; tied ones have several.

    One that is held as [1, ...] is a matrix where it is multiplied as one; what is added to every
    sample alike, as a position embedding is, is none.
    """
    with _requiring_gradients(model):
        used = _leaves(logits_of(model, example))
    found = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in used or sum(size > 1 for size in parameter.shape) < 2:
            continue
        if len(parameter) > 1 or used[id(parameter)]:
            found[id(parameter)].append(name)
    return found


@contextmanager
def _requiring_gradients(model: nn.Module) -> Iterator[None]:
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for parameter in before:
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


def _leaves(output: Tensor) -> dict[int, bool]:
    """Return the tensors that output was computed from, by autograd's graph, by their ids.

    With each whether a product of matrices or a convolution takes it, turned or reshaped at most.
    """
    found: dict[int, bool] = {}
    waiting: list[tuple[Any, bool]] = [
        (output.grad_fn, False)
    ]  # a node, and whether into a product
    seen = set()
    while waiting:
        node, multiplied = waiting.pop()
        if node is None or (node, multiplied) in seen:
            continue
        seen.add((node, multiplied))
        if hasattr(node, "variable"):
            found[id(node.variable)] = multiplied or found.get(id(node.variable), False)
        kind = node.name().rstrip("0123456789")
        into = kind in PRODUCTS or (kind in RESHAPING and multiplied)
        waiting += [(behind, into) for behind, _ in node.next_functions]
    return found
