"""Activation sites of an image classifier.

Convolutions as BRECQ and QDrop quantize them, behind each activation function and each residual add
(arXiv 2102.05426, 2203.05740): a convolution whose output goes into an add first has none. The
classifier's own output has none. Transformer blocks as in language: the inputs of their layers, and
the classifier's behind them; softmax, norms and the image itself are left alone. Where a layer
takes what none of these gives (a functional SiLU's output, a gate's product), its input is one too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import itemgetter

from torch import Tensor, nn

from flexround.models.quantized_inputs import unquantized
from flexround.models.tracing import Call, Trace
from flexround.structure import Block, Role, Site


def with_sites(
    blocks: Sequence[Block],
    model: nn.Module,
    example: Tensor,
    order: Trace,
    kinds: tuple[type, ...],
) -> list[Block]:
    """Return blocks with their activation sites; kinds are the classes of activation functions.

    order is model's trace on example.
    """
    names = {module: name for name, module in model.named_modules()}
    found: list[list[tuple[int, Site]]] = [[] for _ in blocks]  # each with its place in the pass
    taking = _blocks_with_inputs(blocks, order)
    inner = {module for index in taking for module in blocks[index].module.modules()}
    began = {id(call): place for place, call in enumerate(order.calls)}
    layers = [layer.module for block in blocks for layer in block.layers]
    classifier = max(began[id(order.first[layer])] for layer in layers)
    functions = [
        call
        for call in order.calls[:classifier]
        if isinstance(call.module, kinds) and call.module not in inner
    ]
    owned = list(zip(_owners(blocks, order, functions), functions, strict=True))
    run = [{block.activation, *block.module.modules()} for block in blocks]
    # Behind a pooling or a norm outside of its block a function is not run by the block's unit: the
    # layer that takes its values has them quantized.
    outside = {owner for owner, call in owned if call.module not in run[owner]}
    owned = [(owner, call) for owner, call in owned if call.module in run[owner]]
    functions = [call for _, call in owned]
    places = [(owner, call.module) for owner, call in owned]
    serves = Counter(module for _, module in set(places))  # in how many blocks
    for number, (owner, call) in enumerate(owned):
        module = call.module
        use = places[:number].count((owner, module))
        name = f"{names[module]}.output"
        if places.count((owner, module)) > 1:
            name += f".{use}"
        if serves[module] > 1:
            name = f"{blocks[owner].name} {name}"
        site = Site(name, [module], "output", use)
        found[owner].append((began[id(call)], site))
    for index, block in enumerate(blocks[:-1]):
        inside = not {index, index + 1} & taking and index not in outside
        if inside and _has_own_output(block, order, functions):
            site = Site(f"{block.name}.output", [block.module], "output")
            found[index].append((len(order.calls), site))
    behind = [module for sites in found for _, site in sites for module in site.modules]
    inputs = [layer.module for index in taking for layer in blocks[index].layers]
    bare = unquantized(model, example, layers, inputs, behind)
    for index, block in enumerate(blocks):
        own = [layer.module for layer in block.layers]
        own = own if index in taking else [module for module in own if module in bare]
        for site in _inputs_of(own, order, names):
            found[index].append((began[id(order.first[site.modules[0]])], site))
    sites = [[site for _, site in sorted(own, key=itemgetter(0))] for own in found]
    return [
        replace(block, sites=[replace(site, role=_role(index, site, sites)) for site in own])
        for index, (block, own) in enumerate(zip(blocks, sites, strict=True))
    ]


def _blocks_with_inputs(blocks: Sequence[Block], order: Trace) -> set[int]:
    """Return the indices of transformer blocks, and of the classifier right behind them."""

    def tokens(block: Block) -> bool:
        layer = block.layers[0].module is block.module
        size = order.first[block.module].output.dim()
        return not layer and size == 3 and block.channel_dim == -1

    found = {index for index, block in enumerate(blocks) if tokens(block)}
    last = len(blocks) - 1
    return found | ({last} if last - 1 in found else set())


def _inputs_of(
    layers: Sequence[nn.Module], order: Trace, names: Mapping[nn.Module, str]
) -> list[Site]:
    """Return the sites of what layers of a block take; those that take one tensor share it."""
    together: dict[tuple[int, int], list[nn.Module]] = {}
    for layer in layers:
        call = order.first[layer]
        together.setdefault((id(call.inputs), call.input_version), []).append(layer)
    return [Site(f"{names[ms[0]]}.input", ms, "input") for ms in together.values()]


def _owners(blocks: Sequence[Block], order: Trace, calls: Sequence[Call]) -> list[int]:
    """Return the block that each call is part of, or that began last before it."""
    places = {id(call): place for place, call in enumerate(order.calls)}
    began = [places[id(order.first[block.module])] for block in blocks]
    return [max(i for i, start in enumerate(began) if start < places[id(call)]) for call in calls]


def _has_own_output(block: Block, order: Trace, functions: Sequence[Call]) -> bool:
    """Return whether the block's output is no activation function's, nor on its way into one."""
    if block.activation is not None:
        return False
    own = order.first[block.module]
    return not any(
        call.output is own.output and call.output_version == own.output_version
        for call in functions
    )


def _role(index: int, site: Site, found: Sequence[Sequence[Site]]) -> Role:
    if index == 0 and site is found[0][0]:
        return "stem"
    last = max(i for i, sites in enumerate(found) if sites)
    return "head" if site is found[last][-1] else "inner"
