"""Activation sites of a convolutional classifier, as BRECQ and QDrop quantize them.

Behind each activation function and each residual add (arXiv 2102.05426, 2203.05740): a convolution
whose output goes into an add first has none. The classifier's own output has none.
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
    functions = [call for call in order.calls if isinstance(call.module, kinds)]
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
    for index, block in enumerate(blocks[:-1]):
        if _has_own_output(block, order, functions):
            found[index].append(Site(f"{block.name}.output", [block.module], "output"))
    return [
        replace(block, sites=[replace(site, role=_role(index, site, found)) for site in sites])
        for index, (block, sites) in enumerate(zip(blocks, found, strict=True))
    ]


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
    if index == 0:
        return "stem"
    last = max(i for i, sites in enumerate(found) if sites)
    return "head" if site is found[last][-1] else "inner"
