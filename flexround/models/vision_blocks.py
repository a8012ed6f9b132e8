"""Blocks of a vision network: BRECQ's units of convolutions (2102.05426), or transformer blocks.

A residual or a transformer block is one unit, every other layer a unit of its own. They must be a
chain: each takes what the one before it has given, and nothing else of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from flexround.models.tracing import Trace
from flexround.models.vision_activation_sites import with_sites
from flexround.structure import Block, Layer, is_quantizable, is_transposed

ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.Mish, nn.ELU, nn.SELU,
    nn.PReLU,
)  # fmt: skip


def find_blocks(
    model: nn.Module,
    example: Tensor,
    order: Trace,
    first_last_bits: int | None,
    classes: Sequence[str],
    units: Sequence[str] = (),
) -> list[Block]:
    """Return the blocks in execution order: modules of the classes, units, the layers outside.

    order is model's trace on example. classes are names of classes, units those of single modules.

    Raises:
        ValueError: when there is no layer, or a layer or unit is not called once with one tensor.
    """
    names = {module: name for name, module in model.named_modules()}
    called = [module for module in order.runs if is_quantizable(module)]
    if not called:
        raise ValueError("the model holds no convolution or linear layer to quantize")
    for module in called:
        _check_called_once("layer", names[module], module, order)
    layers = {
        module: Layer(
            names[module],
            module,
            first_last_bits if module in (called[0], called[-1]) else None,
            order.consumer(module, ACTIVATIONS),
        )
        for module in called
    }
    blocks = []
    single = {model.get_submodule(name) for name in units}
    for unit in dict.fromkeys(_units(model, classes, single)):
        within = set(unit.modules())
        inside = [layers[module] for module in called if module in within]
        if inside:
            _check_called_once("block", names[unit], unit, order)
            own = inside[0].activation if inside[0].module is unit else None
            channels = _channel_dim(unit, inside[-1].module, order)
            blocks.append(Block(names[unit], unit, inside, own, (), channels))
    if not blocks:
        raise ValueError("the model is a layer by itself; give it inside of a torch.nn.Sequential")
    position = {module: index for index, module in enumerate(order.modules)}
    blocks.sort(key=lambda block: position[block.module])
    return with_sites(blocks, model, example, order, ACTIVATIONS)


def _units(
    module: nn.Module, classes: Sequence[str], single: set[nn.Module]
) -> Iterator[nn.Module]:
    for child in module.children():
        known = type(child).__name__ in classes or child in single
        if known or is_quantizable(child):
            yield child
        else:
            yield from _units(child, classes, single)


def _channel_dim(unit: nn.Module, last: nn.Module, order: Trace) -> int:
    """Return the axis of the channels: 1 of images [batch, channels, ...], else the last.

    last is the unit's last layer; what a Conv1d gives is [batch, channels, length].
    """
    size = order.first[unit].output.dim()
    images = size == 4 and not (isinstance(unit, nn.Linear) or is_transposed(unit))
    return 1 if images or (size == 3 and isinstance(last, nn.Conv1d)) else -1


def _check_called_once(what: str, name: str, module: nn.Module, order: Trace) -> None:
    """Check that a layer or block is called once in a pass, with one tensor for one tensor.

    Raises:
        ValueError: when it is not; names it.
    """
    runs = order.runs[module]
    if runs > 1:
        times = "twice" if runs == 2 else f"{runs} times"
        raise ValueError(f"{what} {name} is used {times} in one pass; it cannot be quantized")
    if not runs:
        raise ValueError(
            f"{what} {name} is not called as a whole, only what it holds; its output is unknown"
        )
    if module not in order.first or not order.first[module].alone:
        raise ValueError(
            f"{what} {name} takes or gives more than one tensor; only networks that are a chain of "
            "blocks can be reconstructed"
        )
