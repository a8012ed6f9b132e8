"""Checks of a vision network: no weight is passed over, and its blocks are a chain.

Every matrix and kernel that takes part in the network's output must be the weight of a layer that
can be quantized and that is called as a module, so that its inputs are seen. Else the network is
refused in words, rather than left full precision in silence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
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
    for held, products in _used_matrices(model, example):
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
                f"model.leave=[{name.removesuffix('.weight')}] leaves it in full precision"
            )
        if products > (calls := sum(order.runs.get(owner, 0) for owner in {*owners})):
            name = held[0].rpartition(".")[0]
            raise ValueError(
                f"layer {name}: its weight is in {products} products of a pass, and the layer is "
                f"called for {calls} of them; what else it is multiplied with is not known; "
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
    alike = torch.zeros(len(example), dtype=torch.long)  # one sample's stand for all samples'
    with ExitStack() as stack:
        for block, output in zip(
            blocks, [*(o[alike] for o in outputs[:-1]), outputs[-1]], strict=True
        ):
            stack.enter_context(stub_forward(block.module, output))
        if not same_output(adapter.forward(example), order.output):
            raise NoChain(
                f"the logits need more than the output of {block.name} at the end", block.name
            )


def _used_matrices(model: nn.Module, example: Tensor) -> list[tuple[list[str], int]]:
    """Return the names of each matrix that decides model's output; tied ones have several.

    With them, in how many products it takes part. One that is held as [1, ...] is a matrix where it
    is multiplied as one; what is added to every sample alike, as a position embedding is, is none.
    """
    with _requiring_gradients(model):
        used = _leaves(logits_of(model, example))
    found = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in used or sum(size > 1 for size in parameter.shape) < 2:
            continue
        if len(parameter) > 1 or used[id(parameter)]:
            found[id(parameter)].append(name)
    return [(names, len(used[parameter])) for parameter, names in found.items()]


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


def _leaves(output: Tensor) -> dict[int, set[Any]]:
    """Return the tensors that output was computed from, by autograd's graph, by their ids.

    With each the products of matrices and convolutions that take it, turned or reshaped at most.
    """
    found: dict[int, set[Any]] = {}
    waiting: list[tuple[Any, Any]] = [(output.grad_fn, None)]  # a node, and into which product
    seen = set()
    while waiting:
        node, product = waiting.pop()
        if node is None or (node, product) in seen:
            continue
        seen.add((node, product))
        if hasattr(node, "variable"):
            found.setdefault(id(node.variable), set()).update([product] if product else ())
        kind = node.name().rstrip("0123456789")
        into = node if kind in PRODUCTS else product if kind in RESHAPING else None
        waiting += [(behind, into) for behind, _ in node.next_functions]
    return found
