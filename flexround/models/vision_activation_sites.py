"""Activation sites of an image classifier.

Convolutions as BRECQ and QDrop quantize them, behind each activation function and each residual add
(arXiv 2102.05426, 2203.05740): a convolution whose output goes into an add first has none. The
classifier's own output has none. Transformer blocks as in language: the inputs of their layers, and
the classifier's behind them; softmax, norms and the image itself are left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from flexround.models.tracing import Call, Trace
from flexround.structure import Block, Role, Site


def with_sites(
    blocks: Sequence[Block], order: Trace, names: Mapping[nn.Module, str], kinds: tuple[type, ...]
) -> list[Block]:
    """Return blocks with their activation sites; kinds are the classes of activation functions."""
    found: list[list[Site]] = [[] for _ in blocks]
    taking = _blocks_with_inputs(blocks, order)
    inner = {module for index in taking for module in blocks[index].module.modules()}
    functions = [
        call for call in order.calls if isinstance(call.module, kinds) and call.module not in inner
    ]
    owners = _owners(blocks, order, functions)
    places = [(owner, call.module) for owner, call in zip(owners, functions, strict=True)]
    serves = Counter(module for _, module in set(places))  # in how many blocks
    for number, (owner, module) in enumerate(places):
        use = places[:number].count((owner, module))
        name = f"{names[module]}.output"
        if places.count((owner, module)) > 1:
            name += f".{use}"
        if serves[module] > 1:
            name = f"{blocks[owner].name} {name}"
        found[owner].append(Site(name, [module], "output", use))
    for index in taking:
        found[index] += _inputs_of(blocks[index], order, names)
    for index, block in enumerate(blocks[:-1]):
        if not {index, index + 1} & taking and _has_own_output(block, order, functions):
            found[index].append(Site(f"{block.name}.output", [block.module], "output"))
    return [
        replace(block, sites=[replace(site, role=_role(index, site, found)) for site in sites])
        for index, (block, sites) in enumerate(zip(blocks, found, strict=True))
    ]


def _blocks_with_inputs(blocks: Sequence[Block], order: Trace) -> set[int]:
    """Return the indices of transformer blocks, and of the classifier right behind them."""

    def tokens(block: Block) -> bool:
        layer = block.layers[0].module is block.module
        return not layer and order.first[block.module].output.dim() == 3

    found = {index for index, block in enumerate(blocks) if tokens(block)}
    last = len(blocks) - 1
    return found | ({last} if last - 1 in found else set())


def _inputs_of(block: Block, order: Trace, names: Mapping[nn.Module, str]) -> list[Site]:
    """Return the sites of a block's layers; those that take one tensor share it."""
    together: dict[int, list[nn.Module]] = {}
    for layer in block.layers:
        together.setdefault(id(order.first[layer.module].inputs), []).append(layer.module)
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
