"""Where BRECQ and QDrop quantize the activations of a convolutional classifier.

Behind each activation function and each residual add (arXiv 2102.05426, 2203.05740): a convolution
whose output goes into an add first has none. The classifier's own output has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from flexround.blocks import Block
from flexround.models.tracing import Call, Trace
from flexround.sites import Role, Site


def with_sites(
    blocks: Sequence[Block], order: Trace, names: Mapping[nn.Module, str], kinds: tuple[type, ...]
) -> list[Block]:
    """Return blocks with their activation sites; kinds are the classes of activation functions."""
    found: list[list[Site]] = [[] for _ in blocks]
    functions = [call for call in order.calls if isinstance(call.module, kinds)]
    owners = [_owner(blocks, order, call) for call in functions]
    for owner, call in zip(owners, functions, strict=True):
        same = [
            c
            for o, c in zip(owners, functions, strict=True)
            if (o, c.module) == (owner, call.module)
        ]
        use = next(i for i, other in enumerate(same) if other is call)
        name = f"{names[call.module]}.output" + (f".{use}" if len(same) > 1 else "")
        if any(
            c.module is call.module for o, c in zip(owners, functions, strict=True) if o != owner
        ):
            name = f"{blocks[owner].name} {name}"  # one module serves several blocks
        found[owner].append(Site(name, [call.module], "output", use))
    for index, block in enumerate(blocks[:-1]):
        if _has_own_output(block, order, functions):
            found[index].append(Site(f"{block.name}.output", [block.module], "output"))
    return [
        replace(block, sites=[replace(site, role=_role(index, site, found)) for site in sites])
        for index, (block, sites) in enumerate(zip(blocks, found, strict=True))
    ]


def _owner(blocks: Sequence[Block], order: Trace, call: Call) -> int:
    """Return the block that call is part of, or that began last before it."""
    places = {id(other): place for place, other in enumerate(order.calls)}
    began = [places[id(order.first[block.module])] for block in blocks]
    return max(i for i, start in enumerate(began) if start < places[id(call)])


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
