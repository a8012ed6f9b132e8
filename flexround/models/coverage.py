"""Coverage: which of the weights in a model's blocks are quantized, and which are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from flexround.structure import Block, Site


@dataclass(frozen=True)
class Coverage:
    """How many of the blocks' weights are quantized; a weight is a number in a matrix.

    Attributes:
        quantized: those on the grid.
        total: all in parameters of two dimensions and more.
        left: the names of parameters that `leave` keeps in full precision.
    """

    quantized: int
    total: int
    left: tuple[str, ...]

    @property
    def share(self) -> float:
        """The quantized part of all, from 0 to 1."""
        return self.quantized / self.total

    def summary(self) -> str:
        """Return it in one line."""
        text = f"{self.share:.2%} of the blocks' {self.total:,} weights are quantized"
        if self.left:
            shown = ", ".join(self.left[:3]) + (", ..." if len(self.left) > 3 else "")
            text += f"; left in full precision: {len(self.left)} by model.leave ({shown})"
        return text


def without_left(blocks: Sequence[Block], leave: Sequence[str]) -> list[Block]:
    """Return blocks without the layers that an entry of leave names, nor the sites of these alone.

    Sites of keys and values stay: they are of the cache, whatever the weights in front are.

    An entry is a name within a block, of a layer or of what holds it, or a pattern (`*.k_proj`),
    with or without `.weight` at its end; a name in the model is taken, too.
    """
    return [_without(block, leave) for block in blocks] if leave else list(blocks)


def coverage_of(
    blocks: Sequence[Block], leave: Sequence[str], outside: Mapping[str, nn.Parameter]
) -> Coverage:
    """Return the coverage of blocks, whose layers are those that are quantized.

    outside are matrices in no block, by name, of which those that leave names count as well.

    Raises:
        ValueError: when a block holds a matrix that is neither quantized nor named by leave, or
            leave names nothing, or everything.
    """
    quantized = total = 0
    left: list[str] = []
    used: set[str] = set()
    for block in blocks:
        own = {id(layer.module.weight) for layer in block.layers}
        for name, parameter in block.module.named_parameters():
            if parameter.dim() < 2:
                continue
            total += parameter.numel()
            full = f"{block.name}.{name}"
            entries = [entry for entry in leave if _names(entry, block.name, full)]
            used.update(entries)
            if id(parameter) in own:
                quantized += parameter.numel()
            elif entries:
                left.append(full)
            else:
                raise ValueError(_refusal(block, name, parameter))
    for name, parameter in outside.items():
        if entries := [entry for entry in leave if _names(entry, "", name)]:
            total += parameter.numel()
            used.update(entries)
            left.append(name)
    if idle := [entry for entry in leave if entry not in used]:
        names = {n for block in blocks for n, p in block.module.named_parameters() if p.dim() > 1}
        raise ValueError(
            f"model.leave={idle[0]} names no weight in a block; they are called "
            f"{', '.join(sorted(names)[:6])}, ..."
        )
    if not quantized:
        raise ValueError(f"model.leave={list(leave)} leaves nothing to quantize")
    return Coverage(quantized, total, tuple(left))


def _without(block: Block, leave: Sequence[str]) -> Block:
    kept = [layer for layer in block.layers if not is_left(layer.name, leave, block.name)]
    gone = {id(layer.module) for layer in block.layers} - {id(layer.module) for layer in kept}
    sites = [own for site in block.sites if (own := _site(site, gone)) is not None]
    return replace(block, layers=kept, sites=sites)


def _site(site: Site, gone: set[int]) -> Site | None:
    """Return site without the layers that are gone, None where no other takes the tensor."""
    if site.role == "kv":
        return site
    modules: list[nn.Module] = [module for module in site.modules if id(module) not in gone]
    return replace(site, modules=modules) if modules else None


def is_left(name: str, leave: Sequence[str], block: str = "") -> bool:
    """Return whether leave names the parameter or layer that the model calls name.

    Where it lies in block, its name in there will do.
    """
    return any(_names(entry, block, name) for entry in leave)


def _names(entry: str, block: str, name: str) -> bool:
    path, entry = name.removesuffix(".weight"), entry.removesuffix(".weight")
    within = path.removeprefix(f"{block}.") if block else path
    return any(fnmatchcase(n, entry) or n.startswith(f"{entry}.") for n in (path, within))


def _refusal(block: Block, name: str, parameter: nn.Parameter) -> str:
    path = name.removesuffix(".weight")
    return (
        f"{block.name}.{name} {list(parameter.shape)} is a weight that no method can quantize; "
        f"model.leave=[{path}] leaves it in full precision"
    )
