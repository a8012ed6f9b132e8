"""Chain of like layers in a transformer, found by its structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from flexround.structure import is_quantizable


def chain_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the transformer layers of model by name, in order.

    Raises:
        ValueError: when there is no list of like layers, or there are several.
    """
    lists = {
        name: module for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len({type(layer) for layer in module}) == 1
        and any(is_quantizable(sub) for sub in module.modules())
    }  # fmt: skip
    outermost = [name for name in lists if not any(name.startswith(f"{o}.") for o in lists)]
    kind = type(model).__name__
    if not outermost:
        raise ValueError(f"{kind} holds no list of like transformer layers")
    if len(outermost) > 1:
        raise ValueError(
            f"{kind} holds several lists of layers ({', '.join(outermost)}); only networks that "
            "are one chain of layers can be quantized"
        )
    (name,) = outermost
    return {f"{name}.{index}": layer for index, layer in lists[name].named_children()}


def in_chain(
    model: nn.Module, chain: Mapping[str, nn.Module], found: Mapping[nn.Module, Any]
) -> list[Any]:
    """Return what was found of each layer of model's chain as it was called, in their order.

    Raises:
        ValueError: names the first that model does not call as a module.
    """
    for name, module in chain.items():
        if module not in found:
            raise ValueError(
                f"{type(model).__name__} runs {name} without calling it as a module, so that "
                "nothing can be seen of it; it can't be quantized"
            )
    return [found[module] for module in chain.values()]
